"""The paper's tables in small: `python launch/tables.py --workdir runs/tables`.

Trains everything that `configs/shapes_tables.py` names, with three seeds, a training on
each core, examines it (`configs/eval/shapes_tables.py`) and writes `tables.md` and
`figure5.svg`: tables 2 to 6 and figure 5 of the paper on the shapes world, with the
intervals of differences paired by seed and by example. What is there is not made again:
the same command goes on after a kill, and `--report` writes the tables of what there
is. `--quick` takes few steps and scenes, to see that all works; `--runs opt,t5` makes
only these trainings and what they begin from.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
from collections.abc import Iterator, Sequence

from blip2_jax.cli import jobs
from blip2_jax.cli.options import print_lines

QUICK_STEPS, QUICK_SCENES = 20, 20


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and do it."""
    return print_lines(run, parser().parse_args(argv))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--workdir", type=pathlib.Path, default=pathlib.Path("runs/tables")
    )
    made.add_argument("--seeds", type=int, default=3, help="trainings of each kind")
    made.add_argument("--jobs", type=int, default=0, help="at a time; 0: one a core")
    made.add_argument("--quick", action="store_true", help="few steps, one seed")
    made.add_argument("--runs", default="", help="names joined by commas; all if empty")
    made.add_argument("--report", action="store_true", help="only write the tables")
    made.add_argument("--one", default="", metavar="RUN", help="only this training ...")
    made.add_argument("--seed", type=int, default=0, help="... with this seed")
    made.add_argument("--debug", action="store_true", help="show where an error is")
    return made


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """Train and examine what is missing, then write the tables."""
    if arguments.one:
        train_and_examine(arguments)
        return
    seeds = 1 if arguments.quick else arguments.seeds
    if not arguments.report:
        yield from run_missing(arguments, seeds)
    yield from write_tables(arguments.workdir, seeds)


def run_missing(arguments: argparse.Namespace, seeds: int) -> Iterator[str]:
    """One process for each training that is missing.

    Raises:
      ValueError: a training that there is not was asked for.
      RuntimeError: some failed; the others are done.
    """
    from blip2_jax.configs.shapes_tables import RUNS

    wanted = with_sources([name for name in arguments.runs.split(",") if name])
    missing = [
        (name, seed)
        for seed in range(seeds)
        for name in wanted
        if not is_done(arguments.workdir, name, seed)
    ]
    yield f"{len(missing)} of {seeds * len(wanted)} trainings to do"
    quick = ["--quick"] if arguments.quick else []
    todo = []
    for name, seed in missing:
        command = [
            sys.executable,
            "-m",
            "blip2_jax.cli.tables",
            f"--workdir={arguments.workdir}",
            "--one",
            name,
            f"--seed={seed}",
            "--debug",
            *quick,
        ]
        log = arguments.workdir / f"seed_{seed}" / f"{name}.log"
        source = RUNS[name].source
        needs = (f"{source}, seed {seed}",) if source else ()
        todo.append(jobs.Job(f"{name}, seed {seed}", command, log, needs))
    places = jobs.cores()[: arguments.jobs or None]
    say = functools.partial(print, flush=True)
    failed = jobs.run_jobs(todo, places=places, tell=say)
    if failed:
        raise RuntimeError(f"not done: {'; '.join(failed)}")


def with_sources(names: Sequence[str]) -> list[str]:
    """Trainings and those they begin from, in order; all of them if none is named."""
    from blip2_jax.configs.shapes_tables import RUNS

    if unknown := [name for name in names if name not in RUNS]:
        raise ValueError(f"no run {unknown[0]!r}; there are {', '.join(RUNS)}")
    wanted, todo = set(), list(names or RUNS)
    while todo:
        name = todo.pop()
        wanted.add(name)
        if RUNS[name].source:
            todo.append(RUNS[name].source)
    return [name for name in RUNS if name in wanted]


def run_directory(workdir: pathlib.Path, name: str, seed: int) -> pathlib.Path:
    """Where a training and its records lie."""
    return (workdir / f"seed_{seed}" / name).absolute()


def is_done(workdir: pathlib.Path, name: str, seed: int) -> bool:
    """Whether all exams of a training are written down."""
    from blip2_jax.configs.shapes_tables import exams

    directory = run_directory(workdir, name, seed)
    return all((directory / f"{_file(exam)}.json").exists() for exam in exams(name))


def _file(exam: str) -> str:
    return exam.replace(",", "_")


def train_and_examine(arguments: argparse.Namespace) -> None:
    """One training, continued if it was begun, and its exams.

    Raises:
      SystemExit: it was asked to stop.
    """
    import jax
    from absl import logging

    from blip2_jax.cli.evaluation_run import evaluate_run
    from blip2_jax.configs.eval import shapes_tables as exam_configs
    from blip2_jax.configs.shapes_tables import exams, get_config
    from blip2_jax.evaluation.evaluators import make_evaluator
    from blip2_jax.training.loop import train

    logging.set_verbosity(logging.ERROR)
    workdir, name, seed = arguments.workdir, arguments.one, arguments.seed
    jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / "compiled"))
    directory = run_directory(workdir, name, seed)
    config = get_config(f"{name},{directory.parent}")
    with config.unlocked():
        config.seed = seed
        if arguments.quick:
            config.steps = QUICK_STEPS
            config.optimizer.warmup_steps = QUICK_STEPS // 2
            config.evaluation.every = QUICK_STEPS if config.evaluation.every else 0
    if code := train(config, directory, make_evaluator):
        sys.exit(code)
    for exam in exams(name):
        asked = exam_configs.get_config(exam)
        out = directory / f"{_file(exam)}.json"
        with asked.unlocked():
            asked.model, asked.out = str(directory), str(out)
            asked.max_examples = QUICK_SCENES if arguments.quick else 0
        if not out.exists():
            record, _ = evaluate_run(asked)
            print(exam, record["scores"], flush=True)


def write_tables(workdir: pathlib.Path, seeds: int) -> Iterator[str]:
    """`tables.md` and `figure5.svg`, of what is there."""
    from blip2_jax.paper import small_report

    records = small_report.Records(workdir, seeds)
    (workdir / "figure5.svg").write_text(small_report.figure5(records))
    text = small_report.as_markdown(records)
    (workdir / "tables.md").write_text(text)
    yield text
    yield f"written to {workdir / 'tables.md'} and {workdir / 'figure5.svg'}"


if __name__ == "__main__":
    sys.exit(main())
