"""Run `blip2_jax.cli.cache_features` from a checkout; `--help` lists its options."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from blip2_jax.cli.cache_features import main

if __name__ == "__main__":
    sys.exit(main())
