"""Tokenizers of the world, built as BERT's, OPT's and T5's are.

Small WordPiece, byte-level BPE and unigram vocabularies that behave as the real
ones: every word of the world is one token, every other text falls to pieces but is
not lost, and marks stand where the real tokenizers put them. The directories are part
of the package; this makes them again:

    python -m blip2_jax.data.shapes.vocabularies
"""

from __future__ import annotations

import pathlib
import string
import sys
from typing import Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from blip2_jax.data.shapes.captions import WORDINGS
from blip2_jax.data.shapes.world import COLORS, PLACES, SHAPES, SIZES

DIRECTORY = pathlib.Path(__file__).parent / "tokenizers"
_ASKING = "what how many is are there where color shape size thing things yes no"
_CAPTIONING = "a an at the in and , ? . 0 1 2 3 4"
_PROMPTING = "Question : Answer Short answer a photo of"
_MARKS = string.punctuation + string.digits
_BLANKS = 8  # marks of left-out text that T5 has


def words() -> list[str]:
    """Every word and mark of the world's texts and prompts, in a fixed order."""
    phrases = [
        *SIZES,
        *COLORS,
        *SHAPES,
        *PLACES,
        *(w for ws in WORDINGS.values() for w in ws),
        _ASKING,
        _CAPTIONING,
        _PROMPTING,
    ]
    return list(dict.fromkeys(word for phrase in phrases for word in phrase.split()))


def bert() -> Tokenizer:
    """Lower-case WordPiece with [CLS] and [SEP]."""
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *_MARKS]
    pieces = [*marks, *letters, *(f"##{letter}" for letter in letters)]
    pieces += [word for word in dict.fromkeys(w.lower() for w in words())]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")],
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def opt() -> Tokenizer:
    """Byte-level BPE; `</s>` begins a text; the newline is one token."""
    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        show_progress=False,
    )  # merges until each word, with and without a space before it, is one token
    corpus = [form for word in words() for form in (word, f" {word}")]
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A",
        pair="</s> $A </s> $B:1",
        special_tokens=[("</s>", marks.index("</s>"))],
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def t5() -> Tokenizer:
    """Unigram pieces with the space before them; `</s>` ends a text."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -2.0) for word in words()]
    known = {piece for piece, _ in pieces}
    letters = [*string.ascii_letters, *_MARKS]
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
    tokenizer.add_special_tokens([f"<extra_id_{number}>" for number in range(_BLANKS)])
    return tokenizer


_SPECIAL: dict[str, dict[str, str]] = {
    "bert": {
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "mask_token": "[MASK]",
    },
    "opt": {
        "bos_token": "</s>",
        "eos_token": "</s>",
        "unk_token": "</s>",
        "pad_token": "<pad>",
    },
    "t5": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
}


def save(directory: pathlib.Path) -> None:
    """Write the three tokenizers as folders that transformers loads."""
    from transformers import PreTrainedTokenizerFast

    makers: dict[str, Any] = {"bert": bert, "opt": opt, "t5": t5}
    for name, make in makers.items():
        fast = PreTrainedTokenizerFast(
            tokenizer_object=make(),
            clean_up_tokenization_spaces=False,
            model_max_length=512,
            **_SPECIAL[name],
        )
        fast.save_pretrained(directory / name)


if __name__ == "__main__":
    save(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY)
