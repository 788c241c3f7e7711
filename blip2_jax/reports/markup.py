"""HTML elements from texts that are escaped unless they are markup already.

Captions, file names, titles and model outputs are `str`; they become text of the page,
whatever they contain. Only what these functions return is `Html`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

_UNQUOTED = re.compile(r"[\w.%-]+")
_WITHOUT_END = ("img",)


class Html(str):
    """Markup that goes into a page as it is."""


def element(name: str, *children: Any, **attributes: Any) -> Html:
    """Render an element.

    Args:
      name: of the element, e.g. "p".
      *children: `Html`, or values whose text is escaped.
      **attributes: values are escaped; `class_` is written "class".
    """
    words = [name]
    for key, value in attributes.items():
        text = str(value)
        if not _UNQUOTED.fullmatch(text):
            text = f'"{html.escape(text)}"'
        words.append(f"{key.removesuffix('_')}={text}")
    end = "" if name in _WITHOUT_END else f"</{name}>"
    return Html(f"<{' '.join(words)}>{concatenate(children)}{end}")


def concatenate(parts: Iterable[Any], separator: str = "") -> Html:
    """Join parts; those that are not `Html` are escaped."""
    return Html(separator.join(map(_as_html, parts)))


def _as_html(value: Any) -> str:
    return value if isinstance(value, Html) else html.escape(str(value))
