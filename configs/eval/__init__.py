"""Evaluations, one file each: `blip2-jax evaluate --config eval/NAME`."""
