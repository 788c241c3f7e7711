"""Tokenizers of BERTs in other languages: casing and special tokens."""

import json

import pytest

from blip2_jax.data.text.tokenizer_files import open_tokenizer, save_tokenizer
from blip2_jax.data.text.tokenizers import clean_caption, load_tokenizer
from tests.support.peer_berts import WORDS, write_tokenizer

pytest.importorskip("transformers", minversion="5")
TEXT = "ein Hund Über café 红狗"
# Settings of tokenizer_config.json, and the tokens of TEXT.
CASED = ["ein", "Hund", "Über", "caf", "##é", "红", "狗"]
LOWER = ["ein", "hund", "uber", "caf", "##e", "红", "狗"]
CASINGS = [
    ({"do_lower_case": False}, CASED),
    ({"do_lower_case": True}, LOWER),
    (
        {"do_lower_case": True, "strip_accents": False},
        ["ein", "hund", "über", "caf", "##é", "红", "狗"],
    ),
    (
        {"do_lower_case": False, "tokenize_chinese_chars": False},
        [*CASED[:-1], "##狗"],
    ),
]


def tokens(tokenizer, text=TEXT):
    return [WORDS[token_id] for token_id in tokenizer.encode_words(text)]


@pytest.mark.parametrize(("settings", "expected"), CASINGS)
def test_casing_is_that_of_the_settings(tmp_path, settings, expected):
    folder = write_tokenizer(tmp_path / "text", **settings)
    tokenizer = load_tokenizer(str(folder), language_model=False)
    assert tokens(tokenizer) == expected
    assert tokenizer.keeps_case != settings["do_lower_case"]
    # The same with tokenizer.json, with and without the settings beside it.
    save_tokenizer(str(folder), tmp_path / "json")
    assert tokens(load_tokenizer(str(tmp_path / "json"), language_model=False)) == (
        expected
    )
    file = tmp_path / "json" / "tokenizer_config.json"
    kept = json.loads(file.read_text())
    for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
        kept.pop(name, None)
    file.write_text(json.dumps(kept))
    alone = load_tokenizer(str(tmp_path / "json"), language_model=False)
    assert tokens(alone) == expected
    save_tokenizer(str(tmp_path / "json"), tmp_path / "again")
    peer = open_tokenizer(str(tmp_path / "again"))
    assert peer.tokenize(TEXT) == expected


def test_special_tokens_are_those_of_the_vocabulary(tmp_path):
    folder = write_tokenizer(tmp_path, do_lower_case=False)
    tokenizer = load_tokenizer(str(folder), language_model=False)
    cls, sep, pad = (WORDS.index(word) for word in ("[CLS]", "[SEP]", "[PAD]"))
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id) == (cls, sep, pad)
    assert (tokenizer.start_id, tokenizer.vocab_size) == (len(WORDS), len(WORDS) + 1)
    ids, mask = tokenizer.encode(["Hund zzz"], 6)
    unknown = WORDS.index("[UNK]")
    assert ids.tolist() == [[cls, WORDS.index("Hund"), unknown, sep, pad, pad]]
    assert mask.sum() == 4
    assert tokenizer.decode([tokenizer.start_id, 4, sep, pad]) == "Hund"


def test_a_cased_vocabulary_without_settings_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"words with capital letters.*do_lower_case"):
        load_tokenizer(str(write_tokenizer(tmp_path)), language_model=False)


def test_captions_keep_their_case_for_a_cased_tokenizer(tmp_path):
    assert clean_caption("Ein Hund.", keep_case=True) == "Ein Hund"
    assert clean_caption("Ein Hund.") == "ein hund"
    assert not load_tokenizer("shapes:bert", language_model=False).keeps_case
