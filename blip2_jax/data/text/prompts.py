"""Prompts and token examples for training, evaluation and the public API.

All of them build their inputs here, so that a model gets the prompts of its training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int32
from numpy import ndarray as Array

from blip2_jax.data.text.chat import Conversation, Prompt
from blip2_jax.data.text.tokenizers import LanguageTokenizer, QFormerTokenizer, pad_rows

# Section 4.1 of the paper: the first is for OPT, the second for FlanT5.
QUESTION_PROMPT = "Question: {} Answer:"
SHORT_ANSWER_PROMPT = "Question: {} Short answer:"
# Where a decoder-only model reads the image, if not before the prompt.
IMAGE_MARK = "<ImageHere>"
QUERIES_HERE = -1  # stands for the mark in rows of token ids
# MiniGPT-4 (Zhu et al. 2023).
MINIGPT4_PROMPT = f"###Human: <Img>{IMAGE_MARK}</Img> {{}} ###Assistant:"
CHAT_PROMPT = "{}"  # the turn of a user is the question


def default_question_prompt(tokenizer: LanguageTokenizer) -> str:
    """Return the template of a question for a language model that names none."""
    if tokenizer.template is not None:
        return CHAT_PROMPT
    if tokenizer.family == "decoder_only":
        return QUESTION_PROMPT
    return SHORT_ANSWER_PROMPT


@dataclasses.dataclass(frozen=True)
class DecoderOnlyExample:
    """Token row for a decoder-only model; the loss shifts the targets by one."""

    text_ids: Int32[Array, " T"]
    text_mask: Bool[Array, " T"]
    target_mask: Bool[Array, " T"]


@dataclasses.dataclass(frozen=True)
class EncoderDecoderExample:
    """Token rows for an encoder-decoder model."""

    input_ids: Int32[Array, " T"]
    input_mask: Bool[Array, " T"]
    target_ids: Int32[Array, " N"]
    target_mask: Bool[Array, " N"]


def decoder_only_example(
    tokenizer: LanguageTokenizer,
    prompt: Prompt,
    text: str,
    length: int,
    *,
    keep_end: bool = True,
) -> DecoderOnlyExample:
    """Build [BOS; prompt; text; end], padded on the right.

    BOS and the prompt are no targets. Without a prompt BOS is a target, as in the
    original: the last query learns to predict it. BOS is left out if the tokenizer has
    none. A chat template takes the place of BOS and prompt; none of it is a target.

    Args:
      tokenizer: tokenizer of a decoder-only model.
      prompt: "" for none.
      text: the text to predict.
      length: length of the row.
      keep_end: truncate the words of a long text but keep its end. False truncates
        the end as the original does, whose models do not learn to stop after long
        captions.

    Raises:
      ValueError: the prompt alone fills `length`.
    """
    _check_decoder_only(tokenizer)
    start = tokenizer.prompt_ids(prompt)
    is_prompted = bool(prompt) or tokenizer.template is not None
    room = length - len(start) - (1 if keep_end else 0)
    if room < 0 or (is_prompted and room < 1):
        raise ValueError(
            f"prompt {prompt!r} has {len(start)} tokens and leaves "
            f"no room for a text in {length}"
        )
    words = tokenizer.text_ids(prompt, text)
    row = [*start, *words[:room], tokenizer.end_id][:length]
    target = [not is_prompted] * len(start) + [True] * (len(row) - len(start))
    return _decoder_only_row(tokenizer, row, target, length)


def document_example(
    tokenizer: LanguageTokenizer,
    context: str,
    texts: Sequence[tuple[str, str]],
    length: int,
) -> DecoderOnlyExample:
    """Build [context; BOS; prompt; text; end; BOS; ...], padded on the right.

    A document for text-only pre-training of a decoder-only model. The context stands
    where queries will stand later, and each text can be predicted from it. Every BOS is
    a target; context and prompts are not. The first text is truncated if necessary;
    later texts that do not fit are left out.

    Args:
      tokenizer: tokenizer of a decoder-only model.
      context: "" for none.
      texts: (prompt, target) of each text; a prompt of "" stands for none.
      length: length of the row.
    """
    _check_decoder_only(tokenizer)
    row = tokenizer.encode_words(context.strip())
    target = [False] * len(row)
    for number, (prompt, text) in enumerate(texts):
        start = tokenizer.prompt_ids(prompt)
        words = [*tokenizer.text_ids(prompt, text), tokenizer.end_id]
        if number and len(row) + len(start) + len(words) > length:
            break
        row += [*start, *words]
        is_target = [False] * len(start) + [True] * len(words)
        if tokenizer.bos_id is not None:
            is_target[0] = True
        target += is_target
    return _decoder_only_row(tokenizer, row[:length], target[:length], length)


def encoder_decoder_example(
    tokenizer: LanguageTokenizer,
    prompt: str,
    target: str,
    *,
    input_length: int,
    target_length: int,
) -> EncoderDecoderExample:
    """Build [prompt; end] for the encoder and [target; end] for the decoder.

    Both are padded on the right. The prompt is a question, a fixed text or the first
    words of a caption (prefix LM). Of an empty prompt only the end token remains, as in
    the original.
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
    """Build a span-corruption example from several texts, as in T5's pre-training.

    The input is [context; prompt; <extra_id_0>; prompt; <extra_id_1>; ...; end], the
    target is [<extra_id_0>; text; <extra_id_1>; text; ...; end] (Raffel et al. 2020,
    section 3.1.4). A single text is written without sentinels, as in stage 2. The first
    text is truncated if necessary; later texts that do not fit are left out.

    Args:
      tokenizer: tokenizer of an encoder-decoder.
      context: "" for none.
      texts: (prompt, target) of each text; a prompt of "" stands for none.
      input_length: length of the encoder's row.
      target_length: length of the decoder's row.

    Raises:
      ValueError: there are more texts than sentinels, or the tokenizer is that of a
        decoder-only model.
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
    check_sentinels(tokenizer, len(texts))
    inputs, targets = tokenizer.encode_words(context.strip()), list[int]()
    for sentinel, (prompt, text) in zip(tokenizer.blank_ids, texts, strict=False):
        prompt_ids = [*tokenizer.encode_words(prompt), sentinel]
        text_ids = [sentinel, *tokenizer.encode_words(text)]
        fits = len(inputs) + len(prompt_ids) < input_length
        if targets and not (fits and len(targets) + len(text_ids) < target_length):
            continue
        inputs += prompt_ids
        targets += text_ids
    return _encoder_decoder_rows(
        tokenizer, inputs, targets, input_length, target_length
    )


def check_sentinels(tokenizer: LanguageTokenizer, count: int) -> None:
    """Check that a tokenizer has enough sentinels for `count` texts in a document.

    Raises:
      ValueError: it has fewer; a single text needs none.
    """
    sentinels = len(tokenizer.blank_ids)
    if count > max(sentinels, 1):
        raise ValueError(
            f"{count} texts in a document need as many sentinels (<extra_id_0>, ...), "
            f"but the tokenizer has {sentinels}"
        )


def question_rows(
    tokenizer: QFormerTokenizer, questions: Sequence[str], length: int
) -> tuple[Int32[Array, "B T"], Bool[Array, "B T"]]:
    """Encode questions for the Q-Former as [CLS] question [SEP], padded on the right.

    The mask of an empty question is False everywhere, so that its queries attend only
    to each other, as in stage 2.
    """
    ids, mask = tokenizer.encode(questions, length)
    has_question = np.array([bool(question) for question in questions])
    return ids, mask & has_question[:, None]


def dialogue_prompt(
    turns: Sequence[tuple[str, str]], question: str, template: str
) -> Conversation:
    """Build the prompt of a question behind earlier questions and their answers.

    The turns are earlier turns of a conversation, or examples. Without a chat template
    it is "Question: what is it? Answer: a dog. Question: how old? Answer:".

    Args:
      turns: (question, answer) in order.
      question: the last question.
      template: prompt of a question, with `{}` in its place.
    """
    earlier = tuple((template.format(asked), answer) for asked, answer in turns)
    return Conversation(earlier, template.format(question))


def generation_prompts(
    tokenizer: LanguageTokenizer, prompts: Sequence[Prompt], length: int | None = None
) -> tuple[Int32[Array, "B T"], Bool[Array, "B T"]]:
    """Encode prompts for generation; return ids and mask.

    Decoder-only prompts (see `LanguageTokenizer.prompt_ids`) are padded on the left, so
    that the last column is the last token of every row. `IMAGE_MARK` becomes a padding
    column with the id `QUERIES_HERE`. Encoder prompts end with the end token and are
    padded on the right.

    Args:
      tokenizer: tokenizer of the language model.
      prompts: the prompts.
      length: length to pad and truncate to; None: length of the longest prompt.
    """
    if tokenizer.family == "decoder_only":
        rows = [_prompt_ids_around_image(tokenizer, prompt) for prompt in prompts]
        length = length or max(1, *map(len, rows))  # without BOS a prompt may be empty
        rows = [row[:length] for row in rows]
        ids, mask = pad_rows(rows, length, tokenizer.pad_id, left=True)
        return ids, mask & (ids != QUERIES_HERE)
    rows = [tokenizer.encode_words(str(prompt)) for prompt in prompts]
    length = length or max(map(len, rows)) + 1
    rows = [[*row[: length - 1], tokenizer.end_id] for row in rows]
    return pad_rows(rows, length, tokenizer.pad_id)


def target_ids(tokenizer: LanguageTokenizer, prompt: Prompt, text: str) -> list[int]:
    """Encode the text that a model writes after a prompt, and its end token.

    The tokens are the targets of `decoder_only_example` and `encoder_decoder_example`.
    """
    if tokenizer.family == "decoder_only":
        return [*tokenizer.text_ids(prompt, text), tokenizer.end_id]
    return [*tokenizer.encode_words(text), tokenizer.end_id]


def split_prefix(text: str, words: int) -> tuple[str, str]:
    """Split a text into its first `words` words and the rest."""
    all_words = text.split()
    return " ".join(all_words[:words]), " ".join(all_words[words:])


def draw_prefix(text: str, rng: np.random.Generator) -> tuple[str, str]:
    """Split a text before a uniformly drawn word, so that the rest is not empty."""
    return split_prefix(text, int(rng.integers(max(len(text.split()), 1))))


def _check_decoder_only(tokenizer: LanguageTokenizer) -> None:
    """Check that a tokenizer is that of a decoder-only model."""
    if tokenizer.family != "decoder_only":
        raise ValueError(
            "decoder-only examples need the tokenizer of a decoder-only model"
        )


def _decoder_only_row(
    tokenizer: LanguageTokenizer, row: list[int], target: list[bool], length: int
) -> DecoderOnlyExample:
    """Pad a row and its target mask."""
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
    """Append end tokens, truncate and pad both rows."""
    if tokenizer.family != "encoder_decoder":
        raise ValueError("these examples need the tokenizer of an encoder-decoder")
    (input_ids, input_mask), (target_ids, target_mask) = (
        pad_rows([[*words[: length - 1], tokenizer.end_id]], length, tokenizer.pad_id)
        for words, length in ((inputs, input_length), (targets, target_length))
    )
    return EncoderDecoderExample(
        input_ids[0], input_mask[0], target_ids[0], target_mask[0]
    )


def _prompt_ids_around_image(tokenizer: LanguageTokenizer, prompt: Prompt) -> list[int]:
    """Encode a prompt; its parts before and behind the image on their own."""
    if IMAGE_MARK not in str(prompt):
        return tokenizer.prompt_ids(prompt)
    before, _, behind = str(prompt).strip().partition(IMAGE_MARK)
    ids = tokenizer.prompt_ids(before)
    return [*ids, QUERIES_HERE, *tokenizer.encode_words(behind)]
