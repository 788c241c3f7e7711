"""The rows of the paper's tables 2 to 6 as evaluations, with the paper's numbers.

`configs/eval/*.py` choose among these rows (Li et al. 2023, arXiv 2301.12597v3).
Weights have the file names of LAVIS and Hugging Face, annotations and images those of
the benchmarks; `data=`, `weights=` and `runs=` name their directories.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from blip2_jax.data.text.prompts import QUESTION_PROMPT, SHORT_ANSWER_PROMPT
from blip2_jax.evaluation.eval_config import default_evaluation

ROOTS = {"data": "data", "weights": "weights", "runs": "runs"}

# Of each language model: its directory, and its zero-shot prompt for questions.
LANGUAGE_MODELS = {
    "opt2.7b": ("opt-2.7b", QUESTION_PROMPT),
    "opt6.7b": ("opt-6.7b", QUESTION_PROMPT),
    "flant5xl": ("flan-t5-xl", SHORT_ANSWER_PROMPT),
    "flant5xxl": ("flan-t5-xxl", SHORT_ANSWER_PROMPT),
}
VISION = {"": "eva_vit_g.pth", "_vitL": "clip_vit_L.pth"}

# Table 2: VQAv2 val and test-dev, OK-VQA test, GQA test-dev.
ZEROSHOT_DATA = ("vqav2_val", "vqav2_testdev", "okvqa", "gqa")
ZEROSHOT = {
    "opt2.7b_vitL": (50.1, 49.7, 30.2, 33.9),
    "opt2.7b": (53.5, 52.3, 31.7, 34.6),
    "opt6.7b": (54.3, 52.6, 36.4, 36.4),
    "flant5xl_vitL": (62.6, 62.3, 39.4, 44.4),
    "flant5xl": (63.1, 63.0, 40.7, 44.2),
    "flant5xxl": (65.2, 65.0, 45.9, 44.7),
}
# Table 3: NoCaps CIDEr, then SPICE, in, near, out of domain and overall; then COCO's
# BLEU-4 and CIDEr.
DOMAINS = ("_in-domain", "_near-domain", "_out-domain", "")
CAPTIONS = {
    "opt2.7b": ((123.0, 117.8, 123.4, 119.7), (15.8, 15.4, 15.1, 15.4), 43.7, 145.8),
    "opt6.7b": ((123.7, 119.2, 124.4, 121.0), (15.8, 15.3, 14.8, 15.3), 43.5, 145.2),
    "flant5xl": ((123.7, 120.2, 124.8, 121.6), (16.3, 15.9, 15.1, 15.8), 42.4, 144.5),
}
# Table 4: fine-tuned VQAv2 test-dev and test-std.
FINETUNED = {
    "flant5xl": (81.55, 81.66),
    "opt2.7b": (81.59, 81.74),
    "opt6.7b": (82.19, 82.30),
}
# Table 5: recall at 1, 5, 10 of texts, then of images. Table 6 has no recall at 10.
RETRIEVAL = {
    ("flickr30k", "vitL"): (96.9, 100, 100, 88.6, 97.6, 98.9),
    ("flickr30k", "vitg"): (97.6, 100, 100, 89.7, 98.1, 98.9),
    ("coco", "vitL"): (83.5, 96.0, 98.0, 66.3, 86.5, 91.8),
    ("coco", "vitg"): (85.4, 97.0, 98.5, 68.3, 87.7, 92.6),
    ("coco", "vitg_without_itg"): (84.5, 96.2, None, 67.2, 87.1, None),
}
_RECALLS = [f"itm_{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]

# (data, model) of each row, by configuration file.
ROWS: dict[str, list[tuple[str, str]]] = {
    "vqa_zeroshot": [(data, m) for data in ZEROSHOT_DATA for m in ZEROSHOT],
    "vqa_finetuned": [
        (data, m) for data in ("vqav2_testdev", "vqav2_test") for m in FINETUNED
    ],
    "captioning": [(data, m) for data in ("nocaps", "coco") for m in CAPTIONS],
    "retrieval": list(RETRIEVAL),
}


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """A row of a table.

    Attributes:
      data: the benchmark.
      model: the model.
      roots: directories of "data", "weights" and "runs".
    """

    data: str
    model: str
    roots: dict[str, str]


def parse_row(table: str, text: str) -> PaperRow:
    """Parse the argument after ":" in `--config`, e.g. `coco,vitg,data=DIR`.

    Args:
      table: a key of `ROWS`.
      text: "DATA,MODEL", perhaps with further NAME=PATH for names in `ROOTS`.

    Raises:
      ValueError: there is no such row, or no such name of a path.
    """
    items = [item for item in text.split(",") if item]
    row = tuple(item for item in items if "=" not in item)
    roots = dict(item.split("=", 1) for item in items if "=" in item)
    if row not in ROWS[table]:
        known = " ".join(map(",".join, ROWS[table]))
        raise ValueError(f"no row {','.join(row)!r} in {table}; there are {known}")
    if unknown := roots.keys() - ROOTS.keys():
        raise ValueError(f"no path {', '.join(unknown)}; there are {', '.join(ROOTS)}")
    return PaperRow(*row, ROOTS | roots)


def vqa_zeroshot(row: PaperRow) -> ConfigDict:
    """Return table 2: a model that was only pre-trained, with its zero-shot prompt."""
    config = _begin("vqa", f"Table 2, {row.data}, {row.model}")
    family, vision = _parts(row.model)
    _released(config, row, f"blip2_pretrained_{row.model}.pth", family)
    # Files of models that were fine-tuned with the image encoder contain it.
    config.beside.vision = f"{row.roots['weights']}/{VISION[vision]}"
    _set_vqa(config, row)
    config.question_prompt = LANGUAGE_MODELS[family][1]
    number = ZEROSHOT[row.model][ZEROSHOT_DATA.index(row.data)]
    config.paper = {"exact_match" if row.data == "gqa" else "vqa_accuracy": number}
    return config.lock()


def vqa_finetuned(row: PaperRow) -> ConfigDict:
    """Return table 4: a run fine-tuned on VQA, with its own prompt."""
    config = _begin("vqa", f"Table 4, {row.data}, {row.model}")
    config.model = f"{row.roots['runs']}/vqa_{row.model.replace('.', '_')}"
    _set_vqa(config, row)
    number = FINETUNED[row.model][("vqav2_testdev", "vqav2_test").index(row.data)]
    config.paper = {"vqa_accuracy": number}
    return config.lock()


def captioning(row: PaperRow) -> ConfigDict:
    """Return table 3: a model fine-tuned on COCO captions."""
    config = _begin("captioning", f"Table 3, {row.data}, {row.model}")
    _released(config, row, f"blip2_caption_{row.model}.pth", row.model)
    cider, spice, bleu_4, coco_cider = CAPTIONS[row.model]
    name = {
        "nocaps": "nocaps/nocaps_val_4500_captions.json",
        "coco": "annotations/coco_karpathy_test.json",
    }[row.data]
    images = f"{row.roots['data']}/{row.data}/images"
    path = f"{row.roots['data']}/{name}"
    config.data = ({"kind": "annotations", "path": path, "images": images},)
    config.prompt = "a photo of"
    config.decoding.num_beams = 5
    # Lengths as in the original's evaluation files.
    if row.data == "nocaps":
        config.decoding.min_new_tokens, config.decoding.max_new_tokens = 10, 80
        scores = [("cider", cider), ("spice", spice)]
        config.paper = {
            f"{name}{domain}": value
            for name, values in scores
            for domain, value in zip(DOMAINS, values, strict=True)
        }
    else:
        config.decoding.min_new_tokens, config.decoding.max_new_tokens = 8, 30
        config.paper = {"bleu_4": bleu_4, "cider": coco_cider}
    return config.lock()


def retrieval(row: PaperRow) -> ConfigDict:
    """Return a row of tables 5 and 6: a model fine-tuned on COCO retrieval."""
    table = "6" if row.model == "vitg_without_itg" else "5"
    config = _begin("retrieval", f"Table {table}, {row.data}, {row.model}")
    roots = row.roots
    if table == "6":
        config.model = f"{roots['runs']}/retrieval_vitg_without_itg"
    else:
        ending = {"vitg": "", "vitL": "_vitL"}[row.model]
        _released(config, row, f"blip2_finetune_coco{ending}.pth", None)
    name = {"coco": "coco_karpathy_test", "flickr30k": "flickr30k_test"}[row.data]
    path = f"{roots['data']}/annotations/{name}.json"
    images = f"{roots['data']}/{row.data}/images"
    config.data = ({"kind": "annotations", "path": path, "images": images},)
    config.rerank = 128
    config.text_length = 35
    numbers = zip(_RECALLS, RETRIEVAL[row.data, row.model], strict=True)
    config.paper = {name: float(value) for name, value in numbers if value is not None}
    return config.lock()


def _begin(task: str, title: str) -> ConfigDict:
    config = default_evaluation(task).unlock()
    config.title = title
    return config


def _parts(model: str) -> tuple[str, str]:
    """Split a model's name into its language model and the suffix of its encoder."""
    family, ending, _ = model.partition("_vitL")
    return family, ending


