"""A complete model of any origin: its sizes, its arrays (not yet read), its words."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from blip2_jax.models.blip2 import init_params
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.presets import Blip2Config
from blip2_jax.nn.trees import flatten

# Our paths by whose branch they are; a stage-2 model carries them for a later stage.
TEXT_BRANCH = (
    r"qformer/embeddings/(word|position)",
    r"qformer/layer_[0-9]+/text_mlp(_norm)?/.*",
    r"qformer/head/.*",
    r"(vision_projection|text_projection|itm_head)/.*",
    r"temperature",
)
# The frozen parts: where each stands in the tree.
TOWER_PREFIXES = {"vision": "visual_encoder/", "language_model": "language_model/"}
TOWERS = tuple(TOWER_PREFIXES.values())


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A model to use, to train on or to write out.

    Attributes:
      config: sizes; with a language model it is of stage 2.
      arrays: by our "/"-joined paths, in any dtype, read when asked for. Those of
        stage 2 may hold the Q-Former's text branch too.
      origin: what it is, for messages and records.
      qformer_tokenizer, language_tokenizer: a directory, "shapes:..." or "".
      question_prompt: template of questions, "" for the family's own.
      absent: patterns of paths that the origin has no place for.
      elsewhere: prefixes of paths that came from other files than the rest (frozen
        towers); LAVIS's files leave them out.
      question_in_qformer: the Q-Former reads questions (stage 2).
      precision: "float32" or "bfloat16", what to compute in unless told.
    """

    config: Blip2Config
    arrays: Mapping[str, np.ndarray]
    origin: str
    qformer_tokenizer: str = ""
    language_tokenizer: str = ""
    question_prompt: str = ""
    absent: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    question_in_qformer: bool = False
    precision: str = "float32"

    @property
    def stage(self) -> int:
        """1 or 2."""
        return 1 if self.config.language_model is None else 2

    def summary(self) -> str:
        """What was opened, in words."""
        count = len(self.arrays)
        parts = [f"a stage-{self.stage} model ({self.origin}), {count} arrays"]
        if carried := self.carried():
            parts.append(f"{len(carried)} of them the Q-Former's text branch, carried")
        elif self.stage == 2 and not self.question_in_qformer:
            parts.append("without the Q-Former's text branch (--text_branch adds it)")
        if self.absent:
            parts.append(f"without {', '.join(self.absent)}, which the source lacks")
        return "; ".join(parts)

    def carried(self) -> list[str]:
        """Paths that no pass of this model reads: stage 2's text branch."""
        wanted = expected_shapes(self.config, self.question_in_qformer)
        return [path for path in self.arrays if path not in wanted]


def expected_shapes(
    config: Blip2Config, question_in_qformer: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
    """Every parameter of a model by path; no memory is used."""
    model = build_model(config, question_in_qformer)
    shapes: Any = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return flatten(shapes)  # type: ignore[return-value]


def build_model(
    config: Blip2Config, question_in_qformer: bool, dtype: DTypeLike = jnp.float32
) -> Blip2Stage1 | Blip2Stage2:
    """The module of the stage that a configuration describes."""
    if config.language_model is None:
        return Blip2Stage1(config, dtype)
    return Blip2Stage2(config, dtype, question_in_qformer=question_in_qformer)


def is_text_branch(path: str) -> bool:
    """Whether a path belongs to the part that stage 2 does not read."""
    return any(re.fullmatch(pattern, path) for pattern in TEXT_BRANCH)
