"""The image preprocessing that a Hugging Face folder declares, compared with ours.

Images are resized to the encoder's size with bicubic interpolation and normalised with
CLIP's mean and deviation. A folder that declares anything else is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.files.json_files import read_json_object
from blip2_jax.convert.tables.huggingface_settings import IMAGE_PROCESSOR
from blip2_jax.models.presets import Blip2Config, ViTConfig


def check_image_processor(source: CheckpointFiles, config: Blip2Config) -> None:
    """Check that the preprocessing a folder declares is that of this package.

    Raises:
      SourceError: it declares another one; the message names file, setting and value.
    """
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
        problem = IMAGE_PROCESSOR.problem(declared) or _other_size(declared, config)
        if problem:
            where = f"{section}." if section else ""
            raise SourceError(f"{file}: {where}{problem}")


def _other_size(declared: Mapping[str, Any], config: Blip2Config) -> str:
    """Describe a declared size that is not the image encoder's; "" if it is."""
    if not isinstance(config.vision, ViTConfig) or declared.get("size") is None:
        return ""
    size, side = declared["size"], config.vision.image_size
    if size in (side, {"height": side, "width": side}):
        return ""
    return (
        f"size is {size!r}, but images of the model are {side} x {side} "
        "(vision_config.image_size in config.json)"
    )
