"""Folders of images whose captions stand beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jaxtyping import UInt8
from numpy import ndarray as Array

from blip2_jax.data.sources.base import BrokenSample, Record, Source
from blip2_jax.data.sources.content_digest import Digests, file_digests
from blip2_jax.data.sources.csv_table import CsvSource
from blip2_jax.data.sources.files import ImageFiles
from blip2_jax.data.sources.json_table import JsonSource
from blip2_jax.data.sources.table_source import Table, TableSource
from blip2_jax.parallel.files import read_text, text_lines
from blip2_jax.parallel.paths import as_path, list_files

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")


class ImageFolderSource(TableSource):
    """Hugging Face's `imagefolder`: images and `metadata.jsonl` or `metadata.csv`.

    Args:
      path: the folder. File names in the metadata are relative to it.
      columns: see `TableSource`.
      splits: see `TableSource`.

    Raises:
      FileNotFoundError: the folder has no metadata.
      ValueError: see `TableSource`, or the folder has both files.
    """

    kind = "image_folder"
    title = "imagefolder"

    def __init__(
        self,
        path: str,
        columns: Mapping[str, str | Sequence[str]] | None = None,
        splits: Sequence[str] = (),
    ):
        metadata = find_metadata(path)
        if not metadata:
            raise FileNotFoundError(f"{path} has no {' or '.join(METADATA_FILES)}")
        super().__init__(metadata, path, columns, splits=splits)

    @classmethod
    def read_table(cls, path: str) -> Table:
        """Read the metadata of a folder; see `TableSource`."""
        reader = CsvSource if path.endswith(".csv") else JsonSource
        return reader.read_table(path)


def find_metadata(folder: str) -> str:
    """Return the path of a folder's metadata, "" if it has none.

    Raises:
      ValueError: the folder has several files of metadata.
    """
    files = [
        path for name in METADATA_FILES if (path := as_path(folder) / name).is_file()
    ]
    if len(files) > 1:
        raise ValueError(f"{folder} has both {' and '.join(METADATA_FILES)}")
    return str(files[0]) if files else ""


class TextFilesSource(Source):
    """Images with a text file of the same name beside each: `0001.jpg`, `0001.txt`.

    Every line of a text file that is not blank is a caption. Sub-folders are read too.
    Records are in the order of the images' names. Text files without an image are not
    records.

    Args:
      path: the folder.

    Raises:
      FileNotFoundError: the folder does not exist.
      ValueError: no image has a text file.
    """

    kind = "text_files"
    title = "images with .txt files"

    def __init__(self, path: str):
        self.name = f"{self.kind}:{path}"
        self._files = ImageFiles(path)
        pairs = list_pairs(path)
        self._images = pairs.images
        if not pairs.texts:
            raise ValueError(f"no image of {path} has a .txt file of the same name")
        if pairs.lone_texts:
            self.left_out = {"text files without an image": pairs.lone_texts}

    def __len__(self) -> int:
        return len(self._images)

    def iterate_keys(self) -> Iterator[str]:
        """Yield the keys of all records."""
        return iter(self._images)

    def record(self, index: int) -> Record:
        """Return the texts of a record; see `Source`."""
        name = self._images[index]
        path = self._files.path(_text_name(name))
        try:
            lines = text_lines(read_text(path))
        except FileNotFoundError:
            raise BrokenSample("missing text file", name, str(path)) from None
        except (OSError, ValueError) as error:
            raise BrokenSample("unreadable text file", name, str(error)) from None
        captions = tuple(line.strip() for line in lines if line.strip())
        return Record(name, index, captions)

    def load_image(
        self, index: int, at_least: int = 0
    ) -> UInt8[Array, "height width 3"]:
        """Load the image of a record; see `Source`."""
        return self._files.load(self._images[index], at_least)

    def encoded_image(self, index: int) -> bytes:
        """Read the image file of a record; see `Source`."""
        return self._files.read(self._images[index])

    def content(self) -> Digests:
        """Return digests of texts and of all files; see `Source`."""
        texts = [self._files.path(_text_name(name)) for name in self._images]
        return super().content() | file_digests(texts, "text ")

    def image_path(self, index: int) -> Path:
        """Return the path of a record's image; see `Source`."""
        return self._files.path(self._images[index])

    def check_image(self, index: int) -> None:
        """Check that the image is a file; see `Source`."""
        self._files.check(self._images[index])


class Pairs(NamedTuple):
    """Images and text files of a folder and its sub-folders.

    Attributes:
      images: sorted names of the images, relative to the folder, with "/".
      texts: number of images with a text file.
      lone_texts: number of text files without an image.
    """

    images: list[str]
    texts: int
    lone_texts: int


def list_pairs(folder: str) -> Pairs:
    """List the images of a folder and count their text files."""
    names = set(list_files(folder))
    images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    texts = {name for name in names if name.endswith(".txt")}
    lone_texts = len(texts - set(map(_text_name, images)))
    return Pairs(
        sorted(images), sum(_text_name(name) in texts for name in images), lone_texts
    )


def _text_name(image: str) -> str:
    """Return the name of the text file beside an image."""
    return str(PurePosixPath(image).with_suffix(".txt"))
