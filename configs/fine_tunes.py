"""The paper's fine-tunes (appendix tables 7, 8 and 9), as configurations.

The image encoder is trained too, at a higher resolution: its positions are resized from
those it was pre-trained with. Where the paper is silent (the last rate, where the
warm-up begins) stand the original code's numbers. Paths as in `recipes.py`;
configurations are returned unlocked.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from blip2_jax.configs import recipes
from blip2_jax.configs.recipes import (
    CAPTIONS,
    COCO_TRAIN,
    COCO_VALIDATION,
    annotation_json,
    run_name,
)
from blip2_jax.data.text.prompts import QUESTION_PROMPT
from blip2_jax.training.train_config import default_config

EPOCHS = 5
QUESTIONS = {"train": 443_757, "trainval": 658_111}  # of VQAv2
# Language models that the paper fine-tunes; rates of the image encoder's layers.
CAPTIONING_DECAY = {"opt2.7b": 1.0, "opt6.7b": 0.95, "flant5xl": 1.0}
VQA_DECAY = {"opt2.7b": 0.95, "opt6.7b": 0.9, "flant5xl": 0.95}
TUNED = tuple(CAPTIONING_DECAY)
FROZEN_VISION = "^visual_encoder/"


def captioning(language: str) -> ConfigDict:
    """Table 7: COCO captions behind "a photo of", 364 pixels, 256 a step."""
    config = _stage2(language, batch_size=256, examples=CAPTIONS, size=364)
    config.optimizer.layer_decay = CAPTIONING_DECAY[language]
    config.data.train = (COCO_TRAIN,)
    config.data.prompt = "a photo of"
    config.data.prefix_split = "none"  # what stands before the caption is the prompt
    if "t5" in language:  # the encoder reads the prompt alone
        config.data.max_text_length, config.data.max_target_length = 8, 32
    config.evaluation.sources = (COCO_VALIDATION,)
    config.evaluation.num_beams = 5
    return config


def vqa(language: str, split: str = "trainval") -> ConfigDict:
    """Table 8: VQAv2 and Visual Genome's questions, 490 pixels, 128 a step.

    The Q-Former reads the question too. A step shows a question with one of its ten
    answers: a distinct answer comes with the share of annotators who gave it, and a
    text counts by the sum over its tokens, so that the expected loss is that of all
    answers weighted by these shares. Rows for all answers would be the same in
    expectation, at the price of three passes of the language model a question and
    batches whose size depends on what is drawn. Questions of Visual Genome, which have
    one answer each, count as much as others.

    Args:
      split: "trainval" as the paper, or "train", evaluated on part of "val" on the way.
    """
    examples = QUESTIONS[split]
    config = _stage2(language, batch_size=128, examples=examples, size=490)
    config.optimizer.layer_decay = VQA_DECAY[language]
    config.model.question_in_qformer = True
    config.objective = ConfigDict({"mean_over": "texts"})
    splits = ("train", "val") if split == "trainval" else ("train",)
    annotated = [annotation_json(f"vqa_{name}.json", COCO) for name in splits]
    genome = annotation_json("vg_qa.json", "data/vg/images")
    config.data.train = tuple(map(_per_question, (*annotated, genome)))
    config.data.question_prompt = QUESTION_PROMPT  # FlanT5's too
    config.data.max_text_length = 64
    config.data.length_buckets = (24, 32, 48, 64)
    if "t5" in language:  # the decoder writes the answer alone
        config.data.max_target_length = 16
    config.evaluation.metric = "vqa_accuracy"
    config.evaluation.sources = (VQA_VALIDATION,)
    config.evaluation.num_beams, config.evaluation.max_new_tokens = 5, 10
    if split == "trainval":  # nothing is left to evaluate on
        config.evaluation.every = 0
    return config


def retrieval(vision: str, itg: bool = True) -> ConfigDict:
    """Table 9: ITC, ITM and ITG on COCO, 364 pixels, 224 pairs a step.

    Captions of one image in a step are each other's positives.

    Args:
      itg: False: ITC and ITM alone (table 6).
    """
    config = default_config("stage1").unlock()
    recipes.use_models(config, vision, size=364)
    config.init.from_run = f"runs/stage1_{vision}"
    _tuned(config, batch_size=224, examples=CAPTIONS)
    config.frozen = ()
    config.objective = ConfigDict({"itg_weight": 1.0 if itg else 0.0})
    if vision == "vitl":
        config.optimizer.learning_rate, config.optimizer.b2 = 5e-6, 0.98
        config.optimizer.layer_decay = 1.0
    else:
        config.optimizer.layer_decay = 0.95
    config.data.train = (COCO_TRAIN,)
    config.evaluation.sources = (COCO_VALIDATION,)
    config.evaluation.rerank = 128
    return config


def freeze_vision(config: ConfigDict) -> ConfigDict:
    """The same fine-tune with the image encoder as it was pre-trained."""
    config.frozen = (FROZEN_VISION, *config.frozen)
    config.optimizer.layer_decay = 1.0
    return config


COCO = "data/coco/images"
VQA_VALIDATION = {
    "kind": "vqa",
    "questions": "data/vqav2/v2_OpenEnded_mscoco_val2014_questions.json",
    "annotations": "data/vqav2/v2_mscoco_val2014_annotations.json",
    "images": COCO,
    "image_name": "val2014/COCO_val2014_{:012d}.jpg",
}


def _per_question(source: dict[str, Any]) -> dict[str, Any]:
    """An epoch shows every question once, not every image."""
    return {"kind": "per_question", "of": source}


def _stage2(language: str, batch_size: int, examples: int, size: int) -> ConfigDict:
    """A fine-tune of a stage-2 run with its image encoder, ViT-g."""
    config = default_config("stage2").unlock()
    recipes.use_models(config, "vitg", language, size)
    config.init.from_run = run_name(language)
    _tuned(config, batch_size, examples)
    config.frozen = tuple(rule for rule in config.frozen if rule != FROZEN_VISION)
    return config


def _tuned(config: ConfigDict, batch_size: int, examples: int) -> None:
    """5 epochs of AdamW (0.9, 0.999), 1,000 steps of warm-up to 1e-5; no drop path."""
    config.batch_size = batch_size
    config.steps = EPOCHS * examples // batch_size
    config.optimizer.learning_rate = 1e-5
    config.optimizer.warmup_steps = 1000
    config.optimizer.warmup_start_learning_rate = 1e-8
    config.optimizer.final_learning_rate = 0.0
    config.optimizer.weight_decay = 0.05
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.999
    config.model.remat = "full"  # the image encoder's activations would fill a device
    config.evaluation.every = config.steps // EPOCHS
    config.evaluation.max_examples = 1000
    config.compilation_cache = "runs/compiled"
