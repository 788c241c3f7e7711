"""Image-text retrieval: recalls by ITC alone and after re-ranking by ITM."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.data.text.tokenizers import QFormerTokenizer, clean_caption
from blip2_jax.evaluation.coverage import (
    Coverage,
    images_without_captions,
    join_notices,
)
from blip2_jax.evaluation.examples import Example, dataset_id
from blip2_jax.evaluation.rerank import NOT_RANKED
from blip2_jax.evaluation.rerank_cache import RerankCache
from blip2_jax.evaluation.stage1_scorer import Stage1Scorer
from blip2_jax.evaluation.tasks import EvaluationBatches, EvaluationResult
from blip2_jax.inference.retriever import Blip2Retriever
from blip2_jax.metrics.retrieval import (
    Scores,
    best_right_ranks,
    recalls,
    top_columns,
)
from blip2_jax.parallel import hosts

SHOWN_HITS = 5  # answers that the example of a search keeps

# The original trains with 32 tokens and evaluates with a little longer texts.
TEXT_LENGTH = 35
_TRAINED_LENGTH = 32


def evaluation_text_length(trained_length: int | None) -> int:
    """Return the original's text length, or that of a training with shorter texts."""
    if trained_length is None or trained_length >= _TRAINED_LENGTH:
        return TEXT_LENGTH
    return trained_length


@dataclasses.dataclass(frozen=True)
class Gallery:
    """The images of an evaluation set, each once, and all of their captions.

    Attributes:
      records: index of each image's first record in the set.
      text_ids: token ids of all captions, cut to the longest.
      text_mask: True at tokens, False at padding.
      image_of_text: index into `records` for each caption.
      texts: the captions as they were tokenised.
    """

    records: list[int]
    text_ids: Int[Array, "texts T"]
    text_mask: Bool[Array, "texts T"]
    image_of_text: Int[Array, " texts"]
    texts: list[str]

    def without(self, images: Sequence[int]) -> Gallery:
        """Return the gallery without some images and their texts."""
        dropped = np.isin(np.arange(len(self.records)), images)
        texts = np.flatnonzero(~dropped[self.image_of_text])
        new_index = np.cumsum(~dropped) - 1
        return Gallery(
            [self.records[image] for image in np.flatnonzero(~dropped)],
            self.text_ids[texts],
            self.text_mask[texts],
            new_index[self.image_of_text[texts]],
            [self.texts[text] for text in texts],
        )


def make_gallery(
    data: EvaluationSet, tokenizer: QFormerTokenizer, length: int
) -> Gallery:
    """Join the records of each image; images without captions are left out.

    Args:
      data: the evaluation set.
      tokenizer: of the Q-Former.
      length: captions are cut to this many tokens, [CLS] and [SEP] included.

    Raises:
      ValueError: no image has a caption.
    """
    first_record: dict[int, int] = {}
    texts: list[str] = []
    record_of_text: list[int] = []
    for index, record in enumerate(data.records):
        for caption in record.captions:
            texts.append(clean_caption(caption, keep_case=tokenizer.keeps_case))
            record_of_text.append(first_record.setdefault(record.image_id, index))
    if not texts:
        raise ValueError("retrieval needs captions, and the records have none")
    records = list(first_record.values())
    image_of_record = {record: image for image, record in enumerate(records)}
    ids, mask = tokenizer.encode(texts, length)
    longest = int(mask.sum(axis=1).max())
    image_of_text = np.array([image_of_record[record] for record in record_of_text])
    return Gallery(records, ids[:, :longest], mask[:, :longest], image_of_text, texts)


