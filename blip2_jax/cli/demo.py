"""Train both stages on a small generated world, evaluate them and write a report.

    blip2-jax demo
    blip2-jax demo --workdir runs/demo_bfloat16 --precision bfloat16 --seed 1
    blip2-jax demo --model RUN    # the web page: the same as blip2-jax web --model RUN

Begins with captions by the trained model of the package, `blip2_jax.load("shapes")`.
Then trains stage 1, then stage 2 with an OPT and with a T5 (at the same time on a CPU
of several cores), and evaluates all three on scenes whose combinations of attributes
occur in no training data. Prints one table and writes `report.html` and `results.json`
to the directory. Runs that the directory holds are continued, or used if they are
complete.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from blip2_jax.cli import jobs, web
from blip2_jax.cli.options import (
    CommandParser,
    add_cache_option,
    cache_option,
    run_command,
)
from blip2_jax.parallel.worker_places import available_cores

LANGUAGE_MODELS = ("opt", "t5")
STAGE2 = tuple(f"stage2_{name}" for name in LANGUAGE_MODELS)
EXAMPLES = 4  # pictures that the model of the package describes first
EXAM_START = 10_000  # the recipes were developed on earlier scenes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, or with `--model` the command `web`; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if any(word.partition("=")[0] == "--model" for word in argv):
        return web.main(argv)
    return run_command(make_parser(), run, argv)


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("demo", __doc__)
    add = parser.add_argument
    add(
        "--workdir",
        type=pathlib.Path,
        default=pathlib.Path("runs/demo"),
        metavar="DIR",
        help="directory of runs and report",
    )
    add(
        "--precision",
        default="float32",
        choices=("bfloat16", "float32"),
        help="dtype of matmul inputs in training",
    )
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of initial values, order of the data and negatives",
    )
    add(
        "--steps",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="factor of steps and warm-up steps",
    )
    add(
        "--scenes",
        type=int,
        default=100,
        metavar="N",
        help="number of scenes in the evaluation",
    )
    add_cache_option(parser)
    add("--only", choices=("stage1", *STAGE2), help="train only this run")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Train, evaluate and report; returns the exit code."""
    from blip2_jax.perf.compile_cache import enable_compile_cache

    enable_compile_cache(arguments.compile_cache)
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    if arguments.only:
        return train_one(arguments, arguments.only)
    show_shipped_model(arguments.workdir)
    begin = time.monotonic()
    code, seconds = train_all(arguments)
    if code:
        return code
    start = time.monotonic()
    exam, results = evaluate_all(arguments)
    seconds["evaluation"] = time.monotonic() - start
    seconds["all"] = time.monotonic() - begin
    write_results(arguments, exam, results, seconds)
    return 0


def show_shipped_model(directory: pathlib.Path) -> None:
    """Print captions and answers by the model of the package, before any training.

    Args:
      directory: directory of `examples.png`, the pictures side by side.
    """
    import numpy as np
    from PIL import Image

    import blip2_jax

    numbers = range(EXAMPLES)
    large = [blip2_jax.example_image(number, size=256) for number in numbers]
    Image.fromarray(np.hstack(large)).save(directory / "examples.png")
    model = blip2_jax.load("shapes")
    images = [blip2_jax.example_image(number) for number in numbers]
    print(f"the model of the package, on {directory / 'examples.png'}:")
    for caption in model.caption(images):
        print(f"  {caption}")
    question = "how many things are there?"
    print(f"  {question} {', '.join(model.answer(images, question))}")
    print("\ntraining such models:", flush=True)


def train_all(arguments: argparse.Namespace) -> tuple[int, dict[str, float]]:
    """Train stage 1, then both runs of stage 2.

    Returns:
      The exit code, and the time of each stage in seconds.
    """
    seconds = {}
    for stage, names in (("stage1", ("stage1",)), ("stage2", STAGE2)):
        start = time.monotonic()
        if len(names) > 1 and has_several_cores():
            code = train_in_parallel(arguments, names)
        else:
            codes = (train_one(arguments, name) for name in names)
            code = next(filter(None, codes), 0)
        seconds[stage] = time.monotonic() - start
        if code:
            return code, seconds
    return 0, seconds


def train_one(arguments: argparse.Namespace, name: str) -> int:
    """Train one run in this process; returns the exit code."""
    from blip2_jax.evaluation.evaluators import make_evaluator
    from blip2_jax.training.loop import train

    config = run_config(arguments, name)
    print(f"\n{name}: {config.steps} steps of {config.batch_size}", flush=True)
    return train(config, arguments.workdir / name, make_evaluator)


