"""Compare bf16 and fp32 training: `python -m benchmarks.precision --workdir DIR`.

Trains the demo (`blip2-jax demo`) in both precisions over three seeds, two runs at a
time with one core each, and scores all of them on scenes of two kinds: `validation`,
whose combinations of attributes occur in training, and `heldout`, whose do not. Prints
both precisions' means over seeds, their difference and the spread between seeds.
Finished runs and scores are not made again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import statistics
import sys

from blip2_jax.cli import jobs
from blip2_jax.parallel.worker_places import available_cores

ROOT = pathlib.Path(__file__).parents[1]
PRECISIONS = ("float32", "bfloat16")
SPLITS = ("validation", "heldout")
START = 10_000  # no configuration was tuned on the scenes from here on
SCENES = 100  # candidates of a retrieval


def main() -> None:
    """Train the missing runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--steps", type=float, default=1.5, help="factor of the demo's steps"
    )
    parser.add_argument(
        "--hundreds", type=int, default=4, help="hundreds of scenes of each split"
    )
    options = parser.parse_args()
    pairs = list(itertools.product(range(options.seeds), PRECISIONS))
    train_missing(options, pairs)
    scores = {
        precision: [
            scores_of(directory_of(options, precision, seed), options.hundreds)
            for seed in range(options.seeds)
        ]
        for precision in PRECISIONS
    }
    print_table(scores)


def directory_of(
    options: argparse.Namespace, precision: str, seed: int
) -> pathlib.Path:
    """Return the directory of one demo."""
    return (options.workdir / f"{precision}_{seed}").absolute()


def train_missing(options: argparse.Namespace, pairs: list[tuple[int, str]]) -> None:
    """Train the missing demos, one on each core."""
    todo = []
    for seed, precision in pairs:
        directory = directory_of(options, precision, seed)
        if (directory / "results.json").exists():
            continue
        command = [
            sys.executable,
            str(ROOT / "launch" / "demo.py"),
            f"--workdir={directory}",
            "--scenes=20",
            f"--precision={precision}",
            f"--seed={seed}",
            f"--steps={options.steps}",
        ]
        name = f"{precision}, seed {seed}"
        todo.append(jobs.Job(name, command, directory / "log.txt"))
    if failed := jobs.run_jobs(todo, cores=available_cores()):
        sys.exit(f"failed: {'; '.join(failed)}")


def scores_of(directory: pathlib.Path, hundreds: int) -> dict[str, float]:
    """Return one demo's scores on both kinds of scenes, by name."""
    file = directory / f"precision_{hundreds}.json"
    if not file.exists():
        print(f"scoring {directory}", file=sys.stderr, flush=True)
        file.write_text(json.dumps(examine(directory, hundreds), indent=2) + "\n")
    return json.loads(file.read_text())


def examine(directory: pathlib.Path, hundreds: int) -> dict[str, float]:
    """Return the means over hundreds of scenes of the demo's scores."""
    import blip2_jax
    from blip2_jax.evaluation import shapes_exam

    stage1 = blip2_jax.load(directory / "stage1", batch_size=SCENES)
    models = {
        name: blip2_jax.load(directory / f"stage2_{name.lower()}", batch_size=SCENES)
        for name in ("OPT", "T5")
    }

    def one(exam: shapes_exam.Exam) -> dict[str, float]:
        retrieval = shapes_exam.retrieval_exam(stage1, exam)
        scores = {
            f"image to text, first of {SCENES}": retrieval.recall,
            "by contrast alone": retrieval.recall_itc,
            "matching pairs told apart": shapes_exam.matching_exam(stage1, exam),
        }
        for name, model in {"Q-Former": stage1, **models}.items():
            captions = shapes_exam.caption_exam(model, exam)
            scores[f"{name}: captions, things"] = captions.attributes
            scores[f"{name}: and places"] = captions.everything
            if model is not stage1:
                scores[f"{name}: answers"] = shapes_exam.answer_exam(
                    model, exam
                ).accuracy
        return scores

    means = {}
    for split in SPLITS:
        parts = [
            one(shapes_exam.make_exam(split, SCENES, start=START + SCENES * part))
            for part in range(hundreds)
        ]
        for name in parts[0]:
            means[f"{split}: {name}"] = statistics.mean(p[name] for p in parts)
    return means


def print_table(scores: dict[str, list[dict[str, float]]]) -> None:
    """Print means over seeds, their spread, and the difference of both precisions."""
    full, half = (scores[precision] for precision in PRECISIONS)
    print(f"{'in percent':44}{'float32':>16}{'bfloat16':>16}{'difference':>12}")
    for name in full[0]:
        columns = [[100 * run[name] for run in runs] for runs in (full, half)]
        means = [statistics.mean(values) for values in columns]
        cells = "".join(
            f"{mean:9.1f} ± {spread(values):4.1f}"
            for mean, values in zip(means, columns, strict=True)
        )
        print(f"{name:44}{cells}{means[1] - means[0]:+12.1f}")


def spread(values: list[float]) -> float:
    """Return the standard deviation over seeds."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
