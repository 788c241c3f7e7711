"""Comparison of the sizes in a `config.json` with the shapes of the arrays.

It comes before a name table is made, which has one rule for each declared layer. A
message names the setting and both numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.language_families.registry import BY_MODEL_TYPE

POSITIONS = "vision_model.embeddings.position_embedding"
# Setting: an array that has this size, and the axis. The image encoders of BLIP-2, BLIP
# and CLIP share these names.
VISION_SIZES_IN_ARRAYS: dict[str, tuple[str, int]] = {
    "vision_config.hidden_size": ("vision_model.embeddings.class_embedding", -1),
    "vision_config.patch_size": ("vision_model.embeddings.patch_embedding.weight", -1),
    "vision_config.intermediate_size": (
        "vision_model.encoder.layers.0.mlp.fc1.weight",
        0,
    ),
}
SIZES_IN_ARRAYS: dict[str, tuple[str, int]] = {
    **VISION_SIZES_IN_ARRAYS,
    "qformer_config.hidden_size": ("query_tokens", -1),
    "qformer_config.intermediate_size": (
        "qformer.encoder.layer.0.intermediate_query.dense.weight",
        0,
    ),
    "qformer_config.vocab_size": ("embeddings.word_embeddings.weight", 0),
    "qformer_config.max_position_embeddings": (
        "embeddings.position_embeddings.weight",
        0,
    ),
    "num_query_tokens": ("query_tokens", -2),
    "image_text_hidden_size": ("vision_projection.weight", 0),
}
# Setting: pattern of an array of one layer, with the layer's number.
VISION_LAYERS = {
    "vision_config.num_hidden_layers": r"vision_model\.encoder\.layers\.(\d+)\."
}
LAYERS = {
    **VISION_LAYERS,
    "qformer_config.num_hidden_layers": r"qformer\.encoder\.layer\.(\d+)\.",
}
# InstructBLIP's Q-Former holds its token table itself, and there is no projection.
INSTRUCTBLIP_SIZES_IN_ARRAYS = {
    setting: (f"qformer.{array}" if array.startswith("embeddings.") else array, axis)
    for setting, (array, axis) in SIZES_IN_ARRAYS.items()
    if setting != "image_text_hidden_size"
}
CROSS_ATTENTION = r"qformer\.encoder\.layer\.(\d+)\.crossattention\."


def check_declared_sizes(
    theirs: Any,
    source: CheckpointFiles,
    with_language_model: bool,
    sizes: Mapping[str, tuple[str, int]] = SIZES_IN_ARRAYS,
) -> None:
    """Compare declared sizes with the arrays of a Hugging Face folder.

    Args:
      theirs: transformers' `Blip2Config` or `InstructBlipConfig`.
      source: the folder.
      with_language_model: the model uses `text_config`.
      sizes: those of the parts before the language model; see `compare_sizes`.

    Raises:
      SourceError: a size differs; the message has the setting and both numbers.
    """
    arrays, layers = dict(sizes), dict(LAYERS)
    if with_language_model:
        family = BY_MODEL_TYPE[theirs.text_config.model_type]
        arrays |= {
            f"text_config.{name}": (f"language_model.{array}", axis)
            for name, (array, axis) in family.arrays.items()
        }
        layers |= {
            f"text_config.{name}": rf"language_model\.{pattern}"
            for name, pattern in family.layers.items()
        }
    compare_sizes(theirs, source, arrays, layers)
    check_image_size(theirs.vision_config, source, POSITIONS)
    _check_cross_attention(theirs.qformer_config, source)


def compare_sizes(
    theirs: Any,
    source: CheckpointFiles,
    arrays: Mapping[str, tuple[str, int]],
    layers: Mapping[str, str],
) -> None:
    """Compare declared sizes with arrays.

    Args:
      theirs: an object of transformers with the settings.
      source: the folder.
      arrays: setting: an array that has this size, and the axis.
      layers: setting: pattern of an array of one layer, with the layer's number.

    Raises:
      SourceError: a size differs; the message has the setting and both numbers.
    """
    actual = {
        name: source.shape(array)[axis]
        for name, (array, axis) in arrays.items()
        if array in source and len(source.shape(array)) >= max(axis + 1, -axis)
    }
    actual |= {
        name: len(layer_numbers(source, pattern)) for name, pattern in layers.items()
    }
    for name, size in actual.items():
        if (declared := _setting(theirs, name)) != size:
            raise SourceError(
                f"{source.path / 'config.json'}: {name} is {declared!r}, but the "
                f"weights have {size}"
            )


def compare_fields(
    source: CheckpointFiles, declared: Any, ours: Any, names: Iterable[str]
) -> None:
    """Compare fields of the sizes that a folder declares with those of a model.

    Args:
      source: the folder.
      declared: its sizes.
      ours: sizes of the model, of the same class.
      names: of the fields.

    Raises:
      SourceError: a value differs; the message has both.
    """
    for name in names:
        theirs, expected = getattr(declared, name), getattr(ours, name)
        if theirs != expected:
            raise SourceError(
                f"{source.name}: its config.json declares {name} {theirs}, the model "
                f"has {expected}"
            )


def _setting(theirs: Any, name: str) -> Any:
    """Return a setting by its name with the section before it."""
    section, _, key = name.rpartition(".")
    return getattr(getattr(theirs, section) if section else theirs, key)


def layer_numbers(source: CheckpointFiles, pattern: str) -> set[int]:
    """Return the numbers that a pattern of names captures."""
    matches = (re.match(pattern, name) for name in source)
    return {int(match[1]) for match in matches if match}


def check_image_size(
    vision: Any,
    source: CheckpointFiles,
    name: str,
    *,
    section: str = "vision_config.",
    class_token: bool = True,
) -> None:
    """Check that the position embeddings are for the declared image size.

    Args:
      vision: settings of the image encoder.
      source: the folder.
      name: of the array.
      section: of the settings, for the message.
      class_token: the first position is that of the class token.

    Raises:
      SourceError: they are for another size.
    """
    sizes = (vision.image_size, vision.patch_size)
    if name not in source or not all(isinstance(s, int) and s > 0 for s in sizes):
        return
    declared = (sizes[0] // sizes[1]) ** 2 + class_token
    actual = source.shape(name)[-2]
    if declared != actual:
        raise SourceError(
            f"{source.path / 'config.json'}: {section}image_size {sizes[0]} means "
            f"{declared} image tokens, but {name} has {actual}; for another size than "
            "the model's, keep the file and use --image_size"
        )


def _check_cross_attention(qformer: Any, source: CheckpointFiles) -> None:
    """Raise a SourceError if other blocks have cross-attention than declared."""
    every, depth = qformer.cross_attention_frequency, qformer.num_hidden_layers
    actual = layer_numbers(source, CROSS_ATTENTION)
    declared = set(range(0, depth, every)) if every > 0 else set()
    if declared != actual:
        raise SourceError(
            f"{source.path / 'config.json'}: qformer_config.cross_attention_frequency "
            f"is {every}, but the weights have cross-attention in blocks "
            f"{', '.join(map(str, sorted(actual)))}"
        )
