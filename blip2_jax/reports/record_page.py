"""One HTML page of several evaluations: tables, pictures, searches, attention."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from blip2_jax.evaluation import compare
from blip2_jax.evaluation.breakdown import aligned, extremes, goodness
from blip2_jax.evaluation.compare import Group, Table
from blip2_jax.evaluation.examples import Example
from blip2_jax.reports.page import Pictures
from blip2_jax.reports.pictures import image_tag, overlay, photo_tag

_STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; max-width: 76em; margin: 2em auto;
  padding: 0 1em; color: #1d1f24; }
h2 { margin-top: 2.2em; border-bottom: 1px solid #dde; } .note { color: #667; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .9em; text-align: right; border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(30em, 1fr));
  gap: 1em; }
.card { display: flex; gap: 1em; background: #f6f7f9; border-radius: 8px;
  padding: .8em; align-items: flex-start; }
.card p { margin: 0 0 .35em; } .card ul { margin: .3em 0; padding-left: 1.1em;
  color: #556; font-size: .9em; }
img { border-radius: 6px; display: block; }
.name { color: #667; font-size: .85em; } .said { font-weight: 600; }
.right { outline: 4px solid #15803d; } li.right { outline: none; color: #15803d;
  font-weight: 600; }
.row { display: flex; flex-wrap: wrap; gap: .5em; margin: .3em 0 1.2em; }
.row figure { margin: 0; } figcaption { font-size: .75em; color: #667; }
"""

# Of one picture: its pixels as the model saw them, and where each query looks.
Maps = list[tuple[UInt8[Array, "R R 3"], Float[Array, "Q grid grid"]]]


def record_page(
    groups: Sequence[Group],
    insights: Mapping[str, Table],
    pictures: Mapping[int, Pictures],
    maps: Mapping[str, Maps],
    count: int,
) -> str:
    """The page as one HTML file, pictures included.

    Args:
      groups: what to report.
      insights: further tables by their titles.
      pictures: of the data of a group, by its place; those without are shown in words.
      maps: attention maps by what model they are of.
      count: how many examples of a kind are shown.
    """
    parts = ["<h1>Evaluations</h1>", _note(compare.DRAWN_AGAIN)]
    for place, group in enumerate(groups):
        found = pictures.get(place)
        parts += [f"<h2>{_text(group.title)}</h2>", _table(compare.score_table(group))]
        paired = compare.difference_table(group)
        if paired:
            parts.append(_note(paired) if isinstance(paired, str) else _table(paired))
        parts += [_note(line) for line in compare.notes_of(group)]
        show = _searches if group.task == "retrieval" else _said
        parts.append(show(group, found, count))
    for title, table in insights.items():
        parts += [f"<h2>{_text(title)}</h2>", _table(table)]
    for title, shown in maps.items():
        parts += [f"<h2>Where the queries look, {_text(title)}</h2>", _maps(shown)]
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8>\n"
        f"<title>Evaluations</title>\n<style>{_STYLE}</style>\n{body}\n</html>\n"
    )


def _text(words: Any) -> str:
    return html.escape(str(words))


def _note(words: str) -> str:
    return f"<p class=note>{_text(words)}</p>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{_text(cell)}</th>" for cell in table.head)
    rows = "".join(
        f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>"
        for row in table.rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _photo(pictures: Pictures | None, key: str, width: int) -> str:
    """The picture of a record, or its name where there is none."""
    pixels = pictures.find(key) if pictures else None
    if pixels is None:
        return f"<span class=name>{_text(key)}</span>"
    return photo_tag(pixels, key, width)


def _said(group: Group, pictures: Pictures | None, count: int) -> str:
    """Cards of the examples that were captioned or answered best and worst."""
    unit = group.entries[0].examples[0]["unit"] if group.entries[0].examples else ""
    found = extremes(group, count, unit)
    names = [entry.name for entry in group.entries]
    sections = []
    for title, places in (("Best", found.best), ("Worst", found.worst)):
        cards = []
        for place in places:
            same = [examples[place] for examples in aligned(group)]
            words = "".join(map(_line, names, same))
            photo = _photo(pictures, same[0]["key"], 200)
            cards.append(
                f"<div class=card>{photo}<div>{_asked(same[0])}{words}"
                f"{_references(same[0])}</div></div>"
            )
        sections.append(f"<h3>{title}</h3><div class=cards>{''.join(cards)}</div>")
    return "".join(sections) if found.best else ""


def _asked(example: Example) -> str:
    return f"<p>{_text(example['question'])}</p>" if "question" in example else ""


def _line(name: str, example: Example) -> str:
    value = goodness(example)
    score = "" if value is None else f" {value:.0f}"
    return (
        f"<p><span class=said>{_text(example['said'])}</span> "
        f"<span class=name>{_text(name)}{score}</span></p>"
    )


def _references(example: Example) -> str:
    """What people said; equal answers once, with how many gave them."""
    given = example["references"]
    counted = {text: given.count(text) for text in given}
    lines = [text if n == 1 else f"{text} ({n})" for text, n in counted.items()]
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def _searches(group: Group, pictures: Pictures | None, count: int) -> str:
    """Of the first entry: texts with the pictures found, pictures with the texts."""
    first = group.entries[0]
    examples = first.examples
    sections = [_note(f"Searches of {first.name}; what is right is green.")]
    for unit, show in (("text", _text_search), ("image", _image_search)):
        found = extremes(Group(group.task, [first]), count, unit)
        for title, places in (("best", found.best), ("worst", found.worst)):
            rows = "".join(show(examples[place], pictures) for place in places)
            sections.append(f"<h3>From {unit}s, {title}</h3>{rows}")
    return "".join(sections)


def _rank(example: Example) -> str:
    each = (f"{stage} {rank + 1}" for stage, rank in example["ranks"].items())
    return f"first right one at place: {', '.join(each)}"


def _text_search(example: Example, pictures: Pictures | None) -> str:
    figures = "".join(
        f"<figure class={'right' if hit['right'] else 'wrong'}>"
        f"{_photo(pictures, hit['key'], 150)}</figure>"
        for hit in example["found"]
    )
    return (
        f"<p><span class=said>{_text(example['said'])}</span> "
        f"<span class=name>{_rank(example)}</span></p><div class=row>{figures}</div>"
    )


def _image_search(example: Example, pictures: Pictures | None) -> str:
    hits = "".join(
        f"<li class={'right' if hit['right'] else 'wrong'}>{_text(hit['text'])}</li>"
        for hit in example["found"]
    )
    return (
        f"<div class=card>{_photo(pictures, example['key'], 150)}<div>"
        f"<p class=name>{_rank(example)}</p><ul>{hits}</ul></div></div><br>"
    )


def _maps(shown: Maps) -> str:
    rows = []
    for image, queries in shown:
        figures = [f"<figure>{image_tag(image, 130)}</figure>"]
        figures += [
            f"<figure>{image_tag(overlay(image, one), 80)}"
            f"<figcaption>{number + 1}</figcaption></figure>"
            for number, one in enumerate(queries)
        ]
        rows.append(f"<div class=row>{''.join(figures)}</div>")
    words = "Cross-attention of each query, blocks and heads averaged; bright where it "
    return _note(words + "looks.") + "".join(rows)
