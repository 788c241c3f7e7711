"""Caption, question or match images with a trained model.

    python launch/generate.py --model RUN --image a.jpg b.jpg
    python launch/generate.py --model RUN --image a.jpg --question "what is red?"
    python launch/generate.py --model RUN --image a.jpg --prompt "a photo of"
    python launch/generate.py --model RUN --image a.jpg --text "a cat" "a dog"
    python launch/generate.py --model RUN --image a.jpg --dialogue \\
        --question "what is it?" "what is it made of?"
    python launch/generate.py --model RUN --image a.jpg b.jpg --together \\
        --prompt "Question: what differs? Answer:"
    python launch/generate.py --model RUN --image a.jpg --question "how many?" \\
        --example b.jpg "how many?" "two"
    python launch/generate.py --model blip2_pretrained_opt2.7b.pth --image a.jpg \\
        --vision eva_vit_g.pth --language_model opt-2.7b --language_tokenizer opt-2.7b

A line for each image, and for each question or text about it; `--together` puts all
images into one prompt, `--dialogue` asks each question behind the earlier ones and
their answers, `--history` and `--example` tell of earlier turns and of other images.
Models that were trained on features take `--features FILE.npy` ([P, D] or [B, P, D]) in
place of images.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from blip2_jax.cli.options import add_model_options, given_beside, print_lines

if TYPE_CHECKING:
    from blip2_jax.inference.model import Blip2

SETTINGS = {
    "num_beams": int,
    "max_new_tokens": int,
    "min_new_tokens": int,
    "length_penalty": float,
    "repetition_penalty": float,
    "num_return_sequences": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "convention": str,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, print; returns the exit code."""
    return print_lines(run, parser().parse_args(argv))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--model",
        required=True,
        help="directory of a run, converted or Hugging Face folder, LAVIS file",
    )
    add_model_options(made)
    made.add_argument("--precision", choices=("float32", "bfloat16"))
    inputs = made.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--image", nargs="+", metavar="FILE")
    inputs.add_argument("--features", metavar="FILE.npy")
    asked = made.add_mutually_exclusive_group()
    asked.add_argument("--prompt", help="how the caption begins, or an instruction")
    asked.add_argument("--question", nargs="+")
    asked.add_argument("--text", nargs="+", help="score how well these match")
    made.add_argument(
        "--together", action="store_true", help="all images are one row (stage 2)"
    )
    made.add_argument(
        "--dialogue", action="store_true", help="questions follow on each other"
    )
    made.add_argument(
        "--history",
        nargs=2,
        action="append",
        default=[],
        metavar=("QUESTION", "ANSWER"),
        help="an earlier turn; may be repeated",
    )
    made.add_argument(
        "--example",
        nargs=3,
        action="append",
        default=[],
        metavar=("FILE", "QUESTION", "ANSWER"),
        help="of another image, before the question; may be repeated",
    )
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

    def together(self) -> Given:
        """All of them as one row."""
        return Given([" + ".join(self.names)], [list(self.rows)], self.keyword)


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """The lines to print."""
    check(arguments)
    given = read(arguments)
    settings = read_settings(arguments)
    import blip2_jax

    model = blip2_jax.load(
        arguments.model,
        which=arguments.which,
        precision=arguments.precision,
        **given_beside(arguments),
    )
    if arguments.text:
        yield from match(model, given, arguments.text)
        return
    if arguments.question:
        settings |= {
            "seed": arguments.seed,
            "history": [tuple(t) for t in arguments.history],
            "examples": [
                (_image(given, name), question, told)
                for name, question, told in arguments.example
            ],
        }
        ask = converse if arguments.dialogue else answer
        yield from ask(model, given, arguments.question, settings)
        return
    texts = model.caption(
        prompt=arguments.prompt, seed=arguments.seed, **given.repeated(1), **settings
    )
    for name, text in zip(given.names, texts, strict=True):
        yield from (f"{name}: {one}" for one in _listed(text))


def check(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
      ValueError: turns or examples without a question.
    """
    for name in ("dialogue", "history", "example"):
        if getattr(arguments, name) and not arguments.question:
            raise ValueError(f"--{name} needs --question")
    if arguments.dialogue and arguments.history:
        raise ValueError("--dialogue begins without --history: give one of them")


def read(arguments: argparse.Namespace) -> Given:
    """Decode the images, or read the features, before the model is loaded."""
    if arguments.features:
        rows = np.load(arguments.features, allow_pickle=False)
        rows = rows if rows.ndim > 2 else rows[None]
        names = [f"{arguments.features}[{index}]" for index in range(len(rows))]
        given = Given(names, rows, "features")
    else:
        from blip2_jax.inference.inputs import as_pixels

        rows = [as_pixels(path) for path in arguments.image]
        given = Given(arguments.image, rows, "images")
    return given.together() if arguments.together else given


def _image(given: Given, name: str) -> Any:
    """An example's image, or its features ([P, D] in a file), as the others are."""
    return np.load(name, allow_pickle=False) if given.keyword == "features" else name


def read_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, checked before the model is loaded."""
    from blip2_jax.generation.decoding_config import DecodingConfig, change

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


def converse(
    model: Blip2, given: Given, questions: list[str], settings: dict[str, Any]
) -> Iterator[str]:
    """The questions in turn, about each image by itself."""
    settings = {name: value for name, value in settings.items() if name != "history"}
    for name, row in zip(given.names, given.rows, strict=True):
        answers = model.converse(
            questions=questions, **{given.keyword: [row]}, **settings
        )
        for question, text in zip(questions, answers, strict=True):
            yield f"{name}: {question} -> {text}"


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
