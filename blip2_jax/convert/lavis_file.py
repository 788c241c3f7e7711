"""LAVIS checkpoint files: how to open and how to write them.

A LAVIS file holds the parameters that were trained. The frozen towers of a stage-2
model, and the image encoder of a stage-1 model, come from files of their own.
"""

from __future__ import annotations

import importlib.util
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from blip2_jax.convert.converted_arrays import ConvertedArrays, Part, part_at_size
from blip2_jax.convert.files import torch_pickle
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.files.output import atomic_output, progress
from blip2_jax.convert.language_families.registry import FAMILIES
from blip2_jax.convert.model_source import (
    TEXT_BRANCH,
    TOWERS,
    ModelSource,
    expected_shapes,
)
from blip2_jax.convert.tables.lavis import (
    POSITION_IDS,
    lavis_prefix,
    position_ids,
    stage1_rules,
    stage2_rules,
)
from blip2_jax.convert.tables.name_table import Array, Rule
from blip2_jax.convert.towers import language_part, vision_part
from blip2_jax.models.presets import INSTRUCTED, PRESETS, RELEASED, Blip2Config
from blip2_jax.models.sizes import LlamaConfig, OPTConfig, T5Config, ViTConfig

# Token table of a Q-Former that reads text.
INSTRUCTION_WORDS = "Qformer.bert.embeddings.word_embeddings.weight"
# Arrays that a file has if and only if its model has them.
STAGE_ARRAYS = {
    "itm_head.weight",
    *(f"{lavis_prefix(family)}_proj.weight" for family in FAMILIES),
}
# What LAVIS's Llama has: sizes and tokens vary, all else is as here.
_VICUNA = LlamaConfig(2, 1, 1, 1, 2, 2)
_VICUNA_FIXED = (
    "rope_theta",
    "rope_scaling",
    "qkv_bias",
    "output_bias",
    "mlp_bias",
    "query_key_norm",
    "tied_head",
    "embedding_scale",
    "attention_scale",
    "residual_scale",
    "logits_divisor",
)


def open_lavis(
    source: CheckpointFiles,
    config: Blip2Config | None = None,
    *,
    vision: CheckpointFiles | None = None,
    language_model: CheckpointFiles | None = None,
    extra: tuple[Part, ...] = (),
) -> ModelSource:
    """Open a LAVIS file as a model.

    Args:
      source: the file.
      config: sizes; None finds the released model that has the file's shapes.
      vision: EVA-CLIP or CLIP, if the file has no image encoder.
      language_model: OPT, T5 or Vicuna, if a stage-2 file has none.
      extra: further parts, such as a text branch.

    Raises:
      SourceError: parameters of the model are missing, or the file holds others.
    """
    config = config or released_sizes(source)
    parts = [lavis_part(source, config)]
    if vision is not None:
        parts.append(vision_part(vision, config.vision))
    if language_model is not None:
        if config.language_model is None:
            raise SourceError(f"{source.name} is of stage 1: it has no language model")
        parts.append(language_part(language_model, config.language_model))
    arrays = ConvertedArrays([*parts, *extra])
    _check_towers(arrays, config, source)
    instructed = is_instructed(source)
    arrays.check(
        expected_shapes(config, instructed), carried=TEXT_BRANCH if extra else ()
    )
    in_file = {
        path
        for rule in parts[0].rules
        for path in rule.paths()
        if all(name in source for name in rule.names())
    }
    elsewhere = tuple(
        tower
        for tower in TOWERS
        if any(path.startswith(tower) and path not in in_file for path in arrays)
    )
    return ModelSource(
        config,
        arrays,
        "lavis",
        elsewhere=elsewhere,
        question_in_qformer=instructed,
        prompt_in_qformer=instructed,
        precision=arrays.precision,
    )


def is_instructed(source: CheckpointFiles) -> bool:
    """Return True if a LAVIS file is an InstructBLIP.

    It is of stage 2, and its Q-Former reads text: the whole prompt.
    """
    return INSTRUCTION_WORDS in source and "itm_head.weight" not in source


def lavis_part(source: CheckpointFiles, config: Blip2Config) -> Part:
    """Return the file with its table; positions fit the image size of `config`."""
    leftovers = (re.escape(POSITION_IDS),)
    rules = lavis_rules(config, is_instructed(source))
    return part_at_size(source, rules, config.vision, leftovers)


def lavis_rules(config: Blip2Config, reads_text: bool = False) -> list[Rule]:
    """Return LAVIS's table of a model.

    Args:
      config: sizes.
      reads_text: the Q-Former of a stage-2 model reads text.

    Raises:
      SourceError: LAVIS has no such image encoder or language model.
    """
    if config.projector is not None:
        raise SourceError("LAVIS has no projector in place of the Q-Former")
    vision = config.vision
    if isinstance(vision, ViTConfig) and (
        vision.key_bias != vision.pre_norm or vision.extensions()
    ):
        raise SourceError("LAVIS has the image encoders of EVA-CLIP and CLIP only")
    if config.language_model is None:
        return stage1_rules(config)
    return stage2_rules(config, reads_text)


