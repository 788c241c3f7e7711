"""The template and the style sheet of all HTML reports, and their common parts."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from blip2_jax.reports.images import overlay, png_tag

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


def render_page(title: str, parts: Iterable[str]) -> str:
    """Render a complete HTML file.

    Args:
      title: of the page, as plain text.
      parts: of the body after the title, as HTML.
    """
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        "<meta name=viewport content='width=device-width, initial-scale=1'>\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def escape(text: Any) -> str:
    """Escape text for HTML."""
    return html.escape(str(text))


def render_note(text: str) -> str:
    """Render a remark, given as plain text."""
    return f"<p class=note>{escape(text)}</p>"


def render_list(texts: Iterable[str]) -> str:
    """Render a list of plain texts."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def render_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], main_column: int | None = None
) -> str:
    """Render a table of plain texts; the cells of `main_column` are bold."""
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=main' if column == main_column else ''}>{escape(cell)}</td>"
            for column, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def render_attention_maps(
    maps: Iterable[AttentionMaps], image_width: int = 130, map_width: int = 80
) -> str:
    """Render a row per image: the image, then the attention of each query."""
    rows = []
    for image, queries in maps:
        figures = [f"<figure>{png_tag(image, image_width)}</figure>"]
        figures += [
            f"<figure>{png_tag(overlay(image, weights), map_width)}"
            f"<figcaption>{number}</figcaption></figure>"
            for number, weights in enumerate(queries, 1)
        ]
        rows.append(f"<div class=row>{''.join(figures)}</div>")
    explanation = (
        "Cross-attention of each query, averaged over blocks and heads; bright where "
        "the query attends."
    )
    return render_note(explanation) + "".join(rows)
