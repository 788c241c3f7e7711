"""What a data source offers: random access to records and their images.

A source is one collection of images with captions, questions, or both. It is read
by many threads and pickled into worker processes, so file handles are opened on
demand. Anything wrong with one element is a `BrokenSample`, never a crash: the
pipeline counts it and takes the next element instead.
"""

from __future__ import annotations

import abc
import dataclasses
import enum

from jaxtyping import Float, UInt8
from numpy import ndarray as Array


class ImageKind(enum.Enum):
    """What a source holds of an image."""

    PIXELS = "pixels"
    FEATURES = "features"
    NONE = "none"  # text alone


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about an image and its answers (one drawn a step in training).

    `kind` ("yes/no", "number", "other" in VQA) is for scores apart.
    """

    text: str
    answers: tuple[str, ...]
    question_id: int | str | None = None
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Record:
    """All that is known of an image before it is read.

    Attributes:
      key: names the record in error reports and joins sources of one image.
      image_id: which image of the source, in 0 .. source.num_images - 1; equal for
        records of one image. The pipeline makes it unique across sources.
      captions: human captions, as stored (not cleaned).
      questions: questions about the image.
      original_id: the data set's own image id, for scoring against its references.
      description: a text that tells all there is to see, where the source has one; a
        language model's own documents begin with it.
      part: of the data set, where parts are scored apart (the domains of NoCaps).
    """

    key: str
    image_id: int
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    original_id: int | str | None = None
    description: str = ""
    part: str = ""


class BrokenSample(Exception):
    """One element cannot be used. `cause` is a short class of faults to count by."""

    def __init__(self, cause: str, key: str, detail: str = ""):
        super().__init__(cause, key, detail)  # all three, so that it pickles
        self.cause = cause
        self.key = key
        self.detail = detail

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.cause}: {self.key}{detail}"


class Source(abc.ABC):
    """A random-access collection. Subclasses set `image_kind` and `name`.

    Attributes:
      group_size: so many neighbouring records (near-duplicates that contrast with
        each other) are shuffled as one; it divides the number of records.
    """

    image_kind: ImageKind = ImageKind.PIXELS
    name: str = "source"
    group_size: int = 1

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of records."""

    @abc.abstractmethod
    def record(self, index: int) -> Record:
        """The record's texts, without reading its image. Raises BrokenSample."""

    @property
    def num_images(self) -> int:
        """One more than the largest `image_id`; records may share images."""
        return len(self)

    def keys(self) -> list[str]:
        """The keys of all records, for joining sources; "" where one is broken."""
        return [self._key_or_empty(index) for index in range(len(self))]

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        """RGB pixels.

        Args:
          at_least: the sides that the caller needs; a source may return a reduced
            image whose sides are no smaller. 0 asks for the full size.

        Raises:
          BrokenSample: the image is missing or cannot be decoded.
        """
        raise NotImplementedError(f"{self.name} holds no pixels")

    def load_features(self, index: int) -> Float[Array, "P D"]:
        """Precomputed features of a frozen image encoder. Raises BrokenSample."""
        raise NotImplementedError(f"{self.name} holds no features")

    def fingerprint(self) -> dict[str, object]:
        """What a run writes down of its data: enough to notice another data set."""
        first = [self._key_or_empty(index) for index in range(min(len(self), 3))]
        return {
            "name": self.name,
            "records": len(self),
            "images": self.num_images,
            "first": first,
        }

    def _key_or_empty(self, index: int) -> str:
        try:
            return self.record(index).key
        except BrokenSample:
            return ""
