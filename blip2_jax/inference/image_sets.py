"""Many images by number: those of a folder, of a pattern or of tars.

The names of image files are listed once and kept in a file, of which a process reads
the part that it works on: a job that is continued, and other machines, number the same
images. Tars have indices (`data.sources.tars`).
"""

from __future__ import annotations

import abc
import glob
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from glob import has_magic
from typing import Any

from blip2_jax.data.sources.files import ImageFiles
from blip2_jax.data.sources.image_folder import IMAGE_SUFFIXES
from blip2_jax.data.sources.tars import TarsSource
from blip2_jax.parallel.files import parse_json
from blip2_jax.parallel.paths import as_path, is_remote, read_range
from blip2_jax.parallel.shard_files import whole_file, write_json

BLOCK = 64  # names whose place in the list is known
_LIST, _PLACES = "images.jsonl", "images.json"


class ImageSet(abc.ABC):
    """A numbered set of images, read by several threads."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abc.abstractmethod
    def names(self, start: int, stop: int) -> list[str]:
        """Return the names of images `start` to `stop - 1`."""

    @abc.abstractmethod
    def read(self, index: int, name: str) -> bytes:
        """Return the content of an image's file.

        Raises:
          BrokenSample: it cannot be read.
        """


class TarImages(ImageSet):
    """The images of tars; a name is SHARD/KEY."""

    def __init__(self, source: TarsSource):
        """Use an opened source."""
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def names(self, start: int, stop: int) -> list[str]:
        """Return the keys of records; see `ImageSet`."""
        return [self._source.key(index) for index in range(start, stop)]

    def read(self, index: int, name: str) -> bytes:
        """Return an image's file; see `ImageSet`."""
        del name
        return self._source.encoded_image(index)


class ListedImages(ImageSet):
    """Image files whose names stand in a list, which `write_list` wrote.

    Args:
      directory: where the list is.

    Raises:
      FileNotFoundError: there is no list.
      FileFormatError: the list is damaged.
    """

    def __init__(self, directory: pathlib.Path):
        self._list = directory / _LIST
        path = directory / _PLACES
        places = parse_json(path.read_bytes(), path)
        self.root: str = places["root"]
        self._count: int = places["count"]
        self._offsets: list[int] = places["offsets"]
        self._files = ImageFiles(self.root)

    def __len__(self) -> int:
        return self._count

    def names(self, start: int, stop: int) -> list[str]:
        """Return the names of files; see `ImageSet`."""
        first, last = start // BLOCK, -(-stop // BLOCK)
        begin, end = self._offsets[first], self._offsets[last]
        lines = read_range(self._list, begin, end - begin).splitlines()
        skipped = first * BLOCK
        return [
            parse_json(line, self._list)
            for line in lines[start - skipped : stop - skipped]
        ]

    def read(self, index: int, name: str) -> bytes:
        """Return an image's file; see `ImageSet`."""
        del index
        return self._files.read(name)


def is_tars(patterns: Sequence[str]) -> bool:
    """Return True if patterns name tars."""
    return all(pattern.endswith(".tar") for pattern in patterns)


def open_images(patterns: Sequence[str], directory: pathlib.Path) -> ImageSet:
    """Open the images of patterns.

    Args:
      patterns: tars, or what was given to `write_list`.
      directory: where the list of image files is.
    """
    if is_tars(patterns):
        return TarImages(TarsSource(patterns))
    return ListedImages(directory)


def has_list(directory: pathlib.Path) -> bool:
    """Return True if a directory holds a list of images."""
    return (directory / _PLACES).exists()


def write_list(patterns: Sequence[str], directory: pathlib.Path) -> None:
    """List image files once, in the order of their folders and names.

    Args:
      patterns: a folder, whose sub-folders are read too and to which names are
        relative; or files and glob patterns.
      directory: where to keep the list.

    Raises:
      FileNotFoundError: there is no such folder or file, or no image.
      OSError: a folder cannot be read.
    """
    root, names = _find(patterns)
    count, offsets, size = 0, [], 0
    digest = hashlib.sha256()
    with whole_file(directory / _LIST) as path, path.open("wb") as file:
        for name in names:
            if count % BLOCK == 0:
                offsets.append(size)
            line = json.dumps(name).encode() + b"\n"
            file.write(line)
            digest.update(line)
            count, size = count + 1, size + len(line)
    if not count:
        raise FileNotFoundError(
            f"no image in {', '.join(patterns)}: files with the suffixes "
            f"{', '.join(IMAGE_SUFFIXES)}; tars are named by themselves, e.g. DIR/*.tar"
        )
    places: dict[str, Any] = {"root": root, "count": count, "offsets": [*offsets, size]}
    write_json(directory / _PLACES, places | {"sha256": digest.hexdigest()})


def _find(patterns: Sequence[str]) -> tuple[str, Iterator[str]]:
    """Return the directory of images and the names of images in it."""
    if len(patterns) == 1 and as_path(patterns[0]).is_dir():
        root = _absolute(patterns[0])
        return root, folder_images(as_path(root))
    root = _common_folder([_absolute(pattern) for pattern in patterns])
    return root, itertools.chain.from_iterable(
        _matches(as_path(root), _absolute(pattern), pattern) for pattern in patterns
    )


def _absolute(pattern: str) -> str:
    return pattern if is_remote(pattern) else os.path.abspath(pattern)


def _common_folder(patterns: Sequence[str]) -> str:
    """Return the deepest folder that holds all files that match patterns.

    Raises:
      ValueError: they are on several stores.
    """
    stores = {pattern.partition("://")[0] for pattern in patterns if "://" in pattern}
    if len(stores) + any("://" not in pattern for pattern in patterns) > 1:
        raise ValueError(f"images are in one place, not several: {', '.join(patterns)}")
    fixed = [
        "/".join(itertools.takewhile(lambda part: not has_magic(part), parts[:-1]))
        for pattern in patterns
        if (parts := pattern.rpartition("://")[2].split("/"))
    ]
    folder = os.path.commonpath([path or "/" for path in fixed])
    return f"{stores.pop()}://{folder}" if stores else folder


def folder_images(folder: pathlib.Path) -> Iterator[str]:
    """Yield the images of a folder and its sub-folders, with "/" in their names.

    Only the names of one folder are held in memory.
    """
    if is_remote(folder):
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
        yield from filter(_is_image, names)
        return
    for directory, folders, files in os.walk(folder, onerror=_raise):
        folders.sort()
        prefix = pathlib.Path(directory).relative_to(folder)
        for name in sorted(filter(_is_image, files)):
            yield (prefix / name).as_posix()


def _raise(error: OSError) -> None:
    raise error


def _matches(root: pathlib.Path, pattern: str, given: str) -> Iterator[str]:
    """Yield the names of a file, or of the images that match a pattern, sorted.

    Raises:
      FileNotFoundError: there is no match.
    """
    path = as_path(pattern)
    if path.is_file():
        yield path.relative_to(root).as_posix()
        return
    if path.is_dir():
        raise ValueError(f"{given!r} is a folder: give one folder, or files only")
    matches = root.glob(path.relative_to(root).as_posix())
    images = sorted(
        filter(_is_image, (file.relative_to(root).as_posix() for file in matches))
    )
    if not images:
        problem = "no image matches" if glob.has_magic(given) else "no file or folder"
        raise FileNotFoundError(f"{problem} {given!r}")
    yield from images


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)
