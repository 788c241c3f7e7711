"""Image captioning: one caption per image, scored against people's captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.evaluation.coverage import (
    Coverage,
    images_without_captions,
    join_notices,
)
from blip2_jax.evaluation.examples import dataset_id
from blip2_jax.evaluation.generate_texts import generate_texts
from blip2_jax.evaluation.tasks import EvaluationBatches, EvaluationResult
from blip2_jax.metrics.captions import (
    JAVA_METRICS,
    PYTHON_METRICS,
    Tokenizer,
    caption_scores,
)


class CaptioningModel(Protocol):
    """A model that captions images, such as those that `blip2_jax.load` returns."""

    def caption(self, images: Any = None, **settings: Any) -> list[str]:
        """Caption images uint8 [B, height, width, 3], or features= [B, P, D]."""
        ...


@dataclasses.dataclass(frozen=True)
class CaptioningTask:
    """Caption every image once, and score all captions together.

    Attributes:
      settings: keyword arguments of `model.caption`: decoding settings, `prompt`.
      metrics: caption metrics (see `blip2_jax.metrics.captions`).
      tokenizer: of the caption metrics.
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Sequence[str] = PYTHON_METRICS + JAVA_METRICS
    tokenizer: Tokenizer = "auto"

    def run(
        self, model: CaptioningModel, batches: EvaluationBatches
    ) -> EvaluationResult:
        """Caption and score.

        Records of one image are joined: all their captions are its references. Images
        that cannot be read, or that have no captions, are left out and counted.

        Returns:
          The metrics, an example per image, and the list of captions that the COCO and
          NoCaps servers take.

        Raises:
          ValueError: no image has a reference caption, or none can be read.
          TooManyBrokenSamples: too many images are left out.
        """
        data = batches.data
        references, first_record = _references(data)
        without = images_without_captions(data)
        Coverage("images", len(references), without).check(data.max_broken_share)
        image_ids = list(references)
        texts = generate_texts(
            batches,
            [first_record[image_id] for image_id in image_ids],
            "captioning",
            lambda batch: model.caption(**batch.images, **self.settings),
        )
        captions = {image_ids[index]: text for index, text in texts}
        records = {record.image_id: record for record in data.records}
        result = caption_scores(
            captions,
            references,
            metrics=self.metrics,
            tokenizer=self.tokenizer,
            parts={image_id: record.part for image_id, record in records.items()},
        )
        examples = [
            {
                "unit": "image",
                "id": dataset_id(records[image_id]),
                "key": records[image_id].key,
                "said": caption,
                "references": list(references[image_id]),
                "scores": result.per_image[image_id],
                "bleu": result.bleu_counts[image_id],
                "part": records[image_id].part,
            }
            for image_id, caption in captions.items()
        ]
        predictions = [{"image_id": e["id"], "caption": e["said"]} for e in examples]
        unreadable = len(references) - len(captions)
        coverage = Coverage(
            "images", len(captions), {"not readable": unreadable, **without}
        )
        return EvaluationResult(
            result.scores,
            examples,
            join_notices(result.notice(), coverage.notice()),
            coverage,
            predictions,
        )


def _references(
    data: EvaluationSet,
) -> tuple[dict[int, tuple[str, ...]], dict[int, int]]:
    """Collect each image's captions, and the index of its first record."""
    references: dict[int, tuple[str, ...]] = {}
    first_record: dict[int, int] = {}
    for index, record in enumerate(data.records):
        if record.captions:
            first_record.setdefault(record.image_id, index)
            earlier = references.get(record.image_id, ())
            references[record.image_id] = (*earlier, *record.captions)
    return references, first_record
