"""Seeded damage to annotation and data files, read through every source.

`python -m tests.support.fuzzing FOLDER FIRST COUNT LAYOUT ...` runs cases in this
process. It prints the name of every case before it runs, so that a crash or a hang of a
library is known by the last line.
"""

import contextlib
import json
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from blip2_jax.data.record_files import write_records
from blip2_jax.data.sources.array_records import ArrayRecordSource
from blip2_jax.data.sources.base import BrokenSample
from blip2_jax.data.sources.layouts import detect_layout
from blip2_jax.data.sources.reading import read_pixels, read_record
from blip2_jax.data.sources.registry import build_source
from tests.support import layouts

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 20  # of a case, after which it hangs
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrayrecord")
SETTINGS = ("job.json", "manifest.json", "dropped.jsonl")
LAYOUTS = (
    *("csv", "tsv", "flickr30k", "cc12m", "json_lists", "json_lines", "lavis"),
    *("captions_by_file", "coco", "karpathy", "sbu", "visual_genome", "metadata_jsonl"),
    *("parquet", "parquet_binary", "parquet_names", "array_record"),
)
VALUES = (
    *(
        None,
        True,
        0,
        -1,
        10**30,
        1.5,
        float("nan"),
        float("inf"),
        "",
        "x",
        "\0",
        "../x",
    ),
    *("\ud800", "\u2028", [], {}, [[]], [None], {"a": 1}, ["x"] * 50, "long" * 5000),
    {"bytes": "x"},
)
COLUMNS = (
    pa.array([None] * 5),
    pa.array([1, 2, 3, 4, 5]),
    pa.array([1.5, float("nan"), None, 0.0, 1e300]),
    pa.array([b"x", b"", None, b"\xff\xd8", b"0"]),
    pa.array([["a"], [], None, [None], ["b", "c"]]),
    pa.array([{"bytes": b"x"}, None, {"bytes": None}, {"bytes": b""}, None]),
    pa.array([{"path": "x"}, None, {"path": None}, {"path": ""}, None]),
    pa.array([[["a"]], [[]], None, [None], [["b"]]]),
    pa.array(["a", "a", None, "", "\0"]),
    pa.array([True, False, None, True, True]),
)


def run_cases(
    folder: pathlib.Path, layouts_: tuple[str, ...], first: int, count: int
) -> list[str]:
    """Run cases in another process; return what went wrong.

    Args:
      folder: empty folder for the files.
      layouts_: names of layouts.
      first: first seed.
      count: number of seeds for each layout.
    """
    arguments = [str(folder), str(first), str(count), *layouts_]
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.fuzzing", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    lines = run.stdout.splitlines()
    problems = [line for line in lines if line.startswith("problem:")]
    if run.returncode:
        end = f"exit code {run.returncode}"
        with contextlib.suppress(ValueError):
            end = signal.Signals(-run.returncode).name
        problems.append(f"{lines[-1:]} ended by {end}: {run.stderr[-2000:]}")
    assert problems or len(lines) == count * len(layouts_)
    return problems


def main() -> None:
    """Run the cases of the command line."""
    folder, first, count = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:4])
    for name in sys.argv[4:]:
        path = layouts.WRITERS[name][1](folder / name)
        layout = detect_layout(path)
        files = sorted(
            file
            for file in (folder / name).rglob("*")
            if file.suffix in SUFFIXES
            and file.name not in SETTINGS
            and not file.name.endswith(".report.json")
            and "raw" not in file.parts
        )
        originals = {file: file.read_bytes() for file in files}
        for seed in range(first, first + count):
            print(f"{name} seed {seed}", flush=True)
            rng = np.random.default_rng([seed, len(name)])
            file = files[int(rng.integers(len(files)))]
            damage(file, originals[file], rng)
            signal.alarm(SECONDS)
            for problem in (
                problem_of(lambda: read_all(layout.spec), file),  # noqa: B023
                problem_of(lambda: detect_layout(path), file),  # noqa: B023
            ):
                if problem:
                    print(f"problem: {name} seed {seed}: {problem}", flush=True)
            signal.alarm(0)
            file.write_bytes(originals[file])
        shutil.rmtree(folder / name)