@dataclasses.dataclass(frozen=True)
class RetrievalTask:
    """Rank all texts for each image, and all images for each text.

    Attributes:
      gallery: of the evaluation set.
      rerank: candidates that the matching head scores again; 0 skips re-ranking.
      cache: of an interrupted re-ranking.
    """

    gallery: Gallery
    rerank: int = 0
    cache: RerankCache | None = None

    def run(
        self, model: Blip2Retriever, batches: EvaluationBatches
    ) -> EvaluationResult:
        """Encode all images and texts, and score them in one or two stages.

        Images that cannot be read are left out with their texts and counted: neither
        is a candidate or a query.

        Args:
          model: a stage-1 model.
          batches: of the gallery's evaluation set.

        Returns:
          Recalls by ITC ("itc_...") and after re-ranking ("itm_..."), and an example
          per image and per text.

        Raises:
          ValueError: there are more processes than images, or no image can be read.
          TooManyBrokenSamples: too many images are left out.
        """
        gallery, share, data = self.gallery, batches.share, batches.data
        without = images_without_captions(data)
        Coverage("images", len(gallery.records), without).check(data.max_broken_share)
        if share.count > len(gallery.records):
            raise ValueError(
                f"{share.count} processes cannot share {len(gallery.records)} images"
            )
        scorer = Stage1Scorer(model.model, model.params, batches.batch_size)
        images = scorer.encode_images(batches.images(gallery.records))
        texts = gallery.text_ids, gallery.text_mask
        unreadable = self._unreadable(batches)
        cosine = _exclude(
            scorer.cosine(images, *texts, share), unreadable, gallery.image_of_text
        )
        stages = {"itc": Scores(cosine, cosine.T)}
        if self.rerank:
            stages["itm"] = scorer.rerank(
                images, *texts, cosine, self.rerank, share, self.cache
            )
        if unreadable:
            stages = _drop(stages, unreadable, gallery.image_of_text)
            gallery = gallery.without(unreadable)
        metrics = {
            f"{stage}_{name}": value
            for stage, scores in stages.items()
            for name, value in recalls(scores, gallery.image_of_text).items()
        }
        counts = {"not readable": len(unreadable), **without}
        coverage = Coverage("images", len(gallery.records), counts)
        size = f"{len(gallery.records)} images, {len(gallery.texts)} texts"
        return EvaluationResult(
            metrics,
            _examples(data, gallery, stages),
            join_notices(size, coverage.notice()),
            coverage,
        )

    def _unreadable(self, batches: EvaluationBatches) -> list[int]:
        """Return the images of the gallery that any process could not read."""
        broken = batches.data.broken_images
        own = [i for i, record in enumerate(self.gallery.records) if record in broken]
        parts = hosts.all_gather(own, batches.share)
        unreadable = sorted({image for part in parts for image in part})
        if len(unreadable) == len(self.gallery.records):
            raise ValueError(f"no image can be read: {batches.data.broken_stats}")
        return unreadable


def _exclude(
    cosine: Float[Array, "images texts"],
    images: Sequence[int],
    image_of_text: Int[Array, " texts"],
) -> Float[Array, "images texts"]:
    """Give some images and their texts a similarity below all others.

    So they take no place among the candidates of a re-ranking.
    """
    if not images:
        return cosine
    cosine = cosine.copy()
    cosine[images] = cosine[:, np.isin(image_of_text, images)] = NOT_RANKED
    return cosine


def _drop(
    stages: Mapping[str, Scores],
    images: Sequence[int],
    image_of_text: Int[Array, " texts"],
) -> dict[str, Scores]:
    """Remove some images and their texts from score matrices."""
    texts = np.isin(image_of_text, images)
    return {
        stage: Scores(
            np.delete(scores.image_to_text, images, axis=0)[:, ~texts],
            np.delete(scores.text_to_image, images, axis=1)[~texts],
        )
        for stage, scores in stages.items()
    }


def _examples(
    data: EvaluationSet, gallery: Gallery, stages: Mapping[str, Scores]
) -> list[Example]:
    """Describe the search of every image, then of every text, by the last stage."""
    owners = gallery.image_of_text
    ranks = {stage: best_right_ranks(each, owners) for stage, each in stages.items()}
    last = stages[list(stages)[-1]]
    records = [data.records[index] for index in gallery.records]
    examples: list[Example] = []
    for image, texts in enumerate(top_columns(last.image_to_text, SHOWN_HITS)):
        examples.append(
            {
                "unit": "image",
                "id": dataset_id(records[image]),
                "key": records[image].key,
                "ranks": {s: int(each.images[image]) for s, each in ranks.items()},
                "found": [
                    {"text": gallery.texts[text], "right": bool(owners[text] == image)}
                    for text in texts
                ],
            }
        )
    for text, images in enumerate(top_columns(last.text_to_image, SHOWN_HITS)):
        examples.append(
            {
                "unit": "text",
                "id": text,
                "owner": int(owners[text]),
                "said": gallery.texts[text],
                "ranks": {s: int(each.texts[text]) for s, each in ranks.items()},
                "found": [
                    {"key": records[image].key, "right": bool(owners[text] == image)}
                    for image in images
                ],
            }
        )
    return examples
