"""Breakdown of results: best and worst examples, accuracy by type of question."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from blip2_jax.data.text.tokenizers import clean_question
from blip2_jax.evaluation.compare import Group, Table
from blip2_jax.evaluation.examples import Example

TYPE_WORDS = 2  # "what color ...", "how many ...": the type of a question
_SORTED_BY = ("cider", "vqa_accuracy", "exact_match")


class BestAndWorst(NamedTuple):
    """Indices of examples, best first and worst first."""

    best: list[int]
    worst: list[int]


def example_score(example: Example) -> float | None:
    """Return the score that examples are sorted by; higher is better.

    CIDEr, VQA accuracy or exact match; for a search, minus the rank of the first right
    answer; None for a question without people's answers.
    """
    if "ranks" in example:
        return -float(list(example["ranks"].values())[-1])
    scores = example["scores"]
    return next((scores[name] for name in _SORTED_BY if name in scores), None)


def best_and_worst(group: Group, count: int, unit: str, seed: int = 0) -> BestAndWorst:
    """Select the examples with the highest and lowest mean score over the entries.

    Examples with equal scores are in random order, and no example is selected twice.

    Args:
      group: the entries.
      count: number of best examples, and of worst examples.
      unit: of the examples.
      seed: of the random order.
    """
    mean_scores: dict[int, float] = {}
    for index, examples in enumerate(zip(*aligned_examples(group), strict=True)):
        scores = [example_score(example) for example in examples]
        known = [score for score in scores if score is not None]
        if examples[0]["unit"] == unit and known:
            mean_scores[index] = sum(known) / len(known)
    indices = list(mean_scores)
    random.Random(seed).shuffle(indices)
    ordered = sorted(indices, key=lambda index: -mean_scores[index])
    count = min(count, len(ordered) // 2)
    return BestAndWorst(ordered[:count], ordered[::-1][:count])


def aligned_examples(group: Group) -> list[list[Example]]:
    """Return the examples of all entries with the same ids as the first."""
    ids = [example["id"] for example in group.entries[0].examples]
    return [
        entry.examples
        for entry in group.entries
        if [example["id"] for example in entry.examples] == ids
    ]


def accuracy_by_question_type(group: Group, max_types: int = 15) -> Table | None:
    """Tabulate the mean accuracy by the first words of the question.

    Args:
      group: the entries, one column each.
      max_types: rows of the most frequent types; all other types share a row.

    Returns:
      None if the group has no scored questions.
    """
    by_type = [_scores_by_type(entry.examples) for entry in group.entries]
    counts = Counter({name: len(scores) for name, scores in by_type[0].items()})
    if not counts:
        return None
    frequent = [name for name, _ in counts.most_common(max_types)]
    others = [name for name in counts if name not in frequent]
    rows = []
    for label, types in [*((name, [name]) for name in frequent), ("(others)", others)]:
        if types:
            columns = [
                [s for name in types for s in scores[name]] for scores in by_type
            ]
            means = [f"{sum(s) / len(s):.1f}" if s else "" for s in columns]
            rows.append([label, str(sum(counts[name] for name in types)), *means])
    return Table(["first words", "questions", *(e.name for e in group.entries)], rows)


def _scores_by_type(examples: Sequence[Example]) -> dict[str, list[float]]:
    by_type: dict[str, list[float]] = defaultdict(list)
    for example in examples:
        score = example_score(example)
        if "question" in example and score is not None:
            by_type[question_type(example["question"])].append(score)
    return by_type


def question_type(question: str) -> str:
    """Return the first words of a question, in lower case and without punctuation."""
    return " ".join(clean_question(question).split()[:TYPE_WORDS])


def question_type_tables(groups: Sequence[Group]) -> dict[str, Table]:
    """Tabulate accuracy by question type for every group with questions, by title."""
    tables = {
        f"Accuracy by type of question, {group.title}": accuracy_by_question_type(group)
        for group in groups
    }
    return {title: table for title, table in tables.items() if table is not None}
