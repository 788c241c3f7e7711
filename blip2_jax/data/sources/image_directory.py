"""Search of the directory that holds the images of an annotation file."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from blip2_jax.data.sources.image_folder import IMAGE_SUFFIXES
from blip2_jax.parallel.paths import as_path

# Directories of annotations whose images are in a neighbouring directory.
_ANNOTATIONS = ("annotations", "annotation", "captions", "labels", "metadata", "texts")
_MAX_DIRECTORIES = 100  # that are searched


class ImageDirectory(NamedTuple):
    """A directory of images.

    Attributes:
      path: the directory.
      image_name: format of a file name in it from a name in the annotations.
      found: number of the sampled names that are files in it.
    """

    path: str
    image_name: str
    found: int


def find_image_directory(
    names: Sequence[str], annotations: pathlib.Path, images: str = ""
) -> ImageDirectory:
    """Find the directory that holds most of some images.

    Args:
      names: some names of images as the annotations have them; ids without a suffix are
        searched with the usual suffixes.
      annotations: the file; its directory, the directories in it and, if it is called
        "annotations" or similar, their neighbours are searched.
      images: the only directory to search; "": search.

    Raises:
      FileNotFoundError: no image is found; the message names the first path tried.
    """
    directories = [as_path(images)] if images else list(_candidates(annotations))
    tried = [
        ImageDirectory(str(directory), form, _count(names, directory, form))
        for directory in directories
        for form in _name_formats(names)
    ]
    best = max(tried, key=lambda candidate: candidate.found)  # the first of equals
    if best.found:
        return best
    first = as_path(tried[0].path) / _format(tried[0].image_name, names[0])
    others = ", ".join(map(str, directories[1:6]))
    raise FileNotFoundError(
        f"no image of {annotations} was found: the first path tried is {str(first)!r}"
        + (f", then the same in {others}" if others else "")
        + ("" if images else "; name the directory of the images (--images)")
    )


def _candidates(annotations: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the directories to search, likely ones first."""
    directory = annotations.parent
    yield directory
    yield from _subdirectories(directory)
    if directory.name.lower() in _ANNOTATIONS:
        yield directory.parent
        yield from _subdirectories(directory.parent)


def _subdirectories(directory: pathlib.Path) -> list[pathlib.Path]:
    """Return the directories in a directory, those called like images first."""
    directories = (path for path in directory.iterdir() if path.is_dir())
    words = ("im", "photo", "pic")
    ordered = sorted(
        directories, key=lambda path: (not path.name.lower().startswith(words), path)
    )
    return ordered[:_MAX_DIRECTORIES]


def _name_formats(names: Sequence[str]) -> list[str]:
    """Return the formats in which names could be file names."""
    if names[0].lower().endswith(IMAGE_SUFFIXES):
        return ["{}"]
    numbers = ["{:012d}.jpg"] if all(name.isdecimal() for name in names) else []
    return ["{}", *(f"{{}}{suffix}" for suffix in IMAGE_SUFFIXES), *numbers]


def _count(names: Sequence[str], directory: pathlib.Path, form: str) -> int:
    """Count the names that are files in a directory."""
    return sum(is_file(directory / _format(form, name)) for name in names)


def is_file(path: pathlib.Path) -> bool:
    """Return True for a file; False also for a name that no file can have."""
    try:
        return path.is_file()
    except OSError:  # too long
        return False


def _format(form: str, name: str) -> str:
    return form.format(int(name) if ":" in form else name)
