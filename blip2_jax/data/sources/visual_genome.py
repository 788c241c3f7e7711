"""Visual Genome: the descriptions of an image's regions as its captions."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from blip2_jax.data.sources.checked_rows import (
    RecordsSource,
    Row,
    check_usable,
    group_by_image,
    parse_rows,
    take_id,
    take_mapping,
    take_name,
    take_texts,
)
from blip2_jax.data.sources.files import ImageFiles
from blip2_jax.parallel.files import FileFormatError, read_text
from blip2_jax.parallel.paths import as_path

# The folders in which Visual Genome ships its images; every name is in one of them.
IMAGE_FOLDERS = ("VG_100K", "VG_100K_2")


class VisualGenomeSource(RecordsSource):
    """Images of Visual Genome with the phrases of their regions.

    `image_data.json` is not needed: the images are called by their ids.

    Args:
      path: `region_descriptions.json` as released, or LAVIS' `vg_caption.json`, whose
        absolute paths are those of its authors.
      images: the directory that holds `VG_100K` and `VG_100K_2`, or all images.

    Raises:
      FileNotFoundError: the file or the directory does not exist.
      ValueError: the file has another format, or no usable row.
    """

    kind = "visual_genome"
    title = "Visual Genome"

    def __init__(self, path: str, images: str):
        self.name = f"{self.kind}:{path}"
        self._files = ImageFiles(images)
        folders = _folders(as_path(images))
        items = enumerate(_read_images(path), 1)
        rows = parse_rows(path, items, lambda item: _row(item, folders), "image")
        check_usable(rows, f"no row of {path} is usable")
        super().__init__(group_by_image(rows))


def is_visual_genome(content: Any) -> bool:
    """Return True if the content of a JSON file is one of the two layouts."""
    first = content[0] if isinstance(content, list) and content else None
    if not isinstance(first, Mapping):
        return False
    return "regions" in first or first.get("dataset") == "vg"


def image_file_name(item: Mapping[str, Any]) -> str:
    """Return the name of an item's image file, without its folder.

    Raises:
      ValueError, KeyError: the item names no image.
    """
    if "regions" not in item:
        return pathlib.PurePosixPath(take_name(item["image"])).name
    image_id = take_id(item.get("id", item.get("image_id")), "id")
    if image_id is None:
        raise ValueError("the image has no id")
    return f"{image_id}.jpg"


def likely_image_names(content: Sequence[Any]) -> list[str]:
    """Return the names that the images of some items may have."""
    names: list[str] = []
    for item in content:
        with contextlib.suppress(ValueError, KeyError):  # the source counts the item
            name = image_file_name(take_mapping(item))
            names += [*(f"{folder}/{name}" for folder in IMAGE_FOLDERS), name]
    return names


def _row(item: Any, folders: Mapping[str, str]) -> Row:
    """Convert an image of the released file, or a row of LAVIS'."""
    fields = take_mapping(item)
    name = image_file_name(fields)
    texts = fields["regions"] if "regions" in fields else fields["caption"]
    original = fields.get("image_id", fields.get("id"))
    return Row(
        f"{folders[name]}/{name}" if name in folders else name,
        take_texts(texts, "phrase"),
        original_id=take_id(original, "image_id"),
    )


def _folders(images: pathlib.Path) -> dict[str, str]:
    """Return the folder of each image by its name; {} if the images are in none."""
    return {
        path.name: folder
        for folder in IMAGE_FOLDERS
        if (images / folder).is_dir()
        for path in (images / folder).iterdir()
    }


def _read_images(path: str) -> list[Any]:
    """Read the list of a file; of each region only the phrase is kept.

    The five million regions would take gigabytes as objects.

    Raises:
      FileFormatError: the file is no JSON with a list.
    """
    try:
        content = json.loads(read_text(path), object_hook=_phrase_of_region)
    except FileFormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, list):
        raise FileFormatError(f"{path} is no list of images with regions")
    return content


def _phrase_of_region(item: dict[str, Any]) -> Any:
    return item["phrase"] if "region_id" in item and "phrase" in item else item
