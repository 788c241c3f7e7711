"""Rows of a training batch by global position; substitutes replace broken ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from blip2_jax.data.data_config import BatchFormat, DataConfig
from blip2_jax.data.examples import DrawnText, TextFormat
from blip2_jax.data.images import training_image
from blip2_jax.data.mixture import Mixture, SourceDraw, build_mixture
from blip2_jax.data.order import RngPurpose, position_rng
from blip2_jax.data.sources.base import BrokenSample, ImageKind, Record, Source
from blip2_jax.data.sources.reading import (
    broken_on_error,
    read_features,
    read_pixels,
    read_record,
)

T = TypeVar("T")
Broken = tuple[int, str, str]

MAX_SUBSTITUTES = 100  # consecutive broken elements that make a source unusable


@dataclasses.dataclass(frozen=True)
class BatchRow:
    """A row of a batch.

    Attributes:
      position: position in the global stream.
      key: key of the record.
      image_id: id of the image, unique across sources.
      text: the drawn text.
      image: pixels or features; None in text-only batches.
      broken: source index, cause and place of the broken elements that this row
        replaces.
    """

    position: int
    key: str
    image_id: int
    text: DrawnText
    image: np.ndarray | None
    broken: tuple[Broken, ...] = ()


class NoSubstitute(Exception):
    """All substitutes of a position are broken.

    Attributes:
      broken: source index, cause and place of the elements.
    """

    def __init__(self, broken: Sequence[Broken]):
        """Set the broken elements."""
        super().__init__(tuple(broken))
        self.broken = tuple(broken)


class TrainingRows:
    """Rows as a function of their global position; can be pickled into workers.

    Attributes:
      format: writes texts as arrays.
      mixture: the mixture of sources.
      image_key: key of the images in batches; None without images.
    """

    def __init__(self, config: DataConfig, name: BatchFormat, seed: int):
        """Open the sources and load the tokenizers of the format `name`."""
        self.format = TextFormat(config, name)
        self.mixture: Mixture = build_mixture(config.train)
        self.image_key = image_key(self.mixture.sources, self.format.reads_images)
        self._image = config.image
        self._seed = seed

    def row(self, position: int) -> BatchRow:
        """Read the row at a position; the source's next elements replace broken ones.

        Raises:
          NoSubstitute: all of MAX_SUBSTITUTES elements are broken.
        """
        row, broken = self._unbroken(position, self._row)
        return dataclasses.replace(row, broken=tuple(broken))

    def text(self, position: int) -> DrawnText:
        """Draw the text at a position without reading the image.

        It is the text of the position's row unless that row's image is broken.

        Raises:
          NoSubstitute: none of MAX_SUBSTITUTES elements has a text.
        """
        return self._unbroken(position, self._draw)[0][2]

    def _unbroken(
        self, position: int, read: Callable[[int, SourceDraw], T]
    ) -> tuple[T, list[Broken]]:
        """Read the position's element, or the next one that is not broken."""
        first = self.mixture.locate(position)
        broken: list[Broken] = []
        for substitute in range(MAX_SUBSTITUTES):
            draw = SourceDraw(first.source, first.ordinal + substitute)
            try:
                return read(position, draw), broken
            except BrokenSample as error:
                broken.append((first.source, error.cause, error.place))
        raise NoSubstitute(broken)

    def _draw(self, position: int, draw: SourceDraw) -> tuple[int, Record, DrawnText]:
        """Return an element's index in its source, its record and the drawn text."""
        index = self.mixture.record_index(draw, self._seed)
        record = read_record(self.mixture.sources[draw.source], index)
        with broken_on_error("unusable text", record.key):
            text = self.format.draw(record, self._rng(position, RngPurpose.TEXT))
        return index, record, text

    def _row(self, position: int, draw: SourceDraw) -> BatchRow:
        """Read a row with its image."""
        index, record, text = self._draw(position, draw)
        source = self.mixture.sources[draw.source]
        image_id = record.image_id + self.mixture.image_id_offsets[draw.source]
        image = None
        if self.image_key == "features":
            crop = self._crop(source, position)
            image = read_features(source, index, record.key, crop)
        elif self.image_key == "image":
            pixels = read_pixels(source, index, record.key, self._image.at_least)
            rng = self._rng(position, RngPurpose.IMAGE)
            with broken_on_error("unusable image", record.key):
                image = training_image(pixels, self._image, rng)
        return BatchRow(position, record.key, image_id, text, image)

    def _crop(self, source: Source, position: int) -> int:
        """Draw the crop of a cached image; 0 if there is one."""
        crops = source.feature_origin.crops if source.feature_origin else 1
        if crops == 1:
            return 0
        return int(self._rng(position, RngPurpose.IMAGE).integers(crops))

    def _rng(self, position: int, purpose: RngPurpose) -> np.random.Generator:
        """Return the generator of a position and purpose."""
        return position_rng(self._seed, position, purpose)

    def arrays(
        self, rows: Sequence[BatchRow], width: int | None = None
    ) -> dict[str, Any]:
        """Stack rows to a batch whose texts have at most `width` tokens."""
        return stack_rows(rows, self.format, self.image_key, width)


def stack_rows(
    rows: Sequence[BatchRow],
    text_format: TextFormat,
    image_key: str | None,
    width: int | None = None,
) -> dict[str, Any]:
    """Stack rows to arrays [B, ...]; keys with a leading "_" stay on the host.

    Args:
      rows: the rows.
      text_format: writes the texts as arrays.
      image_key: key of the images; None leaves them out.
      width: see `TextFormat.arrays`.
    """
    batch: dict[str, Any] = text_format.arrays([row.text for row in rows], width)
    batch["position"] = np.array([row.position for row in rows], np.int64)
    batch["image_id"] = np.array([row.image_id for row in rows], np.int32)
    batch["_key"] = [row.key for row in rows]
    batch["_text"] = [str(row.text) for row in rows]
    if image_key:
        batch[image_key] = np.stack([_image(row) for row in rows])
    return batch


def _image(row: BatchRow) -> np.ndarray:
    assert row.image is not None
    return row.image


def image_key(sources: Sequence[Source], required: bool) -> str | None:
    """Return the key of images in batches: "image", "features", or None.

    Args:
      sources: the sources of the batches.
      required: the batches have images.

    Raises:
      ValueError: the sources hold different kinds of images, or a source has none.
    """
    if not required:
        return None
    kinds = {source.image_kind for source in sources}
    if len(kinds) > 1 or ImageKind.NONE in kinds:
        listing = ", ".join(f"{s.name}: {s.image_kind.value}" for s in sources)
        raise ValueError(f"sources must all hold pixels or all features ({listing})")
    return "image" if kinds == {ImageKind.PIXELS} else "features"
