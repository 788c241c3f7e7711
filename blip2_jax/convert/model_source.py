"""A complete model of any origin: sizes, parameters read on access, tokenizers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from blip2_jax.models.blip2 import parameter_shapes
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.presets import Blip2Config
from blip2_jax.nn.trees import flatten

# Patterns of the parameters that only stage 1 uses. A stage-2 model may carry them for
# a later stage.
TEXT_BRANCH = (
    r"qformer/embeddings/(word|position)",
    r"qformer/layer_[0-9]+/text_mlp(_norm)?/.*",
    r"qformer/head/.*",
    r"(vision_projection|text_projection|itm_head)/.*",
    r"temperature",
)
# Path prefixes of the towers, by their key in `config.frozen_sources`.
TOWER_PREFIXES = {"vision": "visual_encoder/", "language_model": "language_model/"}
TOWERS = tuple(TOWER_PREFIXES.values())


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model to use, to train or to export.

    Attributes:
      config: sizes; a model with a language model is of stage 2.
      arrays: parameters by path, in any dtype, read on access. Those of a stage-2 model
        may include the Q-Former's text branch.
      origin: kind of the source, for messages and records: "run", "lavis", ...
      qformer_tokenizer, language_tokenizer: a directory, "shapes:..." or "" for none.
      question_prompt: template of questions; "" for the model family's own.
      prompt_template: "plain" or "chat"; see `tokenizers.load_tokenizer`.
      absent: patterns of parameters that the source cannot hold.
      elsewhere: path prefixes of towers that came from other files than the rest;
        LAVIS files leave them out.
      question_in_qformer: the Q-Former reads questions (stage 2).
      prompt_in_qformer: what it reads is the whole prompt of the language model
        (InstructBLIP), not the question alone.
      precision: "float32" or "bfloat16", the default dtype to compute in.
    """

    config: Blip2Config
    arrays: Mapping[str, np.ndarray]
    origin: str
    qformer_tokenizer: str = ""
    language_tokenizer: str = ""
    question_prompt: str = ""
    prompt_template: str = "plain"
    absent: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    question_in_qformer: bool = False
    prompt_in_qformer: bool = False
    precision: str = "float32"

    @property
    def stage(self) -> int:
        """1 or 2."""
        return 1 if self.config.language_model is None else 2

    def summary(self) -> str:
        """Describe the model in one line for the user."""
        count = len(self.arrays)
        parts = [f"a stage-{self.stage} model ({self.origin}), {count} arrays"]
        if carried := self.carried():
            parts.append(f"{len(carried)} of them the Q-Former's text branch, carried")
        elif self.stage == 2 and not self.question_in_qformer:
            parts.append(
                "without the Q-Former's text branch"
                " (`blip2-jax convert --text_branch` adds it)"
            )
        if self.absent:
            parts.append(f"without {', '.join(self.absent)}, which the source lacks")
        return "; ".join(parts)

    def carried(self) -> list[str]:
        """Return the paths that this model does not use: a stage-2 text branch."""
        used = expected_shapes(self.config, self.question_in_qformer)
        return [path for path in self.arrays if path not in used]


def expected_shapes(
    config: Blip2Config, question_in_qformer: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shape of every parameter of a model by path, without allocation."""
    return flatten(parameter_shapes(build_model(config, question_in_qformer)))


def build_model(
    config: Blip2Config, question_in_qformer: bool, dtype: DTypeLike = jnp.float32
) -> Blip2Stage1 | Blip2Stage2:
    """Build the module of stage 2 if there is a language model, else of stage 1."""
    if config.language_model is None:
        return Blip2Stage1(config, dtype)
    return Blip2Stage2(config, dtype, question_in_qformer=question_in_qformer)


def is_text_branch(path: str) -> bool:
    """Return True if only stage 1 uses the parameter at `path`."""
    return any(re.fullmatch(pattern, path) for pattern in TEXT_BRANCH)
