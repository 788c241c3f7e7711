"""The template and the style sheet of all HTML reports, and their common parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from blip2_jax.reports.images import overlay, png_tag
from blip2_jax.reports.markup import Html, concatenate, element

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto;
  padding: 0 1em; color: #1d1f24; }
h2 { margin-top: 2em; border-bottom: 1px solid #dde; }
small, .note, .name, figcaption { color: #667; }
.name, figcaption { font-size: .85em; }
table { display: block; overflow-x: auto; border-collapse: collapse; margin: 1em 0;
  font-variant-numeric: tabular-nums; }
th, td { padding: .25em .9em; text-align: right; border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; white-space: pre-wrap; }
td.main { font-weight: 700; }
img { border-radius: 6px; display: block; max-width: 100%; height: auto; }
img.pixels { image-rendering: pixelated; }
.cards { display: grid; gap: 1em;
  grid-template-columns: repeat(auto-fill, minmax(min(30em, 100%), 1fr)); }
.card { display: flex; flex-wrap: wrap; gap: 1em; align-items: flex-start;
  background: #f6f7f9; border-radius: 8px; padding: .8em; margin-bottom: 1em; }
.cards .card { margin: 0; }
.card > div { flex: 1 1 12em; }
.card p { margin: 0 0 .35em; }
.card ul { margin: .3em 0; padding-left: 1.1em; color: #556; font-size: .9em; }
.said { font-weight: 600; }
.row { display: flex; flex-wrap: wrap; gap: .5em; align-items: center;
  margin: .3em 0 1.2em; }
.row figure, .card figure { margin: 0; }
.curves { display: grid; gap: 1em;
  grid-template-columns: repeat(auto-fill, minmax(min(20em, 100%), 1fr)); }
.curves figure { margin: 0; }
figure.right { outline: 4px solid #15803d; border-radius: 6px; }
li.right, span.right { color: #15803d; font-weight: 600; }
span.wrong { color: #b91c1c; }
span.right::before { content: "\\2713 "; }
span.wrong::before { content: "\\2717 "; }
"""

# An image as the model saw it, and where each query attends to.
AttentionMaps = tuple[UInt8[Array, "height width 3"], Float[Array, "Q grid grid"]]


# The page needs no script and nothing from the network: neither may it have them.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render_page(title: str, parts: Iterable[Any]) -> str:
    """Render a complete HTML file.

    Args:
      title: of the page, as plain text.
      parts: of the body after the title: `Html`, or text that is escaped.
    """
    body = concatenate([element("h1", title), *parts], "\n")
    return (
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        f'<meta http-equiv=Content-Security-Policy content="{_POLICY}">\n'
        "<meta name=viewport content='width=device-width, initial-scale=1'>\n"
        f"{element('title', title)}\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def render_note(text: str) -> Html:
    """Render a remark."""
    return element("p", text, class_="note")


def render_list(items: Iterable[Any]) -> Html:
    """Render a list of texts or of `Html`."""
    return element("ul", *(element("li", item) for item in items))


def render_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], main_column: int | None = None
) -> Html:
    """Render a table of texts; the cells of `main_column` are bold."""
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
    )


def _class(name: str) -> dict[str, str]:
    return {"class_": name} if name else {}


def render_attention_maps(
    maps: Iterable[AttentionMaps], image_width: int = 130, map_width: int = 80
) -> Html:
    """Render a row per image: the image, then the attention of each query."""
    rows = []
    for image, queries in maps:
        figures = [element("figure", png_tag(image, image_width))]
        figures += [
            element(
                "figure",
                png_tag(overlay(image, weights), map_width),
                element("figcaption", number),
            )
            for number, weights in enumerate(queries, 1)
        ]
        rows.append(element("div", *figures, class_="row"))
    explanation = (
        "Cross-attention of each query, averaged over blocks and heads; bright where "
        "the query attends."
    )
    return concatenate([render_note(explanation), *rows])
