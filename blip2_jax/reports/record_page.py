"""Report of several evaluations: Markdown tables, and an HTML page with images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from blip2_jax.evaluation import compare
from blip2_jax.evaluation.breakdown import (
    aligned_examples,
    best_and_worst,
    example_score,
)
from blip2_jax.evaluation.compare import Group, Table, markdown_text
from blip2_jax.evaluation.examples import Example
from blip2_jax.reports.attention_figures import PictureMaps, render_maps
from blip2_jax.reports.images import jpeg_tag
from blip2_jax.reports.markup import Html, concatenate, element
from blip2_jax.reports.record_images import RecordImages
from blip2_jax.reports.template import (
    render_list,
    render_note,
    render_page,
    render_table,
)

INTERVALS_NOTE = (
    "In brackets the interval that holds 95 % of draws of as many examples with "
    "replacement; p is twice the share of draws on the rarer side of zero."
)


def record_markdown(groups: Sequence[Group], tables: Mapping[str, Table]) -> str:
    """Render the report without images as Markdown.

    Args:
      groups: records to report.
      tables: further tables by their titles.
    """
    parts = ["# Evaluations", INTERVALS_NOTE]
    for group in groups:
        parts += [
            f"## {markdown_text(group.title)}",
            compare.score_table(group).markdown(),
        ]
        paired = compare.difference_table(group)
        if paired:
            parts.append(
                markdown_text(paired) if isinstance(paired, str) else paired.markdown()
            )
        notes = compare.group_notes(group)
        parts.append("\n".join(f"- {markdown_text(line)}" for line in notes))
    for title, table in tables.items():
        parts += [f"## {markdown_text(title)}", table.markdown()]
    return "\n\n".join(parts) + "\n"


def record_page(
    groups: Sequence[Group],
    tables: Mapping[str, Table],
    images: Mapping[int, RecordImages],
    maps: Mapping[str, Sequence[PictureMaps]],
    count: int,
) -> str:
    """Render the report as one HTML file with the images inside; see its sections."""
    return render_page(
        "Evaluations", record_sections(groups, tables, images, maps, count)
    )


def record_sections(
    groups: Sequence[Group],
    tables: Mapping[str, Table],
    images: Mapping[int, RecordImages],
    maps: Mapping[str, Sequence[PictureMaps]],
    count: int,
) -> list[Html]:
    """Render the sections of the report.

    Args:
      groups: records to report.
      tables: further tables by their titles.
      images: of the data of a group, by its index; without them names are shown.
      maps: attention maps by the name of their model.
      count: number of best examples, and of worst examples.
    """
    parts = [render_note(INTERVALS_NOTE)]
    for index, group in enumerate(groups):
        parts += [element("h2", group.title), _table(compare.score_table(group))]
        paired = compare.difference_table(group)
        if paired:
            parts.append(
                render_note(paired) if isinstance(paired, str) else _table(paired)
            )
        parts += map(render_note, compare.group_notes(group))
        render_examples = _searches if group.task == "retrieval" else _texts
        parts.append(render_examples(group, images.get(index), count))
    for title, table in tables.items():
        parts += [element("h2", title), _table(table)]
    for name, model_maps in maps.items():
        parts.append(element("h2", f"Where the model looks, {name}"))
        parts.append(render_maps(model_maps))
    return parts


def _table(table: Table) -> Html:
    return render_table(table.head, table.rows)


def _image(images: RecordImages | None, key: str, width: int) -> Html:
    """Render the image of a record, or its name if there is no image."""
    pixels = images.find(key) if images else None
    if pixels is None:
        return element("span", key, class_="name")
    return jpeg_tag(pixels, key, width)


def _texts(group: Group, images: RecordImages | None, count: int) -> Html:
    """Render cards of the images or questions with the best and worst texts."""
    unit = group.entries[0].examples[0]["unit"] if group.entries[0].examples else ""
    selected = best_and_worst(group, count, unit)
    names = [entry.name for entry in group.entries]
    sections = []
    for title, indices in (("Best", selected.best), ("Worst", selected.worst)):
        cards = []
        for index in indices:
            examples = [column[index] for column in aligned_examples(group)]
            first = examples[0]
            question = [element("p", e["question"]) for e in [first] if "question" in e]
            texts = [*question, *map(_text, names, examples), _references(first)]
            image = _image(images, first["key"], 200)
            cards.append(element("div", image, element("div", *texts), class_="card"))
        sections += [element("h3", title), element("div", *cards, class_="cards")]
    return concatenate(sections if selected.best else [])


def _text(name: str, example: Example) -> Html:
    score = example_score(example)
    label = name if score is None else f"{name} {score:.0f}"
    return _said(example, label)


def _references(example: Example) -> Html:
    """Render people's texts; equal ones once, with their number."""
    references = example["references"]
    counts = {text: references.count(text) for text in references}
    return render_list(
        text if n == 1 else f"{text} ({n})" for text, n in counts.items()
    )


def _searches(group: Group, images: RecordImages | None, count: int) -> Html:
    """Render the best and worst searches of the first entry, from texts and images."""
    first = group.entries[0]
    sections = [render_note(f"Searches of {first.name}; right answers are green.")]
    for unit, render in (("text", _text_search), ("image", _image_search)):
        selected = best_and_worst(Group(group.task, [first]), count, unit)
        for title, indices in (("best", selected.best), ("worst", selected.worst)):
            sections.append(element("h3", f"From {unit}s, {title}"))
            sections += [render(first.examples[index], images) for index in indices]
    return concatenate(sections)


def _said(example: Example, label: str) -> Html:
    """Render what a model or a person said, with a label."""
    said = element("span", example["said"], class_="said")
    return element("p", said, " ", element("span", label, class_="name"))


def _ranks(example: Example) -> str:
    ranks = (f"{stage} {rank + 1}" for stage, rank in example["ranks"].items())
    return f"rank of the first right answer: {', '.join(ranks)}"


def _hit(name: str, hit: Mapping[str, object], content: object) -> Html:
    """Render a search result as an element whose class says if it is right."""
    return element(name, content, class_="right" if hit["right"] else "wrong")


def _text_search(example: Example, images: RecordImages | None) -> Html:
    figures = [
        _hit("figure", hit, _image(images, hit["key"], 150)) for hit in example["found"]
    ]
    row = element("div", *figures, class_="row")
    return concatenate([_said(example, _ranks(example)), row])


def _image_search(example: Example, images: RecordImages | None) -> Html:
    hits = [_hit("li", hit, hit["text"]) for hit in example["found"]]
    ranks = element("p", _ranks(example), class_="name")
    image = _image(images, example["key"], 150)
    texts = element("div", ranks, element("ul", *hits))
    return element("div", image, texts, class_="card")
