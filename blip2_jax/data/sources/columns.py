"""Columns of a table of captions: which holds the image, the captions, the question."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from blip2_jax.data.dataclass_options import check_keys

# Usual names of each field's column, the first match applies. Names are compared in
# lower case with "_" in place of spaces and hyphens.
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "image": (
        *("image", "img", "picture", "photo", "file_name", "filename", "image_file"),
        *("image_filename", "image_file_name", "image_name", "img_name", "image_path"),
        *("img_path", "file_path", "filepath", "path", "file", "image_id", "img_id"),
    ),
    "caption": (
        *("caption", "captions", "text", "texts", "sentence", "sentences"),
        *("description", "descriptions", "comment", "raw", "alt_text", "title"),
    ),
    "question": ("question",),
    "answer": ("answers", "answer", "multiple_choice_answer"),
    "image_id": ("image_id", "img_id", "imgid", "cocoid"),
    "question_id": ("question_id", "qid"),
    "split": ("split",),
    "part": ("domain",),
}
_NUMBERED_CAPTION = re.compile(r"(caption|text|sentence|description)_?\d+")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns of a table; "" or () if it has none.

    Attributes:
      image: file name, path or id of the image, or the encoded image itself.
      caption: columns of captions: one, or several ("caption_0", "caption_1", ...).
      question: question about the image.
      answer: one answer or several.
      image_id: the data set's own image id.
      question_id: the data set's own question id.
      split: part of the data set by use, such as "train".
      part: part of the data set with separate scores (the domains of NoCaps).
    """

    image: str
    caption: tuple[str, ...] = ()
    question: str = ""
    answer: str = ""
    image_id: str = ""
    question_id: str = ""
    split: str = ""
    part: str = ""

    def as_options(self) -> dict[str, str | list[str]]:
        """Return the columns as the option `columns` of a source's spec."""
        fields = {field: getattr(self, field) for field in USUAL_NAMES}
        fields["caption"] = (
            self.caption[0] if len(self.caption) == 1 else list(self.caption)
        )
        return {field: name for field, name in fields.items() if name}

    def __str__(self) -> str:
        """Format as "image 'file', caption 'text'"."""
        options = self.as_options()
        if len(self.caption) > 1:
            options["caption"] = f"{self.caption[0]} .. {self.caption[-1]}"
        return ", ".join(f"{field} {name!r}" for field, name in options.items())


def find_columns(
    names: Sequence[str],
    given: Mapping[str, str | Sequence[str]] | None,
    table: str,
    encoded: Iterable[str] = (),
) -> Columns:
    """Find the columns of a table by their usual names.

    Args:
      names: the columns that the table has.
      given: names of columns by field, which are not searched for.
      table: name of the table in errors.
      encoded: columns that hold encoded images. Only they can be the image if there is
        any; a single one may have any name.

    Raises:
      ValueError: a given column does not exist, or there is no column of images or
        neither captions nor questions.
    """
    given = dict((given or {}).items())
    check_keys(given, USUAL_NAMES, (), f"columns of {table}")
    for name in _as_tuple(given.values()):
        if name not in names:
            raise ValueError(f"{table} has no column {name!r}; it has {_list(names)}")
    usual = {field: _first(names, field) for field in USUAL_NAMES}
    usual["image"] = _image_column(names, list(encoded)) or usual["image"]
    found = {f: str(given.get(f, usual[f])) for f in USUAL_NAMES if f != "caption"}
    captions = _as_tuple([given.get("caption", usual["caption"] or _numbered(names))])
    columns = Columns(caption=captions, **found)
    missing = [] if columns.image else ["image"]
    missing += [] if captions or columns.question else ["caption"]
    if missing:
        field = missing[0]
        raise ValueError(
            f"{table} has no column of {field}s: it has {_list(names)}; looked for "
            f"{', '.join(USUAL_NAMES[field])}; name it with columns={{{field!r}: ...}}"
        )
    return columns


def _first(names: Sequence[str], field: str) -> str:
    """Return the column with a field's most usual name, "" if there is none."""
    normal = {_normalise(name): name for name in reversed(names)}
    return next((normal[n] for n in USUAL_NAMES[field] if n in normal), "")


def _image_column(names: Sequence[str], encoded: Sequence[str]) -> str:
    """Return the column of encoded images, "" if there is none or no unique one."""
    return _first(encoded, "image") or (encoded[0] if len(encoded) == 1 else "")


def _numbered(names: Sequence[str]) -> list[str]:
    """Return numbered columns of captions: "caption_0", "caption_1", ..."""
    return [n for n in names if _NUMBERED_CAPTION.fullmatch(_normalise(n))]


def _normalise(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _as_tuple(values: Iterable[str | Sequence[str]]) -> tuple[str, ...]:
    """Flatten names and lists of names, without empty ones."""
    lists = ([value] if isinstance(value, str) else value for value in values)
    return tuple(name for names in lists for name in names if name)


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
