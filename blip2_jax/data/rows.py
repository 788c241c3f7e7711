"""One row of a batch: its source, its text, its image, or a substitute's."""

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

T = TypeVar("T")

# Broken elements in a row after which a source is taken for unusable.
MAX_SUBSTITUTES = 100


@dataclasses.dataclass(frozen=True)
class BatchRow:
    """A row; `broken` lists (cause, key) of the elements that it stands in for."""

    position: int
    key: str
    image_id: int
    text: DrawnText
    image: np.ndarray | None
    broken: tuple[tuple[str, str], ...] = ()


class NoSubstitute(Exception):
    """Every substitute of a position was broken too."""

    def __init__(self, broken: Sequence[tuple[str, str]]):
        super().__init__(tuple(broken))
        self.broken = tuple(broken)


class TrainingRows:
    """Rows as a function of their global position; pickles into workers."""

    def __init__(self, config: DataConfig, name: BatchFormat, seed: int):
        self.format = TextFormat(config, name)
        self.mixture: Mixture = build_mixture(config.train)
        self.image_key = image_key(self.mixture.sources, self.format.reads_images)
        self._image = config.image
        self._seed = seed

    def row(self, position: int) -> BatchRow:
        """The row at a position, or its source's next element that is not broken.

        Raises:
          NoSubstitute: all of MAX_SUBSTITUTES elements are broken.
        """
        row, broken = self._unbroken(position, self._row)
        return dataclasses.replace(row, broken=tuple(broken))

    def text(self, position: int) -> DrawnText:
        """The text at a position as far as records tell, without reading an image.

        It is the text of the position's row, unless that row's image turns out broken.

        Raises:
          NoSubstitute: none of MAX_SUBSTITUTES elements has a text.
        """
        return self._unbroken(position, self._drawn)[0][2]

    def _unbroken(
        self, position: int, read: Callable[[int, SourceDraw], T]
    ) -> tuple[T, list[tuple[str, str]]]:
        """`read` of the position's element or of the next one that is not broken."""
        first = self.mixture.locate(position)
        broken: list[tuple[str, str]] = []
        for substitute in range(MAX_SUBSTITUTES):
            place = SourceDraw(first.source, first.ordinal + substitute)
            try:
                return read(position, place), broken
            except BrokenSample as fault:
                broken.append((fault.cause, fault.key))
        raise NoSubstitute(broken)

    def _drawn(self, position: int, place: SourceDraw) -> tuple[int, Record, DrawnText]:
        """The element's index in its source, its record, the text drawn of it."""
        index = self.mixture.record_index(place, self._seed)
        record = self.mixture.sources[place.source].record(index)
        text = self.format.draw(record, self._rng(position, RngPurpose.TEXT))
        return index, record, text

    def _row(self, position: int, place: SourceDraw) -> BatchRow:
        index, record, text = self._drawn(position, place)
        source = self.mixture.sources[place.source]
        image_id = record.image_id + self.mixture.image_id_offsets[place.source]
        image = None
        if self.image_key == "features":
            image = source.load_features(index)
        elif self.image_key == "image":
            pixels = source.load_image(index, self._image.at_least)
            rng = self._rng(position, RngPurpose.IMAGE)
            image = training_image(pixels, self._image, rng)
        return BatchRow(position, record.key, image_id, text, image)

    def _rng(self, position: int, purpose: RngPurpose) -> np.random.Generator:
        return position_rng(self._seed, position, purpose)

    def arrays(
        self, rows: Sequence[BatchRow], width: int | None = None
    ) -> dict[str, Any]:
        """Rows as a batch whose texts have at most `width` columns (`stack_rows`)."""
        return stack_rows(rows, self.format, self.image_key, width)


def stack_rows(
    rows: Sequence[BatchRow],
    text_format: TextFormat,
    image_key: str | None,
    width: int | None = None,
) -> dict[str, Any]:
    """Rows as arrays [B, ...]; keys with a leading "_" stay on the host.

    Args:
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
    assert row.image is not None  # every row has one where the batch is to have them
    return row.image


def image_key(sources: Sequence[Source], wanted: bool) -> str | None:
    """The batch's key of images: "image", "features", or None without images.

    Raises:
      ValueError: the sources hold different kinds of images, or none where wanted.
    """
    if not wanted:
        return None
    kinds = {source.image_kind for source in sources}
    if len(kinds) > 1 or ImageKind.NONE in kinds:
        held = ", ".join(f"{s.name}: {s.image_kind.value}" for s in sources)
        raise ValueError(f"sources must all hold pixels or all features ({held})")
    return "image" if kinds == {ImageKind.PIXELS} else "features"
