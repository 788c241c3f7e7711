"""Tokenizers of the shapes world, built like those of BERT, OPT and T5.

The WordPiece, byte-level BPE and unigram vocabularies are small but behave like the
real ones: every word of the world is one token, any other text is split into pieces
without loss, and special tokens stand where the real tokenizers put them. The
directories are part of the package; this command makes them again:

    python -m blip2_jax.cli.train_vocabulary --shapes \
        --out blip2_jax/data/shapes/tokenizers
"""

from __future__ import annotations

import pathlib
import string

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from blip2_jax.data.shapes.captions import WORDINGS
from blip2_jax.data.shapes.world import COLORS, PLACES, SHAPES, SIZES
from blip2_jax.data.text.bpe import save_tokenizer, train_byte_level_bpe

_QUESTION_WORDS = (
    "what how many is are there where color shape size thing things yes no"
)
_CAPTION_WORDS = "a an at the in and , ? . 0 1 2 3 4"
_PROMPT_WORDS = "Question : Answer Short answer a photo of"
_SYMBOLS = string.punctuation + string.digits
_EXTRA_IDS = 8  # number of T5's sentinel tokens


def words() -> list[str]:
    """List every word and symbol of the world's texts and prompts, in a fixed order."""
    phrases = [
        *SIZES,
        *COLORS,
        *SHAPES,
        *PLACES,
        *(w for ws in WORDINGS.values() for w in ws),
        _QUESTION_WORDS,
        _CAPTION_WORDS,
        _PROMPT_WORDS,
    ]
    return list(dict.fromkeys(word for phrase in phrases for word in phrase.split()))


def bert() -> Tokenizer:
    """Build a lower-case WordPiece tokenizer with [CLS] and [SEP]."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *_SYMBOLS]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters)]
    pieces += [word for word in dict.fromkeys(w.lower() for w in words())]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def opt() -> Tokenizer:
    """Build a byte-level BPE that puts `</s>` before a text; newline is one token."""
    # Every word, with and without a leading space, is merged into one token.
    return train_byte_level_bpe(form for word in words() for form in (word, f" {word}"))


def t5() -> Tokenizer:
    """Build a unigram tokenizer that puts `</s>` after every text."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -2.0) for word in words()]
    known = {piece for piece, _ in pieces}
    letters = [*string.ascii_letters, *_SYMBOLS]
    pieces += [(letter, -8.0) for letter in letters if letter not in known]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(" {2,}", " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B:1 </s>:1", special_tokens=[("</s>", 1)]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(
        [f"<extra_id_{number}>" for number in range(_EXTRA_IDS)]
    )
    return tokenizer


_BERT_SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "mask_token": "[MASK]",
}
_T5_SPECIAL_TOKENS = {
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}


def save_all(directory: pathlib.Path) -> None:
    """Write the three tokenizers as directories that transformers loads."""
    save_tokenizer(bert(), directory / "bert", _BERT_SPECIAL_TOKENS)
    save_tokenizer(opt(), directory / "opt")
    save_tokenizer(t5(), directory / "t5", _T5_SPECIAL_TOKENS)
