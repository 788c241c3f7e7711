"""Train stage 1 on noisy, on filtered and on clean captions of the shapes world.

    python -m benchmarks.capfilt_shapes
    python -m benchmarks.capfilt_shapes --workdir runs/capfilt_shapes --seeds 1

30 % of the captions of 2,000 scenes are swapped ("raw"). For each seed, stage 1 is
trained on them, and that model ranks for CapFilt. Stage 1 is trained anew on the
filtered captions, and on captions without swaps ("clean"):

    filtered         the model that ranks also captions: nothing has seen clean captions
    filtered_shapes  the model of the package captions; it was trained on clean ones

All are evaluated on other scenes and compared, paired by seed and by example. The same
command continues after a kill.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from blip2_jax.capfilt.candidates import GENERATED
from blip2_jax.capfilt.job import CapFiltJob, CapFiltOptions
from blip2_jax.capfilt.models import ModelName, Sampling
from blip2_jax.cli.capfilt import write_page
from blip2_jax.cli.evaluation_run import evaluate_run
from blip2_jax.configs import capfilt_shapes
from blip2_jax.configs.eval import shapes_tables as exams
from blip2_jax.data.shapes.captions import parse_caption
from blip2_jax.data.shapes.world import scene
from blip2_jax.data.sources.reading import read_encoded
from blip2_jax.data.sources.registry import build_source
from blip2_jax.data.sources.swapped_captions import SwappedCaptions
from blip2_jax.data.tar_writer import open_tar_writer
from blip2_jax.evaluation.compare import Table
from blip2_jax.evaluation.compare_seeds import read_statistics
from blip2_jax.metrics.seed_bootstrap import mean_over_seeds, paired_difference
from blip2_jax.parallel.shard_jobs import run_shards
from blip2_jax.perf.compile_cache import enable_compile_cache
from blip2_jax.training.loop import train

# The captioner of each filtered set; "": the run on the raw captions.
CAPTIONERS = {"filtered": "", "filtered_shapes": "shapes"}
CAPTIONS = ("raw", "filtered", "clean", "filtered_shapes")
CLEAN = {"kind": "shapes", "split": "train", "size": 2000, "count": 1}
RAW = {"kind": "swapped_captions", "of": CLEAN, "share": 0.3}
EXAMS = ("retrieval,validation",)
SCORES = {"retrieval,validation": ("itc_i2t_r1", "itc_t2i_r1", "itm_i2t_r1")}
PAIRS = [("raw", captions) for captions in CAPTIONS[1:]]


def main() -> int:
    """Make all missing runs and print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workdir", type=pathlib.Path, default=pathlib.Path("runs/capfilt_shapes"))
    add("--seeds", type=int, default=3)
    add("--steps", type=int, default=0, help="of each training; 0: the configuration's")
    arguments = parser.parse_args()
    enable_compile_cache(None)
    workdir, seeds = arguments.workdir.absolute(), arguments.seeds
    for name, spec in (("raw", RAW), ("clean", CLEAN)):
        write_tars(spec, workdir / name)
    for seed in range(seeds):
        for captions in CAPTIONS:
            if code := train_and_evaluate(workdir, captions, seed, arguments.steps):
                return code
    print(captions_table(workdir, seeds).markdown(), end="\n\n")
    for table in score_tables(workdir, seeds):
        print(table.markdown(), end="\n\n")
    return 0


def write_tars(spec: dict[str, Any], directory: pathlib.Path) -> None:
    """Write the scenes of a source as a tar, unless that has been done."""
    path = directory / "000000.tar"
    if path.exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    source = build_source(spec)
    with open_tar_writer(path.with_suffix(".tmp")) as tar:
        for index in range(len(source)):
            record = source.record(index)
            content = {"captions": record.captions}
            tar.write(f"{index:09d}", read_encoded(source, index, record.key), content)
    path.with_suffix(".tmp").replace(path)


def train_and_evaluate(
    workdir: pathlib.Path, captions: str, seed: int, steps: int
) -> int:
    """Complete a run and its evaluations; returns the exit code of the training."""
    run = run_directory(workdir, captions, seed)
    missing = [exam for exam in EXAMS if not record_path(run, exam).exists()]
    if not missing:
        return 0
    tars = workdir / captions
    if captions in CAPTIONERS:
        tars = filtered_directory(workdir, captions, seed)
        job = capfilt_job(workdir, captions, seed)
        run_shards(job)
        write_page(job, examples=24)
    config = capfilt_shapes.get_config(str(tars)).unlock()
    config.seed, config.steps = seed, steps or config.steps
    if code := train(config.lock(), run):
        return code
    for exam in missing:
        evaluation = exams.get_config(exam).unlock()
        evaluation.model, evaluation.out = str(run), str(record_path(run, exam))
        evaluate_run(evaluation.lock())
    return 0


