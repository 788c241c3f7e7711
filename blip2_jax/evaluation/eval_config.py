"""Every key of an evaluation with its default."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict, config_dict

from blip2_jax.inference.load import ExtraWeights
from blip2_jax.metrics.bootstrap import SAMPLES, SEED

EXTRA_WEIGHTS = [field.name for field in dataclasses.fields(ExtraWeights)]


def default_evaluation(task: str = "") -> ConfigDict:
    """Every key of an evaluation with its default.

    Args:
      task: "retrieval", "captioning" or "vqa".
    """
    unset = config_dict.placeholder
    return ConfigDict(
        {
            "title": "",  # what reports call it; "": the model's path
            # What the paper prints in this place, by name of the score.
            "paper": {},
            "model": "",  # a run's directory, or what else `blip2_jax.load` opens
            "which": "best",  # of a run: "best", "last" or a step
            # What the model's path does not say, as in launch/convert.py.
            "beside": dict.fromkeys(EXTRA_WEIGHTS, "") | {"image_size": unset(int)},
            # Sizes of axes, to use several devices of each process; none set: one.
            "mesh": {"data": unset(int), "fsdp": unset(int), "tensor": unset(int)},
            "task": task,
            "data": (),  # source specs; (): what the run itself was evaluated on
            "max_examples": 0,  # 0: all
            "batch_size": 64,
            "precision": "",  # "": as in training
            # Retrieval: candidates that the matching head scores again; 0: none.
            "rerank": 128,
            "text_length": unset(int),  # not set: 35, or what a run was trained with
            # Of captions and answers; what is not set has the API's default.
            "decoding": {
                "num_beams": unset(int),
                "max_new_tokens": unset(int),
                "min_new_tokens": unset(int),
                "length_penalty": unset(float),
                "repetition_penalty": unset(float),
                "convention": unset(str),
            },
            "prompt": unset(str),  # before captions; not set: the run's own
            "tokenizer": "auto",  # of caption metrics: "java", "python", "auto"
            # Around questions, as "Question: {} Answer:"; not set: the model's own.
            "question_prompt": unset(str),
            "variant": "official",  # of VQA accuracy; or "lavis", see `vqa_accuracy`
            # Nouns and verbs of answers as their lemmas (OK-VQA in the original).
            "lemmatise": False,
            "result_format": "vqa",  # of the file of answers: "vqa" or "gqa"
            # Intervals of the scores, by drawing the examples again.
            "bootstrap": {"samples": SAMPLES, "seed": SEED},
            "page": 0,  # so many captioned pictures, drawn at random, as HTML
            "out": "",  # the record; "": evaluation_TASK.json, of a run inside it
        }
    ).lock()
