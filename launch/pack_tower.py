"""Run `blip2_jax.cli.pack_tower` from a checkout; its options are described there."""

import pathlib
import sys

from absl import app

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from blip2_jax.cli.pack_tower import main

if __name__ == "__main__":
    app.run(main)
