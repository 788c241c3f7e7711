"""A page about runs: progress, curves, samples, scores, configuration, sources."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from blip2_jax.evaluation.compare import Table
from blip2_jax.reports.images import jpeg_tag
from blip2_jax.reports.markup import Html, concatenate, element
from blip2_jax.reports.record_images import RecordImages
from blip2_jax.reports.run_charts import render_charts, score_rows
from blip2_jax.reports.run_record import RunRecord, last_checkpoint
from blip2_jax.reports.template import (
    render_details,
    render_list,
    render_note,
    render_page,
    render_pairs,
    render_table,
)
from blip2_jax.training.terminal import shorten_path

_SHOWN_STEPS = 5  # evaluations whose samples are shown


def run_page(
    runs: Sequence[RunRecord],
    images: Mapping[str, RecordImages],
    evaluations: Iterable[Html] = (),
) -> str:
    """Render the page as one HTML file.

    Args:
      runs: the runs, side by side.
      images: of the evaluation data of runs, by their names.
      evaluations: sections about records of evaluations.
    """
    title = f"Run {runs[0].name}" if len(runs) == 1 else "Runs side by side"
    facts = overview(runs)
    parts = [render_table(facts.head, facts.rows, wraps=True)]
    for run in runs:
        parts += [render_note(f"{run.name}: {remark}") for remark in run.remarks]
    if scores := score_table(runs):
        parts += [element("h2", "Scores"), _table(scores)]
    parts.append(render_charts(runs))
    for run in runs:
        parts += _samples(run, images.get(run.name))
    parts += evaluations
    parts.append(element("h2", "Configuration"))
    parts.append(_configurations(runs))
    for run in runs:
        parts += _sources(run)
        parts += _starts(run)
    return render_page(title, parts)


def run_markdown(runs: Sequence[RunRecord]) -> str:
    """Render progress, remarks and scores as Markdown."""
    parts = ["# Runs", overview(runs).markdown()]
    remarks = [f"- {run.name}: {remark}" for run in runs for remark in run.remarks]
    if remarks:
        parts.append("\n".join(remarks))
    if scores := score_table(runs):
        parts += ["## Scores", scores.markdown()]
    return "\n\n".join(parts) + "\n"


def overview(runs: Sequence[RunRecord]) -> Table:
    """Tabulate where runs are, how far and how fast."""
    columns = [_facts(run) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name, "") for column in columns)] for name in names]
    return Table(["", *(run.name for run in runs)], rows)


def _facts(run: RunRecord) -> dict[str, str]:
    facts = {"directory": shorten_path(run.path), "progress": run.progress}
    if checkpoint := last_checkpoint(run):
        facts["last checkpoint"] = checkpoint
    for key in ("task", "batch_size", "precision", "seed"):
        if key in run.config:
            facts[key.replace("_", " ")] = str(run.config[key])
    for name, label in (
        ("images_per_second_per_chip", "images per second and chip"),
        ("peak_memory_gb", "memory of a device, GB"),
    ):
        if line := run.series.get(name):
            facts[label] = f"{_median([value for _, value in line]):.4g}"
    broken = run.series.get("broken_samples", [])
    if broken and broken[-1][1]:
        facts["broken samples"] = f"{broken[-1][1]:.0f}"
    if run.starts:
        facts["device"] = str(run.starts[-1].get("device", ""))
        facts["starts"] = str(len(run.starts))
    return facts


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def score_table(runs: Sequence[RunRecord]) -> Table | None:
    """Tabulate first, best and last scores of evaluations during the runs."""
    rows = score_rows(runs)
    if not rows:
        return None
    head = [""]
    for run in runs:
        of_run = f" of {run.name}" if len(runs) > 1 else ""
        head += [f"{which}{of_run}" for which in ("first", "best", "last")]
    return Table(head, [[name, *cells] for name, cells in rows.items()])


def _table(table: Table) -> Html:
    return render_table(table.head, table.rows)


def _samples(run: RunRecord, images: RecordImages | None) -> list[Html]:
    """Render cards: an image, and what the run said of it after several steps."""
    if not run.samples:
        return []
    steps = _spread(list(run.samples), _SHOWN_STEPS)
    last = run.samples[steps[-1]]
    cards = [_card(run, steps, sample, images) for sample in last]
    title = f"Samples through training, {run.name}"
    return [element("h2", title), element("div", *cards, class_="cards")]


def _spread(steps: Sequence[int], count: int) -> list[int]:
    """Return at most `count` steps at even distances, with the first and the last."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(n * (len(steps) - 1) / (count - 1))] for n in range(count)]


