"""Configuration of a data pipeline: the fields of `config.data`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from blip2_jax.data.broken_samples import MAX_BROKEN_SHARE
from blip2_jax.data.dataclass_options import from_options
from blip2_jax.data.images import ImageConfig
from blip2_jax.data.text.added_tokens import expand_tokens
from blip2_jax.data.text.chat import PROMPT_TEMPLATES
from blip2_jax.data.text.tokenizer_files import with_tokens

# "question_..." adds the question for the Q-Former to a language model's examples,
# "text_..." leaves out the images.
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
    """Return the format's family: "image_text", "decoder" or "encoder_decoder"."""
    return name.removeprefix("text_").removeprefix("question_")


def question_format(name: BatchFormat) -> BatchFormat:
    """Return the format that adds the question for the Q-Former to `name`."""
    return "question_decoder" if name == "decoder" else "question_encoder_decoder"


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Tokenizer specs (see `text.load_tokenizer`); "" if a task needs none."""

    qformer: str = ""
    language_model: str = ""


@dataclasses.dataclass(frozen=True)
class AddedTokens:
    """Tokens that are added to vocabularies, such as "<loc_0>" or words of a domain.

    "{0..999}" in a token stands for each of these numbers.
    """

    qformer: tuple[str, ...] = ()
    language_model: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the tokens; see `text.added_tokens`."""
        expand_tokens(self.qformer, "qformer", keep_case=True)
        expand_tokens(self.language_model, "language_model", keep_case=False)


def tokenizer_spec(data: Mapping[str, Any], role: str) -> str:
    """Return the spec of a tokenizer with the tokens that are added to it.

    Args:
      data: `config.data`; runs of earlier versions add no tokens.
      role: "qformer" or "language_model".
    """
    spec: str = data["tokenizer"][role]
    tokens = data.get("added_tokens", {}).get(role, ())
    return with_tokens(spec, expand_tokens(tokens, role)) if spec and tokens else spec


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Configuration of a data pipeline.

    Attributes:
      train: source specs (see `sources.registry`), each with an optional weight.
      image: size and augmentation.
      tokenizer: tokenizers of the Q-Former and of the language model.
      added_tokens: tokens that are added to their vocabularies. The tables of the model
        must have rows for them, and be trained.
      max_text_length: number of tokens to which texts, encoder prompts and the
        Q-Former's questions are truncated and padded.
      max_target_length: the same for targets of an encoder-decoder; 0 takes
        `max_text_length`.
      length_buckets: ascending lengths. A batch is padded to the smallest that holds
        its longest text (see `length_buckets`). The last must be the maximum length.
        (): always pad to the maximum length.
      prefix_split: split captions at a random word into prompt and target (prefix LM):
        "auto" for encoder-decoders only, "prefix" always, "none" never (the original's
        code).
      prompt: text before every caption; it is not a target of a language model.
      prompt_template: how prompts are written: "plain", as they are, or "chat", as the
        user's turn in the chat template of the language model's tokenizer.
      question_share: share of steps that show a question with its answer instead of a
        caption, for records that have both.
      question_prompt: template of a question; "" takes the paper's for the model, with
        a chat template the question alone.
      caption_prompts: instructions, one of which is drawn for each caption of training
        in place of `prompt`; () draws none. See `text.instructions`.
      question_prompts: templates, one of which is drawn for each question of training
        in place of `question_prompt`; () draws none.
      qformer_reads: what a Q-Former that reads text gets: the question alone (nothing
        for a caption), or the whole prompt, as in InstructBLIP.
      context_share: share of text-only documents that begin with the record's
        description or with another caption, so that the texts behind it can be
        predicted from it, as later from the queries.
      texts_per_document: number of captions and answers in a text-only document: one
        behind the other (decoder-only) or as up to so many blanks to fill (T5).
      keep_end: a truncated caption keeps its end token (the original: False).
      workers: number of loading processes; 0 loads in threads of this process.
      prefetch: number of batches each worker loads ahead.
      max_broken_share: share of broken samples above which a run stops.
    """

    train: tuple[Mapping[str, Any], ...]
    image: ImageConfig = dataclasses.field(default_factory=ImageConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    added_tokens: AddedTokens = dataclasses.field(default_factory=AddedTokens)
    max_text_length: int = 32
    max_target_length: int = 0
    length_buckets: tuple[int, ...] = ()
    prefix_split: Literal["auto", "prefix", "none"] = "auto"
    prompt: str = ""
    prompt_template: Literal["plain", "chat"] = "plain"
    question_share: float = 0.0
    question_prompt: str = ""
    caption_prompts: tuple[str, ...] = ()
    question_prompts: tuple[str, ...] = ()
    qformer_reads: Literal["question", "prompt"] = "question"
    context_share: float = 0.0
    texts_per_document: int = 1
    keep_end: bool = True
    workers: int = 0
    prefetch: int = 2
    max_broken_share: float = MAX_BROKEN_SHARE

    def __post_init__(self):
        """Check the values."""
        if self.prefix_split not in ("auto", "prefix", "none"):
            raise ValueError(
                f"prefix_split must be auto, prefix or none, not {self.prefix_split!r}"
            )
        for name in ("question_share", "context_share", "max_broken_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0 .. 1, not {getattr(self, name)}")
        self._check_buckets()
        if self.texts_per_document < 1:
            raise ValueError(
                f"texts_per_document must be at least 1, not {self.texts_per_document}"
            )
        if self.prompt_template not in PROMPT_TEMPLATES:
            raise ValueError(
                f"prompt_template must be {' or '.join(PROMPT_TEMPLATES)}, not "
                f"{self.prompt_template!r}"
            )
        if self.qformer_reads not in ("question", "prompt"):
            raise ValueError(
                f"qformer_reads must be question or prompt, not {self.qformer_reads!r}"
            )
        templates = (self.question_prompt, *self.question_prompts)
        for template in filter(None, templates):
            if "{}" not in template:
                raise ValueError(f"question_prompt {template!r} must contain {{}}")

    def tokenizer_spec(self, role: str) -> str:
        """Return the spec of a tokenizer; see `tokenizer_spec`."""
        parts = {
            "tokenizer": dataclasses.asdict(self.tokenizer),
            "added_tokens": dataclasses.asdict(self.added_tokens),
        }
        return tokenizer_spec(parts, role)

    def _check_buckets(self) -> None:
        buckets = tuple(self.length_buckets)
        longest = max(self.max_text_length, self.max_target_length)
        ascending = buckets == tuple(sorted({n for n in buckets if n > 0}))
        if buckets and not (ascending and buckets[-1] == longest):
            raise ValueError(
                f"length_buckets {buckets} must be positive, ascend and end with "
                f"{longest}, the larger of max_text_length and max_target_length"
            )


_PARTS = {
    "image": ImageConfig,
    "tokenizer": TokenizerConfig,
    "added_tokens": AddedTokens,
}


def data_config(options: Mapping[str, Any]) -> DataConfig:
    """Build a `DataConfig` from a plain or ml_collections dict.

    Raises:
      ValueError: a key is no field, or a value is invalid.
    """
    values = dict(options.items())
    values["train"] = tuple(dict(spec.items()) for spec in values.get("train", ()))
    for name, kind in _PARTS.items():
        options_of_part = values.get(name)
        if not isinstance(options_of_part, kind):
            values[name] = from_options(kind, options_of_part or {}, f"data.{name}")
    return from_options(DataConfig, values, "data")
