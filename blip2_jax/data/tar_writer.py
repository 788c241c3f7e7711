"""Writing of tars of records, as img2dataset lays them out.

Equal content gives equal bytes: the headers hold neither times nor users. The source
kind "tars" reads the files.
"""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

from blip2_jax.data.sources.reading import EncodedImage


class TarWriter:
    """Writer of one tar; `open_tar_writer` makes it."""

    def __init__(self, tar: tarfile.TarFile):
        """Write to an open tar."""
        self._tar = tar

    def write(self, key: str, image: EncodedImage, content: Mapping[str, Any]) -> None:
        """Write a record as the members `KEY.jpg` (or another suffix) and `KEY.json`.

        Args:
          key: name of the record in the tar; text behind its first dot would be read as
            a suffix.
          image: the image.
          content: the JSON. "captions" and "image_id" are read in training.
        """
        text = json.dumps(content, ensure_ascii=False)
        self.write_member(f"{key}.{image.suffix}", image.data)
        self.write_member(f"{key}.json", text.encode())

    def write_member(self, name: str, data: bytes) -> None:
        """Write a file of the tar."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))


@contextlib.contextmanager
def open_tar_writer(path: pathlib.Path) -> Iterator[TarWriter]:
    """Write a tar from its beginning to its end."""
    # A stream, because files on a store cannot be rewound.
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w|") as tar:
        yield TarWriter(tar)