def _card(
    run: RunRecord,
    steps: Sequence[int],
    sample: Mapping[str, Any],
    images: RecordImages | None,
) -> Html:
    key, name = str(sample.get("key", "")), _identity(sample)
    texts = []
    for step in steps:
        said = next((_said(s) for s in run.samples[step] if _identity(s) == name), None)
        if said is not None:
            label = element("span", f"step {step} ", class_="name")
            texts.append(element("p", label, said))
    question = [element("p", sample["question"])] if "question" in sample else []
    references = dict.fromkeys(map(str, sample.get("references", ())))
    pixels = images.find(key) if images else None
    picture = (
        element("span", key, class_="name")
        if pixels is None
        else jpeg_tag(pixels, ": ".join([key, *references][:2]), 140)
    )
    listed = [render_list(references)] if references else []
    return element(
        "div", picture, element("div", *question, *texts, *listed), class_="card"
    )


def _identity(sample: Mapping[str, Any]) -> tuple[str, str]:
    return str(sample.get("unit")), str(sample.get("id"))


def _said(sample: Mapping[str, Any]) -> Html:
    """Render a caption or answer, or the text that a search found first."""
    if "said" in sample:
        return element("span", sample["said"], class_="said")
    found = sample.get("found") or [{}]
    kind = "right" if found[0].get("right") else "wrong"
    return element("span", found[0].get("text", ""), class_=kind)


def _configurations(runs: Sequence[RunRecord]) -> Html:
    """Render the keys that differ between runs, and each complete configuration."""
    flat = [flatten_config(run.config) for run in runs]
    parts: list[Html] = []
    if len(runs) > 1:
        names = dict.fromkeys(name for config in flat for name in config)
        rows = [
            [name, *(config.get(name, "") for config in flat)]
            for name in names
            if len({config.get(name) for config in flat}) > 1
        ]
        if rows:
            parts.append(render_note("Keys that differ:"))
            head = ["", *(run.name for run in runs)]
            parts.append(render_table(head, rows, wraps=True))
        else:
            parts.append(render_note("The configurations are the same."))
    for run in runs:
        text = json.dumps(run.config, indent=1, ensure_ascii=False)
        parts.append(render_details(f"config of {run.name}", element("pre", text)))
    return concatenate(parts)


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return the leaves of a configuration as texts, by names such as "data.prompt"."""
    leaves: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            leaves |= flatten_config(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = json.dumps(value, ensure_ascii=False)
    return leaves


def _sources(run: RunRecord) -> list[Html]:
    """Render where data and frozen weights come from."""
    pairs = {}
    data = run.sources.get("data")
    for source in data if isinstance(data, list) else ():
        if isinstance(source, dict):
            counts = [f"{source[n]} {n}" for n in ("records", "images") if n in source]
            pairs[f"data: {source.get('name', '')}"] = ", ".join(counts)
    origins: dict[str, int] = {}
    for array in _mapping(run.sources.get("frozen")).values():
        origin = str(_mapping(array).get("source", ""))
        origins[origin] = origins.get(origin, 0) + 1
    for origin, count in origins.items():
        pairs[f"frozen weights: {origin}"] = f"{count} arrays"
    for name, pinned in _mapping(run.sources.get("hub")).items():
        pairs[f"hub: {name}"] = str(pinned)
    if not pairs:
        return []
    return [element("h2", f"Sources of {run.name}"), render_pairs(pairs)]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _starts(run: RunRecord) -> list[Html]:
    """Render the versions and devices of each process that trained the run."""
    if not run.starts:
        return []
    names = list(dict.fromkeys(name for start in run.starts for name in start))
    rows = [[str(start.get(name, "")) for name in names] for start in run.starts]
    head = ["after step" if name == "step" else name for name in names]
    title = f"Starts and versions of {run.name}"
    return [element("h2", title), render_table(head, rows, wraps=True)]
