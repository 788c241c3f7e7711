"""The image preprocessing that a Hugging Face folder declares, compared with ours.

Images are resized with bicubic interpolation and normalised with the mean and deviation
of the encoder: for BLIP-2 and BLIP to the encoder's size, for CLIP so that the shorter
side has it and the rest is cropped. A folder that declares anything else is refused. Of
the image encoders that a BLIP-2 may start from, only mean and deviation count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.files.json_files import read_json_object
from blip2_jax.convert.tables.huggingface_settings import IMAGE_PROCESSOR, Settings


def check_image_processor(
    source: CheckpointFiles,
    default_size: int | None = None,
    *,
    table: Settings = IMAGE_PROCESSOR,
    crops: bool = False,
) -> None:
    """Check that the preprocessing a folder declares is that of this package.

    Args:
      source: the folder.
      default_size: image size of a `config.json` that declares none. The size of the
        folder counts, also if positions are interpolated to another one. None: any
        declared size will do.
      table: settings of the image processor.
      crops: the shorter side is resized and the rest is cropped.

    Raises:
      SourceError: it declares another one; the message names file, setting and value.
    """
    vision = source.config.get("vision_config")
    declared_size = vision.get("image_size") if isinstance(vision, Mapping) else None
    side = declared_size or default_size
    square, shorter = {"height": side, "width": side}, {"shortest_edge": side}
    sizes = {"size": shorter, "crop_size": square} if crops else {"size": square}
    if default_size is None:
        sizes = {}
    # transformers 5 writes the second file, earlier versions the first.
    for name, section in (
        ("preprocessor_config.json", ""),
        ("processor_config.json", "image_processor"),
    ):
        file = source.path / name
        if not file.is_file():
            continue
        content = read_json_object(file)
        declared = content.get(section, {}) if section else content
        if not isinstance(declared, Mapping):
            raise SourceError(f"{file}: {section} is {declared!r}; expected an object")
        problem = table.problem(declared) or _other_size(declared, sizes, side)
        if problem:
            where = f"{section}." if section else ""
            raise SourceError(f"{file}: {where}{problem}")


def _other_size(
    declared: Mapping[str, Any], sizes: Mapping[str, Any], side: Any
) -> str:
    """Describe a declared size that is not the image encoder's; "" if all are."""
    for name, size in sizes.items():
        if declared.get(name) not in (None, side, size):
            return (
                f"{name} is {declared[name]!r}, but images of the model are {side} x "
                f"{side} (vision_config.image_size in config.json)"
            )
    return ""
