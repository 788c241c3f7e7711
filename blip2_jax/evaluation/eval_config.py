"""The configuration of an evaluation."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict, config_dict

from blip2_jax.data.broken_samples import MAX_BROKEN_SHARE
from blip2_jax.inference.load import ExtraWeights
from blip2_jax.metrics.bootstrap import SAMPLES, SEED

TASKS = ("retrieval", "captioning", "vqa")


def default_evaluation(task: str = "") -> ConfigDict:
    """Return every key of an evaluation with its default.

    Args:
      task: one of `TASKS`.
    """
    unset = config_dict.placeholder
    # What the model's path does not say: the options of launch/convert.py.
    beside = {field.name: "" for field in dataclasses.fields(ExtraWeights)}
    # Sizes of mesh axes, to use several devices per process; none set: one device.
    mesh = {"data": unset(int), "fsdp": unset(int), "tensor": unset(int)}
    # Of captions and answers; keys that are not set have the defaults of the models.
    decoding = {
        "num_beams": unset(int),
        "max_new_tokens": unset(int),
        "min_new_tokens": unset(int),
        "length_penalty": unset(float),
        "repetition_penalty": unset(float),
        "convention": unset(str),
    }
    return ConfigDict(
        {
            "title": "",  # in reports; "": the model's path
            "paper": {},  # the paper's scores for this evaluation, by name
            "model": "",  # directory of a run, or any path that `blip2_jax.load` opens
            "which": "best",  # checkpoint of a run: "best", "last" or a step
            "beside": beside | {"image_size": unset(int)},
            "mesh": mesh,
            "task": task,
            "data": (),  # source specs; (): the run's evaluation sources
            "max_examples": 0,  # 0: all
            # Share of broken or unanswered examples above which there is no score.
            "max_broken_share": MAX_BROKEN_SHARE,
            "batch_size": 64,
            "precision": "",  # "": as in training
            "quantize": "",  # see `blip2_jax.load`
            "rerank": 128,  # retrieval: re-ranked candidates; 0 skips re-ranking
            "text_length": unset(int),  # not set: 35, or a run's own if below 32
            "decoding": decoding,
            "prompt": unset(str),  # before captions; not set: the run's own
            "tokenizer": "auto",  # of caption metrics: "java", "python", "auto"
            # Template such as "Question: {} Answer:"; not set: the model's own.
            "question_prompt": unset(str),
            # VQA: file with one candidate answer a line, which are ranked by their
            # log-probability; "": answers are generated.
            "candidates": "",
            "variant": "official",  # of VQA accuracy, or "lavis" (see `vqa_accuracy`)
            "lemmatise": False,  # nouns and verbs of answers, as the original on OK-VQA
            "result_format": "vqa",  # of the file of answers: "vqa" or "gqa"
            "bootstrap": {"samples": SAMPLES, "seed": SEED},  # of score intervals
            "page": 0,  # captioned images on an HTML page, drawn at random
            "out": "",  # the record; "": evaluation_TASK.json, of a run inside it
        }
    ).lock()


def keys_that_are_set(part: ConfigDict) -> dict[str, Any]:
    """Return the keys of a part of the configuration whose value is not None."""
    return {name: value for name, value in part.items() if value is not None}
