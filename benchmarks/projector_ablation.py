r"""Compare projectors with the Q-Former in stage 2, at equal numbers of visual tokens.

    python -m benchmarks.projector_ablation shapes
    python -m benchmarks.projector_ablation flickr8k --steps 140 \
        --paths data=DIR,features=DIR,tokenizer=DIR,words=DIR,opt=RUN,stage1=RUNS/{seed}

Trains every bridge of `configs/ablation_projector.py` for three seeds, one run on each
core, and evaluates it. Prints the means over seeds, the differences to the Q-Former
without stage 1, paired by seed and by example, and the scores along the way, which
`curves.svg` draws. In the shapes world the stage-1 runs are trained too; elsewhere
`stage1` names them, with {seed} in place of the seed. Finished runs are not made again.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from blip2_jax.cli import jobs
from blip2_jax.configs.ablation_projector import BRIDGES, TOKENS
from blip2_jax.evaluation.compare import Table
from blip2_jax.evaluation.compare_seeds import read_statistics
from blip2_jax.metrics.seed_bootstrap import mean_over_seeds, paired_difference
from blip2_jax.parallel.worker_places import available_cores
from blip2_jax.reports.chart import line_chart

ROOT = pathlib.Path(__file__).parents[1]
# Evaluations of a run, and the scores of each that the tables have.
EXAMS: dict[str, dict[str, tuple[str, ...]]] = {
    "shapes": {
        "captions,heldout": ("cider",),
        "captions,validation": ("cider",),
        "questions,heldout": ("exact_match",),
        "questions,validation": ("exact_match",),
    },
    "flickr8k": {"test": ("cider", "bleu_4", "rouge_l")},
}
CURVES = {"shapes": "evaluation/exact_match", "flickr8k": "evaluation/cider"}
BASE = "qformer"


def main() -> int:
    """Make the missing runs and evaluations and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("world", choices=EXAMS)
    add("--workdir", type=pathlib.Path, help="default: runs/ablation_WORLD")
    add("--seeds", type=int, default=3)
    add("--steps", type=int, default=0, help="of stage 2; 0: the configuration's")
    add("--paths", default="", help="of the configuration, as NAME=PATH,...")
    options = parser.parse_args()
    workdir = options.workdir or pathlib.Path(f"runs/ablation_{options.world}")
    options.workdir = workdir.absolute()
    missing = [
        *stage1_jobs(options),
        *training_jobs(options),
        *evaluation_jobs(options),
    ]
    if failed := jobs.run_jobs(missing, cores=available_cores()):
        print(f"failed: {'; '.join(failed)}", file=sys.stderr)
        return 1
    for table in (means(options), differences(options), curve_table(options)):
        print(table.markdown(), end="\n\n")
    image = line_chart(CURVES[options.world].split("/")[1], mean_curves(options))
    file = image.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    (options.workdir / "curves.svg").write_text(file)
    return 0


def run_directory(options: argparse.Namespace, bridge: str, seed: int) -> pathlib.Path:
    """Return the directory of a run."""
    directory: pathlib.Path = options.workdir / f"{bridge}_{seed}"
    return directory


def command(script: str, *arguments: str) -> list[str]:
    """Return the command line of a script of `launch/`."""
    return [sys.executable, str(ROOT / "launch" / script), *arguments]


def stage1_jobs(options: argparse.Namespace) -> Iterator[jobs.Job]:
    """Yield the missing stage-1 runs of the shapes world."""
    for seed in range(options.seeds if options.world == "shapes" else 0):
        run = run_directory(options, "stage1", seed)
        if is_finished(run):
            continue
        arguments = (
            f"--config=shapes_stage1:{TOKENS['shapes']}",
            f"--workdir={run}",
            f"--config.seed={seed}",
            "--config.precision=float32",
        )
        yield jobs.Job(run.name, command("train.py", *arguments), log_of(run))


def training_jobs(options: argparse.Namespace) -> Iterator[jobs.Job]:
    """Yield the missing runs of stage 2."""
    for bridge in BRIDGES:
        for seed in range(options.seeds):
            run = run_directory(options, bridge, seed)
            if is_finished(run):
                continue
            paths = options.paths.format(seed=seed)
            if options.world == "shapes":
                paths = f"stage1={run_directory(options, 'stage1', seed)}"
            arguments = [
                f"--config=ablation_projector:{options.world},{bridge},{paths}",
                f"--workdir={run}",
                f"--config.seed={seed}",
                "--config.precision=float32",
            ]
            if options.steps:
                arguments += [
                    f"--config.steps={options.steps}",
                    f"--config.evaluation.every={options.steps // 4}",
                    f"--config.checkpoint.every={options.steps // 4}",
                ]
            needs = (f"stage1_{seed}",) if bridge == "qformer_stage1" else ()
            train = command("train.py", *arguments)
            yield jobs.Job(run.name, train, log_of(run), needs)