def read_all(spec: dict) -> None:
    """Build a source and read all of its records and images."""
    source = build_source(spec)
    for index in range(len(source)):
        with contextlib.suppress(BrokenSample):
            record = read_record(source, index)
            read_pixels(source, index, record.key)
    source.content()


def problem_of(action, file: pathlib.Path) -> str:
    """Return what is wrong with the error of an action; "" if nothing is.

    An error must be one for the user, and name the file or its folder.
    """
    try:
        action()
    except (ValueError, OSError) as error:
        named = any(str(name) in str(error) for name in (file.name, *file.parents[:2]))
        return "" if named else f"no file in {type(error).__name__}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def damage(path: pathlib.Path, data: bytes, rng: np.random.Generator) -> None:
    """Write a damaged copy of a file: its bytes, or well-formed wrong content."""
    if rng.random() < 0.5:
        if path.suffix == ".parquet":
            return damage_columns(path, rng)
        if path.suffix == ".arrayrecord":
            return damage_records(path, rng)
        if path.suffix == ".json":
            return damage_values(path, data, rng)
    path.write_bytes(damage_bytes(data, rng))
    return None


def damage_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip, remove, insert, repeat or zero some bytes, or cut the end."""
    for _ in range(int(rng.integers(1, 4))):
        start = int(rng.integers(len(data) + 1))
        length = int(rng.choice([1, 2, 8, 64, 1024]))
        piece = data[start : start + length]
        new = (
            bytes([b ^ 1 << int(rng.integers(8)) for b in piece[:1]]) + piece[1:],
            b"",
            piece + rng.bytes(length),
            piece + piece,
            b"\0" * len(piece),
            rng.bytes(len(piece)),
            piece[::-1],
        )
        kind = int(rng.integers(len(new) + 1))
        if kind == len(new):
            data = data[:start]
        else:
            data = data[:start] + new[kind] + data[start + length :]
    return data


def damage_values(path: pathlib.Path, data: bytes, rng: np.random.Generator) -> None:
    """Replace a value somewhere in a JSON file, or remove it."""
    holder = content = {"root": json.loads(data)}
    key: object = "root"
    while isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.8:
        holder = holder[key]
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = keys[int(rng.integers(len(keys)))]
    if rng.random() < 0.2 and key != "root":
        del holder[key]
    elif rng.random() < 0.1:
        path.write_text(data.decode().replace(":", ":" + "[" * 100_000, 1))
        return
    else:
        holder[key] = VALUES[int(rng.integers(len(VALUES)))]
    path.write_text(json.dumps(content["root"]))


def damage_columns(path: pathlib.Path, rng: np.random.Generator) -> None:
    """Replace a column of a Parquet file by one of another type, or rename it."""
    table = pq.read_table(path)
    number = int(rng.integers(table.num_columns))
    name = table.column_names[number]
    if rng.random() < 0.2:
        table = table.rename_columns({name: f"other_{name}"})
    else:
        column = COLUMNS[int(rng.integers(len(COLUMNS)))]
        rows = rng.integers(len(column), size=table.num_rows)
        table = table.set_column(number, name, column.take(pa.array(rows)))
    if rng.random() < 0.2:
        table = table.slice(0, 0)
    pq.write_table(table, path)


def damage_records(path: pathlib.Path, rng: np.random.Generator) -> None:
    """Write damaged records into a whole ArrayRecord file."""
    source = ArrayRecordSource(str(path))
    records = [source.read_bytes(index) for index in range(len(source))]
    number = int(rng.integers(len(records)))
    records[number] = damage_bytes(records[number], rng)
    write_records(path, records)


if __name__ == "__main__":
    main()
