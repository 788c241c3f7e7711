"""The model card (README.md) of a folder that is pushed to the Hugging Face hub."""

from __future__ import annotations

import pathlib
from typing import Any

from blip2_jax.convert.huggingface_export import architecture
from blip2_jax.convert.model_source import ModelSource
from blip2_jax.data.hub import parse_name
from blip2_jax.data.hub_errors import HubName
from blip2_jax.parallel.files import read_json
from blip2_jax.parallel.paths import as_path
from blip2_jax.training.checkpoints import is_run
from blip2_jax.training.lora import lora_of
from blip2_jax.training.train_config import read_config

LOAD = {
    "blip2_jax": """import blip2_jax

model = blip2_jax.load("{name}")
""",
    "huggingface": """import blip2_jax

model = blip2_jax.load("{name}")

# or with transformers:
from transformers import AutoProcessor, {architecture}

processor = AutoProcessor.from_pretrained("{name}")
model = {architecture}.from_pretrained("{name}")
""",
}


def model_card(
    model: ModelSource, source: str, layout: str, name: str, license_name: str = ""
) -> str:
    """Write the model card of a converted model.

    Args:
      model: the model.
      source: what was converted: the directory of a run adds its training and scores.
      layout: "blip2_jax" or "huggingface".
      name: of the repository, ORG/NAME.
      license_name: identifier of the licence on the hub, "" if it is not known.
    """
    origins = part_origins(model, source)
    run = as_path(source) if is_run(source) else None
    sections = [
        _front_matter(model, layout, origins, license_name),
        f"# {name.split('/')[-1]}\n\n{_summary(model)}",
        _parts(origins, license_name),
        _training(run) if run else "",
        _scores(run) if run else "",
        "## Use\n\n```python\n"
        + LOAD[layout].format(name=name, architecture=architecture(model))
        + f"{_example(model, layout)}```",
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def part_origins(model: ModelSource, source: str) -> dict[str, list[str]]:
    """List where the arrays of each part come from, by the part's name in the tree."""
    origins: dict[str, set[str]] = {}
    origin_of = getattr(model.arrays, "origin", lambda path: source)
    for path in model.arrays:
        origin = origin_of(path)
        name = origin if isinstance(origin, str) else origin["source"]
        part = origins.setdefault(path.split("/")[0], set())
        part.add(source if name in ("run", "memory") else name)
    return {part: sorted(names) for part, names in sorted(origins.items())}


def _front_matter(
    model: ModelSource, layout: str, origins: dict[str, list[str]], license_name: str
) -> str:
    """Return the YAML block from which the hub makes filters and links."""
    lines = [f"license: {license_name}"] if license_name else []
    lines.append(
        f"library_name: {'transformers' if layout == 'huggingface' else 'blip2_jax'}"
    )
    if model.stage == 2:
        lines.append("pipeline_tag: image-to-text")
    lines += ["tags:", "- blip-2", "- jax"]
    bases = {name.repository for name in map(_hub_name, _all(origins)) if name}
    if bases:
        lines += ["base_model:", *(f"- {base}" for base in sorted(bases))]
    return "\n".join(["---", *lines, "---"])


def _all(origins: dict[str, list[str]]) -> set[str]:
    return {name for names in origins.values() for name in names}


def _hub_name(origin: str) -> HubName | None:
    """Return a name of the hub; None for a path, which says nothing to others."""
    return parse_name(origin) if origin.startswith("hf:") else None


def _summary(model: ModelSource) -> str:
    vision, tokens = model.config.vision, model.config.num_visual_tokens
    stage = (
        "BLIP-2 of stage 2: it captions images and answers questions about them."
        if model.stage == 2
        else "BLIP-2 of stage 1: it matches images with texts and gives features."
    )
    size = getattr(vision, "image_size", None)
    pixels = f"images of {size} x {size} pixels, " if size else "features, "
    return f"{stage} Inputs: {pixels}{tokens} queries. Made with blip2_jax."


def _parts(origins: dict[str, list[str]], license_name: str) -> str:
    rows = ["## Parts", "", "| part | from |", "| --- | --- |"]
    for part, names in origins.items():
        shown = (name if _hub_name(name) else pathlib.Path(name).name for name in names)
        rows.append(f"| `{part}` | {', '.join(f'`{name}`' for name in shown)} |")
    if not license_name:
        rows += ["", "No licence is stated here. Those of the parts apply."]
    return "\n".join(rows)


def _training(run: pathlib.Path) -> str:
    """Describe the training of a run by its configuration."""
    config = read_config(run)
    kinds = [str(spec["kind"]) for spec in config.data.train]
    frozen = ", ".join(f"`{pattern}`" for pattern in config.frozen) or "nothing"
    start = [*config.init.from_weights, *filter(None, [config.init.from_run])]
    begun = ", ".join(f"`{_shown(name)}`" for name in start) or "random values"
    lora = lora_of(config)
    return "\n".join(
        [
            "## Training",
            "",
            f"- {config.task}, {config.steps:,} steps of {config.batch_size} rows",
            f"- learning rate: {config.optimizer.learning_rate}, precision: "
            f"{config.precision}, seed: {config.seed}",
            f"- started from: {begun}",
            f"- frozen (patterns of parameters): {frozen}",
            *([f"- LoRA, merged: `{lora}`"] if lora else []),
            f"- data (kinds of sources): {', '.join(kinds)}",
        ]
    )


def _shown(name: str) -> str:
    return name if _hub_name(name) else pathlib.Path(name).name


def _scores(run: pathlib.Path) -> str:
    """Return a table of the scores in the evaluation records of a run; "" if none."""
    rows = []
    for path in sorted(run.glob("evaluation_*.json")):
        if path.name.endswith((".predictions.json", ".examples.json")):
            continue
        record: dict[str, Any] = read_json(path)
        rows += [
            f"| {record['task']} | {name} | {value:.2f} | {record['examples']} |"
            for name, value in record["scores"].items()
        ]
    if not rows:
        return ""
    head = ["## Scores", "", "| task | metric | score | examples |"]
    return "\n".join([*head, "| --- | --- | ---: | ---: |", *rows])


def _example(model: ModelSource, layout: str) -> str:
    if layout == "huggingface":
        return ""
    if model.stage == 2:
        return 'print(model.caption(["photo.jpg"]))\n'
    return 'print(model.match(["photo.jpg"], ["a red circle"]))\n'
