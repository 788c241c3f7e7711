"""LAVIS checkpoint files: opened with what they leave out, and written.

A file of LAVIS holds what was trained. The frozen halves of a stage-2 model, and the
image encoder of a stage-1 model, come from files of their own.
"""

from __future__ import annotations

import importlib.util
import pathlib
import re
from collections.abc import Iterator

from blip2_jax.convert import sizes
from blip2_jax.convert.arrays import ConvertedArrays, Part
from blip2_jax.convert.files import torch_pickle
from blip2_jax.convert.files.atomic_output import progress, whole
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.model_source import (
    TEXT_BRANCH,
    TOWERS,
    ModelSource,
    expected_shapes,
)
from blip2_jax.convert.tables.lavis import POSITION_IDS, position_ids, stage1_rules
from blip2_jax.convert.tables.lavis_stage2 import stage2_rules
from blip2_jax.convert.tables.name_table import Array, Rule
from blip2_jax.convert.towers import language_part, resized_part, vision_part
from blip2_jax.models.presets import Blip2Config, ViTConfig


def open_lavis(
    source: CheckpointFiles,
    config: Blip2Config | None = None,
    *,
    vision: CheckpointFiles | None = None,
    language_model: CheckpointFiles | None = None,
    extra: tuple[Part, ...] = (),
) -> ModelSource:
    """A LAVIS file as a model.

    Args:
      source: of the file.
      config: sizes; None finds the released model that has these.
      vision: the image encoder, where the file has none: EVA-CLIP or CLIP.
      language_model: OPT or T5, of a stage-2 file.
      extra: further parts, such as a text branch.

    Raises:
      SourceError: what the model needs is nowhere, or the file holds something else.
    """
    config = config or sizes.released_sizes(source)
    parts = [lavis_part(source, config)]
    if vision is not None:
        parts.append(vision_part(vision, config.vision))
    if language_model is not None:
        if config.language_model is None:
            raise SourceError(f"{source.path} is of stage 1: it has no language model")
        parts.append(language_part(language_model, config.language_model))
    arrays = ConvertedArrays([*parts, *extra])
    _check_towers(arrays, config, source)
    arrays.check(expected_shapes(config), carried=TEXT_BRANCH if extra else ())
    own = {
        name
        for rule in parts[0].rules
        for name in rule.paths()
        if _within(rule, source)
    }
    elsewhere = tuple(
        tower
        for tower in TOWERS
        if any(path.startswith(tower) and path not in own for path in arrays)
    )
    half = any(arrays.dtype(path).itemsize < 4 for path in arrays)
    return ModelSource(
        config,
        arrays,
        "lavis",
        elsewhere=elsewhere,
        precision="bfloat16" if half else "float32",
    )


def lavis_part(source: CheckpointFiles, config: Blip2Config) -> Part:
    """The file with its table; positions take the image size of `config`."""
    leftovers = (re.escape(POSITION_IDS),)
    return resized_part(source, lavis_rules(config), config.vision, leftovers)


def _check_towers(
    arrays: ConvertedArrays, config: Blip2Config, source: CheckpointFiles
) -> None:
    """A tower that is wholly absent has its own, shorter message."""
    wanted = [(TOWERS[0], "image encoder", "--vision")]
    if config.language_model is not None:
        wanted.append((TOWERS[1], "language model", "--language_model"))
    for prefix, what, option in wanted:
        if not any(path.startswith(prefix) for path in arrays):
            raise SourceError(
                f"{source.path} holds no {what}, as LAVIS's files of models with a "
                f"frozen one do: name it ({option})"
            )


def _within(rule: Rule, source: CheckpointFiles) -> bool:
    return all(name in source for name in rule.names())


def write_lavis(
    model: ModelSource,
    output: pathlib.Path,
    dtype: str | None = None,
    complete: bool = False,
) -> list[str]:
    """Write a model as LAVIS saves it; the file appears when it is complete.

    Args:
      output: the file, `.pth`.
      dtype: of all floating arrays; None keeps each one's own.
      complete: also the frozen towers that came from elsewhere.

    Returns:
      Lines for the user: what was left out.

    Raises:
      SourceError: LAVIS has no such model.
      FileExistsError: the output is there already.
    """
    if importlib.util.find_spec("torch") is None:
        raise SourceError(
            "a LAVIS file is pickled, which needs torch: pip install torch"
        )
    if output.suffix != ".pth":
        raise SourceError(f"a LAVIS file ends with .pth, not {output.name}")
    with whole(output) as place:
        place.parent.mkdir(parents=True, exist_ok=True)
        torch_pickle.save(lavis_arrays(model, complete), place, dtype)
    left = [tower.rstrip("/") for tower in ([] if complete else model.elsewhere)]
    lines = [f"left out, as LAVIS does: {', '.join(left)} (--complete)"] if left else []
    if carried := model.carried():
        lines.append(f"{len(carried)} arrays of the text branch have no place there")
    return lines


def lavis_arrays(
    model: ModelSource, complete: bool = False
) -> Iterator[tuple[str, Array]]:
    """The model under LAVIS's names, made array by array."""
    left_out = () if complete else model.elsewhere
    if model.question_in_qformer:
        raise SourceError("LAVIS has no stage 2 whose Q-Former reads questions")
    rules = lavis_rules(model.config)
    for rule in progress(rules, "converting"):
        paths = rule.paths()
        if paths[0].startswith(left_out):
            # The second name of a frozen token table is in their files all the same.
            if rule.aliases:
                table = model.arrays[paths[0]]
                yield from ((alias, table) for alias in rule.aliases)
            continue
        yield from rule.to_source({p: model.arrays[p] for p in paths}).items()
    yield from position_ids(model.config.qformer).items()


def lavis_rules(config: Blip2Config) -> list[Rule]:
    """LAVIS's table of a model.

    Raises:
      SourceError: an image encoder that LAVIS does not have.
    """
    vision = config.vision
    if isinstance(vision, ViTConfig) and vision.key_bias != vision.pre_norm:
        raise SourceError("LAVIS has the image encoders of EVA-CLIP and CLIP alone")
    table = stage1_rules if config.language_model is None else stage2_rules
    return table(config)