def _released(config: ConfigDict, row: PaperRow, name: str, family: str | None) -> None:
    """Set the paths of a LAVIS file, its missing language model, and tokenizers.

    Args:
      config: changed in place.
      row: gives the directory of the weights.
      name: of the LAVIS file.
      family: a key of `LANGUAGE_MODELS`; None for stage 1.
    """
    weights = row.roots["weights"]
    config.model = f"{weights}/{name}"
    if family is None:
        config.beside.qformer_tokenizer = f"{weights}/bert-base-uncased"
        return
    folder, _ = LANGUAGE_MODELS[family]
    config.beside.language_model = f"{weights}/{folder}"
    config.beside.language_tokenizer = f"{weights}/{folder}"


def _set_vqa(config: ConfigDict, row: PaperRow) -> None:
    """Set the questions, and the paper's decoding: five beams, length penalty -1."""
    config.data = (_questions(row),)
    config.decoding.num_beams = 5
    config.decoding.length_penalty = -1.0
    config.decoding.max_new_tokens = 10  # as in the original's evaluation files
    config.lemmatise = row.data == "okvqa"
    config.result_format = "gqa" if row.data == "gqa" else "vqa"


def _questions(row: PaperRow) -> dict[str, Any]:
    """Return the source spec of a benchmark's questions."""
    data = row.roots["data"]
    names = {
        "vqav2_val": (
            "vqav2/v2_OpenEnded_mscoco_val2014_questions.json",
            "vqav2/v2_mscoco_val2014_annotations.json",
            "val2014",
        ),
        "vqav2_testdev": (
            "vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json",
            "",
            "test2015",
        ),
        "vqav2_test": (
            "vqav2/v2_OpenEnded_mscoco_test2015_questions.json",
            "",
            "test2015",
        ),
        "okvqa": (
            "okvqa/OpenEnded_mscoco_val2014_questions.json",
            "okvqa/mscoco_val2014_annotations.json",
            "val2014",
        ),
    }
    if row.data == "gqa":
        return {
            "kind": "vqa",
            "questions": f"{data}/gqa/testdev_balanced_questions.json",
            "images": f"{data}/gqa/images",
            "image_name": "{}.jpg",
        }
    questions, annotations, split = names[row.data]
    return {
        "kind": "vqa",
        "questions": f"{data}/{questions}",
        "annotations": f"{data}/{annotations}" if annotations else "",
        "images": f"{data}/coco/images",
        "image_name": f"{split}/COCO_{split}_{{:012d}}.jpg",
    }


def all_rows() -> Iterable[tuple[str, str]]:
    """Yield the configuration file and its argument for every row."""
    for table, rows in ROWS.items():
        for row in rows:
            yield table, ",".join(row)
