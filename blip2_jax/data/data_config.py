"""What a data pipeline is told: the fields of `config.data`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from blip2_jax.data.dataclass_options import from_options
from blip2_jax.data.images import ImageConfig

# Of a language model's examples, "question_..." adds the question for the Q-Former,
# "text_..." leaves the images out.
BatchFormat = Literal[
    "image_text",
    "decoder",
    "encoder_decoder",
    "question_decoder",
    "question_encoder_decoder",
    "text_decoder",
    "text_encoder_decoder",
]
BATCH_FORMATS: tuple[BatchFormat, ...] = get_args(BatchFormat)


def format_family(name: BatchFormat) -> str:
    """Which rows a format has: "image_text", "decoder" or "encoder_decoder"."""
    return name.removeprefix("text_").removeprefix("question_")


def question_format(name: BatchFormat) -> BatchFormat:
    """The format of a language model's examples with the question for the Q-Former."""
    return "question_decoder" if name == "decoder" else "question_encoder_decoder"


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Tokenizer specs (see `text.load_tokenizer`); "" where a task needs none."""

    qformer: str = ""
    language_model: str = ""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A data configuration.

    Attributes:
      train: source specs (see `sources.registry`), each with an optional weight.
      image: size and augmentation.
      tokenizer: of the Q-Former and of the language model.
      max_text_length: length that texts (and encoder prompts, and the Q-Former's
        questions) are cut and padded to.
      max_target_length: of an encoder-decoder's targets; 0: as `max_text_length`.
      length_buckets: a batch is padded to the smallest of these that holds its
        longest text (`lengths`); ascending, the last one being the longest text that
        there can be. (): always that one.
      prefix_split: captions of an encoder-decoder are split at a random word into
        prompt and target: "auto" does so for encoder-decoders, "prefix" always,
        "none" never (the original's code).
      prompt: written before every caption; no target of a language model.
      question_share: of records that have both, the share that shows a question and
        its answer in place of a caption.
      question_prompt: template of a question; "" takes the paper's for the model.
      context_share: of a language model's own documents, the share that begins with
        the record's description, or with another of its captions: what follows can
        be understood from it, as later from the queries.
      texts_per_document: captions and answers that such a document holds, one after
        the other (decoder-only) or as blanks to fill, one to so many (T5).
      keep_end: a caption that is cut keeps its end token (the original: False).
      workers: processes that load data; 0 loads in threads of this process.
      prefetch: batches ahead, a worker.
      max_broken_share: past it a run stops and lists the causes.
    """

    train: tuple[Mapping[str, Any], ...]
    image: ImageConfig = dataclasses.field(default_factory=ImageConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    max_text_length: int = 32
    max_target_length: int = 0
    length_buckets: tuple[int, ...] = ()
    prefix_split: Literal["auto", "prefix", "none"] = "auto"
    prompt: str = ""
    question_share: float = 0.0
    question_prompt: str = ""
    context_share: float = 0.0
    texts_per_document: int = 1
    keep_end: bool = True
    workers: int = 0
    prefetch: int = 2
    max_broken_share: float = 0.01

    def __post_init__(self):
        if self.prefix_split not in ("auto", "prefix", "none"):
            raise ValueError(
                f"prefix_split {self.prefix_split!r}: auto, prefix or none"
            )
        for name in ("question_share", "context_share", "max_broken_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is not in 0 .. 1")
        self._check_buckets()
        if self.texts_per_document < 1:
            raise ValueError(f"texts_per_document {self.texts_per_document} is below 1")
        if self.question_prompt and "{}" not in self.question_prompt:
            raise ValueError(f"question_prompt {self.question_prompt!r} has no {{}}")

    def _check_buckets(self) -> None:
        buckets = tuple(self.length_buckets)
        longest = max(self.max_text_length, self.max_target_length)
        ascending = buckets == tuple(sorted({n for n in buckets if n > 0}))
        if buckets and not (ascending and buckets[-1] == longest):
            raise ValueError(
                f"length_buckets {buckets} must be positive, ascend and end with the "
                f"longest text's length, {longest} (max_text_length, or "
                "max_target_length where that is more)"
            )


def data_config(options: Mapping[str, Any]) -> DataConfig:
    """A `DataConfig` from a plain or ml_collections dict.

    Raises:
      ValueError: a key that no field has; the message names it and the fields.
    """
    values = dict(options.items())
    values["train"] = tuple(dict(spec.items()) for spec in values.get("train", ()))
    for name, kind in (("image", ImageConfig), ("tokenizer", TokenizerConfig)):
        if isinstance(present := values.get(name), kind):
            continue
        values[name] = from_options(kind, present or {}, f"data.{name}")
    return from_options(DataConfig, values, "data")
