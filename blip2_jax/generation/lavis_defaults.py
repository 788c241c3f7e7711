"""Decoding settings of the original LAVIS and BLIP code and of its evaluations."""

from __future__ import annotations

from typing import Any

from blip2_jax.generation.decoding_config import DecodingConfig


def from_lavis_lengths(
    max_length: int,
    min_length: int = 1,
    *,
    new_tokens: bool = False,
    prompt_tokens: int = 1,
    **settings: Any,
) -> DecodingConfig:
    """Convert LAVIS's generation lengths to a config of convention `original`.

    Args:
      max_length: LAVIS's `max_length`. It counts the start token: 30 allows 29 new
        tokens for OPT and the Q-Former.
      min_length: LAVIS's `min_length`, which always counts the start token. The end
        token is allowed once there are so many tokens.
      new_tokens: True where LAVIS passes `max_length` to transformers as
        `max_new_tokens`: for T5, and for question answering with any language model.
      prompt_tokens: tokens before the first new one, start token included; BLIP's
        lengths count its whole prompt.
      **settings: other fields of `DecodingConfig`.
    """
    return DecodingConfig(
        max_new_tokens=max_length if new_tokens else max_length - prompt_tokens,
        min_new_tokens=max(min_length - prompt_tokens, 0),
        convention="original",
        **settings,
    )


def lavis_defaults(task: str, family: str) -> DecodingConfig:
    """Return the settings that LAVIS uses for a task.

    Args:
      task: "generate" or "answer", the defaults of LAVIS's model methods; "coco" or
        "nocaps", the settings of its caption evaluations. Those pass a repetition
        penalty of 1.15, and on COCO a length penalty of 0, neither of which appears in
        their configuration files.
      family: "opt", "t5", "qformer", "instructblip" with T5 or "instructblip_vicuna".

    Raises:
      ValueError: LAVIS has no such task for this family.
    """
    is_t5 = family == "t5"
    captions: dict[str, Any] = {
        "new_tokens": is_t5,
        "num_beams": 5,
        "repetition_penalty": 1.15,
    }
    answers: dict[str, Any] = {"new_tokens": True, "num_beams": 5}
    language_model_tasks = {
        "generate": from_lavis_lengths(30, new_tokens=is_t5, num_beams=5),
        "answer": from_lavis_lengths(
            10, length_penalty=-1.0 if is_t5 else 0.0, **answers
        ),
        "coco": from_lavis_lengths(30, 8, length_penalty=0.0, **captions),
        "nocaps": from_lavis_lengths(80, 10, **captions),
    }
    instructed: dict[str, Any] = answers | {"repetition_penalty": 1.5}
    # Vicuna's lengths count the start token, also of answers.
    vicuna: dict[str, Any] = instructed | {"new_tokens": False}
    tasks = {
        "opt": language_model_tasks,
        "t5": language_model_tasks,
        "instructblip": {
            "generate": from_lavis_lengths(256, **instructed),
            "answer": from_lavis_lengths(10, length_penalty=-1.0, **instructed),
        },
        "instructblip_vicuna": {
            "generate": from_lavis_lengths(256, **vicuna),
            "answer": from_lavis_lengths(10, length_penalty=0.0, **vicuna),
        },
        "qformer": {"generate": from_lavis_lengths(30, 10, num_beams=3)},
    }.get(family, {})
    if task not in tasks:
        raise ValueError(
            f"LAVIS has no decoding {task!r} for {family!r}; "
            f"there are {', '.join(tasks) or 'none'}"
        )
    return tasks[task]


def blip_defaults(
    prompt_tokens: int, *, sample: bool, max_length: int = 20, min_length: int = 5
) -> DecodingConfig:
    """Return the settings of BLIP's captioner.

    Sampling keeps the 50 most likely tokens before it applies `top_p`: 50 is the
    default of transformers' `top_k`, which BLIP's code does not change.

    Args:
      prompt_tokens: number of tokens of the prompt, start token included.
      sample: nucleus sampling; False: beam search.
      max_length: longest caption, with the prompt and the end token.
      min_length: number of tokens, with the prompt, from which on a caption may end.

    Raises:
      ValueError: the prompt leaves no token of `max_length`.
    """
    if prompt_tokens >= max_length:
        raise ValueError(
            f"the prompt has {prompt_tokens} tokens, [DEC] included; max_length="
            f"{max_length} leaves none for the caption"
        )
    settings: dict[str, Any] = (
        {"sample": True, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1}
        if sample
        else {"num_beams": 3}
    )
    return from_lavis_lengths(
        max_length, min_length, prompt_tokens=prompt_tokens, **settings
    )