def _check_towers(
    arrays: ConvertedArrays, config: Blip2Config, source: CheckpointFiles
) -> None:
    """Raise a SourceError that names the option for a tower that is wholly absent."""
    towers = [(TOWERS[0], "image encoder", "--vision")]
    if config.language_model is not None:
        towers.append((TOWERS[1], "language model", "--language_model"))
    for prefix, name, option in towers:
        if not any(path.startswith(prefix) for path in arrays):
            raise SourceError(
                f"{source.name} holds no {name}, because LAVIS does not save frozen "
                f"towers: name its file ({option})"
            )


def released_sizes(source: CheckpointFiles) -> Blip2Config:
    """Return the sizes of the released model that has the shapes of a LAVIS file.

    Raises:
      SourceError: no released model has these shapes.
    """
    for name in (*RELEASED, *INSTRUCTED):
        shapes = _fingerprint(PRESETS[name])
        shapes_fit = all(
            source.shape(key) == shape if key in source else key not in STAGE_ARRAYS
            for key, shape in shapes.items()
        )
        stage_fits = not any(key in source for key in STAGE_ARRAYS - shapes.keys())
        if shapes_fit and stage_fits:
            return PRESETS[name]
    raise SourceError(
        f"{source.name} has the sizes of no released model "
        f"({', '.join((*RELEASED, *INSTRUCTED))}): name its sizes (--sizes)"
    )


def _fingerprint(config: Blip2Config) -> dict[str, tuple[int, ...]]:
    """Return shapes of a few arrays that together identify a released model."""
    vision, qformer = config.vision, config.qformer
    assert isinstance(vision, ViTConfig)
    cross = "Qformer.bert.encoder.layer.0.crossattention.self.key.weight"
    positions = (vision.num_positions, vision.width)
    shapes: dict[str, tuple[int, ...]] = {
        "query_tokens": (1, qformer.num_queries, qformer.width),
        cross: (qformer.width, vision.width),
        "visual_encoder.pos_embed": (1, *positions),
        "visual_encoder.positional_embedding": positions,
    }
    language_model = config.language_model
    if language_model is None:
        return shapes | {"itm_head.weight": (2, qformer.width)}
    shape = (language_model.embedding_width, qformer.width)
    return shapes | {f"{lavis_prefix(language_model.family)}_proj.weight": shape}


def write_lavis(
    model: ModelSource,
    output: pathlib.Path,
    dtype: str | None = None,
    complete: bool = False,
) -> list[str]:
    """Write a model as LAVIS saves it; the file appears only when it is complete.

    Args:
      model: the model.
      output: path of the file, with the suffix `.pth`.
      dtype: of all floating-point arrays; None keeps each one's own.
      complete: also write the towers that came from other files.

    Returns:
      Lines for the user: what was left out.

    Raises:
      SourceError: LAVIS has no such model.
      FileExistsError: the output exists.
    """
    if importlib.util.find_spec("torch") is None:
        raise SourceError(
            "a LAVIS file is pickled, which needs torch: pip install torch"
        )
    if output.suffix != ".pth":
        raise SourceError(f"the name of a LAVIS file ends with .pth, not {output.name}")
    with atomic_output(output) as file:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch_pickle.save(lavis_arrays(model, complete), file, dtype)
    lines = []
    if model.elsewhere and not complete:
        towers = ", ".join(tower.rstrip("/") for tower in model.elsewhere)
        lines.append(f"left out, as LAVIS does: {towers} (--complete)")
    if carried := model.carried():
        lines.append(f"{len(carried)} arrays of the text branch have no place there")
    return lines


def _check_lavis_has(config: Blip2Config) -> None:
    """Raise a SourceError if a setting has another value than LAVIS's code."""
    fixed: list[tuple[str, Any, Any]] = [
        ("the Q-Former's activation", config.qformer.activation, "gelu")
    ]
    language_model = config.language_model
    if isinstance(language_model, OPTConfig):
        fixed.append(("OPT's tied_head", language_model.tied_head, True))
    elif isinstance(language_model, T5Config):
        fixed.append(("T5's activation", language_model.activation, "gelu"))
    elif isinstance(language_model, LlamaConfig):
        fixed += [
            (f"Llama's {name}", getattr(language_model, name), getattr(_VICUNA, name))
            for name in _VICUNA_FIXED
        ]
        heads = language_model.heads
        fixed.append(("Llama's kv_heads", language_model.kv_heads, heads))
    for name, value, only in fixed:
        if value != only:
            raise SourceError(f"{name} is {value}; LAVIS has {only} only")


def lavis_arrays(
    model: ModelSource, complete: bool = False
) -> Iterator[tuple[str, Array]]:
    """Yield LAVIS's names and arrays of a model, converted one by one.

    Raises:
      SourceError: LAVIS has no such model.
    """
    left_out = () if complete else model.elsewhere
    _check_lavis_has(model.config)
    if model.question_in_qformer and not model.prompt_in_qformer:
        raise SourceError(
            "LAVIS has no stage 2 whose Q-Former reads questions: InstructBLIP's reads "
            "whole prompts"
        )
    rules = lavis_rules(model.config, model.prompt_in_qformer)
    for rule in progress(rules, "converting"):
        paths = rule.paths()
        if paths[0].startswith(left_out):
            # LAVIS files hold the alias of a token table even if the tower is left out.
            if rule.aliases:
                table = model.arrays[paths[0]]
                yield from ((alias, table) for alias in rule.aliases)
            continue
        yield from rule.to_source({p: model.arrays[p] for p in paths}).items()
    yield from position_ids(model.config.qformer).items()
