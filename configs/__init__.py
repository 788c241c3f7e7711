"""Experiments, one file each: `--config NAME` loads `configs/NAME.py`."""
