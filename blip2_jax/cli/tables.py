"""Reproduce the paper's tables 2 to 6 and figure 5 in small, on the shapes world.

    blip2-jax tables --workdir runs/tables
    blip2-jax tables --workdir runs/tables --runs opt,t5 --seeds 1

Trains every run of `configs/shapes_tables.py` with three seeds, one training on each
core, evaluates it (`configs/eval/shapes_tables.py`) and writes `tables.md` and
`figure5.svg`, with confidence intervals of differences paired by seed and by example.
Finished runs and evaluations are kept: the same command continues after a kill.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
from collections.abc import Sequence

from blip2_jax.cli import jobs
from blip2_jax.cli.errors import reading_option
from blip2_jax.cli.options import (
    CommandParser,
    add_cache_option,
    cache_option,
    run_command,
)
from blip2_jax.parallel.worker_places import available_cores

QUICK_STEPS, QUICK_SCENES = 20, 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("tables", __doc__)
    add = parser.add_argument
    add(
        "--workdir",
        type=pathlib.Path,
        default=pathlib.Path("runs/tables"),
        metavar="DIR",
        help="directory of runs and tables",
    )
    add("--seeds", type=int, default=3, metavar="N", help="trainings of each run")
    add(
        "--jobs",
        type=int,
        default=0,
        metavar="N",
        help="trainings at a time; 0: one per core",
    )
    add("--quick", action="store_true", help="a test: few steps and scenes, one seed")
    add(
        "--runs",
        default="",
        metavar="NAMES",
        help="train only these and the runs they start from, e.g. opt,t5",
    )
    add("--report", action="store_true", help="only write the tables of finished runs")
    add("--one", default="", metavar="RUN", help="train only this run, in this process")
    add("--seed", type=int, default=0, metavar="N", help="seed of --one")
    add_cache_option(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Complete the missing runs and write the tables; returns the exit code."""
    with reading_option(""):
        requested = (arguments.one or arguments.runs).split(",")
        names = with_sources([name for name in requested if name])
    if arguments.one:
        return train_and_evaluate(arguments)
    seeds = 1 if arguments.quick else arguments.seeds
    if not arguments.report:
        run_missing(arguments, seeds, names)
    write_tables(arguments.workdir, seeds)
    return 0


def run_missing(
    arguments: argparse.Namespace, seeds: int, names: Sequence[str]
) -> None:
    """Train and evaluate every missing run in a process of its own.

    Raises:
      RuntimeError: some runs failed; the others are finished.
    """
    missing = [
        (name, seed)
        for seed in range(seeds)
        for name in names
        if not is_done(arguments.workdir, name, seed)
    ]
    print(f"{len(missing)} of {seeds * len(names)} trainings to do", flush=True)
    failed = jobs.run_jobs(
        [make_job(arguments, name, seed) for name, seed in missing],
        cores=available_cores()[: arguments.jobs or None],
        report=functools.partial(print, flush=True),
    )
    if failed:
        raise RuntimeError(f"not done: {'; '.join(failed)}")


def make_job(arguments: argparse.Namespace, name: str, seed: int) -> jobs.Job:
    """Make the job that trains and evaluates one run with one seed."""
    from blip2_jax.configs.shapes_tables import RUNS

    options = [f"--workdir={arguments.workdir}", f"--one={name}", f"--seed={seed}"]
    options += [*cache_option(arguments), *["--quick"] * arguments.quick]
    source = RUNS[name].source
    return jobs.Job(
        name=f"{name}, seed {seed}",
        command=jobs.python_command("blip2_jax.cli.tables", *options, "--debug"),
        log=arguments.workdir / f"seed_{seed}" / f"{name}.log",
        needs=(f"{source}, seed {seed}",) if source else (),
    )


def with_sources(names: Sequence[str]) -> list[str]:
    """Return runs and the runs they start from, in order of training.

    Args:
      names: names of runs; none: all of them.

    Raises:
      ValueError: there is no such run.
    """
    from blip2_jax.configs.shapes_tables import RUNS

    if unknown := [name for name in names if name not in RUNS]:
        raise ValueError(f"no run {unknown[0]!r}; there are {', '.join(RUNS)}")
    needed, queue = set(), list(names or RUNS)
    while queue:
        name = queue.pop()
        needed.add(name)
        if RUNS[name].source:
            queue.append(RUNS[name].source)
    return [name for name in RUNS if name in needed]


def run_directory(workdir: pathlib.Path, name: str, seed: int) -> pathlib.Path:
    """Return the absolute directory of a run and its records."""
    return (workdir / f"seed_{seed}" / name).absolute()


def is_done(workdir: pathlib.Path, name: str, seed: int) -> bool:
    """Return whether all evaluations of a run are recorded."""
    from blip2_jax.configs.shapes_tables import exams

    directory = run_directory(workdir, name, seed)
    return all((directory / record_name(exam)).exists() for exam in exams(name))


def record_name(exam: str) -> str:
    """Return the file name of an evaluation's record."""
    return f"{exam.replace(',', '_')}.json"


def train_and_evaluate(arguments: argparse.Namespace) -> int:
    """Train one run, or continue it, and evaluate it; returns the exit code."""
    from blip2_jax.cli.evaluation_run import evaluate_run
    from blip2_jax.configs.eval import shapes_tables as exam_configs
    from blip2_jax.configs.shapes_tables import exams, get_config
    from blip2_jax.evaluation.evaluators import make_evaluator
    from blip2_jax.perf.compile_cache import enable_compile_cache
    from blip2_jax.training.loop import train

    workdir, name, seed = arguments.workdir, arguments.one, arguments.seed
    enable_compile_cache(arguments.compile_cache)
    directory = run_directory(workdir, name, seed)
    config = get_config(f"{name},{directory.parent}")
    with config.unlocked():
        config.seed = seed
        if arguments.quick:
            config.steps = QUICK_STEPS
            config.optimizer.warmup_steps = QUICK_STEPS // 2
            config.evaluation.every = QUICK_STEPS if config.evaluation.every else 0
    if code := train(config, directory, make_evaluator):
        return code
    for exam in exams(name):
        evaluation = exam_configs.get_config(exam)
        out = directory / record_name(exam)
        with evaluation.unlocked():
            evaluation.model, evaluation.out = str(directory), str(out)
            evaluation.max_examples = QUICK_SCENES if arguments.quick else 0
        if not out.exists():
            record, _ = evaluate_run(evaluation)
            print(exam, record["scores"], flush=True)
    return 0


def write_tables(workdir: pathlib.Path, seeds: int) -> None:
    """Write `tables.md` and `figure5.svg` of the finished runs and print the tables."""
    from blip2_jax.paper import small_report

    records = small_report.Records(workdir, seeds)
    (workdir / "figure5.svg").write_text(small_report.figure5(records))
    text = small_report.as_markdown(records)
    (workdir / "tables.md").write_text(text)
    print(text)
    print(f"written to {workdir / 'tables.md'} and {workdir / 'figure5.svg'}")


if __name__ == "__main__":
    sys.exit(main())
