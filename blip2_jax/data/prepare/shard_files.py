"""Writers of the shards of `prepare`. Equal records give equal bytes."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from blip2_jax.data.prepare.stored_image import StoredImage
from blip2_jax.data.record_files import write_records
from blip2_jax.data.sources.array_records import SUFFIX, pack_record
from blip2_jax.data.sources.base import Record
from blip2_jax.data.sources.record_json import record_to_json
from blip2_jax.data.tar_writer import open_tar_writer


class Item(NamedTuple):
    """A record to write.

    Attributes:
      number: index of the record in its source.
      record: its texts and ids.
      image: its image.
    """

    number: int
    record: Record
    image: StoredImage


class Format(NamedTuple):
    """A format of shards.

    Attributes:
      suffix: of the files' names.
      write: writes records to a local file and returns its SHA-256.
    """

    suffix: str
    write: Callable[[pathlib.Path, Iterable[Item]], str]


def write_array_records(path: pathlib.Path, items: Iterable[Item]) -> str:
    """Write an ArrayRecord file for `ArrayRecordSource`; returns its SHA-256."""
    records = (pack_record(item.record, item.image.file.data) for item in items)
    return write_records(path, records)[1]


def write_tar(path: pathlib.Path, items: Iterable[Item]) -> str:
    """Write a tar for `TarsSource`; returns its SHA-256.

    Members are called by the index of the record in its source.
    """
    with open_tar_writer(path) as tar:
        for number, record, image in items:
            tar.write(f"{number:09d}", image.file, record_to_json(record))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


FORMATS = {
    "arrayrecord": Format(SUFFIX, write_array_records),
    "tars": Format(".tar", write_tar),
}
