"""Evaluation data: every record once and in order, with the original's image transform.

The last batch is padded to the size of the others, and `valid` marks the real rows.
Broken records and images are not replaced, because nothing else may be scored in their
place: they are counted, and too many of them are an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from blip2_jax.data.broken_samples import (
    MAX_BROKEN_SHARE,
    BrokenSampleStats,
    TooManyBrokenSamples,
)
from blip2_jax.data.data_config import BatchFormat, DataConfig, data_config
from blip2_jax.data.examples import DrawnText, TextFormat
from blip2_jax.data.images import evaluation_image
from blip2_jax.data.mixture import build_mixture
from blip2_jax.data.rows import BatchRow, image_key, stack_rows
from blip2_jax.data.sources.base import (
    BrokenSample,
    ImageKind,
    Record,
    Source,
    feature_origins,
)
from blip2_jax.data.sources.reading import (
    broken_on_error,
    read_features,
    read_pixels,
    read_record,
)

_THREADS = 2  # that read ahead


class EvaluationSet:
    """All records of some sources, and their images in batches.

    Attributes:
      records: the records in order. `image_id` is unique across the sources,
        `original_id` is the data set's own. Unreadable records are skipped and counted.
      image_key: key of the images in batches, "image" or "features"; None if the
        sources hold text only.
      blank_image: zeros in the shape of an image, for rows that are not valid.
      broken_stats: counts of broken records and images.
      broken_images: (cause, place) of broken images by index into `records`.
      left_out: elements that the sources leave out, by reason (see `Source`).
      feature_origins: origins of features, of the sources that know them.
      max_broken_share: share of broken records and images above which an error is
        raised.
    """

    max_broken_share = MAX_BROKEN_SHARE

    def __init__(
        self,
        specs: Sequence[Mapping[str, Any]],
        image_size: int,
        max_examples: int = 0,
        max_broken_share: float = MAX_BROKEN_SHARE,
    ):
        """Open the sources, read the texts of their records and look for their images.

        Args:
          specs: source specs; weights are ignored.
          image_size: side of the images in pixels.
          max_examples: take only the first `max_examples` records; 0 takes all.
          max_broken_share: see above.

        Raises:
          TooManyBrokenSamples: too many records are malformed or have no image.
          ValueError: the sources hold different kinds of images, or random crops.
        """
        self.max_broken_share = max_broken_share
        plain = [{k: v for k, v in spec.items() if k != "weight"} for spec in specs]
        mixture = build_mixture(plain)
        self.broken_stats = BrokenSampleStats()
        self.broken_images: dict[int, tuple[str, str]] = {}
        self._broken_records = 0
        has_images = {s.image_kind for s in mixture.sources} != {ImageKind.NONE}
        self.image_key = image_key(mixture.sources, has_images)
        _check_crops(mixture.sources)
        self.feature_origins = feature_origins(mixture.sources)
        self._size = image_size
        self.records: list[Record] = []
        self._source_indices: list[tuple[Source, int]] = []
        for source, offset in zip(
            mixture.sources, mixture.image_id_offsets, strict=True
        ):
            self._read(source, offset, max_examples)
        self.left_out: dict[str, int] = {}
        for source in mixture.sources:
            for reason, count in source.left_out.items():
                self.left_out[reason] = self.left_out.get(reason, 0) + count
        if has_images:
            self._find_missing_images()
        self._check_share()
        self.blank_image = self._make_blank_image()

    def _read(self, source: Source, offset: int, max_examples: int) -> None:
        """Append the records of a source; `offset` makes its image ids unique."""
        for index in range(len(source)):
            if max_examples and len(self.records) == max_examples:
                return
            try:
                record = read_record(source, index)
            except BrokenSample as error:
                self.broken_stats.add(1, [(error.cause, error.place)])
                self._broken_records += 1
                continue
            image_id = record.image_id + offset
            self.records.append(dataclasses.replace(record, image_id=image_id))
            self._source_indices.append((source, index))

    def _find_missing_images(self) -> None:
        """Count the images that are known to be missing before any is read."""
        for index, (source, source_index) in enumerate(self._source_indices):
            try:
                with broken_on_error("unreadable image", self.records[index].key):
                    source.check_image(source_index)
            except BrokenSample as error:
                self._count_image(index, error.cause, error.place)

    def _check_share(self) -> None:
        """Raise TooManyBrokenSamples if too many records or images are broken."""
        broken = self._broken_records + len(self.broken_images)
        total = self._broken_records + len(self.records)
        if broken > self.max_broken_share * total:
            raise TooManyBrokenSamples(
                f"{broken} of {total} records of the evaluation are broken, the limit "
                f"is a share of {self.max_broken_share:g} (max_broken_share): "
                f"{self.broken_stats}"
            )

    def _make_blank_image(self) -> np.ndarray | None:
        """Make zeros in the shape of the images; None if there are none."""
        if self.image_key is None:
            return None
        if self.image_key == "image":
            return np.zeros((self._size, self._size, 3), np.uint8)
        for index in range(len(self.records)):
            if (features := self.image(index)) is not None:
                return np.zeros_like(features)
        raise ValueError("no record of the sources has readable features")

    def image(self, index: int) -> np.ndarray | None:
        """Load an image, uint8 [R, R, 3], or features [P, D]; None if broken."""
        source, source_index = self._source_indices[index]
        key = self.records[index].key
        try:
            if self.image_key == "features":
                return read_features(source, source_index, key)
            with broken_on_error("unusable image", key):
                pixels = read_pixels(source, source_index, key)
                return evaluation_image(pixels, self._size)
        except BrokenSample as error:
            self.mark_broken(index, error.cause, error.place)
            return None

    def mark_broken(self, index: int, cause: str, place: str) -> None:
        """Count a record's image as broken; repeated calls count once.

        Raises:
          TooManyBrokenSamples: the share of broken records and images is too large.
        """
        self._count_image(index, cause, place)
        self._check_share()

    def _count_image(self, index: int, cause: str, place: str) -> None:
        """Count a record's image as broken, once."""
        if index not in self.broken_images:
            self.broken_images[index] = cause, place
            self.broken_stats.add(1, [(cause, place)])

    def notice(self) -> str:
        """Say what is broken or left out, one line each; "" if nothing is."""
        lines = [f"broken: {self.broken_stats}"] if self.broken_stats.counts else []
        if self.left_out:
            counts = ", ".join(f"{n} {reason}" for reason, n in self.left_out.items())
            lines.append(f"left out by the sources: {counts}")
        return "\n".join(lines)

    def stack_images(self, images: Sequence[np.ndarray | None]) -> np.ndarray:
        """Stack images of this set, with `blank_image` in place of None."""
        assert self.blank_image is not None  # sets with images have one
        return np.stack(
            [self.blank_image if image is None else image for image in images]
        )

    def image_batches(
        self, batch_size: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield the images of all records in batches of one shape.

        Args:
          batch_size: rows of the global batch; each process gets an equal part.
          process_index: index of this process.
          process_count: number of processes.

        Yields:
          `image` or `features` [B, ...], `index` int32 [B] (into `records`; 0 for
          padding), `valid` bool [B].
        """
        yield from _in_order(
            self._batch, len(self.records), batch_size, process_index, process_count
        )

    def _batch(self, indices: Sequence[int | None]) -> dict[str, np.ndarray]:
        if self.image_key is None:
            raise ValueError("the sources of this evaluation have no images")
        images = [None if i is None else self.image(i) for i in indices]
        return {
            self.image_key: self.stack_images(images),
            "index": np.array([index or 0 for index in indices], np.int32),
            "valid": np.array([image is not None for image in images]),
        }


def _check_crops(sources: Sequence[Source]) -> None:
    """Refuse cached features of random crops, of which no score is reproducible.

    Raises:
      ValueError: a source holds random crops.
    """
    for source in sources:
        origin = source.feature_origin
        if origin is not None and origin.crops > 1:
            raise ValueError(
                f"{source.name} holds {origin.crops} random crops of each image; "
                "evaluation needs whole images: cache them with --crops 0"
            )


def evaluation_batches(
    options: DataConfig | Mapping[str, Any],
    evaluation_set: EvaluationSet,
    task_format: BatchFormat,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yield batches for evaluation, with the first text of each record.

    Args:
      options: data configuration; the tokenizers and text options of it are used.
      evaluation_set: the records.
      task_format: arrays of the batches.
      batch_size: rows of the global batch; each process gets an equal part.
      process_index: index of this process.
      process_count: number of processes.

    Yields:
      Batches as of `training_batches`, but without augmentation and random prefix, and
      with `valid` bool [B] and `index` int32 [B].
    """
    config = options if isinstance(options, DataConfig) else data_config(options)
    text_format = TextFormat(config, task_format)

    def batch(indices: Sequence[int | None]) -> dict[str, Any]:
        rows = [_row(evaluation_set, index, text_format) for index in indices]
        arrays = stack_rows(
            [row or _blank_row(evaluation_set) for row in rows],
            text_format,
            evaluation_set.image_key if text_format.reads_images else None,
        )
        arrays["valid"] = np.array([row is not None for row in rows])
        arrays["index"] = np.array([index or 0 for index in indices], np.int32)
        return arrays

    yield from _in_order(
        batch, len(evaluation_set.records), batch_size, process_index, process_count
    )


def _row(
    evaluation_set: EvaluationSet, index: int | None, text_format: TextFormat
) -> BatchRow | None:
    """Make the row of a record; None for padding and for broken records."""
    if index is None:
        return None
    record = evaluation_set.records[index]
    try:
        with broken_on_error("unusable text", record.key):
            text = text_format.draw(record, None)
    except BrokenSample:
        return None
    image = None
    if text_format.reads_images:
        image = evaluation_set.image(index)
        if image is None:
            return None
    return BatchRow(index, record.key, record.image_id, text, image)


def _blank_row(evaluation_set: EvaluationSet) -> BatchRow:
    return BatchRow(-1, "", -1, DrawnText("", ""), evaluation_set.blank_image)


def _in_order(
    batch: Any, count: int, batch_size: int, process_index: int, process_count: int
) -> Iterator[Any]:
    """Yield `batch(indices)` for this process's rows of every global batch."""
    if batch_size % process_count:
        raise ValueError(
            f"batch size {batch_size} does not divide over {process_count} processes"
        )
    rows = batch_size // process_count

    def make_batch(number: int) -> Any:
        first = number * batch_size + process_index * rows
        indices = range(first, first + rows)
        return batch([index if index < count else None for index in indices])

    numbers = grain.MapDataset.range(-(-count // batch_size)).map(make_batch)
    reading = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=2)
    yield from numbers.to_iter_dataset(reading)
