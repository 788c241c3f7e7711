"""The tables of `small_tables` in Markdown, from the records of several seeds.

They show means over seeds and differences paired by seed and by example
(`blip2_jax.metrics.seed_bootstrap`). Figure 5 is an SVG file.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from blip2_jax.data.shapes.captions import parse_caption
from blip2_jax.data.shapes.world import scene
from blip2_jax.evaluation.compare import Table
from blip2_jax.evaluation.examples import Example, example_statistics, read_examples
from blip2_jax.evaluation.shapes_exam import common_answers
from blip2_jax.metrics.bootstrap import Statistic, mean, ratio
from blip2_jax.metrics.seed_bootstrap import mean_over_seeds, paired_difference
from blip2_jax.paper.small_tables import (
    CURVES,
    TABLES,
    RunRow,
    ScoreColumn,
    SmallTable,
)
from blip2_jax.reports.chart import as_file, line_chart
from blip2_jax.training.metrics_log import read_metrics


class Records:
    """The records of trainings with `count` seeds, in `seed_N/RUN/` of a directory."""

    def __init__(self, directory: pathlib.Path, count: int) -> None:
        """Remember the directory; records are read on demand."""
        self._directory, self.count = directory, count

    def seeds(self, run: str, exam: str) -> list[int]:
        """Return the seeds whose record exists."""
        seeds = range(self.count)
        return [seed for seed in seeds if self._file(seed, run, exam).exists()]

    def statistic(self, seed: int, run: str, exam: str, score: str) -> Statistic:
        """Return a score of one exam of one training.

        Raises:
          KeyError: the exam has no such score.
        """
        return _statistics(self._file(seed, run, exam))[score]

    def curve(self, seed: int, run: str) -> dict[int, float]:
        """Return exact match by step; {} if the run has not started."""
        directory = self._run(seed, run)
        if not (directory / "metrics.jsonl").exists():
            return {}
        return {
            int(line["step"]): line["evaluation/exact_match"]
            for line in read_metrics(directory)
            if "evaluation/exact_match" in line
        }

    def _file(self, seed: int, run: str, exam: str) -> pathlib.Path:
        return self._run(seed, run) / f"{exam}.examples.jsonl"

    def _run(self, seed: int, run: str) -> pathlib.Path:
        return self._directory / f"seed_{seed}" / run


@functools.cache
def _statistics(file: pathlib.Path) -> dict[str, Statistic]:
    examples = read_examples(file)
    statistics = example_statistics(examples)
    if any("references" in e and "question" not in e for e in examples):
        statistics["things"] = share_naming_all_things(examples)
    if any("question" in e for e in examples):
        statistics["guess"] = majority_accuracy(examples)
    return statistics


def share_naming_all_things(captions: Sequence[Example]) -> Statistic:
    """Return the percentage of captions that name exactly the scene's things."""
    right = []
    for example in captions:
        split, number = example["key"].split("/")
        right.append(
            100.0 * parse_caption(example["said"]).names(scene(split, int(number)))
        )
    return _mean("image", captions, right)


def majority_accuracy(questions: Sequence[Example]) -> Statistic:
    """Return the percentage of answers equal to the most common one of their kind."""
    common = common_answers()
    right = [
        100.0 * (common[example["id"].split("/")[1]] == example["references"][0])
        for example in questions
    ]
    return _mean("question", questions, right)


def _mean(unit: str, examples: Sequence[Example], values: Sequence[float]) -> Statistic:
    """Return the mean over all examples."""
    parts = mean(np.array(values), np.ones(len(values)))
    return Statistic(unit, [str(e["id"]) for e in examples], parts, ratio)


def make_table(table: SmallTable, records: Records) -> tuple[Table, Table]:
    """Return the table of scores, and the table of paired differences."""
    heads = ["", *(column.head for column in table.columns)]
    rows = [
        [row.label, *(_score(row, column, records) for column in table.columns)]
        for row in table.rows
    ]
    by_label = {row.label: row for row in table.rows}
    paired = [
        [
            f"{second} less {first}",
            *(
                _difference(by_label[first], by_label[second], column, records)
                for column in table.columns
            ),
        ]
        for first, second in table.pairs
    ]
    return Table(heads, rows), Table(heads, paired)


def _statistics_of_seeds(
    row: RunRow, column: ScoreColumn, records: Records, seeds: Sequence[int]
) -> list[Statistic]:
    name = column.name.format(kind=row.kind)
    exam = _exam(row, column)
    return [records.statistic(seed, row.run, exam, name) for seed in seeds]


def _exam(row: RunRow, column: ScoreColumn) -> str:
    return column.exam + row.exam_suffix


def _score(row: RunRow, column: ScoreColumn, records: Records) -> str:
    """Format the mean over the seeds with a record; "" without any."""
    seeds = records.seeds(row.run, _exam(row, column))
    if not seeds:
        return ""
    return mean_over_seeds(_statistics_of_seeds(row, column, records, seeds)).text()


def _difference(
    first: RunRow, second: RunRow, column: ScoreColumn, records: Records
) -> str:
    """Format the second row minus the first over the seeds of both; "" without any."""
    seeds_of_rows = [
        records.seeds(row.run, _exam(row, column)) for row in (first, second)
    ]
    seeds = [seed for seed in seeds_of_rows[0] if seed in seeds_of_rows[1]]
    if not seeds:
        return ""
    difference = paired_difference(
        _statistics_of_seeds(first, column, records, seeds),
        _statistics_of_seeds(second, column, records, seeds),
    )
    per_seed = ", ".join(f"{value:+.1f}" for value in difference.per_seed)
    return f"{difference.text(signed=True)} ({per_seed})"


def mean_curves(records: Records) -> dict[str, list[tuple[int, float]]]:
    """Return the curves of figure 5: means over the seeds that have a step."""
    result = {}
    for label, run in CURVES.items():
        curves = [records.curve(seed, run) for seed in range(records.count)]
        steps = sorted({step for curve in curves for step in curve})
        result[label] = [
            (step, float(np.mean([curve[step] for curve in curves if step in curve])))
            for step in steps
        ]
    return {label: curve for label, curve in result.items() if curve}


def figure5(records: Records) -> str:
    """Draw the curves as an SVG file."""
    title = "right answers on held-out scenes, %"
    return as_file(line_chart(title, mean_curves(records)))


def as_markdown(records: Records) -> str:
    """Format all tables as Markdown."""
    parts = [
        f"Means over seeds 0 to {records.count - 1}; in brackets the interval that "
        "holds 95 % of draws of seeds and of examples with replacement, and after a "
        "difference that of each seed. A blank cell has not been measured.",
    ]
    for table in TABLES:
        parts.append(f"### {table.title}\n\n{table.lead}")
        parts += [each.markdown() for each in make_table(table, records)]
    curves = {label: dict(curve) for label, curve in mean_curves(records).items()}
    steps = sorted({step for curve in curves.values() for step in curve})
    rows = [
        [label, *(f"{curve[step]:.1f}" if step in curve else "" for step in steps)]
        for label, curve in curves.items()
    ]
    head = ["", *(f"step {step}" for step in steps)]
    parts += [
        "### Figure 5: right answers over the steps of stage 2",
        "Held-out scenes other than the exams'; `figure5.svg`.",
        Table(head, rows).markdown(),
    ]
    return "\n\n".join(parts) + "\n"
