"""Evaluation inside the training loop.

Every task reports its losses on held-out data, without dropout. Stage 1 adds
retrieval (ITC, then the best re-ranked by ITM); stage 2 adds captions scored against
all references.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from blip2_jax import sharding
from blip2_jax.data.evaluation import EvaluationSet, evaluation_batches
from blip2_jax.data.text import clean_caption, load_tokenizer
from blip2_jax.evaluation import retrieval
from blip2_jax.evaluation.stage1_scores import TEXT_LENGTH, Stage1Scorer
from blip2_jax.training.config import ConfigError
from blip2_jax.training.partition import Tree, merge
from blip2_jax.training.setup import Run

# What decides on the best checkpoint where `config.evaluation.metric` is empty.
DEFAULT_METRIC = {"stage1": "r_mean", "stage2": "cider"}


class Evaluator:
    """Scores a run's parameters on `config.evaluation.sources`.

    Attributes:
      metric: the name of the score that decides on the best checkpoint.
    """

    def __init__(self, run: Run) -> None:
        """Open the sources.

        Raises:
          ConfigError: fewer examples than one batch.
        """
        self._run = run
        self._options = options = run.config.evaluation
        self.metric = options.metric or DEFAULT_METRIC.get(run.task.name, "loss")
        if self.metric == "loss" and options.mode == "max":
            raise ConfigError(
                'the best checkpoint is chosen by "loss": set config.evaluation.mode '
                'to "min"'
            )
        self._examples = EvaluationSet(
            options.sources, run.config.data.image.size, options.max_examples
        )
        sharding.check_batch_size(options.batch_size, run.mesh)
        if len(self._examples.records) < options.batch_size:
            raise ConfigError(
                f"config.evaluation.batch_size is {options.batch_size}, but there are "
                f"{len(self._examples.records)} examples"
            )
        self._losses = jax.jit(
            lambda params, batch: run.task.loss(params, batch, None)[1]
        )

    def scores(self, trainable: Tree) -> dict[str, float]:
        """All scores by name; percentages where papers print them.

        Raises:
          ConfigError: the score that decides is not among them.
        """
        params = merge(trainable, self._run.frozen)
        scores = self.mean_metrics(params)
        if extra := EXTRA.get(self._run.task.name):
            scores |= extra(self, params)
        if self.metric not in scores:
            raise ConfigError(
                f"config.evaluation.metric is {self.metric!r}; there are "
                f"{', '.join(sorted(scores))}"
            )
        return scores

    def mean_metrics(self, params: Tree) -> dict[str, float]:
        """What training reports (losses, ITM accuracy), averaged over full batches.

        A last batch that is not full is left out: losses over the batch would see its
        padding.
        """
        run, means = self._run, []
        for rows in evaluation_batches(
            run.config.data,
            self._examples,
            run.task.batch_format,
            self._options.batch_size,
            jax.process_index(),
            jax.process_count(),
        ):
            if not rows.pop("valid").all():
                continue
            rows.pop("index")
            with jax.set_mesh(run.mesh):
                batch = sharding.global_batch(rows, run.mesh)
                means.append(_scalars(jax.device_get(self._losses(params, batch))))
        return {
            name: float(np.mean([values[name] for values in means]))
            for name in means[0]
            if name != "temperature"
        }

    def retrieval(self, params: Tree) -> dict[str, float]:
        """Recalls of all images among all their captions, both ways.

        `itc_...` is the first stage; re-ranking by ITM has no prefix, and decides.
        """
        config, options = self._run.config, self._options
        texts, image_of_text = [], []
        for row, record in enumerate(self._examples.records):
            texts += [clean_caption(caption) for caption in record.captions]
            image_of_text += [row] * len(record.captions)
        tokenizer = load_tokenizer(config.data.tokenizer.qformer, language_model=False)
        ids, mask = tokenizer.encode(texts, TEXT_LENGTH)
        scorer = Stage1Scorer(self._run.task.model, params, options.batch_size)
        images = scorer.encode_images(self._images())
        cosine = scorer.cosine(images, ids, mask)
        first = retrieval.recalls(
            retrieval.Scores(cosine, cosine.T), np.array(image_of_text)
        )
        if not options.rerank:
            return first
        ranked = scorer.rerank(images, ids, mask, cosine, options.rerank)
        return {f"itc_{name}": value for name, value in first.items()} | (
            retrieval.recalls(ranked, np.array(image_of_text))
        )

    def _images(self) -> Any:
        """Images in order, the padding of the last batch cut off."""
        total = len(self._examples.records)
        for rows in self._examples.image_batches(self._options.batch_size):
            if not rows["valid"][: total - int(rows["index"][0])].all():
                raise ConfigError(f"evaluation images: {self._examples.faults}")
            yield rows[self._examples.image_name][rows["valid"]]


EXTRA: dict[str, Callable[[Evaluator, Tree], dict[str, float]]] = {
    "stage1": Evaluator.retrieval,
}


def _scalars(metrics: dict[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0
    }
