"""The demo's table and its HTML page: scenes, texts, retrieval, attention, curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from blip2_jax.data.shapes.captions import parse_caption
from blip2_jax.evaluation.shapes_exam import Exam, RetrievalResult
from blip2_jax.reports.attention_figures import render_maps
from blip2_jax.reports.chart import line_chart
from blip2_jax.reports.images import png_tag
from blip2_jax.reports.markup import Html, concatenate, element
from blip2_jax.reports.run_charts import thin
from blip2_jax.reports.run_record import make_series
from blip2_jax.reports.template import (
    render_list,
    render_note,
    render_page,
    render_table,
)

NAMES = {"stage1": "Q-Former", "opt": "OPT", "t5": "T5"}
SHOWN_SCENES, SHOWN_SEARCHES, SHOWN_MAPS = 12, 8, 8


@dataclasses.dataclass(frozen=True)
class DemoScore:
    """A score between 0 and 1.

    Attributes:
      name: of the score.
      guess: of a baseline without images; None if there is none.
      blank: of the model with blank images.
      shuffled: of the model with the images of other scenes.
      model: of the model with the right images.
    """

    name: str
    guess: float | None
    blank: float
    shuffled: float
    model: float


def demo_scores(results: Mapping[str, Any]) -> list[DemoScore]:
    """Collect the scores of the demo's table.

    Args:
      results: of the exams, by name, as `blip2_jax.cli.demo` collects them.
    """

    def score(
        name: str, key: str, select: Callable[[Any], float], guess: float | None
    ) -> DemoScore:
        conditions = ("blank", "shuffled", "right")
        values = [select(results[f"{key}/{condition}"]) for condition in conditions]
        return DemoScore(name, guess, *values)

    count = len(results["retrieval/right"].similarity)
    chance = 1 / count
    first = f"image to text, first of {count}"
    scores = [
        score(first, "retrieval", lambda r: r.recall, chance),
        score("  by contrast alone", "retrieval", lambda r: r.recall_itc, chance),
        score("matching pairs told apart", "matching", float, 0.5),
    ]
    for key, name in NAMES.items():
        captions, answers = f"{key}/captions", f"{key}/answers"
        scores += [
            score(f"{name}: captions, things", captions, lambda c: c.attributes, 0.0),
            score(f"{name}: and places", captions, lambda c: c.everything, 0.0),
        ]
        if f"{answers}/right" in results:
            majority = results["majority"].accuracy
            scores.append(
                score(f"{name}: answers", answers, lambda a: a.accuracy, majority)
            )
    return scores


def scores_as_text(scores: Sequence[DemoScore]) -> str:
    """Format the table for a terminal."""
    head = f"{'held-out scenes':38}{'guess':>8}{'blank':>8}{'shuffled':>10}{'model':>8}"
    lines = [head, "-" * len(head)]
    lines += [
        f"{s.name:38}{_percent(s.guess):>8}{_percent(s.blank):>8}"
        f"{_percent(s.shuffled):>10}{_percent(s.model):>8}"
        for s in scores
    ]
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def demo_page(
    exam: Exam,
    results: Mapping[str, Any],
    scores: Sequence[DemoScore],
    curves: Mapping[str, Sequence[Mapping[str, float]]],
    duration: str,
) -> str:
    """Render the page as one HTML file with the images inside.

    Args:
      exam: the scenes.
      results: of the exams, by name, as `blip2_jax.cli.demo` collects them.
      scores: from `demo_scores`.
      curves: logged metrics of each run.
      duration: of the demo, as text.
    """
    sections = [
        (
            "What was measured",
            concatenate([_score_table(scores), render_note(duration)]),
        ),
        ("Captions and answers", _scenes(exam, results)),
        ("Retrieval", _searches(exam, results["retrieval/right"])),
        ("Where the model with OPT looks", render_maps(results["maps"])),
        ("Training", _curves(curves)),
    ]
    lead = Html(
        "<p>A Q-Former was trained between a frozen image encoder and two frozen "
        "language models, then examined on scenes that each hold a combination of "
        "size, colour and shape which <b>no training data contain</b>, neither images "
        "nor texts, those of the frozen models included. Scenes come in pairs of "
        "near-duplicates.</p>"
    )
    body = [
        part for title, content in sections for part in (element("h2", title), content)
    ]
    return render_page("BLIP-2 on a world of shapes", [lead, *body])


def _score_table(scores: Sequence[DemoScore]) -> Html:
    head = ("", "guess", "blank image", "another scene's", "the model")
    rows = [
        (
            s.name,
            _percent(s.guess),
            _percent(s.blank),
            _percent(s.shuffled),
            _percent(s.model),
        )
        for s in scores
    ]
    explanation = (
        "A guess uses no image: chance, or the most common training answer to each "
        "kind of question. Retrieval is by contrast, its best re-ranked by the "
        "matching head; half of the non-matching pairs are near-duplicates."
    )
    table = render_table(head, rows, main_column=4)
    return concatenate([table, render_note(explanation)])


def _marked(text: str, right: bool, label: str = "") -> Html:
    """Render a text with a tick or a cross."""
    kind = "right" if right else "wrong"
    return concatenate([label, element("span", text, class_=kind)])


def _scenes(exam: Exam, results: Mapping[str, Any]) -> Html:
    """Render cards: an image, each model's caption, questions with answers."""
    cards = []
    for index in range(min(SHOWN_SCENES, len(exam.scenes))):
        captions = []
        for key, name in NAMES.items():
            text = results[f"{key}/captions/right"].texts[index]
            right = parse_caption(text).describes(exam.scenes[index])
            captions.append(element("p", _marked(text, right, f"{name}: ")))
        answers = {
            NAMES[key]: results[f"{key}/answers/right"].texts[index]
            for key in ("opt", "t5")
        }
        questions = []
        for number, question in enumerate(exam.questions[index][:4]):
            marked = [
                _marked(texts[number], texts[number] == question.answer, f"{name} ")
                for name, texts in answers.items()
            ]
            questions.append(concatenate([question.text, *marked], " "))
        image = png_tag(exam.images[index], 160, exam.captions[index])
        texts_of_scene = element("div", *captions, render_list(questions))
        cards.append(element("div", image, texts_of_scene, class_="card"))
    return element("div", *cards, class_="cards")


def _searches(exam: Exam, retrieval: RetrievalResult) -> Html:
    """Render images with the three captions that rank first."""
    cards = []
    step = max(1, len(exam.scenes) // SHOWN_SEARCHES)
    for index in range(0, step * SHOWN_SEARCHES, step)[: len(exam.scenes)]:
        hits = []
        for hit in retrieval.order[index][:3]:
            marked = _marked(exam.captions[hit], hit == index)
            cosine = element("small", f"{retrieval.similarity[index, hit]:.2f}")
            hits.append(element("p", marked, " ", cosine))
        image = png_tag(exam.images[index], 120, exam.captions[index])
        cards.append(element("div", image, element("div", *hits), class_="card"))
    explanation = (
        "The three best captions of each image among all captions, with the cosine of "
        "the contrastive head."
    )
    return concatenate(
        [element("p", explanation), element("div", *cards, class_="cards")]
    )


def _curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Html:
    """Render a chart of the losses of each run."""
    charts = []
    for name, lines in curves.items():
        losses = {
            key.removeprefix("loss_"): thin(line)
            for key, line in sorted(make_series(lines).items())
            if key.startswith("loss_")
        }
        charts.append(element("figure", line_chart(name, losses)))
    return element("div", *charts, class_="curves")
