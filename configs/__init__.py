"""Experiments: one file per training run, loaded by `--config`."""
