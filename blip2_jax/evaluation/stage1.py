"""How good a stage-1 model is: retrieval both ways, and losses on held-out pairs."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from blip2_jax.data.data_config import DataConfig
from blip2_jax.data.evaluation_data import EvaluationSet, evaluation_batches
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.evaluation.gallery import Gallery, make_gallery
from blip2_jax.evaluation.rerank_cache import FinishedRows
from blip2_jax.evaluation.retrieval import Scores, recalls
from blip2_jax.evaluation.stage1_scores import TEXT_LENGTH, Stage1Scorer
from blip2_jax.losses.objectives import ITM_PRIOR_ENTROPY
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.parallel import hosts, sharding

Loss = Callable[..., tuple[Any, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class RetrievalSettings:
    """How retrieval is measured.

    Attributes:
      batch_size: rows of the compiled passes.
      rerank: candidates that the matching head scores again; 0 leaves it out.
      text_length: captions are cut to so many tokens.
    """

    batch_size: int = 64
    rerank: int = 0
    text_length: int = TEXT_LENGTH


class Searched(NamedTuple):
    """Recalls, and what they come from: similarities by "itc" and perhaps "itm"."""

    scores: dict[str, float]
    ranked: dict[str, Scores]


def evaluate_retrieval(
    model: Blip2Stage1,
    params: PyTree,
    data: EvaluationSet,
    gallery: Gallery,
    settings: RetrievalSettings,
    *,
    share: hosts.Share | None = None,
    finished: FinishedRows | None = None,
) -> Searched:
    """Recalls by ITC ("itc_...") and, where asked for, re-ranked ("itm_...").

    Args:
      model: a stage-1 model.
      params: all of its parameters.
      data: the images.
      gallery: of `data`.
      settings: see there.
      share: the images and texts that this process works on, where each process has
        the parameters to itself; none: all, with those who share the parameters.
      finished: rows of a re-ranking that was interrupted.

    Raises:
      ValueError: more processes than images.
    """
    share = share or hosts.Share()
    if share.count > len(gallery.records):
        raise ValueError(f"{share.count} processes for {len(gallery.records)} images")
    scorer = Stage1Scorer(model, params, settings.batch_size)
    images = scorer.encode_images(
        gallery.image_batches(data, settings.batch_size, share)
    )
    texts = gallery.text_ids, gallery.text_mask
    cosine = scorer.cosine(images, *texts, share)
    ranked = {"itc": Scores(cosine, cosine.T)}
    if settings.rerank:
        ranked["itm"] = scorer.rerank(
            images, *texts, cosine, settings.rerank, share, finished
        )
    scores = {
        f"{stage}_{name}": value
        for stage, found in ranked.items()
        for name, value in recalls(found, gallery.image_of_text).items()
    }
    return Searched(scores, ranked)


@functools.lru_cache(maxsize=1)
def _compiled_metrics(loss: Loss) -> Callable[..., Mapping[str, Any]]:
    """The task's metrics, compiled once for all evaluations of a run."""
    return jax.jit(lambda params, batch: loss(params, batch, None)[1])


def evaluate_losses(
    loss: Loss, params: PyTree, batches: Iterator[Mapping[str, Any]]
) -> dict[str, float]:
    """Means of the training losses and of ITM accuracy over whole batches.

    Without dropout; hard negatives are drawn from a fixed key. A batch with rows
    that do not count (the last, padded one) is left out.

    Args:
      loss: the task's, of (params, batch, key).
      params: all parameters.
      batches: from `evaluation_batches`.

    Returns:
      "loss", "loss_itc", "loss_itm", "loss_itg", "itm_accuracy" (in percent) and
      "itm_prior_entropy", which an ITM loss must beat; {} without a whole batch.
    """
    compiled = _compiled_metrics(loss)
    values: dict[str, list[float]] = defaultdict(list)
    for rows in batches:
        if not rows["valid"].all():
            continue
        arrays = {
            name: value
            for name, value in rows.items()
            if not name.startswith("_") and name not in ("valid", "index", "position")
        }
        metrics = hosts.to_host(
            compiled(params, sharding.place_rows_like(params, arrays))
        )
        for name, value in metrics.items():
            if name in ("itm_accuracy", "loss") or name.startswith("loss_"):
                values[name].append(float(value))
    if not values:
        return {}
    result = {name: float(np.mean(each)) for name, each in values.items()}
    if "itm_accuracy" in result:
        result["itm_accuracy"] *= 100
        result["itm_prior_entropy"] = ITM_PRIOR_ENTROPY
    return result


class Stage1Evaluator:
    """Retrieval and held-out losses of one evaluation set, for many parameters."""

    def __init__(
        self,
        model: Blip2Stage1,
        loss: Loss | None,
        options: DataConfig,
        data: EvaluationSet,
        settings: RetrievalSettings,
    ):
        """Tokenise the captions.

        Args:
          model: a stage-1 model.
          loss: the task's; None leaves the losses out.
          options: the run's data configuration; its tokenizer is used.
          data: what to evaluate on.
          settings: of retrieval.
        """
        tokenizer = load_tokenizer(options.tokenizer.qformer, language_model=False)
        positions = model.config.qformer.max_positions
        self._gallery = make_gallery(
            data, tokenizer, min(settings.text_length, positions)
        )
        self._model, self._loss, self._data = model, loss, data
        self._options, self._settings = options, settings

    def __call__(self, params: PyTree) -> dict[str, float]:
        """All numbers: see `evaluate_retrieval` and `evaluate_losses`."""
        result = evaluate_retrieval(
            self._model, params, self._data, self._gallery, self._settings
        ).scores
        if self._loss is not None:
            size = min(self._settings.batch_size, len(self._data.records))
            batches = evaluation_batches(self._options, self._data, "image_text", size)
            result |= evaluate_losses(self._loss, params, batches)
        return result