def run_config(arguments: argparse.Namespace, name: str) -> ConfigDict:
    """Return the configuration of a run."""
    from blip2_jax.configs import shapes_stage1, shapes_stage2_opt, shapes_stage2_t5

    stage1 = str((arguments.workdir / "stage1").absolute())
    config = {
        "stage1": shapes_stage1.get_config,
        "stage2_opt": lambda: shapes_stage2_opt.get_config(stage1),
        "stage2_t5": lambda: shapes_stage2_t5.get_config(stage1),
    }[name]()
    with config.unlocked():
        config.precision, config.seed = arguments.precision, arguments.seed
        config.steps = max(2, round(config.steps * arguments.steps))
        warmup_steps = round(config.optimizer.warmup_steps * arguments.steps)
        config.optimizer.warmup_steps = min(warmup_steps, config.steps - 1)
    return config


def has_several_cores() -> bool:
    """Return whether runs can have a CPU core each.

    Two runs on one core each finish earlier than one after the other on two cores:
    their steps are too small to use a second core.
    """
    import jax

    return jax.default_backend() == "cpu" and len(available_cores()) > 1


def train_in_parallel(arguments: argparse.Namespace, names: Sequence[str]) -> int:
    """Train runs in processes of their own, one on each core; returns the exit code."""
    command = jobs.python_command(
        "blip2_jax.cli.demo",
        f"--workdir={arguments.workdir}",
        f"--seed={arguments.seed}",
        f"--precision={arguments.precision}",
        f"--steps={arguments.steps}",
        *cache_option(arguments),
    )
    failed = jobs.run_jobs(
        [
            jobs.Job(
                name, [*command, f"--only={name}"], arguments.workdir / f"{name}.log"
            )
            for name in names
        ],
        cores=available_cores(),
        report=functools.partial(print, flush=True),
        echo=True,
    )
    return 1 if failed else 0


def evaluate_all(arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """Evaluate all runs on held-out scenes with the right, blank and shuffled images.

    Returns:
      The exam, and scores by name.
    """
    import blip2_jax
    from blip2_jax.evaluation import shapes_exam
    from blip2_jax.reports.attention import picture_maps
    from blip2_jax.reports.demo_report import SHOWN_MAPS

    print("\nevaluating held-out scenes", flush=True)
    exam = shapes_exam.make_exam("heldout", arguments.scenes, start=EXAM_START)
    stage1 = blip2_jax.load(arguments.workdir / "stage1", batch_size=100)
    results: dict[str, Any] = {"majority": shapes_exam.majority_exam(exam)}
    for shown in shapes_exam.CONDITIONS:
        results[f"retrieval/{shown}"] = shapes_exam.retrieval_exam(stage1, exam, shown)
        results[f"matching/{shown}"] = shapes_exam.matching_exam(stage1, exam, shown)
        captions = shapes_exam.caption_exam(stage1, exam, shown)
        results[f"stage1/captions/{shown}"] = captions
    for name in LANGUAGE_MODELS:
        model = blip2_jax.load(arguments.workdir / f"stage2_{name}", batch_size=100)
        for shown in shapes_exam.CONDITIONS:
            captions = shapes_exam.caption_exam(model, exam, shown)
            results[f"{name}/captions/{shown}"] = captions
            answers = shapes_exam.answer_exam(model, exam, shown)
            results[f"{name}/answers/{shown}"] = answers
        if name == "opt":
            pictures = exam.images[:SHOWN_MAPS]
            results["maps"] = [picture_maps(model, picture) for picture in pictures]
    return exam, results


def write_results(
    arguments: argparse.Namespace,
    exam: Any,
    results: dict[str, Any],
    seconds: dict[str, float],
) -> None:
    """Print the table of scores; write `results.json` and `report.html`."""
    from blip2_jax.reports import demo_report
    from blip2_jax.training.metrics_log import read_metrics

    directory = arguments.workdir
    scores = demo_report.demo_scores(results)
    print("\n" + demo_report.scores_as_text(scores))
    times = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    print(f"\n{times} on {os.cpu_count()} cores")
    numbers = {
        "precision": arguments.precision,
        "seed": arguments.seed,
        "seconds": seconds,
        "scores": {score.name: score.model for score in scores},
    }
    (directory / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")
    curves = {name: read_metrics(directory / name) for name in ("stage1", *STAGE2)}
    page = demo_report.demo_page(exam, results, scores, curves, times)
    (directory / "report.html").write_text(page)
    print(f"report: {directory / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
