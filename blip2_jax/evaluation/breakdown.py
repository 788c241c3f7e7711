"""Where a model is right and wrong: best and worst examples, kinds of questions."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from blip2_jax.data.text.tokenizers import clean_question
from blip2_jax.evaluation.compare import Group, Table
from blip2_jax.evaluation.examples import Example

TYPE_WORDS = 2  # "what color ...", "how many ...": the question's type
_SORTED_BY = ("cider", "vqa_accuracy", "exact_match")


class Extremes(NamedTuple):
    """Places of examples, best first and worst first."""

    best: list[int]
    worst: list[int]


def goodness(example: Example) -> float | None:
    """What examples are ordered by: CIDEr, accuracy, or how soon a search finds.

    None where people's answers are not known.
    """
    if "ranks" in example:
        return -float(list(example["ranks"].values())[-1])
    scores = example["scores"]
    return next((scores[name] for name in _SORTED_BY if name in scores), None)


def extremes(group: Group, count: int, unit: str, seed: int = 0) -> Extremes:
    """The examples of a unit on which the entries do best and worst, on the average.

    Equal ones are drawn at random.

    Args:
      count: of each; an example is not shown twice.
    """
    known: dict[int, float] = {}
    for place, same in enumerate(zip(*aligned(group), strict=True)):
        values = [goodness(example) for example in same]
        numbers = [value for value in values if value is not None]
        if same[0]["unit"] == unit and numbers:
            known[place] = sum(numbers) / len(numbers)
    places = list(known)
    random.Random(seed).shuffle(places)
    ordered = sorted(places, key=lambda place: -known[place])
    count = min(count, len(ordered) // 2)
    return Extremes(ordered[:count], ordered[::-1][:count])


def aligned(group: Group) -> list[list[Example]]:
    """The examples of the entries that have those of the first, in their order."""
    ids = [example["id"] for example in group.entries[0].examples]
    return [
        entry.examples
        for entry in group.entries
        if [example["id"] for example in entry.examples] == ids
    ]


def question_types(group: Group, most: int = 15) -> Table | None:
    """Mean accuracy by the first words of the question; None without scored questions.

    Args:
      most: so many types, the most frequent; the others are one.
    """
    scored = [_by_type(entry.examples) for entry in group.entries]
    counts = Counter({kind: len(values) for kind, values in scored[0].items()})
    if not counts:
        return None
    frequent = [kind for kind, _ in counts.most_common(most)]
    rest = [kind for kind in counts if kind not in frequent]
    rows = []
    for name, kinds in [*((kind, [kind]) for kind in frequent), ("(others)", rest)]:
        if kinds:
            each = [[v for kind in kinds for v in found[kind]] for found in scored]
            means = [f"{sum(v) / len(v):.1f}" if v else "" for v in each]
            rows.append([name, str(sum(counts[kind] for kind in kinds)), *means])
    return Table(["first words", "questions", *(e.name for e in group.entries)], rows)


def _by_type(examples: Sequence[Example]) -> dict[str, list[float]]:
    """The scores of the questions of each type."""
    found: dict[str, list[float]] = defaultdict(list)
    for example in examples:
        value = goodness(example)
        if "question" in example and value is not None:
            found[question_type(example["question"])].append(value)
    return found


def question_type(question: str) -> str:
    """The first words, in lower case and without marks."""
    return " ".join(clean_question(question).split()[:TYPE_WORDS])


def insights_of(groups: Sequence[Group]) -> dict[str, Table]:
    """Accuracy by question type of every group that has questions, by title."""
    found = {
        f"Accuracy by type of question, {group.title}": question_types(group)
        for group in groups
    }
    return {title: table for title, table in found.items() if table is not None}
