"""The contract of evaluation tasks: `run(model, batches)` returns a result."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

from jaxtyping import Shaped
from numpy import ndarray as Array

from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.evaluation.coverage import Coverage
from blip2_jax.evaluation.examples import Example
from blip2_jax.parallel import hosts

Model = TypeVar("Model", contravariant=True)


@dataclasses.dataclass(frozen=True)
class EvaluationBatches:
    """The records of an evaluation set, read in batches.

    Attributes:
      data: the evaluation set.
      batch_size: images per batch; questions per batch in VQA.
      share: the examples of this process: process i of n evaluates examples i, i+n,
        i+2n, ...; by default all of them. With n > 1 every process must hold a complete
        copy of the parameters.
    """

    data: EvaluationSet
    batch_size: int = 64
    share: hosts.Share = dataclasses.field(default_factory=hosts.Share)

    def images(self, records: Sequence[int]) -> Iterator[Shaped[Array, "B ..."]]:
        """Read the images of this process's share of some records, in order.

        Args:
          records: indices into `data.records`.

        Yields:
          At most `batch_size` images, or features of images. An image that cannot be
          read is blank, and `data` counts it.
        """
        own = [records[index] for index in self.share.indices(len(records))]
        for start in range(0, len(own), self.batch_size):
            batch = own[start : start + self.batch_size]
            yield self.data.stack_images([self.data.image(record) for record in batch])


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """Metrics, and the examples that they were computed from.

    Attributes:
      metrics: by name; percentages where a metric is a share.
      examples: one per image, text or question (see `blip2_jax.evaluation.examples`).
      notice: what a reader of the metrics must know, one line per remark.
      coverage: how much of the evaluation set was scored.
      predictions: content of the file that a benchmark server takes, if the task has
        one.
    """

    metrics: dict[str, float]
    examples: list[Example] = dataclasses.field(default_factory=list)
    notice: str = ""
    coverage: Coverage | None = None
    predictions: list[dict[str, Any]] | None = None


class EvaluationTask(Protocol[Model]):
    """An evaluation of a model on a data set."""

    def run(self, model: Model, batches: EvaluationBatches) -> EvaluationResult:
        """Evaluate; every process calls this and gets the result of all of them."""
        ...
