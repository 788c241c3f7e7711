"""The one place where prompts and token examples are built.

Training, evaluation and the public API all build their inputs here, so a model is
asked in the words that it was trained with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32
from numpy import ndarray as Array

from blip2_jax.data.text.tokenizers import LanguageTokenizer, QFormerTokenizer, pad_rows

# Section 4.1 of the paper: OPT is asked with the first, FlanT5 with the second.
QUESTION_PROMPT = "Question: {} Answer:"
SHORT_ANSWER_PROMPT = "Question: {} Short answer:"


@dataclasses.dataclass(frozen=True)
class DecoderOnlyExample:
    """Rows for a decoder-only model; the loss shifts targets by one itself."""

    text_ids: Int32[Array, " T"]
    text_mask: Bool[Array, " T"]
    target_mask: Bool[Array, " T"]


@dataclasses.dataclass(frozen=True)
class EncoderDecoderExample:
    """Rows for an encoder-decoder model."""

    input_ids: Int32[Array, " T"]
    input_mask: Bool[Array, " T"]
    target_ids: Int32[Array, " N"]
    target_mask: Bool[Array, " N"]


def decoder_only_example(
    tokenizer: LanguageTokenizer,
    prompt: str,
    text: str,
    length: int,
    *,
    keep_end: bool = True,
) -> DecoderOnlyExample:
    """[BOS; prompt; text; newline], padded on the right to `length`.

    The prompt (with its BOS) is no target. Without a prompt BOS is one, as in the
    original: the last query learns to say it.

    Args:
      keep_end: a text too long loses words, not its end. False cuts the end as the
        original does, whose models then do not learn to stop after long captions.

    Raises:
      ValueError: the prompt alone fills `length`.
    """
    _need_decoder_only(tokenizer)
    start = _prompt_ids(tokenizer, prompt)
    room = length - len(start) - (1 if keep_end else 0)
    if room < 0 or (prompt and room < 1):
        raise ValueError(
            f"{prompt!r} is {len(start)} tokens: no room for a text in {length}"
        )
    words = _text_ids(tokenizer, prompt, text)
    row = [*start, *words[:room], tokenizer.end_id][:length]
    target = [not prompt] * len(start) + [True] * (len(row) - len(start))
    return _decoder_only_row(tokenizer, row, target, length)


def document_example(
    tokenizer: LanguageTokenizer,
    context: str,
    texts: Sequence[tuple[str, str]],
    length: int,
) -> DecoderOnlyExample:
    """[context; BOS; prompt; text; newline; BOS; ...], padded on the right to `length`.

    What a decoder-only model reads before it meets pictures: texts of which each can
    be understood from the context, in the places where queries will stand. Neither
    context nor prompts are targets, every BOS is. Texts that do not fit whole are left
    out, but for the first, which is cut.

    Args:
      context: "" for none.
      texts: prompts ("" for none) with what follows them.
    """
    _need_decoder_only(tokenizer)
    row = tokenizer.encode_words(context.strip())
    target = [False] * len(row)
    for number, (prompt, text) in enumerate(texts):
        start = _prompt_ids(tokenizer, prompt)
        words = [*_text_ids(tokenizer, prompt, text), tokenizer.end_id]
        if number and len(row) + len(start) + len(words) > length:
            break
        row += [*start, *words]
        target += [True] + [False] * (len(start) - 1) + [True] * len(words)
    return _decoder_only_row(tokenizer, row[:length], target[:length], length)


def encoder_decoder_example(
    tokenizer: LanguageTokenizer,
    prompt: str,
    target: str,
    *,
    input_length: int,
    target_length: int,
) -> EncoderDecoderExample:
    """[prompt; end] for the encoder, [target; end] for the decoder, padded right.

    The prompt is a question, a fixed text or the first words of a caption (prefix
    language model); an empty one leaves the end token alone, as in the original.
    """
    return _encoder_decoder_rows(
        tokenizer,
        tokenizer.encode_words(prompt),
        tokenizer.encode_words(target),
        input_length,
        target_length,
    )


def blanks_example(
    tokenizer: LanguageTokenizer,
    context: str,
    texts: Sequence[tuple[str, str]],
    *,
    input_length: int,
    target_length: int,
) -> EncoderDecoderExample:
    """Several texts of one record, each a blank to fill, as T5 was pre-trained.

    The encoder reads [context; prompt; <extra_id_0>; prompt; <extra_id_1>; ...; end],
    the decoder writes [<extra_id_0>; text; <extra_id_1>; text; ...; end] (Raffel et al.
    2020, section 3.1.4). One text alone has no such marks: it is what the model will
    be asked for later. Texts that do not fit whole are left out, but for the first.

    Args:
      context: "" for none.
      texts: prompts ("" for none) with what follows them.

    Raises:
      ValueError: more texts than the tokenizer has marks, or a decoder-only one.
    """
    if len(texts) == 1:
        ((prompt, text),) = texts
        return encoder_decoder_example(
            tokenizer,
            f"{context} {prompt}".strip(),
            text,
            input_length=input_length,
            target_length=target_length,
        )
    check_marks(tokenizer, len(texts))
    inputs, targets = tokenizer.encode_words(context.strip()), list[int]()
    for mark, (prompt, text) in zip(tokenizer.blank_ids, texts, strict=False):
        asked = [*tokenizer.encode_words(prompt), mark]
        answer = [mark, *tokenizer.encode_words(text)]
        fits = len(inputs) + len(asked) < input_length
        if targets and not (fits and len(targets) + len(answer) < target_length):
            continue
        inputs += asked
        targets += answer
    return _encoder_decoder_rows(
        tokenizer, inputs, targets, input_length, target_length
    )


def check_marks(tokenizer: LanguageTokenizer, count: int) -> None:
    """Each of `count` texts needs a mark of its own; a single one needs none.

    Raises:
      ValueError: the tokenizer has fewer.
    """
    marks = len(tokenizer.blank_ids)
    if count > max(marks, 1):
        raise ValueError(
            f"{count} texts in a document, but the tokenizer has {marks} marks "
            "<extra_id_0>, <extra_id_1>, ..."
        )


def question_rows(
    tokenizer: QFormerTokenizer, questions: Sequence[str], length: int
) -> tuple[Int32[Array, "B T"], Bool[Array, "B T"]]:
    """Questions for the Q-Former: [CLS] question [SEP], padded on the right.

    "" is a row without any token: the queries of such a row see each other alone, as
    in stage 2.
    """
    ids, mask = tokenizer.encode(questions, length)
    asked = np.array([bool(question) for question in questions])
    return ids, mask & asked[:, None]


def dialogue(turns: Sequence[tuple[str, str]], question: str, template: str) -> str:
    """A question behind others and their answers, all asked in the same words.

    "Question: what is it? Answer: a dog. Question: how old? Answer:"; earlier turns of
    a conversation, or examples of what is wanted.

    Args:
      turns: (question, answer), the first one first.
      template: with `{}` in the place of a question.
    """
    told = [
        f"{template.format(asked)} {answer.strip().rstrip('.')}."
        for asked, answer in turns
    ]
    return " ".join([*told, template.format(question)])


def generation_prompts(
    tokenizer: LanguageTokenizer, prompts: Sequence[str], length: int | None = None
) -> tuple[Int32[Array, "B T"], Bool[Array, "B T"]]:
    """Prompts to continue: ids and where they hold tokens.

    Decoder-only prompts begin with BOS and are padded on the left, so that the last
    column is each row's last token; encoder prompts end with the end token and are
    padded on the right.

    Args:
      length: the padded length; the longest prompt's by default. A longer prompt
        loses its last words.
    """
    if tokenizer.family == "decoder_only":
        rows = [_prompt_ids(tokenizer, prompt) for prompt in prompts]
        length = length or max(map(len, rows))
        rows = [row[:length] for row in rows]
        return pad_rows(rows, length, tokenizer.pad_id, left=True)
    rows = [tokenizer.encode_words(prompt) for prompt in prompts]
    length = length or max(map(len, rows)) + 1
    rows = [[*row[: length - 1], tokenizer.end_id] for row in rows]
    return pad_rows(rows, length, tokenizer.pad_id)


def split_prefix(text: str, words: int) -> tuple[str, str]:
    """The first `words` words of a text, and the rest."""
    every = text.split()
    return " ".join(every[:words]), " ".join(every[words:])


def draw_prefix(text: str, rng: np.random.Generator) -> tuple[str, str]:
    """Split at a word boundary uniform over 0 .. words - 1: never an empty rest."""
    return split_prefix(text, int(rng.integers(max(len(text.split()), 1))))


def _need_decoder_only(tokenizer: LanguageTokenizer) -> None:
    if tokenizer.bos_id is None:
        raise ValueError("decoder-only examples need a decoder-only model's tokenizer")


def _decoder_only_row(
    tokenizer: LanguageTokenizer, row: list[int], target: list[bool], length: int
) -> DecoderOnlyExample:
    ids, mask = pad_rows([row], length, tokenizer.pad_id)
    target_mask = np.zeros(length, bool)
    target_mask[: len(target)] = target
    return DecoderOnlyExample(ids[0], mask[0], target_mask)


def _encoder_decoder_rows(
    tokenizer: LanguageTokenizer,
    inputs: list[int],
    targets: list[int],
    input_length: int,
    target_length: int,
) -> EncoderDecoderExample:
    """Both rows with their end token, cut and padded."""
    if tokenizer.family != "encoder_decoder":
        raise ValueError("these examples need an encoder-decoder's tokenizer")
    (input_ids, input_mask), (target_ids, target_mask) = (
        pad_rows([[*words[: length - 1], tokenizer.end_id]], length, tokenizer.pad_id)
        for words, length in ((inputs, input_length), (targets, target_length))
    )
    return EncoderDecoderExample(
        input_ids[0], input_mask[0], target_ids[0], target_mask[0]
    )


def _text_ids(tokenizer: LanguageTokenizer, prompt: str, text: str) -> list[int]:
    """A text's tokens; behind a prompt its first word has a space before it."""
    return tokenizer.encode_words((" " if prompt else "") + text.strip())


def _prompt_ids(tokenizer: LanguageTokenizer, prompt: str) -> list[int]:
    assert tokenizer.bos_id is not None
    return [tokenizer.bos_id, *tokenizer.encode_words(prompt.strip())]
