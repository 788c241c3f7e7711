r"""Write the image encoder or the language model of a run to a file, in half precision.

    blip2-jax pack_tower --model runs/tower_opt --out opt.safetensors
    blip2-jax pack_tower --model runs/tower_image --out image.safetensors
    blip2-jax pack_tower --model runs/demo/stage2_opt --part bridge \
        --out stage2_opt.safetensors

Takes the last checkpoint of a run that trained one tower (`shapes_tower_image`,
`shapes_tower_opt`, `shapes_tower_t5`), or with `--part bridge` what a run of stage 1 or
2 trained between its towers. `config.frozen_sources` and `config.init.from_weights`
read the file. The models of this package (`blip2_jax.load("shapes")`) are such files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

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
    parser.add_argument(
        "--part",
        default="tower",
        choices=("tower", "bridge"),
        help="a tower, or the Q-Former with what else stands between the towers",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Write the tower's arrays; returns the exit code."""
    import numpy as np
    from safetensors.numpy import save_file

    read = read_tower if arguments.part == "tower" else read_bridge
    arrays = {
        path: np.asarray(array, np.float16)
        for path, array in read(arguments.model).items()
    }
    save_file(arrays, arguments.out)
    size = sum(array.nbytes for array in arrays.values()) / 1e6
    print(f"{arguments.out}: {len(arrays)} arrays, {size:.1f} MB")
    return 0


def read_tower(run: str) -> dict[str, Any]:
    """Read the trained parameters of the towers of a run.

    Raises:
      UsageError: the run trained no tower.
    """
    from blip2_jax.training.frozen import run_arrays

    arrays = {
        path: array
        for path, array in run_arrays(run).items()
        if path.startswith(PREFIXES)
    }
    if not arrays:
        raise UsageError(
            f"run {run} trained no parameters under {' or '.join(PREFIXES)}"
        )
    return arrays


def read_bridge(run: str) -> dict[str, Any]:
    """Read the parameters of a BLIP-2 model that belong to no tower."""
    from blip2_jax.convert.model_source import expected_shapes
    from blip2_jax.inference.load import open_model

    source = open_model(run, which="last")
    paths = expected_shapes(source.config, source.question_in_qformer)
    return {
        path: source.arrays[path] for path in paths if not path.startswith(PREFIXES)
    }


if __name__ == "__main__":
    sys.exit(main())
