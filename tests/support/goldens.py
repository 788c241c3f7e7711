"""Where the numbers computed by the original implementation lie."""

import pathlib

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
