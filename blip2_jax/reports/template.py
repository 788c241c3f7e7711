"""The template and the style sheet of all HTML reports, and their common parts."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from blip2_jax.reports.images import number_images
from blip2_jax.reports.markup import Html, concatenate, element

# The page needs no script and nothing from the network: neither may it have them.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@functools.cache
def _style() -> str:
    return pathlib.Path(__file__).with_name("page.css").read_text()


def render_page(title: str, parts: Iterable[Any]) -> str:
    """Render a complete HTML file.

    Args:
      title: of the page, as plain text.
      parts: of the body after the title: `Html`, or text that is escaped.
    """
    body = concatenate([element("h1", title), *parts], "\n")
    return number_images(
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        f'<meta http-equiv=Content-Security-Policy content="{_POLICY}">\n'
        "<meta name=viewport content='width=device-width, initial-scale=1'>\n"
        "<meta name=color-scheme content='light dark'>\n"
        f"{element('title', title)}\n<style>{_style()}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def render_note(text: str) -> Html:
    """Render a remark."""
    return element("p", text, class_="note")


def render_list(items: Iterable[Any]) -> Html:
    """Render a list of texts or of `Html`."""
    return element("ul", *(element("li", item) for item in items))


def render_table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    main_column: int | None = None,
    wraps: bool = False,
) -> Html:
    """Render a table of texts.

    Args:
      head: cells of the first row.
      rows: of cells.
      main_column: index of a column with bold cells.
      wraps: break long words, such as paths, rather than widen the table.
    """
    body = [
        element(
            "tr",
            *(
                element("td", cell, **_class("main" if column == main_column else ""))
                for column, cell in enumerate(row)
            ),
        )
        for row in rows
    ]
    cells = [element("th", cell) for cell in head]
    return element(
        "table",
        element("thead", element("tr", *cells)),
        element("tbody", *body),
        **_class("wraps" if wraps else ""),
    )


def _class(name: str) -> dict[str, str]:
    return {"class_": name} if name else {}


def render_pairs(pairs: Mapping[str, str]) -> Html:
    """Render a table of names and texts."""
    rows = [
        element("tr", element("td", name), element("td", text))
        for name, text in pairs.items()
    ]
    return element("table", element("tbody", *rows), class_="wraps text")


def render_details(summary: str, *content: Any) -> Html:
    """Render content that a click on its summary shows."""
    return element("details", element("summary", summary), *content)
