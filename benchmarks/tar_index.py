"""Index 1,000,000 samples in 1,000 tars, and train an epoch of them.

    python -m benchmarks.tar_index --directory DIR [--tars 1000] [--share 1]

Writes tars of tiny JPEGs with captions to DIR, measures how long the index takes with
one process and with one on each core, to open it again, and to mend it after one tar
has changed; reads batches from a random step with two worker processes, and goes on for
an epoch, or a share of it, while the memory of this process and its workers is sampled.
DIR needs 3 GB, which are deleted at the end.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import time
from typing import Any

from benchmarks import harness
from benchmarks.large_index import children, memory_mb
from blip2_jax.data.pipeline import training_batches
from blip2_jax.data.sources.registry import build_source
from tests.support.generated_data import bert_directory, encoded, picture, write_tar

BATCH, WORKERS = 200, 2
PARTS = 10  # of an epoch, after each of which memory is sampled


def main() -> None:
    """Write the tars, measure, print two tables, and delete everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=pathlib.Path, required=True)
    parser.add_argument("--tars", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1000, help="of each tar")
    parser.add_argument("--share", type=float, default=1.0, help="of the epoch")
    options = parser.parse_args()
    directory = options.directory / "tar_index"
    directory.mkdir()
    try:
        start = time.perf_counter()
        write_tars(directory, options.tars, options.samples)
        print(f"tars written in {time.perf_counter() - start:.0f} s")
        rows = [[name, f"{value:.2f}"] for name, value in index_times(directory)]
        print(harness.table(("", "s"), rows))
        print(
            harness.table(
                ("step", "samples/s", *MEMORY), epoch(directory, options.share)
            )
        )
    finally:
        shutil.rmtree(directory)


def write_tars(directory: pathlib.Path, tars: int, samples: int) -> None:
    """Write a tar of tiny JPEGs with their captions, and copies of it."""
    image = encoded(picture(0, 16, 16), "JPEG")
    members = {}
    for number in range(samples):
        members[f"{number:08d}.jpg"] = image
        members[f"{number:08d}.txt"] = f"a picture, number {number}".encode()
    first = directory / "00000.tar"
    write_tar(first, members)
    for shard in range(1, tars):
        shutil.copyfile(first, directory / f"{shard:05d}.tar")


def spec(directory: pathlib.Path, index: str = "index") -> dict[str, Any]:
    """Return the spec of the tars' source."""
    return {
        "kind": "tars",
        "paths": str(directory / "*.tar"),
        "index_directory": str(directory / index),
    }


def index_times(directory: pathlib.Path) -> list[tuple[str, float]]:
    """Return the seconds to make, open and mend the index."""

    def seconds(index: str = "index") -> float:
        start = time.perf_counter()
        build_source(spec(directory, index))
        return time.perf_counter() - start

    cores, times = sorted(os.sched_getaffinity(0)), []
    for count in sorted({1, len(cores)}):
        os.sched_setaffinity(0, cores[:count])
        times.append((f"build on {count} cores", seconds(f"index_{count}")))
    build_source(spec(directory))
    times.append(("open again", seconds()))
    os.utime(directory / "00000.tar", ns=(0, 0))
    times.append(("open after a change of one tar", seconds()))
    start = time.perf_counter()
    build_source(spec(directory)).fingerprint()
    times.append(("open and fingerprint", time.perf_counter() - start))
    return times


MEMORY = ("private MB", "Pss MB", "workers' private MB", "workers' Pss MB")


def epoch(directory: pathlib.Path, share: float) -> list[list[str]]:
    """Read batches of an epoch; return speed and memory at each tenth."""
    options = {
        "train": [spec(directory)],
        "image": {"size": 16},
        "tokenizer": {"qformer": bert_directory(directory / "bert")},
        "workers": WORKERS,
    }
    start, step = time.perf_counter(), 777_777
    batches = training_batches(
        options, "image_text", seed=0, batch_size=BATCH, start_step=step
    )
    next(batches)
    print(f"first batch, of step {step}: {time.perf_counter() - start:.2f} s\n")
    samples = int(share * len(build_source(spec(directory))))
    part = samples // BATCH // PARTS
    rows = []
    for number in range(PARTS):
        start = time.perf_counter()
        for _ in range(part):
            next(batches)
        speed = part * BATCH / (time.perf_counter() - start)
        of_workers = zip(*(memory_mb(child) for child in children()), strict=True)
        memory = [*memory_mb("self"), *map(sum, of_workers)]
        rows.append(
            [str((number + 1) * part), f"{speed:.0f}", *(f"{n:.0f}" for n in memory)]
        )
    batches.close()
    return rows


if __name__ == "__main__":
    main()
