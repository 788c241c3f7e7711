r"""Caption images, answer questions about them or score texts against them.

    blip2-jax caption --model shapes --image shapes:0 shapes:1
    blip2-jax caption --model RUN --image a.jpg b.jpg
    blip2-jax caption --model RUN --image a.jpg --prompt "a photo of"
    blip2-jax caption --model RUN --image a.jpg --question "what is red?"
    blip2-jax caption --model RUN --image a.jpg --text "a cat" "a dog"
    blip2-jax caption --model RUN --image a.jpg --dialogue \
        --question "what is it?" "what is it made of?"
    blip2-jax caption --model RUN --image a.jpg b.jpg --together \
        --prompt "Question: what differs? Answer:"
    blip2-jax caption --model RUN --image a.jpg --question "how many?" \
        --example b.jpg "how many?" "two"
    blip2-jax caption --model blip2_pretrained_opt2.7b.pth --image a.jpg \
        --vision eva_vit_g.pth --language_model opt-2.7b --language_tokenizer opt-2.7b
    blip2-jax caption --model RUN --images photos/ --out captions.jsonl

Prints one line for each image, and for each question or text about it. Models that
were trained on features take `--features FILE.npy` in place of images. `--images`
writes files about a folder, a pattern or tars of any size (docs/captioning.md).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from blip2_jax.cli.caption_folder import (
    add_folder_options,
    caption_folder,
    check_folder_options,
)
from blip2_jax.cli.errors import UsageError, reading_option
from blip2_jax.cli.options import (
    CommandParser,
    add_cache_option,
    add_load_options,
    load_options,
    run_command,
)
from blip2_jax.parallel.files import read_array

if TYPE_CHECKING:
    from blip2_jax.inference.generator import Blip2Generator
    from blip2_jax.inference.model import Blip2
    from blip2_jax.inference.retriever import Blip2Retriever

# Fields of `DecodingConfig`: type and help. Values that are not given are those of
# captions or of answers.
DECODING_OPTIONS = {
    "num_beams": (int, "number of beams; 1 is greedy decoding (default: 5)"),
    "max_new_tokens": (int, "longest output (default: 30; of answers 10)"),
    "min_new_tokens": (int, "shortest output (default: 0)"),
    "length_penalty": (float, "exponent of the length (default: 1; of answers -1)"),
    "repetition_penalty": (float, "above 1 repeats fewer tokens (default: 1)"),
    "num_return_sequences": (int, "number of outputs for each input (default: 1)"),
    "temperature": (float, "of samples; below 1 is more certain (default: 1)"),
    "top_k": (int, "sample among the K best tokens; 0 keeps all (default: 0)"),
    "top_p": (float, "sample among tokens of this total probability (default: 1)"),
    "convention": (str, "transformers5 or original (default: transformers5)"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command(make_parser(), run, argv)


def make_parser() -> CommandParser:
    """Make the parser of the command line."""
    parser = CommandParser("caption", __doc__)
    add_load_options(parser)
    add_cache_option(parser)
    _add_input_options(parser)
    _add_dialogue_options(parser)
    add_folder_options(parser)
    decoding = parser.add_argument_group("decoding (docs/using.md)")
    for name, (kind, description) in DECODING_OPTIONS.items():
        metavar = {int: "N", float: "X", str: "NAME"}[kind]
        decoding.add_argument(f"--{name}", type=kind, metavar=metavar, help=description)
    decoding.add_argument(
        "--sample", action="store_true", help="sample, e.g. with --top_p"
    )
    decoding.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of samples"
    )
    return parser


def _add_input_options(parser: CommandParser) -> None:
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument(
        "--image",
        nargs="+",
        metavar="FILE",
        help="image files, URLs, or example pictures: shapes:0, shapes:1, ...",
    )
    images.add_argument(
        "--features", metavar="FILE.npy", help="features, [P, D] or [B, P, D]"
    )
    images.add_argument(
        "--images",
        nargs="+",
        metavar="PATH",
        help="a folder, files or glob patterns, or tars; needs --out",
    )
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument(
        "--prompt", metavar="TEXT", help="start of the caption, or an instruction"
    )
    texts.add_argument(
        "--question", nargs="+", metavar="TEXT", help="questions to answer"
    )
    texts.add_argument(
        "--text", nargs="+", metavar="TEXT", help="texts to score against the images"
    )
    parser.add_argument(
        "--together",
        action="store_true",
        help="put all images into one prompt (stage 2)",
    )


def _add_dialogue_options(parser: CommandParser) -> None:
    parser.add_argument(
        "--dialogue",
        action="store_true",
        help="ask each question after the earlier ones and their answers",
    )
    parser.add_argument(
        "--history",
        nargs=2,
        action="append",
        default=[],
        metavar=("QUESTION", "ANSWER"),
        help="an earlier turn; may be repeated",
    )
    parser.add_argument(
        "--example",
        nargs=3,
        action="append",
        default=[],
        metavar=("FILE", "QUESTION", "ANSWER"),
        help="another image with a question and its answer; may be repeated",
    )


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Images or features as the model takes them.

    Attributes:
      names: name of each row, for printing.
      rows: one image, or its features, for each row.
      keyword: "images" or "features".
    """

    names: list[str]
    rows: Any
    keyword: str

    def repeated(self, times: int) -> dict[str, Any]:
        """Return keyword arguments with each row repeated `times` times."""
        return {self.keyword: [row for row in self.rows for _ in range(times)]}

    def together(self) -> Inputs:
        """Return all rows as one row."""
        return Inputs([" + ".join(self.names)], [list(self.rows)], self.keyword)