def evaluation_jobs(options: argparse.Namespace) -> Iterator[jobs.Job]:
    """Yield the missing evaluations."""
    for bridge in BRIDGES:
        for seed in range(options.seeds):
            run = run_directory(options, bridge, seed)
            for exam in EXAMS[options.world]:
                record = record_path(run, exam)
                if record.exists():
                    continue
                config = f"eval/shapes_tables:{exam}"
                if options.world == "flickr8k":
                    config = f"eval/flickr8k_captioning:{options.paths}"
                arguments = (f"--config={config}", f"--model={run}", f"--out={record}")
                evaluate = command("evaluate.py", *arguments)
                log = log_of(record.with_suffix(""))
                yield jobs.Job(f"{run.name}, {exam}", evaluate, log, (run.name,))


def is_finished(run: pathlib.Path) -> bool:
    """Return True if a run has its last checkpoint."""
    config, last = run / "config.json", run / "last_checkpoint.json"
    if not config.exists() or not last.exists():
        return False
    step: int = json.loads(last.read_text())["step"]
    return step == json.loads(config.read_text())["steps"]


def log_of(run: pathlib.Path) -> pathlib.Path:
    """Return the log of a job, beside what it writes."""
    return run.with_name(f"{run.name}.log")


def record_path(run: pathlib.Path, exam: str) -> pathlib.Path:
    """Return the record of an evaluation."""
    return run / f"{exam.replace(',', '_')}.json"


def columns(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Return evaluation and score of every column."""
    exams = EXAMS[options.world]
    return [(exam, score) for exam, scores in exams.items() for score in scores]


def statistics(options: argparse.Namespace, bridge: str, column: Any) -> list[Any]:
    """Return a score with its examples, of every seed."""
    exam, score = column
    return [
        read_statistics(record_path(run_directory(options, bridge, seed), exam))[score]
        for seed in range(options.seeds)
    ]


def means(options: argparse.Namespace) -> Table:
    """Return the means over seeds."""
    rows = [
        [
            bridge,
            *(
                mean_over_seeds(statistics(options, bridge, column)).text()
                for column in columns(options)
            ),
        ]
        for bridge in BRIDGES
    ]
    return Table(["", *map(" ".join, columns(options))], rows)


def differences(options: argparse.Namespace) -> Table:
    """Return the differences to `BASE`, paired by seed and by example."""
    rows = []
    for bridge in BRIDGES:
        if bridge == BASE:
            continue
        cells = []
        for column in columns(options):
            sides = (statistics(options, name, column) for name in (BASE, bridge))
            difference = paired_difference(*sides)
            per_seed = ", ".join(f"{value:+.1f}" for value in difference.per_seed)
            cells.append(f"{difference.text(signed=True)} ({per_seed})")
        rows.append([f"{bridge} less {BASE}", *cells])
    return Table(["", *map(" ".join, columns(options))], rows)


def mean_curves(
    options: argparse.Namespace,
) -> dict[str, list[tuple[float, float]]]:
    """Return the scores along the way, means over seeds, by bridge."""
    result = {}
    for bridge in BRIDGES:
        curves = []
        for seed in range(options.seeds):
            lines = run_directory(options, bridge, seed) / "metrics.jsonl"
            records = map(json.loads, lines.read_text().splitlines())
            key = CURVES[options.world]
            curves.append({r["step"]: r[key] for r in records if key in r})
        steps = sorted(set.intersection(*map(set, curves)))
        result[bridge] = [
            (float(step), float(np.mean([curve[step] for curve in curves])))
            for step in steps
        ]
    return result


def curve_table(options: argparse.Namespace) -> Table:
    """Return `mean_curves` as a table."""
    curves = mean_curves(options)
    steps = [step for step, _ in curves[BASE]]
    rows = [
        [bridge, *(f"{value:.1f}" for _, value in curve)]
        for bridge, curve in curves.items()
    ]
    return Table(["", *(f"step {step:.0f}" for step in steps)], rows)


if __name__ == "__main__":
    sys.exit(main())
