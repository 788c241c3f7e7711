"""Open a run over 129,000,000 records in tars: `python -m benchmarks.large_index`.

    python -m benchmarks.large_index --directory DIR [--records 129000000] [--keep]

Writes the index of a set of tars without the images: each tar holds one record, and the
10,000 records of a tar are that one, so that every record can be read. Then a fresh
process opens the set, reads 10,000 random records, and takes 10,000 more from two
worker processes at a random step. The same with a single tar is what all of that needs
without the index. Memory is what a process has alone (private), and that with its share
of common pages (Pss). For 129 M records, 6 GB are written to DIR and deleted again.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks import harness
from blip2_jax.data.sources.registry import build_source
from blip2_jax.data.sources.tar_index import TarIndex, scan_tar
from blip2_jax.data.sources.tar_indexing import index_path, set_directory, tar_states
from blip2_jax.data.sources.tar_set_writer import write_index
from tests.support.generated_data import bert_directory, encoded, picture, write_tar

RECORDS, RECORDS_OF_A_TAR = 129_000_000, 10_000
TOUCHED, BATCH, WORKERS = 10_000, 50, 2
MEGABYTE = 2**20


def main() -> None:
    """Write the index, measure it, print a table, and delete everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=pathlib.Path, required=True)
    parser.add_argument("--records", type=int, default=RECORDS)
    parser.add_argument("--keep", action="store_true", help="keep the written index")
    parser.add_argument("--measure", default="", help="spec of a source (internal)")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(json.loads(options.measure), options.directory)))
        return
    directory = options.directory / "large_index"
    start = time.perf_counter()
    specs = {
        count: write_large_set(directory / str(count), count)
        for count in (RECORDS_OF_A_TAR, options.records)
    }
    print(f"written in {time.perf_counter() - start:.0f} s")
    results = {
        count: in_fresh_process(spec, directory) for count, spec in specs.items()
    }
    head = ["", *(f"{count:,} records" for count in results)]
    rows = [
        [name, *(f"{result[name]:.2f}" for result in results.values())]
        for name in results[options.records]
    ]
    print(harness.table(head, rows))
    if not options.keep:
        shutil.rmtree(directory)


def write_large_set(directory: pathlib.Path, records: int) -> dict[str, Any]:
    """Write tars of one record each, and an index that has it 10,000 times a tar.

    Args:
      directory: new directory of tars and index.
      records: number of records; a multiple of 10,000.

    Returns:
      The spec of the source.
    """
    tars, index_directory = directory / "tars", directory / "index"
    tars.mkdir(parents=True)
    first = tars / "00000.tar"
    members = {
        "0.jpg": encoded(picture(0), "JPEG"),
        "0.txt": b"a red thing",
        "0.json": b'{"caption": "a red thing", "status": "success"}',
    }
    write_tar(first, members)
    count = records // RECORDS_OF_A_TAR
    paths = [tars / f"{number:05d}.tar" for number in range(count)]
    for path in paths[1:]:
        os.link(first, path)
    spec = {
        "kind": "tars",
        "paths": str(tars / "*.tar"),
        "index_directory": str(index_directory),
    }
    states = tar_states(paths)
    home = set_directory([spec["paths"]], spec["index_directory"])
    target = index_path(home, states)
    target.mkdir(parents=True)
    write_index(target, states, _indices(first, count))
    return spec


def _indices(tar: pathlib.Path, count: int) -> Iterator[TarIndex]:
    """Yield indices of 10,000 records with keys as img2dataset writes them."""
    one = scan_tar(tar)
    rows = np.repeat(one.records, RECORDS_OF_A_TAR)
    rows["key_size"] = 9
    rows["key_start"] = np.arange(RECORDS_OF_A_TAR) * 9
    names = "".join(f"00000{number:04d}" for number in range(RECORDS_OF_A_TAR))
    keys = np.frombuffer(names.encode(), np.uint8).reshape(-1, 9).copy()
    for number in range(count):
        keys[:, :5] = np.frombuffer(f"{number:05d}".encode(), np.uint8)
        yield TarIndex(rows, keys.reshape(-1).copy(), {})


def in_fresh_process(spec: dict[str, Any], directory: pathlib.Path) -> dict[str, float]:
    """Return the measurements of a process that does nothing else."""
    command = [sys.executable, "-m", "benchmarks.large_index", "--directory", directory]
    output = subprocess.run(
        [*map(str, command), "--measure", json.dumps(spec)],
        cwd=harness.ROOT,
        env=harness.environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    return json.loads(output)


def measure(spec: dict[str, Any], directory: pathlib.Path) -> dict[str, float]:
    """Open a source, read from it here and in worker processes."""
    from blip2_jax.data.pipeline import training_batches

    result: dict[str, float] = {}
    before = memory_mb("self")
    start = time.perf_counter()
    source = build_source(spec)
    result["open the source, s"] = time.perf_counter() - start
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for index in rng.integers(0, len(source), TOUCHED).tolist():
        source.record(index)
    seconds = time.perf_counter() - start
    result[f"read {TOUCHED:,} random records, s"] = seconds
    after = memory_mb("self")
    result["added to this process, private MB"] = after[0] - before[0]
    result["added to this process, Pss MB"] = after[1] - before[1]
    start = time.perf_counter()
    source.fingerprint()
    result["fingerprint, s"] = time.perf_counter() - start
    options = {
        "train": [spec],
        "image": {"size": 32},
        "tokenizer": {"qformer": bert_directory(directory / "bert")},
        "workers": WORKERS,
    }
    start = time.perf_counter()
    step = int(rng.integers(0, 3 * len(source) // BATCH))
    batches = training_batches(
        options, "image_text", seed=0, batch_size=BATCH, start_step=step
    )
    next(batches)
    result["first batch at a random step, s"] = time.perf_counter() - start
    for _ in range(TOUCHED // BATCH):
        next(batches)
    for number, child in enumerate(children()):
        private, pss = memory_mb(child)
        result[f"worker {number}, private MB"] = private
        result[f"worker {number}, Pss MB"] = pss
    batches.close()
    return result


def memory_mb(process: int | str) -> tuple[float, float]:
    """Return the private memory of a process and its proportional share (Pss)."""
    private = pss = 0
    for line in pathlib.Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.startswith("Private_"):
            private += int(rest.split()[0])
        elif name == "Pss":
            pss += int(rest.split()[0])
    return private / 1024, pss / 1024


def children() -> list[int]:
    """Return the worker processes of this process, without Python's helper process."""
    found = []
    for task in pathlib.Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            command = pathlib.Path(f"/proc/{child}/cmdline").read_bytes()
            if b"spawn_main" in command:
                found.append(int(child))
    return sorted(found)


if __name__ == "__main__":
    main()
