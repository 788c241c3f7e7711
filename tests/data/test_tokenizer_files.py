"""Tokenizers of language models are those of their folder, whatever its model_type."""

import json

import pytest
from tokenizers import Tokenizer

from blip2_jax.data.text.tokenizer_files import PROBES, encodes_alike, open_tokenizer
from blip2_jax.data.text.tokenizers import load_tokenizer
from tests.support.chat_tokenizers import (
    change_config,
    write_chatml,
    write_sentencepiece,
)
from tests.support.spaced_words import write_tokenizer

TEXT = "w1 w2 w30"


@pytest.mark.parametrize("begin", [None, "<s>"])
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama", "mistral", "phi3"])
def test_a_foreign_tokenizer_is_read_as_stored(tmp_path, model_type, begin):
    """Transformers' `Qwen2Tokenizer` would encode these words as nothing."""
    write_tokenizer(tmp_path, begin)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    change_config(tmp_path, tokenizer_class=None)
    tokenizer = load_tokenizer(str(tmp_path), language_model=True)
    stored = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode_words(TEXT) == [4, 5, 33]
    assert [*([1] if begin else []), 4, 5, 33] == stored.encode(TEXT).ids
    assert tokenizer.prompt_ids(TEXT) == stored.encode(TEXT).ids
    assert tokenizer.decode([4, 5, 2]) == "w1 w2"


def test_what_transformers_rebuilds_rightly_stays(tmp_path):
    write_chatml(tmp_path)
    tokenizer = open_tokenizer(str(tmp_path), True)
    stored = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert encodes_alike(tokenizer, tmp_path / "tokenizer.json")
    for text in (*PROBES, "<|im_start|>user\nwhat?<|im_end|>\n"):
        assert tokenizer(text)["input_ids"] == stored.encode(text).ids


@pytest.fixture(scope="module")
def llama2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama2")
    return folder, write_sentencepiece(folder)


@pytest.mark.parametrize("add_bos_token", [None, True, False])
@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_a_sentencepiece_model_alone(llama2, model_type, add_bos_token):
    """Its texts begin with BOS unless the folder says that they do not."""
    folder, model = llama2
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    change_config(folder, add_bos_token=add_bos_token)
    tokenizer = load_tokenizer(str(folder), language_model=True)
    assert tokenizer.bos_id == (None if add_bos_token is False else model.bos_id())
    assert (tokenizer.end_id, tokenizer.separator) == (model.eos_id(), "")
    for text in ("two dogs, 12.5 km", "Gr\u00f6\u00dfe \u4e2d\nand more"):
        ids = model.encode(text)
        assert tokenizer.encode_words(text) == ids
        begin = [] if add_bos_token is False else [model.bos_id()]
        assert tokenizer.prompt_ids(text) == [*begin, *ids]
        assert tokenizer.decode(ids) == text
