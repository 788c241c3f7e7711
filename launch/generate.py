"""Caption, question or match images with a trained model.

    python launch/generate.py --model RUN --image a.jpg b.jpg
    python launch/generate.py --model RUN --image a.jpg --question "what is red?"
    python launch/generate.py --model RUN --image a.jpg --prompt "a photo of"
    python launch/generate.py --model RUN --image a.jpg --text "a cat" "a dog"
    python launch/generate.py --model blip2_pretrained_opt2.7b.pth --image a.jpg \\
        --vision eva_vit_g.pth --language_model opt-2.7b --language_tokenizer opt-2.7b

A line for each image, and for each question or text about it. Models that were
trained on features take `--features FILE.npy` ([P, D] or [B, P, D]) in place of
images.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from blip2_jax.command_line import add_model_options, given_beside, print_lines

if TYPE_CHECKING:
    from blip2_jax.api import Blip2

SETTINGS = {
    "num_beams": int, "max_new_tokens": int, "min_new_tokens": int,
    "length_penalty": float, "repetition_penalty": float, "num_return_sequences": int,
    "temperature": float, "top_k": int, "top_p": float, "convention": str,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, print; returns the exit code."""
    return print_lines(run, parser().parse_args(argv))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--model", required=True,
        help="directory of a run, converted or Hugging Face folder, LAVIS file",
    )  # fmt: skip
    add_model_options(made)
    made.add_argument("--precision", choices=("float32", "bfloat16"))
    inputs = made.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--image", nargs="+", metavar="FILE")
    inputs.add_argument("--features", metavar="FILE.npy")
    asked = made.add_mutually_exclusive_group()
    asked.add_argument("--prompt", help="how the caption begins, or an instruction")
    asked.add_argument("--question", nargs="+")
    asked.add_argument("--text", nargs="+", help="score how well these match")
    for name, kind in SETTINGS.items():
        made.add_argument(f"--{name}", type=kind, help="see DecodingConfig")
    made.add_argument("--sample", action="store_true", help="draw, with --top_p etc.")
    made.add_argument("--seed", type=int, default=0)
    return made


@dataclasses.dataclass(frozen=True)
class Given:
    """Images or features as `Blip2` takes them, and a name for each."""

    names: list[str]
    rows: Any
    keyword: str  # "images" or "features"

    def repeated(self, times: int) -> dict[str, Any]:
        """Each row `times` times, as keyword arguments."""
        return {self.keyword: [row for row in self.rows for _ in range(times)]}


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """The lines to print."""
    given = read(arguments)
    settings = read_settings(arguments)
    import blip2_jax

    model = blip2_jax.load(
        arguments.model, which=arguments.which, precision=arguments.precision,
        **given_beside(arguments),
    )  # fmt: skip
    if arguments.text:
        yield from match(model, given, arguments.text)
        return
    if arguments.question:
        settings |= {"seed": arguments.seed}
        yield from answer(model, given, arguments.question, settings)
        return
    texts = model.caption(
        prompt=arguments.prompt, seed=arguments.seed, **given.repeated(1), **settings
    )
    for name, text in zip(given.names, texts, strict=True):
        yield from (f"{name}: {one}" for one in _listed(text))


def read(arguments: argparse.Namespace) -> Given:
    """Decode the images, or read the features, before the model is loaded."""
    if arguments.features:
        rows = np.load(arguments.features, allow_pickle=False)
        rows = rows if rows.ndim > 2 else rows[None]
        names = [f"{arguments.features}[{index}]" for index in range(len(rows))]
        return Given(names, rows, "features")
    from blip2_jax.inputs import as_pixels

    rows = [as_pixels(path) for path in arguments.image]
    return Given(arguments.image, rows, "images")


def read_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, checked before the model is loaded."""
    from blip2_jax.generation.config import DecodingConfig, change

    chosen = {name: getattr(arguments, name) for name in SETTINGS}
    settings = {name: value for name, value in chosen.items() if value is not None}
    settings |= {"sample": True} if arguments.sample else {}
    change(DecodingConfig(num_beams=5), settings)
    return settings


def answer(
    model: Blip2, given: Given, questions: list[str], settings: dict[str, Any]
) -> Iterator[str]:
    """Every question about every image."""
    answers = model.answer(
        questions=questions * len(given.names),
        **given.repeated(len(questions)),
        **settings,
    )
    pairs = [(name, question) for name in given.names for question in questions]
    for (name, question), text in zip(pairs, answers, strict=True):
        yield from (f"{name}: {question} -> {one}" for one in _listed(text))


def match(model: Blip2, given: Given, texts: list[str]) -> Iterator[str]:
    """Every text with every image."""
    scores = model.match(texts=texts * len(given.names), **given.repeated(len(texts)))
    pairs = [(name, text) for name in given.names for text in texts]
    for (name, text), itc, itm in zip(pairs, scores.itc, scores.itm, strict=True):
        yield f"{name}: {text}: cosine {itc:.3f}, match probability {itm:.3f}"


def _listed(text: str | list[str]) -> list[str]:
    return [text] if isinstance(text, str) else text


if __name__ == "__main__":
    sys.exit(main())
