"""The demo's table and its page: scenes, words, retrieval, attention, curves."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from blip2_jax.data.shapes.captions import parse_caption
from blip2_jax.evaluation.shapes_exam import Exam, Retrieval
from blip2_jax.reports import pictures as pictures

NAMES = {"stage1": "Q-Former", "opt": "OPT", "t5": "T5"}
SHOWN_SCENES, SHOWN_SEARCHES, SHOWN_MAPS = 12, 8, 8

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68em; margin: 2em auto;
  padding: 0 1em; color: #1d1f24; }
h2 { margin-top: 2em; } small, .note { color: #667; }
table { border-collapse: collapse; } th, td { padding: .3em .9em; text-align: right; }
th:first-child, td:first-child { text-align: left; }
thead { border-bottom: 2px solid #ccd; } tbody tr { border-bottom: 1px solid #eee; }
td.model { font-weight: 700; }
img { image-rendering: pixelated; border-radius: 6px; display: block; }
.cards { display: grid; grid-template-columns: 1fr 1fr; gap: 1.2em; }
.card { display: flex; gap: 1em; background: #f6f7f9; border-radius: 8px;
  padding: .8em; }
.card p, .card ul { margin: 0 0 .35em; } .card ul { padding-left: 1.1em; }
.right::before { content: "\\2713 "; color: #15803d; font-weight: 700; }
.wrong::before { content: "\\2717 "; color: #b91c1c; font-weight: 700; }
.curves { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1em; }
.maps { display: flex; flex-wrap: wrap; gap: .4em; align-items: center;
  margin-bottom: .6em; }
.maps figure { margin: 0; } figcaption { font-size: .75em; color: #667; }
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """A score: of a guess that looks at nothing, with wrong pictures, with right."""

    name: str
    guess: float | None
    blank: float
    shuffled: float
    model: float


def make_table(results: Mapping[str, Any]) -> list[Row]:
    """The rows of the table, all shares between 0 and 1."""

    def row(
        name: str, key: str, pick: Callable[[Any], float], guess: float | None
    ) -> Row:
        values = [pick(results[f"{key}/{p}"]) for p in ("blank", "shuffled", "right")]
        return Row(name, guess, *values)

    count = len(results["retrieval/right"].similarity)
    rows = [
        row(
            f"image to text, first of {count}",
            "retrieval",
            lambda r: r.recall,
            1 / count,
        ),
        row("  by contrast alone", "retrieval", lambda r: r.recall_itc, 1 / count),
        row("matching pairs told apart", "matching", float, 0.5),
    ]
    for key, name in NAMES.items():
        captions = f"{key}/captions"
        rows.append(
            row(f"{name}: captions, things", captions, lambda c: c.attributes, 0.0)
        )
        rows.append(row(f"{name}: and places", captions, lambda c: c.everything, 0.0))
        if f"{key}/answers/right" in results:
            guess = results["majority"].accuracy
            rows.append(
                row(f"{name}: answers", f"{key}/answers", lambda a: a.accuracy, guess)
            )
    return rows


def as_text(table: Sequence[Row]) -> str:
    """The table for a terminal."""
    head = f"{'held-out scenes':38}{'guess':>8}{'blank':>8}{'shuffled':>10}{'model':>8}"
    lines = [head, "-" * len(head)]
    lines += [
        f"{r.name:38}{_percent(r.guess):>8}{_percent(r.blank):>8}"
        f"{_percent(r.shuffled):>10}{_percent(r.model):>8}"
        for r in table
    ]
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def make_page(
    exam: Exam,
    results: Mapping[str, Any],
    table: Sequence[Row],
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    spent: str,
) -> str:
    """The page as one HTML file, pictures included.

    Args:
      exam: the scenes.
      results: by name, as `launch/demo.py` collects them.
      table: from `make_table`.
      curves: logged numbers of each run.
      spent: how long it took, in words.
    """
    timing = f"<p class=note>{html.escape(spent)}</p>"
    sections = [
        ("What was measured", _table(table) + timing),
        ("Captions and answers", _scenes(exam, results)),
        ("Retrieval", _searches(exam, results["retrieval/right"])),
        ("Where the queries look", _maps(exam, results["maps"])),
        ("Training", _curves(curves)),
    ]
    body = "\n".join(f"<h2>{title}</h2>\n{content}" for title, content in sections)
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8>\n"
        f"<title>blip2_jax on shapes</title>\n<style>{_STYLE}</style>\n"
        "<h1>BLIP-2 on a world of shapes</h1>\n"
        "<p>A Q-Former was trained between a frozen image encoder and two frozen "
        "language models, then asked about scenes that each hold a combination of "
        "size, colour and shape which <b>no training data contain</b>, neither "
        "pictures nor texts, those of the frozen models included. Scenes come in "
        "pairs of near-duplicates.</p>\n"
        f"{body}\n</html>\n"
    )


def _table(table: Sequence[Row]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(r.name).replace('  ', '&emsp;')}</td>"
        f"<td>{_percent(r.guess)}</td><td>{_percent(r.blank)}</td>"
        f"<td>{_percent(r.shuffled)}</td><td class=model>{_percent(r.model)}</td></tr>"
        for r in table
    )
    return (
        "<table><thead><tr><th></th><th>guess</th><th>blank picture</th>"
        "<th>another scene's</th><th>the model</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
        "<p class=note>A guess looks at nothing: chance, or each kind of question's "
        "most common training answer. Retrieval is by contrast, its best re-ranked by "
        "the matching head; half of the non-matching pairs are near-duplicates.</p>"
    )


def _marked(text: str, right: bool, lead: str = "") -> str:
    kind = "right" if right else "wrong"
    return f"{html.escape(lead)}<span class={kind}>{html.escape(text)}</span>"


def _scenes(exam: Exam, results: Mapping[str, Any]) -> str:
    """Cards: a picture, what each model says of it, questions with answers."""
    cards = []
    for index in range(min(SHOWN_SCENES, len(exam.scenes))):
        scene = exam.scenes[index]
        lines = []
        for key, name in NAMES.items():
            text = results[f"{key}/captions/right"].texts[index]
            told = _marked(text, parse_caption(text).describes(scene), f"{name}: ")
            lines.append(f"<p>{told}</p>")
        asked = "".join(
            f"<li>{html.escape(question.text)} "
            + " ".join(
                _marked(answer, answer == question.answer, f"{NAMES[name]} ")
                for name in ("opt", "t5")
                for answer in [results[f"{name}/answers/right"].texts[index][number]]
            )
            + "</li>"
            for number, question in enumerate(exam.questions[index][:4])
        )
        picture = pictures.image_tag(exam.images[index], 160)
        words = f"{''.join(lines)}<ul>{asked}</ul>"
        cards.append(f"<div class=card>{picture}<div>{words}</div></div>")
    return f"<div class=cards>{''.join(cards)}</div>"


def _searches(exam: Exam, found: Retrieval) -> str:
    """Pictures with the three captions that rank first."""
    cards = []
    step = max(1, len(exam.scenes) // SHOWN_SEARCHES)
    for index in range(0, step * SHOWN_SEARCHES, step)[: len(exam.scenes)]:
        hits = "".join(
            f"<p>{_marked(exam.captions[hit], hit == index)} "
            f"<small>{found.similarity[index, hit]:.2f}</small></p>"
            for hit in found.order[index][:3]
        )
        picture = pictures.image_tag(exam.images[index], 120)
        cards.append(f"<div class=card>{picture}<div>{hits}</div></div>")
    return (
        "<p>Each picture's three best captions among all; the number is the cosine of "
        f"contrast.</p><div class=cards>{''.join(cards)}</div>"
    )


def _maps(exam: Exam, maps: Any) -> str:
    """Rows of one picture under each query's attention."""
    rows = []
    for index in range(min(SHOWN_MAPS, len(maps))):
        image = exam.images[index]
        figures = [f"<figure>{pictures.image_tag(image, 96)}</figure>"]
        figures += [
            f"<figure>{pictures.image_tag(pictures.overlay(image, one), 64)}"
            f"<figcaption>{number + 1}</figcaption></figure>"
            for number, one in enumerate(maps[index])
        ]
        rows.append(f"<div class=maps>{''.join(figures)}</div>")
    return (
        "<p>Cross-attention of each query, blocks and heads averaged; bright where it "
        f"looks.</p>{''.join(rows)}"
    )


def _curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    charts = []
    for name, lines in curves.items():
        losses = sorted({key for line in lines for key in line if "loss_" in key})
        series = {
            key.removeprefix("loss_"): [
                (line["step"], line[key]) for line in lines if key in line
            ]
            for key in losses
        }
        charts.append(f"<figure>{pictures.chart(name, series)}</figure>")
    return f"<div class=curves>{''.join(charts)}</div>"
