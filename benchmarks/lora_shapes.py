"""Teach the shipped model another wording by matrices of LoRA.

    python -m benchmarks.lora_shapes
    python -m benchmarks.lora_shapes --workdir runs/lora_shapes --rank 2

The package's captions of a scene vary; here every scene has one, in a wording that the
model has never seen: "in top left small red ring, in bottom right ...".
Prints how many captions of other scenes are that text, word for word, before and after,
and the share of the parameters that was trained. The same command continues after a
kill.
"""

from __future__ import annotations

import argparse
import csv
import pathlib

from PIL import Image

import blip2_jax
from blip2_jax.configs import finetune
from blip2_jax.data.shapes.captions import parse_caption
from blip2_jax.data.shapes.render import render
from blip2_jax.data.shapes.world import scene
from blip2_jax.evaluation.evaluators import make_evaluator
from blip2_jax.nn.trees import flatten
from blip2_jax.perf.compile_cache import enable_compile_cache
from blip2_jax.training.loop import train
from blip2_jax.training.lora import split_parameters
from blip2_jax.training.tasks import make_task

SCENES = 2000  # of training
TESTS, START = 400, 20_000  # no configuration was tuned on the scenes from here on
SPLITS = ("validation", "heldout")


def main() -> int:
    """Train, if needed, and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workdir", type=pathlib.Path, default=pathlib.Path("runs/lora_shapes"))
    add("--rank", type=int, default=8)
    add("--epochs", type=int, default=8)
    add("--learning_rate", type=float, default=2e-3)
    add("--seed", type=int, default=0)
    arguments = parser.parse_args()
    enable_compile_cache(None)
    data = write_scenes(arguments.workdir.absolute() / "scenes")
    options = f"shapes,{data},lora={arguments.rank},epochs={arguments.epochs},batch=32"
    config = finetune.get_config(options).unlock()
    config.optimizer.learning_rate = arguments.learning_rate
    config.seed, config.precision = arguments.seed, "float32"
    # The wording is the language model's part; what the queries say stays as it is.
    config.lora.targets = (r"^language_model/.*attention/(query|value)/kernel$",)
    run = arguments.workdir.absolute() / f"rank{arguments.rank}_{arguments.seed}"
    if code := train(config.lock(), run, make_evaluator=make_evaluator):
        return code
    print_table(
        {"shapes": blip2_jax.load("shapes"), "with LoRA": blip2_jax.load(run)},
        trained_share(config),
    )
    return 0


def wording(split: str, index: int) -> str:
    """Return the new caption of a scene."""
    things = sorted(scene(split, index).things, key=lambda t: (t.row, t.column))
    return ", ".join(f"in {t.place} {t.name()}" for t in things)


def write_scenes(directory: pathlib.Path) -> pathlib.Path:
    """Write images and their captions as a CSV, unless that has been done."""
    table = directory / "captions.csv"
    if table.exists():
        return table
    directory.mkdir(parents=True, exist_ok=True)
    rows = [("file_name", "text")]
    for index in range(SCENES):
        name = f"{index:05d}.png"
        Image.fromarray(render(scene("train", index))).save(directory / name)
        rows.append((name, wording("train", index)))
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return table


def trained_share(config: finetune.ConfigDict) -> tuple[int, int]:
    """Return the number of trained parameters, and of the model's."""
    shapes = split_parameters(config, make_task(config).parameter_shapes())
    count = lambda tree: sum(leaf.size for leaf in flatten(tree).values())
    return count(shapes.trainable), count(shapes.frozen)


def print_table(models: dict[str, blip2_jax.Blip2], share: tuple[int, int]) -> None:
    """Caption other scenes and print the share of correct captions."""
    trained, total = share
    print(f"trained: {trained:,} of {total:,} parameters ({trained / total:.2%})\n")
    print("| model | scenes | in the new wording | all objects right |")
    print("| --- | --- | ---: | ---: |")
    for name, model in models.items():
        for split in SPLITS:
            indices = range(START, START + TESTS)
            images = [render(scene(split, index)) for index in indices]
            texts = model.caption(images, num_beams=1, max_new_tokens=28)
            pairs = list(zip(texts, indices, strict=True))
            exact = sum(text == wording(split, i) for text, i in pairs)
            objects = sum(
                parse_caption(text).names(scene(split, i)) for text, i in pairs
            )
            print(f"| {name} | {split} | {exact / TESTS:.1%} | {objects / TESTS:.1%} |")


if __name__ == "__main__":
    raise SystemExit(main())
