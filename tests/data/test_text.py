"""Cleaning and tokens equal the original's."""

import json
import pathlib
import pickle
import threading

import numpy as np
import pytest

from blip2_jax.data.text.tokenizers import (
    QFormerTokenizer,
    clean_caption,
    clean_question,
    load_tokenizer,
    pad_rows,
)
from tests.support.generated_data import bert_directory, language_directory


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> QFormerTokenizer:
    directory = bert_directory(tmp_path_factory.mktemp("bert"))
    return load_tokenizer(directory, language_model=False)


def test_cleaning_equals_the_original(goldens):
    expected = json.loads((goldens / "misc" / "processors.json").read_text())
    for text, cleaned in expected["blip_caption"].items():
        assert clean_caption(text) == cleaned
    for text, cleaned in expected["blip_caption_prompt"].items():
        assert clean_caption(text, "a photo of ") == cleaned
    for text, cleaned in expected["blip_question"].items():
        assert clean_question(text) == cleaned


@pytest.mark.parametrize("case", ["base", "dup", "imageid_unfrozen"])
def test_qformer_tokens_equal_the_original(goldens, bert, case):
    texts = json.loads((goldens / "stage1_a" / f"case_{case}_texts.json").read_text())
    arrays = np.load(goldens / "stage1_a" / f"case_{case}.npz")
    ids, mask = bert.encode(texts, arrays["input_ids"].shape[1])
    np.testing.assert_array_equal(ids, arrays["input_ids"])
    np.testing.assert_array_equal(mask, arrays["attention_mask"].astype(bool))
    assert (ids.dtype, mask.dtype) == (np.int32, bool)
    start = arrays["decoder_input_ids"][0, 0]
    assert (bert.start_id, bert.vocab_size) == (start, start + 1)
    assert bert.decode(ids[0]) == texts[0]


def test_conventions_of_language_models_are_detected(tmp_path):
    opt = load_tokenizer(
        language_directory(tmp_path / "opt", "stage2_opt_a"), language_model=True
    )
    assert (opt.family, opt.bos_id, opt.end_id, opt.pad_id) == ("decoder_only", 2, 4, 1)
    t5 = load_tokenizer(
        language_directory(tmp_path / "t5", "stage2_t5_a"), language_model=True
    )
    assert (t5.family, t5.bos_id, t5.end_id, t5.pad_id) == (
        "encoder_decoder",
        None,
        1,
        0,
    )
    assert opt.encode_words("a cat\n") == [5, 9, 4]
    copy = pickle.loads(pickle.dumps(opt))
    assert copy.encode_words("a cat") == [5, 9]


@pytest.mark.parametrize("name, is_language", [("bert", 0), ("opt", 1), ("t5", 1)])
def test_shipped_tokenizers_load(name, is_language):
    tokenizer = load_tokenizer(f"shapes:{name}", language_model=bool(is_language))
    text = "a small red circle"
    assert tokenizer.decode(tokenizer.encode_words(text)) == text


def test_a_directory_without_vocabulary_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no vocabulary"):
        load_tokenizer(str(tmp_path), language_model=False)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(FileNotFoundError, match="has no vocabulary"):
        load_tokenizer(str(tmp_path), language_model=False)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_tokenizer(str(tmp_path / "other"), language_model=False)


def test_padding():
    ids, mask = pad_rows([[1, 2], [3]], 3, pad_id=9, left=True)
    np.testing.assert_array_equal(ids, [[9, 1, 2], [9, 9, 3]])
    np.testing.assert_array_equal(mask, ids != 9)
    with pytest.raises(ValueError, match="is longer than"):
        pad_rows([[1, 2]], 1, pad_id=9)


def test_threads_can_share_a_tokenizer(bert):
    texts = [f"book white bottle {'small ' * n}" for n in range(12)]
    expected = [bert.encode([text], 8 + n)[0] for n, text in enumerate(texts)]
    failures = []

    def work():
        for _ in range(20):
            for n, text in enumerate(texts):
                if not np.array_equal(bert.encode([text], 8 + n)[0], expected[n]):
                    failures.append(text)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("word", ["\u2028", "\x85", "\x0b", "\x1c", "\r", "a\rb", ""])
def test_a_vocabulary_is_split_at_newlines_only(tmp_path, word):
    path = pathlib.Path(bert_directory(tmp_path)) / "vocab.txt"
    words = path.read_text().split("\n")
    plain = load_tokenizer(str(tmp_path), language_model=False)
    path.write_bytes("\n".join([*words[:6], word, *words[7:]]).encode())
    changed = load_tokenizer(str(tmp_path), language_model=False)
    assert changed.vocab_size == plain.vocab_size
    assert changed.encode_words(words[8]) == plain.encode_words(words[8]) == [8]


BAD_VOCABULARIES = {
    "utf-16": (lambda text: text.encode("utf-16"), "is in UTF-16"),
    "no mark": (lambda text: text.encode("utf-16-le"), r"line 1, byte 2 is 0x00"),
    "latin-1": (lambda text: b"ab\ncaf\xe9\n", r"line 2, byte 7 is 0xe9"),
    "mark": (lambda text: text.encode("utf-8-sig"), "begins with a byte order mark"),
}


@pytest.mark.parametrize(
    "encode, reason", BAD_VOCABULARIES.values(), ids=BAD_VOCABULARIES
)
def test_vocabularies_in_other_encodings_are_refused(tmp_path, encode, reason):
    path = pathlib.Path(bert_directory(tmp_path)) / "vocab.txt"
    path.write_bytes(encode(path.read_text()))
    with pytest.raises(ValueError, match=rf"vocab\.txt .*{reason}"):
        load_tokenizer(str(tmp_path), language_model=False)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("{", r"tokenizer\.json is not valid JSON"),
        ("[]", r"tokenizer\.json holds no vocabulary"),
        ('{"model": {"vocab": {}}}', "the tokenizer in .* cannot be loaded"),
    ],
)
def test_damaged_vocabularies_are_named(tmp_path, text, reason):
    path = pathlib.Path(bert_directory(tmp_path)) / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        load_tokenizer(str(tmp_path), language_model=False)


def test_real_vocabularies(testdata):
    bert = load_tokenizer(
        str(testdata / "tokenizers/bert-base-uncased"), language_model=False
    )
    ids, _ = bert.encode(["a photo of a cat"], 7)
    assert ids.tolist() == [[101, 1037, 6302, 1997, 1037, 4937, 102]]
    assert bert.start_id == 30522
    opt = load_tokenizer(str(testdata / "tokenizers/opt-roberta"), language_model=True)
    assert opt.encode_words("a photo of") == [102, 1345, 9]
    assert (opt.bos_id, opt.end_id) == (2, 50118)
