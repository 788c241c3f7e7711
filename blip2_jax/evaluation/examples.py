"""The examples of an evaluation, and the scores that follow from them.

An example is a plain dict, one JSON line of `NAME.examples.jsonl`:

    unit        "image", "text" or "question"
    id          id in the data set
    key         name of the image in its source
    said        the model's caption or answer
    references  people's captions or answers
    question    (questions) the question's text
    scores      in percent; the set's score is the mean over the examples that have it
    bleu        (captions) `bleu.bleu_counts`
    part        (captions) the part of the data set that the image belongs to
    ranks       (retrieval) rank of the best right answer by "itc" and "itm"; 0 is best
    found       (retrieval) the first few answers: texts of an image, or keys of images
    owner       (texts) index of the text's image among the images
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from blip2_jax.data.sources.base import Record
from blip2_jax.metrics.bleu import ORDERS, bleu
from blip2_jax.metrics.bootstrap import Statistic, mean, ratio
from blip2_jax.metrics.retrieval import RECALL_AT
from blip2_jax.parallel.files import read_json_lines

Example = dict[str, Any]

# LAVIS's files of COCO have no ids, but the names of COCO's images end with them.
_COCO_NAME = re.compile(r"COCO_\w+_0*(\d+)\.\w+$")


def dataset_id(record: Record) -> int | str:
    """Return the data set's own id of an image, or our `image_id` if it has none."""
    if record.original_id is not None:
        return record.original_id
    name = _COCO_NAME.search(record.key)
    return int(name[1]) if name else record.image_id


def write_examples(path: pathlib.Path, examples: Iterable[Example]) -> None:
    """Write one JSON object per line."""
    with path.open("w") as file:
        for example in examples:
            file.write(json.dumps(example, ensure_ascii=False) + "\n")


def read_examples(path: pathlib.Path) -> list[Example]:
    """Read a file that `write_examples` wrote.

    Raises:
      ValueError: it is not such a file, or it is empty.
    """
    examples = read_json_lines(path)
    if not examples:
        raise ValueError(f"{path} has no examples")
    return examples


def example_statistics(examples: Sequence[Example]) -> dict[str, Statistic]:
    """Return every score that is a function of sums over examples, by its name.

    METEOR is not among them: its score of a set is no function of sums over captions.
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
    """Return the recalls: i2t over images, t2i over texts.

    The mean of both directions is over images, each with its texts.
    """
    images = [e for e in examples if e["unit"] == "image"]
    texts = [e for e in examples if e["unit"] == "text"]
    owners = np.array([e["owner"] for e in texts])
    result = {}
    for stage in images[0]["ranks"]:
        hits = {}
        for direction, rows in (("i2t", images), ("t2i", texts)):
            ids, unit = [str(e["id"]) for e in rows], rows[0]["unit"]
            ranks = np.array([e["ranks"][stage] for e in rows])
            hit = hits[direction] = 100.0 * (ranks[:, None] < np.array(RECALL_AT))
            values = {f"r{k}": hit[:, n] for n, k in enumerate(RECALL_AT)}
            prefix = f"{stage}_{direction}"
            for name, value in (values | {"mean": hit.mean(axis=1)}).items():
                parts = mean(value, np.ones(len(rows)))
                result[f"{prefix}_{name}"] = Statistic(unit, ids, parts, ratio)
        of_texts = np.zeros((len(images), 2))
        np.add.at(of_texts, owners, mean(hits["t2i"].mean(1), np.ones(len(texts))))
        of_images = mean(hits["i2t"].mean(axis=1), np.ones(len(images)))
        ids = [str(e["id"]) for e in images]
        result[f"{stage}_r_mean"] = Statistic(
            "image", ids, np.concatenate([of_images, of_texts], axis=1), _mean_of_ratios
        )
    return result


def _mean_of_ratios(sums: Float[Array, "... 4"]) -> Any:
    return (ratio(sums[..., :2]) + ratio(sums[..., 2:])) / 2
