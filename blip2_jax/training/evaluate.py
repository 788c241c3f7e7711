"""Evaluation inside the training loop; which numbers there are depends on the task."""

from __future__ import annotations

from blip2_jax.training.config import ConfigError
from blip2_jax.training.setup import Run


def evaluate(run: Run) -> dict[str, float]:
    """Scores of the current parameters on `config.evaluation.sources`."""
    raise ConfigError(f"task {run.task.name} has no evaluation")


def best_metric(config) -> str:
    """The score that decides which checkpoint is best."""
    return config.evaluation.metric
