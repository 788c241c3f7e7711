"""Records of trainings with several seeds as the tables of `small_tables`, in Markdown.

Means over seeds, differences paired by seed and by example (`seeds`), and figure 5.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from blip2_jax.data.shapes.captions import parse_caption
from blip2_jax.data.shapes.world import scene
from blip2_jax.evaluation.compare import Table
from blip2_jax.evaluation.examples import Example, read_examples, statistics_of
from blip2_jax.evaluation.seeds import difference, over_seeds
from blip2_jax.evaluation.shapes_exam import common_answers
from blip2_jax.metrics.bootstrap import Statistic, mean, ratio
from blip2_jax.paper.small_tables import CURVES, TABLES, Row, Score, SmallTable
from blip2_jax.reports.pictures import chart
from blip2_jax.training.metrics_log import read_metrics


class Records:
    """What trainings with `count` seeds wrote: `seed_N/RUN/...` under a directory."""

    def __init__(self, directory: pathlib.Path, count: int) -> None:
        self._directory, self.count = directory, count

    def seeds(self, run: str, exam: str) -> list[int]:
        """The seeds whose record is there."""
        seeds = range(self.count)
        return [seed for seed in seeds if self._file(seed, run, exam).exists()]

    def statistic(self, seed: int, run: str, exam: str, score: str) -> Statistic:
        """A score of one exam of one training.

        Raises:
          KeyError: the exam has no such score.
        """
        return _statistics(self._file(seed, run, exam))[score]

    def curve(self, seed: int, run: str) -> dict[int, float]:
        """The share of right answers by step; {} where the run has not begun."""
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
    found = statistics_of(examples)
    if any("references" in e and "question" not in e for e in examples):
        found["things"] = things_right(examples)
    if any("question" in e for e in examples):
        found["guess"] = guessed(examples)
    return found


def things_right(captions: Sequence[Example]) -> Statistic:
    """The share of captions that name exactly the scene's things, in percent."""
    right = []
    for example in captions:
        split, number = example["key"].split("/")
        right.append(
            100.0 * parse_caption(example["said"]).names(scene(split, int(number)))
        )
    return _share("image", captions, right)


def guessed(questions: Sequence[Example]) -> Statistic:
    """What each kind of question's most common training answer gets, in percent."""
    common = common_answers()
    right = [
        100.0 * (common[example["id"].split("/")[1]] == example["references"][0])
        for example in questions
    ]
    return _share("question", questions, right)


def _share(unit: str, examples: Sequence[Example], right: Sequence[float]) -> Statistic:
    """The mean over all examples."""
    parts = mean(np.array(right), np.ones(len(right)))
    return Statistic(unit, [str(e["id"]) for e in examples], parts, ratio)


def make_table(table: SmallTable, records: Records) -> tuple[Table, Table]:
    """The scores of every row, and the paired differences."""
    heads = ["", *(score.head for score in table.scores)]
    rows = [
        [row.label, *(_cell(row, score, records) for score in table.scores)]
        for row in table.rows
    ]
    by_label = {row.label: row for row in table.rows}
    paired = [
        [
            f"{second} less {first}",
            *(
                _difference(by_label[first], by_label[second], score, records)
                for score in table.scores
            ),
        ]
        for first, second in table.pairs
    ]
    return Table(heads, rows), Table(heads, paired)


def _exam(row: Row, score: Score) -> str:
    return score.exam + row.ending


def _statistic(row: Row, score: Score, records: Records, seed: int) -> Statistic:
    name = score.name.format(kind=row.kind)
    return records.statistic(seed, row.run, _exam(row, score), name)


def _cell(row: Row, score: Score, records: Records) -> str:
    seeds = records.seeds(row.run, _exam(row, score))
    if not seeds:
        return ""
    return over_seeds([_statistic(row, score, records, s) for s in seeds]).text()


def _difference(first: Row, second: Row, score: Score, records: Records) -> str:
    there = [records.seeds(row.run, _exam(row, score)) for row in (first, second)]
    seeds = [seed for seed in there[0] if seed in there[1]]
    if not seeds:
        return ""
    sides = [
        [_statistic(row, score, records, seed) for seed in seeds]
        for row in (first, second)
    ]
    found = difference(*sides)
    each = ", ".join(f"{value:+.1f}" for value in found.each)
    return f"{found.text(signed=True)} ({each})"


def curves(records: Records) -> dict[str, list[tuple[int, float]]]:
    """The curves of figure 5: means over the seeds that have the step."""
    result = {}
    for label, run in CURVES.items():
        found = [records.curve(seed, run) for seed in range(records.count)]
        steps = sorted({step for each in found for step in each})
        result[label] = [
            (step, float(np.mean([each[step] for each in found if step in each])))
            for step in steps
        ]
    return {label: curve for label, curve in result.items() if curve}


def figure5(records: Records) -> str:
    """The curves as an SVG file."""
    image = chart("right answers on held-out scenes, %", curves(records))
    return image.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def as_markdown(records: Records) -> str:
    """All tables."""
    parts = [
        f"Means over seeds 0 to {records.count - 1}; in brackets the interval that "
        "holds 95 % of draws of seeds and of examples with replacement, and behind a "
        "difference that of each seed. A blank cell has not been measured.",
    ]
    for table in TABLES:
        parts.append(f"### {table.title}\n\n{table.lead}")
        parts += [each.markdown() for each in make_table(table, records)]
    lines = curves(records)
    steps = sorted({step for curve in lines.values() for step, _ in curve})
    rows = [
        [label, *(f"{dict(curve)[n]:.1f}" if n in dict(curve) else "" for n in steps)]
        for label, curve in lines.items()
    ]
    head = ["", *(f"step {step}" for step in steps)]
    parts += [
        "### Figure 5: right answers over the steps of stage 2",
        "Held-out scenes other than the exams'; `figure5.svg`.",
        Table(head, rows).markdown(),
    ]
    return "\n\n".join(parts) + "\n"
