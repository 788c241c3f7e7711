"""Pack a tower: `python launch/pack_tower.py --run DIR --out FILE.safetensors`.

Takes one part of a run's last checkpoint (the image encoder of a contrast run, the
language model of a text run) and writes it in half precision under its own names, as
`config.frozen_sources` reads it.
"""

from __future__ import annotations

import sys

import numpy as np
from absl import app, flags
from safetensors.numpy import save_file

from blip2_jax.training.initial_params import run_arrays

PARTS = ("visual_encoder/", "language_model/")

RUN = flags.DEFINE_string("run", None, "A run's directory.", required=True)
OUT = flags.DEFINE_string("out", None, "The file to write.", required=True)


def main(argv: list[str]) -> None:
    arrays = {
        path: np.asarray(array, np.float16)
        for path, array in run_arrays(RUN.value).items()
        if path.startswith(PARTS)
    }
    if not arrays:
        sys.exit(f"error: {RUN.value} holds neither {' nor '.join(PARTS)}")
    save_file(arrays, OUT.value)
    size = sum(array.nbytes for array in arrays.values()) / 1e6
    print(f"{OUT.value}: {len(arrays)} arrays, {size:.1f} MB")


if __name__ == "__main__":
    app.run(main)
