"""Token arrays of a task: which text of a record is drawn and how it is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from blip2_jax.data.data_config import (
    BATCH_FORMATS,
    BatchFormat,
    DataConfig,
    format_family,
)
from blip2_jax.data.sources.base import BrokenSample, Record
from blip2_jax.data.text import prompts
from blip2_jax.data.text.tokenizers import (
    LanguageTokenizer,
    QFormerTokenizer,
    clean_caption,
    clean_question,
    load_tokenizer,
)


@dataclasses.dataclass(frozen=True)
class DrawnText:
    """The text drawn from a record: a prompt and its target, a caption or an answer.

    Attributes:
      prompt: text that is no target, "" for none.
      target: the text to predict.
      context: text before the prompt in a text-only document, "" for none.
      more: further texts of a text-only document.
      question: the question, "" for none.
    """

    prompt: str
    target: str
    context: str = ""
    more: tuple[DrawnText, ...] = ()
    question: str = ""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every prompt with its target."""
        return [(each.prompt, each.target) for each in (self, *self.more)]

    def __str__(self) -> str:
        """Join all parts with spaces."""
        parts = (self.context, self.prompt, self.target, *map(str, self.more))
        return " ".join(part for part in parts if part)


class TextFormat:
    """Drawing of a record's text, and writing of texts as the arrays of a task."""

    def __init__(self, config: DataConfig, name: BatchFormat):
        """Load the tokenizers that the format needs.

        Raises:
          ValueError: the format is unknown, a tokenizer has the wrong family, or a
            document has more texts than the format or the tokenizer allows.
          FileNotFoundError: a tokenizer does not exist.
        """
        if name not in BATCH_FORMATS:
            raise ValueError(
                f"unknown format {name!r}; there are {', '.join(BATCH_FORMATS)}"
            )
        self.name = name
        self.reads_images = not name.startswith("text_")
        self._config = config
        self._family = format_family(name)
        self.tokenizer = self._load_tokenizer()
        self._question_tokenizer: QFormerTokenizer | None = None
        if name.startswith("question_"):
            spec = self._spec("qformer")
            self._question_tokenizer = load_tokenizer(spec, language_model=False)
        if config.texts_per_document > 1 and self.reads_images:
            raise ValueError(
                f"texts_per_document is {config.texts_per_document}, but must be 1 for "
                f"format {name}: only text-only formats hold several texts"
            )
        if self._family == "encoder_decoder":
            prompts.check_sentinels(self._language_model, config.texts_per_document)
        self._question_prompt = config.question_prompt
        if not self._question_prompt and isinstance(self.tokenizer, LanguageTokenizer):
            self._question_prompt = prompts.default_question_prompt(self.tokenizer)
        self._qformer_reads_prompt = config.qformer_reads == "prompt"
        self._splits_captions = {"prefix": True, "none": False}.get(
            config.prefix_split, self._family == "encoder_decoder"
        )
        self._check_template()

    def _check_template(self) -> None:
        """Check that the format can write its prompts with a chat template.

        Raises:
          ValueError: it cannot.
        """
        if self._config.prompt_template != "chat":
            return
        if self.name not in ("decoder", "question_decoder"):
            raise ValueError(
                "prompt_template chat is for images and a decoder-only language model, "
                f"not for format {self.name}"
            )
        if self._splits_captions:
            raise ValueError(
                "prompt_template chat and prefix_split prefix exclude each other: a "
                "turn of the user is no part of a caption"
            )

    def _load_tokenizer(self) -> QFormerTokenizer | LanguageTokenizer:
        """Load the tokenizer of the texts and check its family."""
        for_language_model = self.name != "image_text"
        spec = self._spec("language_model" if for_language_model else "qformer")
        tokenizer = load_tokenizer(
            spec,
            language_model=for_language_model,
            prompt_template=self._config.prompt_template,
        )
        family = getattr(tokenizer, "family", "image_text")
        if family.removesuffix("_only") != self._family:
            raise ValueError(
                f"tokenizer {spec} is for {family}, not for format {self.name}"
            )
        return tokenizer

    def _spec(self, key: str) -> str:
        """Return a tokenizer spec of the configuration, which must be set."""
        spec = self._config.tokenizer_spec(key)
        if not spec:
            raise ValueError(f"format {self.name} needs data.tokenizer.{key}")
        return spec

    def draw(self, record: Record, rng: np.random.Generator | None) -> DrawnText:
        """Draw a caption or a question of the record.

        Args:
          record: the record.
          rng: None takes the first text without a random prefix, as in evaluation.

        Raises:
          BrokenSample: the record has no usable text.
        """
        if self.reads_images or rng is None:
            return self._text(record, rng)
        return self._document(record, rng)

    def _document(self, record: Record, rng: np.random.Generator) -> DrawnText:
        """Draw a text-only document, for a share of records with a context.

        The context is the record's description, which may be repeated as a caption
        (repeating teaches a model to read), or one of its captions, which may not.
        """
        context, captions, share = "", list(record.captions), self._config.context_share
        if share and rng.random() < share:
            if record.description:
                context = record.description
                captions.append(context)
            elif captions:
                context = captions.pop(_choice(len(captions), rng))
            context = self._clean(context, record) if context else ""
            record = dataclasses.replace(
                record, captions=tuple(captions) or record.captions
            )
        count = self._config.texts_per_document
        if self._family == "encoder_decoder":  # a single text is written without marks
            count = 1 + int(rng.integers(count))
        first, *more = (self._text(record, rng) for _ in range(count))
        return dataclasses.replace(first, context=context, more=tuple(more))

    def _text(self, record: Record, rng: np.random.Generator | None) -> DrawnText:
        """Draw a caption or a question with its answer."""
        draw_question = rng is not None and rng.random() < self._config.question_share
        if record.questions and (draw_question or not record.captions):
            return self._question(record, rng)
        return self._caption(record, rng)

    def _question(self, record: Record, rng: np.random.Generator | None) -> DrawnText:
        """Draw a question and one of its answers."""
        question = record.questions[_choice(len(record.questions), rng)]
        if not question.answers:
            raise BrokenSample("no answer", record.key)
        answer = question.answers[_choice(len(question.answers), rng)].strip()
        if not answer:
            raise BrokenSample("empty answer", record.key)
        text = clean_question(question.text, keep_case=self._keeps_case)
        if self.name == "image_text":
            return DrawnText("", f"{text} {answer}")
        templates = self._config.question_prompts if rng is not None else ()
        template = _draw(templates or (self._question_prompt,), rng)
        return DrawnText(template.format(text), answer, question=text)

    def _caption(self, record: Record, rng: np.random.Generator | None) -> DrawnText:
        """Draw a caption, and its prefix if captions are split."""
        if not record.captions:
            raise BrokenSample("no text", record.key)
        caption = record.captions[_choice(len(record.captions), rng)]
        caption = self._clean(caption, record)
        instructions = self._config.caption_prompts if rng is not None else ()
        prompt = _draw(instructions or (self._config.prompt,), rng).strip()
        if self._splits_captions and rng is not None:
            prefix, caption = prompts.draw_prefix(caption, rng)
            prompt = f"{prompt} {prefix}".strip()
        return DrawnText(prompt, caption)

    @property
    def _keeps_case(self) -> bool:
        """True for a Q-Former that reads capital letters; see `clean_caption`."""
        return isinstance(self.tokenizer, QFormerTokenizer) and (
            self.tokenizer.keeps_case
        )

    def _clean(self, caption: str, record: Record) -> str:
        """Clean a caption, which must not become empty."""
        cleaned = clean_caption(caption, keep_case=self._keeps_case)
        if not cleaned:
            raise BrokenSample("empty caption", record.key)
        return cleaned

    def length(self, text: DrawnText) -> int:
        """Count the tokens of a text; the longer of input and target if it has both."""
        arrays = self.arrays([text])
        return max(int(arrays[name].sum()) for name in arrays if name.endswith("_mask"))

    def arrays(
        self, texts: Sequence[DrawnText], width: int | None = None
    ) -> dict[str, np.ndarray]:
        """Return the task's token arrays, each [B, T], padded on the right.

        Args:
          texts: the texts of the rows.
          width: truncate to this T; None: T is `max_text_length` (targets of an
            encoder-decoder: `max_target_length`).
        """
        return {name: rows[:, :width] for name, rows in self._padded(texts).items()}

    def _padded(self, texts: Sequence[DrawnText]) -> dict[str, np.ndarray]:
        """Return the token arrays at full length."""
        length = self._config.max_text_length
        if self._family == "image_text":
            ids, mask = self._qformer.encode([str(text) for text in texts], length)
            return {"text_ids": ids, "text_mask": mask}
        row = (
            self._decoder_row
            if self._family == "decoder"
            else self._encoder_decoder_row
        )
        rows = _stack([row(text, length) for text in texts])
        if self._question_tokenizer is not None:
            ids, mask = self._question_rows(self._question_tokenizer, texts, length)
            rows |= {"question_ids": ids, "question_mask": mask}
        return rows

    def _question_rows(
        self, tokenizer: QFormerTokenizer, texts: Sequence[DrawnText], length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and mask of what the Q-Former reads."""
        if self._qformer_reads_prompt:
            return tokenizer.encode([text.prompt for text in texts], length)
        questions = [text.question for text in texts]
        return prompts.question_rows(tokenizer, questions, length)

    def _decoder_row(self, text: DrawnText, length: int) -> prompts.DecoderOnlyExample:
        if not self.reads_images:
            return prompts.document_example(
                self._language_model, text.context, text.pairs, length
            )
        return prompts.decoder_only_example(
            self._language_model,
            text.prompt,
            text.target,
            length,
            keep_end=self._config.keep_end,
        )

    def _encoder_decoder_row(
        self, text: DrawnText, length: int
    ) -> prompts.EncoderDecoderExample:
        return prompts.blanks_example(
            self._language_model,
            text.context,
            text.pairs,
            input_length=length,
            target_length=self._config.max_target_length or length,
        )

    @property
    def _qformer(self) -> QFormerTokenizer:
        assert isinstance(self.tokenizer, QFormerTokenizer)
        return self.tokenizer

    @property
    def _language_model(self) -> LanguageTokenizer:
        assert isinstance(self.tokenizer, LanguageTokenizer)
        return self.tokenizer


def _choice(count: int, rng: np.random.Generator | None) -> int:
    """Draw an index below `count`; 0 without a generator."""
    return 0 if rng is None else int(rng.integers(count))


def _draw(items: Sequence[str], rng: np.random.Generator | None) -> str:
    """Draw an item; the only one takes no random number."""
    return items[0] if len(items) == 1 else items[_choice(len(items), rng)]


def _stack(
    examples: Sequence[prompts.DecoderOnlyExample | prompts.EncoderDecoderExample],
) -> dict[str, np.ndarray]:
    """Stack the fields of examples."""
    names = [field.name for field in dataclasses.fields(examples[0])]
    return {
        name: np.stack([getattr(example, name) for example in examples])
        for name in names
    }