def run(arguments: argparse.Namespace) -> int:
    """Print captions, answers or scores; returns the exit code."""
    check_options(arguments)
    settings = decoding_settings(arguments)
    if arguments.images:
        return caption_folder(arguments, settings)
    inputs = read_inputs(arguments)
    import blip2_jax
    from blip2_jax.perf.compile_cache import compiling_message, enable_compile_cache

    enable_compile_cache(arguments.compile_cache)
    model = blip2_jax.load(**load_options(arguments))
    print(compiling_message("first image"), file=sys.stderr, flush=True)
    for line in output_lines(model, inputs, settings, arguments):
        print(line, flush=True)
    return 0


def output_lines(
    model: Blip2,
    inputs: Inputs,
    settings: dict[str, Any],
    arguments: argparse.Namespace,
) -> Iterator[str]:
    """Return the lines to print: scores, answers or captions.

    Raises:
      UsageError: the model is of the wrong stage.
    """
    import blip2_jax

    if arguments.text:
        if not isinstance(model, blip2_jax.Blip2Retriever):
            raise UsageError(f"--text needs a stage-1 model; {arguments.model} is not")
        return match(model, inputs, arguments.text)
    settings = settings | {"seed": arguments.seed}
    if not arguments.question:
        return caption(model, inputs, settings | {"prompt": arguments.prompt})
    if not isinstance(model, blip2_jax.Blip2Generator):
        raise UsageError(
            f"--question needs a language model; {arguments.model} is a stage-1 model"
        )
    settings |= {
        "history": [tuple(turn) for turn in arguments.history],
        "examples": [
            (_example_image(inputs, name), question, answer)
            for name, question, answer in arguments.example
        ],
    }
    ask = converse if arguments.dialogue else answer_questions
    return ask(model, inputs, arguments.question, settings)


def check_options(arguments: argparse.Namespace) -> None:
    """Check that the options go together.

    Raises:
      UsageError: an option about questions without a question, two histories, or
        options of many images and of single ones.
    """
    check_folder_options(arguments)
    for name in ("dialogue", "history", "example"):
        if getattr(arguments, name) and not arguments.question:
            raise UsageError(f"--{name} needs --question")
    if arguments.dialogue and arguments.history:
        raise UsageError("--dialogue and --history exclude each other: give one")


def read_inputs(arguments: argparse.Namespace) -> Inputs:
    """Decode the images, or read the features, before the model is loaded."""
    if arguments.features:
        rows = read_array(arguments.features)
        rows = rows if rows.ndim > 2 else rows[None]
        names = [f"{arguments.features}[{index}]" for index in range(len(rows))]
        inputs = Inputs(names, rows, "features")
    else:
        from blip2_jax.inference.inputs import as_pixels

        images = [as_pixels(path) for path in arguments.image]
        inputs = Inputs(arguments.image, images, "images")
    return inputs.together() if arguments.together else inputs


def _example_image(inputs: Inputs, name: str) -> Any:
    """Return an example's image, or its features, in the form of the inputs."""
    return read_array(name) if inputs.keyword == "features" else name


def decoding_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the decoding options that were given.

    Raises:
      UsageError: a value is out of range, or two of them exclude each other.
    """
    from blip2_jax.generation.decoding_config import CAPTION_DEFAULTS

    values = {name: getattr(arguments, name) for name in DECODING_OPTIONS}
    settings = {name: value for name, value in values.items() if value is not None}
    settings |= {"sample": True} if arguments.sample else {}
    with reading_option("--"):
        CAPTION_DEFAULTS.replace(**settings)
    return settings


def caption(model: Blip2, inputs: Inputs, settings: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each caption."""
    captions = model.caption(**inputs.repeated(1), **settings)
    for name, texts in zip(inputs.names, captions, strict=True):
        yield from (f"{name}: {text}" for text in _as_list(texts))


def answer_questions(
    model: Blip2Generator,
    inputs: Inputs,
    questions: list[str],
    settings: dict[str, Any],
) -> Iterator[str]:
    """Yield a line for each answer: every question about every image."""
    answers = model.answer(
        questions=questions * len(inputs.names),
        **inputs.repeated(len(questions)),
        **settings,
    )
    pairs = itertools.product(inputs.names, questions)
    for (name, question), texts in zip(pairs, answers, strict=True):
        yield from (f"{name}: {question} -> {text}" for text in _as_list(texts))


def converse(
    model: Blip2Generator,
    inputs: Inputs,
    questions: list[str],
    settings: dict[str, Any],
) -> Iterator[str]:
    """Yield a line for each answer: one conversation about each image."""
    settings = {name: value for name, value in settings.items() if name != "history"}
    for name, row in zip(inputs.names, inputs.rows, strict=True):
        answers = model.converse(
            questions=questions, **{inputs.keyword: [row]}, **settings
        )
        for question, text in zip(questions, answers, strict=True):
            yield f"{name}: {question} -> {text}"


def match(model: Blip2Retriever, inputs: Inputs, texts: list[str]) -> Iterator[str]:
    """Yield a line for each score: every text with every image."""
    scores = model.match(texts=texts, pairs="all", **inputs.repeated(1))
    pairs = itertools.product(inputs.names, texts)
    values = zip(pairs, scores.itc.ravel(), scores.itm.ravel(), strict=True)
    for (name, text), itc, itm in values:
        yield f"{name}: {text}: cosine {itc:.3f}, match probability {itm:.3f}"


def _as_list(texts: str | list[str]) -> list[str]:
    """Return several texts of one row as they are, a single one as a list."""
    return [texts] if isinstance(texts, str) else texts


if __name__ == "__main__":
    sys.exit(main())
