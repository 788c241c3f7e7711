"""What an evaluation keeps of every example, and the scores that follow from it.

An example is a plain dict, one JSON line of `NAME.examples.jsonl`:

    unit        "image", "text" or "question": what it is one of
    id, key     of the data set; the name of the picture in its source
    said        the model's caption or answer
    references  people's
    question    (questions) what was asked
    scores      in percent, such that a score of the set is the mean over the examples
                that have it
    bleu        (captions) `bleu.bleu_counts`; with `part`, the part of the set
    ranks       (retrieval) of the best right answer, 0 is first, by "itc" and "itm"
    found       (retrieval) the first few answers: texts of an image, keys of a text's
    owner       (texts) the place of its image among the images
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from blip2_jax.evaluation.retrieval import RECALL_AT
from blip2_jax.metrics.bleu import ORDERS, bleu
from blip2_jax.metrics.bootstrap import Statistic, mean, ratio

Example = dict[str, Any]


def write_examples(path: pathlib.Path, examples: Iterable[Example]) -> None:
    """One JSON object a line."""
    with path.open("w") as file:
        for example in examples:
            file.write(json.dumps(example, ensure_ascii=False) + "\n")


def read_examples(path: pathlib.Path) -> list[Example]:
    """What `write_examples` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def statistics_of(examples: Sequence[Example]) -> dict[str, Statistic]:
    """Every score that is a function of sums over examples, by its name.

    METEOR is none: its scores of captions do not add up to that of a set.
    """
    if any("ranks" in example for example in examples):
        return _recalls(examples)
    return _means(examples) | _bleu(examples)


def _means(examples: Sequence[Example]) -> dict[str, Statistic]:
    names = list(dict.fromkeys(name for e in examples for name in e["scores"]))
    ids, unit = [str(e["id"]) for e in examples], examples[0]["unit"]
    result = {}
    for name in names:
        counted = np.array([float(name in e["scores"]) for e in examples])
        values = np.array([e["scores"].get(name, 0.0) for e in examples])
        result[name] = Statistic(unit, ids, mean(values, counted), ratio)
    return result


def _bleu(examples: Sequence[Example]) -> dict[str, Statistic]:
    if not any("bleu" in example for example in examples):
        return {}
    ids, unit = [str(e["id"]) for e in examples], examples[0]["unit"]
    counts = np.array([e["bleu"] for e in examples], np.float64)
    parts = [e.get("part", "") for e in examples]
    result = {}
    for part in ("", *sorted({part for part in parts if part})):
        inside = np.array([[float(not part or own == part)] for own in parts])
        for order in range(1, ORDERS + 1):
            name = f"bleu_{order}_{part}" if part else f"bleu_{order}"
            score = functools.partial(bleu, order=order)
            result[name] = Statistic(unit, ids, counts * inside, score)
    return result


def _recalls(examples: Sequence[Example]) -> dict[str, Statistic]:
    """Recall of images over images, of texts over texts; the mean of both directions
    over images, each with its texts."""
    images = [e for e in examples if e["unit"] == "image"]
    texts = [e for e in examples if e["unit"] == "text"]
    owners = np.array([e["owner"] for e in texts])
    result = {}
    for stage in images[0]["ranks"]:
        hits = {}
        for way, rows in (("i2t", images), ("t2i", texts)):
            ids, unit = [str(e["id"]) for e in rows], rows[0]["unit"]
            ranks = np.array([e["ranks"][stage] for e in rows])
            hits[way] = 100.0 * (ranks[:, None] < np.array(RECALL_AT))
            found = {f"r{k}": hits[way][:, n] for n, k in enumerate(RECALL_AT)}
            for name, values in (found | {"mean": hits[way].mean(axis=1)}).items():
                every = mean(values, np.ones(len(rows)))
                result[f"{stage}_{way}_{name}"] = Statistic(unit, ids, every, ratio)
        of_texts = np.zeros((len(images), 2))
        np.add.at(of_texts, owners, mean(hits["t2i"].mean(1), np.ones(len(texts))))
        parts = [mean(hits["i2t"].mean(axis=1), np.ones(len(images))), of_texts]
        ids = [str(e["id"]) for e in images]
        result[f"{stage}_r_mean"] = Statistic(
            "image", ids, np.concatenate(parts, axis=1), _both_ways
        )
    return result


def _both_ways(sums: Any) -> Any:
    return (ratio(sums[..., :2]) + ratio(sums[..., 2:])) / 2
