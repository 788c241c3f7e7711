"""Tokenizers of decoder-only models: with or without BOS, with an end token."""

import numpy as np
import pytest

from blip2_jax.data.text.prompts import (
    decoder_only_example,
    document_example,
    generation_prompts,
)
from blip2_jax.data.text.tokenizer_files import open_tokenizer
from blip2_jax.data.text.tokenizers import load_tokenizer
from tests.support import vicuna_tokenizer
from tests.support.spaced_words import write_tokenizer

BOS, EOS = 1, 2


@pytest.fixture(params=[None, "<s>"], ids=["without BOS", "with BOS"])
def tokenizer(request, tmp_path):
    return load_tokenizer(write_tokenizer(tmp_path, request.param), language_model=True)


def begin(tokenizer):
    return [] if tokenizer.bos_id is None else [BOS]


def test_conventions(tokenizer):
    assert tokenizer.family == "decoder_only"
    assert tokenizer.bos_id in (None, BOS)
    assert (tokenizer.end_id, tokenizer.pad_id, tokenizer.separator) == (EOS, EOS, "")
    assert tokenizer.decode([BOS, 4, 5, EOS]) == "w1 w2"


def test_a_text_follows_its_prompt_with_one_space(tokenizer):
    start = [*begin(tokenizer), 3, 4]
    example = decoder_only_example(tokenizer, "w0 w1", " w2", 7)
    row = [*start, 5, EOS]
    assert example.text_ids[example.text_mask].tolist() == row
    assert example.text_ids[example.target_mask].tolist() == [5, EOS]
    prompts, mask = generation_prompts(tokenizer, ["w0 w1", "w0"])
    assert prompts[0].tolist() == start
    assert mask.sum(1).tolist() == [len(start), len(start) - 1]


def test_without_a_prompt_all_of_the_row_is_a_target(tokenizer):
    example = decoder_only_example(tokenizer, "", "w2", 5)
    np.testing.assert_array_equal(example.target_mask, example.text_mask)
    assert example.text_ids[example.text_mask].tolist() == [*begin(tokenizer), 5, EOS]
    prompts, mask = generation_prompts(tokenizer, [""])
    assert prompts.shape == (1, 1) and mask.sum() == len(begin(tokenizer))


def test_documents(tokenizer):
    example = document_example(tokenizer, "w9", [("w0 w1", "w2"), ("", "w3")], 12)
    targets = example.text_ids[example.target_mask].tolist()
    assert targets == [*begin(tokenizer), 5, EOS, *begin(tokenizer), 6, EOS]


def test_an_end_token_that_begins_texts_is_no_end():
    """OPT's texts end with a newline, as in the original."""
    opt = load_tokenizer("shapes:opt", language_model=True)
    assert opt.bos_id is not None and opt.end_id != opt.bos_id
    assert opt.separator == " "


def test_a_tokenizer_without_any_end_is_refused():
    with pytest.raises(ValueError, match="must have an end token"):
        load_tokenizer("shapes:bert", language_model=True)


def test_the_texts_of_instructblip_begin_and_end_with_the_same_token(tmp_path):
    """`lavis:` changes Vicuna's tokenizer; a Hugging Face folder has it changed."""
    plain = vicuna_tokenizer.write_tokenizer(tmp_path / "plain")
    changed = vicuna_tokenizer.write_tokenizer(tmp_path / "changed", instructed=True)
    vicuna = load_tokenizer(plain, language_model=True)
    assert (vicuna.bos_id, vicuna.end_id) == (BOS, EOS)
    for spec, more in ((f"lavis:{plain}", 0), (changed, 1)):
        tokenizer = load_tokenizer(spec, language_model=True)
        assert (tokenizer.bos_id, tokenizer.end_id) == (EOS, EOS)
        assert (tokenizer.family, tokenizer.separator) == ("decoder_only", "")
        assert tokenizer.vocab_size == vicuna.vocab_size + more  # [PAD]
        words = tokenizer.encode_words("a star")
        assert tokenizer.decode([EOS, *words, EOS]) == "a star"
    open_tokenizer(f"lavis:{plain}", True).save_pretrained(tmp_path / "copy")
    copy = load_tokenizer(str(tmp_path / "copy"), language_model=True)
    assert (copy.bos_id, copy.end_id, copy.pad_id) == (EOS, EOS, 0)
