r"""Compute the features of a data set's images with an image encoder, once.

    blip2-jax features --model shapes:vision \
        --data '{"kind": "shapes", "split": "train", "size": 64}' --out features/shapes
    blip2-jax features --model eva_vit_g.pth --data my_photos --out features/my_photos

Writes `features.npy` [images, P, D] in float16 and `keys.json`. The data source
`{"kind": "features", "path": DIR, "texts": DATA}` reads them. A model that trains on
them needs their sizes, which the command prints as options.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence

from blip2_jax.cli.data_option import add_data_options, read_data_option
from blip2_jax.cli.errors import UsageError
from blip2_jax.cli.options import CommandParser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("features", __doc__)
    parser.add_argument(
        "--model",
        required=True,
        metavar="PATH",
        help="image encoder: a file or folder of EVA-CLIP, CLIP, SigLIP or DINOv2, a "
        'run, a BLIP-2 model, or "shapes:vision"',
    )
    parser.add_argument(
        "--out",
        required=True,
        type=pathlib.Path,
        metavar="DIR",
        help="directory to write; it must not exist",
    )
    parser.add_argument(
        "--sizes",
        default="",
        metavar="NAME",
        help="preset or JSON file of sizes, for an encoder that does not say its own",
    )
    parser.add_argument(
        "--precision",
        default="float32",
        choices=("float32", "bfloat16"),
        help="dtype of matmul inputs",
    )
    parser.add_argument(
        "--batch_size", type=int, default=32, metavar="N", help="images per batch"
    )
    add_data_options(parser, "images to encode")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Write the features and print their sizes; returns the exit code."""
    from blip2_jax.inference.feature_files import write_features
    from blip2_jax.inference.image_encoder import open_image_encoder

    specs = read_data_option(arguments)
    if not specs:
        raise UsageError("--data is missing: the images to encode")
    encoder = open_image_encoder(arguments.model, arguments.sizes, arguments.precision)
    data = write_features(
        encoder.encode,
        specs,
        arguments.out,
        encoder.config.image_size,
        arguments.batch_size,
    )
    if data.broken_images:
        print(f"left out: {data.broken_stats}")
    tokens, width = encoder.config.num_tokens, encoder.config.width
    print(f"{arguments.out}: {tokens} x {width} for each image. Options of training:")
    print(f"    --config.model.overrides.vision.num_tokens={tokens}")
    print(f"    --config.model.overrides.vision.width={width}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
