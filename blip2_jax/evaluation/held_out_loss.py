"""Stage-1 losses on held-out pairs."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from blip2_jax.data.data_config import DataConfig
from blip2_jax.data.evaluation_data import evaluation_batches
from blip2_jax.evaluation.tasks import EvaluationBatches, EvaluationResult
from blip2_jax.inference.model import Blip2
from blip2_jax.losses.objectives import ITM_PRIOR_ENTROPY
from blip2_jax.parallel import hosts, sharding

# (params, batch, dropout key) -> (loss, metrics)
Loss = Callable[..., tuple[Any, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class HeldOutLossTask:
    """Compute the training losses of an evaluation set.

    Attributes:
      loss: of the training task.
      options: how texts are tokenised.
    """

    loss: Loss
    options: DataConfig

    def run(self, model: Blip2, batches: EvaluationBatches) -> EvaluationResult:
        """Average the losses over whole batches (see `mean_losses`)."""
        data = batches.data
        size = min(batches.batch_size, len(data.records))
        arrays = evaluation_batches(self.options, data, "image_text", size)
        return EvaluationResult(mean_losses(self.loss, model.params, arrays))


def mean_losses(
    loss: Loss, params: PyTree, batches: Iterator[Mapping[str, Any]]
) -> dict[str, float]:
    """Average the losses and the ITM accuracy over whole batches.

    There is no dropout, and hard negatives are drawn from a fixed key. Broken rows are
    left out; the last rows are too, if they do not fill a batch.

    Args:
      loss: of the training task.
      params: all parameters.
      batches: from `evaluation_batches`.

    Returns:
      "loss", "loss_itc", "loss_itm", "loss_itg", "itm_accuracy" in percent, and
      "itm_prior_entropy", the ITM loss of a model that has learned nothing; {} if no
      batch is whole.
    """
    compiled = _compiled_metrics(loss)
    values: dict[str, list[float]] = defaultdict(list)
    for arrays in _whole_batches(batches):
        metrics = hosts.to_host(
            compiled(params, sharding.place_rows_like(params, arrays))
        )
        for name, value in metrics.items():
            if name in ("itm_accuracy", "loss") or name.startswith("loss_"):
                values[name].append(float(value))
    result = {name: float(np.mean(each)) for name, each in values.items()}
    if "itm_accuracy" in result:
        result["itm_accuracy"] *= 100
        result["itm_prior_entropy"] = ITM_PRIOR_ENTROPY
    return result


def _whole_batches(
    batches: Iterator[Mapping[str, Any]],
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches of valid rows; following rows take the place of broken ones."""
    rest: dict[str, np.ndarray] = {}
    for rows in batches:
        valid = rows["valid"]
        arrays = {
            name: value if valid.all() else value[valid]
            for name, value in rows.items()
            if not name.startswith("_") and name not in ("valid", "index", "position")
        }
        if rest:
            arrays = {
                n: np.concatenate([rest[n], value]) for n, value in arrays.items()
            }
        size, count = len(valid), len(next(iter(arrays.values())))
        rest = {name: value[size:] for name, value in arrays.items()}
        if count >= size:
            yield {name: value[:size] for name, value in arrays.items()}
        else:
            rest = arrays


@functools.lru_cache(maxsize=1)
def _compiled_metrics(loss: Loss) -> Callable[..., Mapping[str, Any]]:
    """Compile the metrics of a loss once for all evaluations of a run."""
    return jax.jit(lambda params, batch: loss(params, batch, None)[1])
