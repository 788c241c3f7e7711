"""Does bf16 train as well as fp32? `python benchmarks/precision.py --workdir DIR`.

Runs the demo (`launch/demo.py`) in both precisions over three seeds and compares every
score of its table: the mean over seeds, and bf16 as a share of fp32. Six demos take
about three quarters of an hour on two cores; finished ones are not run again.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
PRECISIONS = ("float32", "bfloat16")


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=400, help="of the exam")
    options = parser.parse_args()
    seeds = range(options.seeds)
    scores = {
        precision: [scores_of(options, precision, seed) for seed in seeds]
        for precision in PRECISIONS
    }
    print_table(scores)


def scores_of(
    options: argparse.Namespace, precision: str, seed: int
) -> dict[str, float]:
    """One demo's scores."""
    directory = options.workdir / f"{precision}_{seed}"
    results = directory / "results.json"
    if not results.exists():
        command = [
            sys.executable, "launch/demo.py", f"--workdir={directory.absolute()}",
            f"--precision={precision}", f"--seed={seed}", f"--scenes={options.scenes}",
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True)
    return json.loads(results.read_text())["scores"]


def print_table(scores: dict[str, list[dict[str, float]]]) -> None:
    """Means over seeds, their spread, and the ratio of the two precisions."""
    full, half = (scores[precision] for precision in PRECISIONS)
    print(f"{'':40}{'float32':>16}{'bfloat16':>16}{'ratio':>8}")
    for name in full[0]:
        columns = [[run[name] for run in runs] for runs in (full, half)]
        means = [statistics.mean(values) for values in columns]
        cells = "".join(
            f"{100 * mean:9.1f} ± {100 * spread(values):4.1f}"
            for mean, values in zip(means, columns, strict=True)
        )
        ratio = f"{means[1] / means[0]:8.3f}" if means[0] else ""
        print(f"{name:40}{cells}{ratio}")


def spread(values: list[float]) -> float:
    """The standard deviation over seeds."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
