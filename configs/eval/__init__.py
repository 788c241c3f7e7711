"""Evaluations: one file per benchmark, loaded by `evaluate --config`."""
