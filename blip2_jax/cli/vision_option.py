"""The `--vision` option: an image encoder by its path, with the sizes that it has."""

from __future__ import annotations

import argparse

from ml_collections import ConfigDict

from blip2_jax.cli.errors import UsageError


def add_vision_options(parser: argparse.ArgumentParser) -> None:
    """Add `--vision` and `--image_size`."""
    group = parser.add_argument_group("image encoder")
    group.add_argument(
        "--vision",
        metavar="PATH",
        help="image encoder in place of the configuration's: a folder or hub name of "
        "SigLIP, DINOv2 or CLIP, whose sizes are read (docs/conversion.md)",
    )
    group.add_argument(
        "--image_size",
        type=int,
        metavar="PIXELS",
        help="image size other than that of --vision; positions are interpolated",
    )


def set_vision_option(arguments: argparse.Namespace, config: ConfigDict) -> None:
    """Set the image encoder that a command line names, if it names one.

    Args:
      arguments: command line with the options of `add_vision_options`.
      config: configuration, locked.

    Raises:
      UsageError: `--image_size` is given alone, the configuration's size is changed
        too, or the path is no image encoder.
      SourceError: see `encoder_sizes`; or the size is no whole number of patches.
    """
    if arguments.vision is None:
        if arguments.image_size is not None:
            raise UsageError("--image_size needs --vision with an image encoder")
        return
    if any(o.startswith("--config.data.image.size") for o in arguments.overrides):
        raise UsageError("beside --vision, --image_size sets the image size")
    from blip2_jax.configs.common import set_vision
    from blip2_jax.convert.positions import vision_at_size
    from blip2_jax.inference.image_encoder import own_sizes
    from blip2_jax.models.sizes import ViTConfig

    sizes = own_sizes(arguments.vision)
    if sizes is None or not isinstance(sizes.vision, ViTConfig):
        raise UsageError(f"--vision {arguments.vision} is no image encoder by itself")
    size = arguments.image_size or sizes.vision.image_size
    with config.unlocked():
        set_vision(config, vision_at_size(sizes.vision, size))
        config.frozen_sources.vision = arguments.vision
