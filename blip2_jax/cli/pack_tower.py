"""Write the image encoder or the language model of a run to a file, in half precision.

    blip2-jax pack_tower --model runs/tower_opt --out opt.safetensors
    blip2-jax pack_tower --model runs/tower_image --out image.safetensors

Takes the last checkpoint of a run that trained one tower (`shapes_tower_image`,
`shapes_tower_opt`, `shapes_tower_t5`). `config.frozen_sources` reads the file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from blip2_jax.cli.errors import UsageError
from blip2_jax.cli.options import CommandParser, run_command

PREFIXES = ("visual_encoder/", "language_model/")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("pack_tower", __doc__)
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="directory of a run"
    )
    parser.former_names["--run"] = "--model"
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Write the tower's arrays; returns the exit code."""
    import numpy as np
    from safetensors.numpy import save_file

    from blip2_jax.training.frozen import run_arrays

    arrays = {
        path: np.asarray(array, np.float16)
        for path, array in run_arrays(arguments.model).items()
        if path.startswith(PREFIXES)
    }
    if not arrays:
        raise UsageError(
            f"run {arguments.model} trained no parameters under {' or '.join(PREFIXES)}"
        )
    save_file(arrays, arguments.out)
    size = sum(array.nbytes for array in arrays.values()) / 1e6
    print(f"{arguments.out}: {len(arrays)} arrays, {size:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
