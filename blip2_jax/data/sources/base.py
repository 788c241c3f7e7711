"""The interface of data sources: random access to records and their images.

A source is a collection of images with captions, questions, or both. Many threads read
it and it is pickled into worker processes, so that file handles are opened on demand. A
defective element raises `BrokenSample`; the pipeline counts it and takes the next one.
The pipeline reads through `blip2_jax.data.sources.reading`.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import pathlib
import types
from collections.abc import Iterable, Iterator, Mapping

from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from blip2_jax.data.feature_origin import FeatureOrigin
from blip2_jax.data.sources.content_digest import (
    MAX_SAMPLED_RECORDS,
    MAX_STATED,
    TEXTS_SAMPLE,
    Digests,
    evenly_spaced,
    file_digests,
    hash_parts,
)
from blip2_jax.parallel.store_retries import StoreError


class ImageKind(enum.Enum):
    """Kind of a source's images: pixels, precomputed features, or none."""

    PIXELS = "pixels"
    FEATURES = "features"
    NONE = "none"  # text only


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about an image and its answers.

    Attributes:
      text: the question.
      answers: answers, of which training draws one per step.
      question_id: the data set's id.
      kind: category with separate scores ("yes/no", "number" or "other" in VQA).
    """

    text: str
    answers: tuple[str, ...]
    question_id: int | str | None = None
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Record:
    """The texts of an image and its ids.

    Attributes:
      key: name of the record in error reports; joins sources of the same images.
      image_id: index of the image in the source, in 0 .. source.num_images - 1; equal
        for records of one image. The pipeline makes it unique across sources.
      captions: captions as stored, not cleaned.
      questions: questions about the image.
      original_id: the data set's own image id, for scores against its references.
      description: a complete description of the image, if the source has one; used as
        the context of text-only documents.
      part: part of the data set with separate scores (the domains of NoCaps).
    """

    key: str
    image_id: int
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    original_id: int | str | None = None
    description: str = ""
    part: str = ""


class BrokenSample(Exception):
    """An element cannot be used.

    Attributes:
      cause: category of the defect, by which broken samples are counted.
      key: key of the record or file.
      detail: details of the defect.
    """

    def __init__(self, cause: str, key: str, detail: str = ""):
        """Set the attributes."""
        super().__init__(cause, key, detail)  # all arguments, for pickling
        self.cause = cause
        self.key = key
        self.detail = detail

    @property
    def place(self) -> str:
        """The key and the details: "key (detail)"."""
        return f"{self.key} ({self.detail})" if self.detail else self.key

    def __str__(self) -> str:
        """Format as "cause: key (detail)"."""
        return f"{self.cause}: {self.place}"


def texts_digest(records: Iterable[Record | BrokenSample]) -> str:
    """Return a digest of all texts and ids of records, in their order."""
    return hash_parts(_record_bytes(record) for record in records)


def _record_bytes(record: Record | BrokenSample) -> bytes:
    """Write the texts and ids of a record, or the place of a broken one."""
    fields = [record.key]
    if isinstance(record, Exception):
        fields.append(record.cause)
    else:
        fields += [*record.captions, "\x1e", str(record.original_id)]
        fields += [record.description, record.part]
        for question in record.questions:
            fields += ["\x1e", question.text, str(question.question_id), question.kind]
            fields += question.answers
    return "\x1f".join(fields).encode("utf-8", "surrogatepass")


def feature_origins(sources: Iterable[Source]) -> list[FeatureOrigin]:
    """Return the origins of the sources of features that know them."""
    return [s.feature_origin for s in sources if s.feature_origin is not None]


class Source(abc.ABC):
    """A random-access collection of records. Subclasses set `image_kind` and `name`.

    Attributes:
      image_kind: kind of the images.
      name: name in messages; part of the fingerprint.
      group_size: number of neighbouring records (near-duplicates that contrast with
        each other) that are shuffled as one; it divides the number of records.
      left_out: number of elements that the files of the source hold and that are not
        among its records, by reason.
      feature_origin: encoder and crops of the features; None if they are not known.
    """

    image_kind: ImageKind = ImageKind.PIXELS
    feature_origin: FeatureOrigin | None = None
    name: str = "source"
    group_size: int = 1
    left_out: Mapping[str, int] = types.MappingProxyType({})

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of records."""

    @abc.abstractmethod
    def record(self, index: int) -> Record:
        """Read a record without its image.

        Raises:
          BrokenSample: the record cannot be read.
        """

    @property
    def num_images(self) -> int:
        """Number of images; records may share images."""
        return len(self)

    def keys(self) -> list[str]:
        """List the keys of all records; "" for broken ones."""
        return list(self.iterate_keys())

    def iterate_keys(self) -> Iterator[str]:
        """Yield the keys of all records; "" for broken ones."""
        return map(self._key_or_empty, range(len(self)))

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        """Load the RGB pixels of a record's image.

        Args:
          index: index of the record.
          at_least: allow a reduced image whose sides are no smaller; 0: full size.

        Raises:
          BrokenSample: the image is missing or cannot be decoded.
        """
        raise NotImplementedError(f"{self.name} holds no pixels")

    def encoded_image(self, index: int) -> bytes | None:
        """Read a record's image as the source keeps it, e.g. the bytes of a JPEG file.

        Returns:
          The bytes; None if the source keeps no encoded image.

        Raises:
          BrokenSample: the image is missing or cannot be read.
        """
        del index
        return None

    def check_image(self, index: int) -> None:
        """Check, without reading it, that a record's image is there.

        Raises:
          BrokenSample: the image is known to be missing.
        """
        del index  # nothing is known

    def load_features(self, index: int, crop: int = 0) -> Float[Array, "P D"]:
        """Load the precomputed features of a record's image.

        Args:
          index: index of the record.
          crop: number of the crop, of those of `feature_origin`.

        Raises:
          BrokenSample: the features are missing or not finite.
        """
        raise NotImplementedError(f"{self.name} holds no features")

    def fingerprint(self) -> dict[str, object]:
        """Return a summary stored with runs, by which another data set is noticed."""
        first = [self._key_or_empty(index) for index in range(min(len(self), 3))]
        return {
            "name": self.name,
            "records": len(self),
            "images": self.num_images,
            "first": first,
            "content": self.content(),
        }

    def content(self) -> Digests:
        """Return digests of what the source holds, by part.

        A source whose texts are in memory hashes all of them (`RecordsSource`); this
        method reads a sample.
        """
        indices = evenly_spaced(len(self), MAX_SAMPLED_RECORDS)
        records = (self._record_or_broken(index) for index in indices)
        return {TEXTS_SAMPLE: texts_digest(records), **self._image_files()}

    def image_path(self, index: int) -> pathlib.Path | None:
        """Return the path of a record's image; None if it is no file of its own."""
        del index
        return None

    def _image_files(self) -> Digests:
        """Return digests of the image files; {} if images are no files."""
        paths = [
            path
            for index in evenly_spaced(len(self), MAX_STATED)
            if (path := self.image_path(index)) is not None
        ]
        return file_digests(paths) if paths else {}

    def _record_or_broken(self, index: int) -> Record | BrokenSample:
        """Read a record; return, not raise, what is wrong with it."""
        try:
            return self.record(index)
        except BrokenSample as error:
            return error
        except StoreError:
            raise
        except Exception:  # counted when the record is read (`reading.read_record`)
            return BrokenSample("unreadable record", str(index))

    def _key_or_empty(self, index: int) -> str:
        """Return a record's key, or "" if the record is broken."""
        try:
            return self.record(index).key
        except StoreError:
            raise
        except Exception:  # counted when the record is read (`reading.read_record`)
            return ""
