"""The whole recipe on a small world: `python launch/demo.py --workdir runs/demo`.

Trains stage 1, then stage 2 in front of an OPT and of a T5 (side by side on a CPU of
several cores), examines all three on scenes whose combinations of attributes occur in
no training data, prints one table and writes `report.html` and `results.json` beside
the runs. A run that is there already is continued, or used as it is.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict

from blip2_jax.cli import jobs

LANGUAGE_MODELS = ("opt", "t5")
STAGE2 = tuple(f"stage2_{name}" for name in LANGUAGE_MODELS)

WORKDIR = flags.DEFINE_string("workdir", "runs/demo", "Where runs and report go.")
PRECISION = flags.DEFINE_enum(
    "precision", "float32", ("bfloat16", "float32"), "Of matmul inputs in training."
)
SEED = flags.DEFINE_integer("seed", 0, "Of initial values, order and negatives.")
STEPS = flags.DEFINE_float("steps", 1.0, "Multiplies steps and warm-ups.")
SCENES = flags.DEFINE_integer("scenes", 100, "Held-out scenes of the exam.")
ONLY = flags.DEFINE_enum("only", None, ("stage1", *STAGE2), "Train this alone.")

EXAM_START = 10_000  # the scenes before it were looked at while recipes were made


def main(argv: list[str]) -> None:
    """Train, examine, report; what the user can mend becomes one sentence."""
    from blip2_jax.training.train_config import ConfigError

    logging.set_verbosity(logging.ERROR)
    directory = pathlib.Path(WORKDIR.value).absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if ONLY.value:
            train_one(directory, ONLY.value)
        else:
            run(directory)
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")


def run(directory: pathlib.Path) -> None:
    """The whole recipe."""
    begin = time.monotonic()
    seconds = train_all(directory)
    start = time.monotonic()
    exam, results = examine(directory)
    seconds["evaluation"] = time.monotonic() - start
    seconds["all"] = time.monotonic() - begin
    write(directory, exam, results, seconds)


def train_all(directory: pathlib.Path) -> dict[str, float]:
    """Stage 1, then both stages 2; returns how long each stage took, in seconds."""
    seconds = {}
    for stage, names in (("stage1", ("stage1",)), ("stage2", STAGE2)):
        start = time.monotonic()
        if len(names) > 1 and on_cores():
            train_side_by_side(directory, names)
        else:
            for name in names:
                train_one(directory, name)
        seconds[stage] = time.monotonic() - start
    return seconds


def train_one(directory: pathlib.Path, name: str) -> None:
    """One run in this process.

    Raises:
      SystemExit: it was asked to stop.
    """
    from blip2_jax.evaluation.evaluators import make_evaluator
    from blip2_jax.training.loop import train

    config = planned(directory, name)
    print(f"\n{name}: {config.steps} steps of {config.batch_size}", flush=True)
    if code := train(config, directory / name, make_evaluator):
        sys.exit(code)


def planned(directory: pathlib.Path, name: str) -> ConfigDict:
    """The configuration of a run."""
    from blip2_jax.configs import shapes_stage1, shapes_stage2_opt, shapes_stage2_t5

    stage1 = str(directory / "stage1")
    config = {
        "stage1": shapes_stage1.get_config,
        "stage2_opt": lambda: shapes_stage2_opt.get_config(stage1),
        "stage2_t5": lambda: shapes_stage2_t5.get_config(stage1),
    }[name]()
    with config.unlocked():
        config.precision, config.seed = PRECISION.value, SEED.value
        config.steps = max(2, round(config.steps * STEPS.value))
        warmup = round(config.optimizer.warmup_steps * STEPS.value)
        config.optimizer.warmup_steps = min(warmup, config.steps - 1)
    return config


def on_cores() -> bool:
    """Whether runs can have a core each: small steps gain little by a second one."""
    import jax

    return jax.default_backend() == "cpu" and len(jobs.cores()) > 1


def train_side_by_side(directory: pathlib.Path, names: Sequence[str]) -> None:
    """Runs in processes of their own, one a core.

    Raises:
      SystemExit: one failed; it has said why.
    """
    command = [
        sys.executable,
        "-m",
        "blip2_jax.cli.demo",
        f"--workdir={directory}",
        f"--seed={SEED.value}",
        f"--precision={PRECISION.value}",
        f"--steps={STEPS.value}",
    ]
    todo = [
        jobs.Job(name, [*command, f"--only={name}"], directory / f"{name}.log")
        for name in names
    ]
    say = functools.partial(print, flush=True)
    if jobs.run_jobs(todo, places=jobs.cores(), tell=say, echo=True):
        sys.exit(1)


def examine(directory: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """All scores on held-out scenes, with the right, blank and shuffled pictures."""
    import blip2_jax
    from blip2_jax.evaluation import shapes_exam

    print("\nexamining held-out scenes", flush=True)
    exam = shapes_exam.make_exam("heldout", SCENES.value, start=EXAM_START)
    stage1 = blip2_jax.load(directory / "stage1", batch_size=100)
    results: dict[str, Any] = {"majority": shapes_exam.majority_answers(exam)}
    for which in shapes_exam.PICTURES:
        results[f"retrieval/{which}"] = shapes_exam.retrieve(stage1, exam, which)
        results[f"matching/{which}"] = shapes_exam.matching_accuracy(
            stage1, exam, which
        )
        results[f"stage1/captions/{which}"] = shapes_exam.caption_scores(
            stage1, exam, which
        )
    results["maps"] = shapes_exam.query_maps(stage1, exam)
    for name in LANGUAGE_MODELS:
        model = blip2_jax.load(directory / f"stage2_{name}", batch_size=100)
        for which in shapes_exam.PICTURES:
            results[f"{name}/captions/{which}"] = shapes_exam.caption_scores(
                model, exam, which
            )
            results[f"{name}/answers/{which}"] = shapes_exam.answer_scores(
                model, exam, which
            )
    return exam, results


def write(
    directory: pathlib.Path, exam: Any, results: dict[str, Any], seconds: dict[str, Any]
) -> None:
    """The table to the terminal, and everything to files."""
    from blip2_jax.reports import demo_report
    from blip2_jax.training.metrics_log import read_metrics

    table = demo_report.make_table(results)
    print("\n" + demo_report.as_text(table))
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    print(f"\n{spent} on {os.cpu_count()} cores")
    numbers = {
        "precision": PRECISION.value,
        "seed": SEED.value,
        "seconds": seconds,
        "scores": {row.name: row.model for row in table},
    }
    (directory / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")
    curves = {name: read_metrics(directory / name) for name in ("stage1", *STAGE2)}
    page = demo_report.make_page(exam, results, table, curves, spent)
    (directory / "report.html").write_text(page)
    print(f"report: {directory / 'report.html'}")


if __name__ == "__main__":
    app.run(main)
