"""Run `blip2_jax.cli.capfilt` from a checkout; `--help` describes its options."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from blip2_jax.cli.capfilt import main

if __name__ == "__main__":
    sys.exit(main())
