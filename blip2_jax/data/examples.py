"""From records to the token arrays of a task: which text is drawn, and how written."""

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
    """What a model is told and what it shall say: a caption, or an answer.

    A document of a language model has a `context` before that, another caption of the
    same record, and may have `more` texts behind it. `question` is what the Q-Former
    reads of the prompt, where it reads questions.
    """

    prompt: str
    target: str
    context: str = ""
    more: tuple[DrawnText, ...] = ()
    question: str = ""

    @property
    def told(self) -> list[tuple[str, str]]:
        """Every prompt with what follows it."""
        return [(each.prompt, each.target) for each in (self, *self.more)]

    def __str__(self) -> str:
        parts = (self.context, self.prompt, self.target, *map(str, self.more))
        return " ".join(part for part in parts if part)


class TextFormat:
    """Draws a text of a record and writes batches of texts as a task's arrays."""

    def __init__(self, config: DataConfig, name: BatchFormat):
        """Load the tokenizers that the format needs.

        Raises:
          ValueError: unknown format, a tokenizer of the wrong family, or more texts
            in a document than fit the format or have marks.
          FileNotFoundError: the tokenizer is not there.
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
        decoder = self._family == "decoder"
        if config.texts_per_document > 1 and self.reads_images:
            raise ValueError(
                f"texts_per_document is {config.texts_per_document}, but an example "
                f"of {name} has one text; only those without pictures hold several"
            )
        if self._family == "encoder_decoder":
            prompts.check_marks(self._language_model, config.texts_per_document)
        self._question_prompt = config.question_prompt or (
            prompts.QUESTION_PROMPT if decoder else prompts.SHORT_ANSWER_PROMPT
        )
        self._splits = {"prefix": True, "none": False}.get(
            config.prefix_split, self._family == "encoder_decoder"
        )

    def _load_tokenizer(self) -> QFormerTokenizer | LanguageTokenizer:
        for_language_model = self.name != "image_text"
        spec = self._spec("language_model" if for_language_model else "qformer")
        tokenizer = load_tokenizer(spec, language_model=for_language_model)
        family = getattr(tokenizer, "family", "image_text")
        if family.removesuffix("_only") != self._family:
            raise ValueError(f"{spec} is a tokenizer for {family}, not {self.name}")
        return tokenizer

    def _spec(self, key: str) -> str:
        spec = getattr(self._config.tokenizer, key)
        if not spec:
            raise ValueError(f"format {self.name} needs data.tokenizer.{key}")
        return spec

    def draw(self, record: Record, rng: np.random.Generator | None) -> DrawnText:
        """Choose a caption or a question of the record.

        Args:
          rng: None takes the first (evaluation), without a random prefix.

        Raises:
          BrokenSample: the record has neither.
        """
        if self.reads_images or rng is None:
            return self._text(record, rng)
        return self._document(record, rng)

    def _document(self, record: Record, rng: np.random.Generator) -> DrawnText:
        """Texts of a record, for a share of records behind what they tell of.

        That is the record's description, which may then come again as a caption
        (a model learns to read by repeating), or one of its captions, which may not.
        """
        context, captions, share = "", list(record.captions), self._config.context_share
        if share and rng.random() < share:
            if record.description:
                context = record.description
                captions.append(context)
            elif captions:
                context = captions.pop(_choice(len(captions), rng))
            context = self._cleaned(context, record) if context else ""
            record = dataclasses.replace(
                record, captions=tuple(captions) or record.captions
            )
        count = self._config.texts_per_document
        if self._family == "encoder_decoder":  # single texts are unlike several
            count = 1 + int(rng.integers(count))
        first, *more = (self._text(record, rng) for _ in range(count))
        return dataclasses.replace(first, context=context, more=tuple(more))

    def _text(self, record: Record, rng: np.random.Generator | None) -> DrawnText:
        asks = rng is not None and rng.random() < self._config.question_share
        if record.questions and (asks or not record.captions):
            return self._question(record, rng)
        return self._caption(record, rng)

    def _question(self, record: Record, rng: np.random.Generator | None) -> DrawnText:
        question = record.questions[_choice(len(record.questions), rng)]
        if not question.answers:
            raise BrokenSample("no answer", record.key)
        answer = question.answers[_choice(len(question.answers), rng)].strip()
        if not answer:
            raise BrokenSample("empty answer", record.key)
        asked = clean_question(question.text)
        if self.name == "image_text":
            return DrawnText("", f"{asked} {answer}")
        return DrawnText(self._question_prompt.format(asked), answer, question=asked)

    def _caption(self, record: Record, rng: np.random.Generator | None) -> DrawnText:
        if not record.captions:
            raise BrokenSample("no text", record.key)
        drawn = record.captions[_choice(len(record.captions), rng)]
        caption = self._cleaned(drawn, record)
        prompt = self._config.prompt.strip()
        if self._splits and rng is not None:
            prefix, caption = prompts.draw_prefix(caption, rng)
            prompt = f"{prompt} {prefix}".strip()
        return DrawnText(prompt, caption)

    @staticmethod
    def _cleaned(caption: str, record: Record) -> str:
        cleaned = clean_caption(caption)
        if not cleaned:
            raise BrokenSample("empty caption", record.key)
        return cleaned

    def length(self, text: DrawnText) -> int:
        """Tokens of a text as `arrays` writes it; the longer part of a pair of them."""
        arrays = self.arrays([text])
        return max(int(arrays[name].sum()) for name in arrays if name.endswith("_mask"))

    def arrays(
        self, texts: Sequence[DrawnText], width: int | None = None
    ) -> dict[str, np.ndarray]:
        """The task's token arrays, [B, T] each, padded on the right.

        Args:
          width: T is no more than this; what a text has beyond is lost. None: T is
            `max_text_length` (targets of an encoder-decoder: `max_target_length`).
        """
        return {name: rows[:, :width] for name, rows in self._padded(texts).items()}

    def _padded(self, texts: Sequence[DrawnText]) -> dict[str, np.ndarray]:
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
            rows["question_ids"], rows["question_mask"] = prompts.question_rows(
                self._question_tokenizer, [text.question for text in texts], length
            )
        return rows

    def _decoder_row(self, text: DrawnText, length: int) -> prompts.DecoderOnlyExample:
        if not self.reads_images:
            return prompts.document_example(
                self._language_model, text.context, text.told, length
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
            text.told,
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
    return 0 if rng is None else int(rng.integers(count))


def _stack(
    examples: Sequence[prompts.DecoderOnlyExample | prompts.EncoderDecoderExample],
) -> dict[str, np.ndarray]:
    names = [field.name for field in dataclasses.fields(examples[0])]
    return {
        name: np.stack([getattr(example, name) for example in examples])
        for name in names
    }