def capfilt_job(workdir: pathlib.Path, captions: str, seed: int) -> CapFiltJob:
    """Return the job that filters the raw captions by the model trained on them."""
    ranker = ModelName(str(run_directory(workdir, "raw", seed)))
    captioner = ModelName(CAPTIONERS[captions] or ranker.path)
    sampling = Sampling(seed=seed, max_new_tokens=28)
    web = {"kind": "tars", "paths": f"{workdir / 'raw'}/*.tar"}
    index = {"index_directory": f"{workdir / 'raw'}/index"}
    return CapFiltJob(
        filtered_directory(workdir, captions, seed),
        [web | index],
        CapFiltOptions(captioner, ranker, sampling=sampling),
        shard_size=500,
        batch_size=50,
    )


def run_directory(workdir: pathlib.Path, captions: str, seed: int) -> pathlib.Path:
    """Return the directory of a run."""
    return workdir / f"seed_{seed}" / captions


def filtered_directory(workdir: pathlib.Path, captions: str, seed: int) -> pathlib.Path:
    """Return the directory of the tars that CapFilt writes for a run."""
    return workdir / f"seed_{seed}" / f"tars_{captions}"


def record_path(run: pathlib.Path, exam: str) -> pathlib.Path:
    """Return the path of the record of an evaluation."""
    return run / f"{exam.replace(',', '_')}.json"


def captions_table(workdir: pathlib.Path, seeds: int) -> Table:
    """Say what the filters did to swapped and to right web captions, by seed."""
    source = build_source(RAW)
    assert isinstance(source, SwappedCaptions)
    rows = []
    for captions in CAPTIONERS:
        for seed in range(seeds):
            dropped: dict[bool, list[bool]] = {False: [], True: []}
            right: dict[str, list[bool]] = {"all": [], GENERATED: []}
            directory = filtered_directory(workdir, captions, seed)
            for number, content in read_records(directory):
                kept = content["candidates"][0]["kept"]
                dropped[source.is_swapped(number)].append(not kept)
                right["all"] += [is_right(text, number) for text in content["captions"]]
                right[GENERATED] += [
                    is_right(each["text"], number)
                    for each in content["candidates"]
                    if each["origin"] == GENERATED
                ]
            parts = (dropped[True], dropped[False], right["all"], right[GENERATED])
            shares = [f"{100 * np.mean(part):.1f}" for part in parts]
            rows.append([f"{captions}, {seed}", *shares])
    head = ["captions, seed", "swapped dropped", "right ones dropped"]
    return Table([*head, "kept ones right", "samples right"], rows)


def read_records(directory: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the JSON of each record of CapFilt's tars."""
    for path in sorted(directory.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    file = tar.extractfile(member)
                    assert file is not None
                    yield int(member.name.partition(".")[0]), json.load(file)


def is_right(caption: str, number: int) -> bool:
    """Return True if a caption describes a scene correctly and completely."""
    return parse_caption(caption).describes(scene("train", number))


def score_tables(workdir: pathlib.Path, seeds: int) -> Iterator[Table]:
    """Yield the means over seeds, and the paired differences."""
    columns = [(exam, score) for exam in EXAMS for score in SCORES[exam]]
    statistics = {
        (captions, exam): [
            read_statistics(record_path(run_directory(workdir, captions, seed), exam))
            for seed in range(seeds)
        ]
        for captions in CAPTIONS
        for exam in EXAMS
    }

    def of(captions: str, exam: str, score: str) -> list[Any]:
        return [each[score] for each in statistics[captions, exam]]

    head = ["", *(f"{exam}: {score}" for exam, score in columns)]
    yield Table(
        head,
        [
            [name, *(mean_over_seeds(of(name, *column)).text() for column in columns)]
            for name in CAPTIONS
        ],
    )
    yield Table(
        head,
        [
            [
                f"{second} less {first}",
                *(
                    paired_difference(of(first, *column), of(second, *column)).text(
                        signed=True
                    )
                    for column in columns
                ),
            ]
            for first, second in PAIRS
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
