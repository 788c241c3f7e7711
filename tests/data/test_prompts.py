"""Token examples equal the original's inputs of its language models."""

import json

import numpy as np
import pytest

from blip2_jax.data.text import prompts
from blip2_jax.data.text.tokenizers import load_tokenizer
from tests.support.generated_data import language_directory


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    directory = language_directory(tmp_path_factory.mktemp("opt"), "stage2_opt_a")
    return load_tokenizer(directory, language_model=True)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    directory = language_directory(tmp_path_factory.mktemp("t5"), "stage2_t5_a")
    return load_tokenizer(directory, language_model=True)


@pytest.mark.parametrize(
    "case, prompt", [("base", ""), ("prompt_unfrozen", "a photo of")]
)
def test_decoder_only_examples_equal_the_original(goldens, opt, case, prompt):
    folder = goldens / "stage2_opt_a"
    texts = json.loads((folder / f"case_{case}_texts.json").read_text())["text_input"]
    arrays = np.load(folder / f"case_{case}.npz")
    length = arrays["text_ids"].shape[1]
    for row, text in enumerate(texts):
        example = prompts.decoder_only_example(
            opt, prompt, text.removeprefix(prompt), length, keep_end=False
        )
        np.testing.assert_array_equal(example.text_ids, arrays["text_ids"][row])
        np.testing.assert_array_equal(example.text_mask, arrays["text_mask"][row])
        labels = arrays["labels"][row, -length:]
        np.testing.assert_array_equal(example.target_mask, labels != -100)


def test_a_long_text_keeps_its_end(opt):
    example = prompts.decoder_only_example(opt, "", "a cat of the dog a cat", 5)
    cut = prompts.decoder_only_example(
        opt, "", "a cat of the dog a cat", 5, keep_end=False
    )
    np.testing.assert_array_equal(example.text_ids, [2, 5, 9, 7, opt.end_id])
    np.testing.assert_array_equal(cut.text_ids, [2, 5, 9, 7, 8])
    assert example.target_mask.all()  # including BOS, because there is no prompt


def test_a_prompt_must_leave_room(opt):
    with pytest.raises(ValueError, match="no room for a text in 5"):
        prompts.decoder_only_example(opt, "a photo of the", "cat", 5)


def test_documents_have_targets_behind_their_context(opt):
    texts = [("a photo of", "the dog"), ("", "a cat"), ("", "a dog of the cat")]
    example = prompts.document_example(opt, "a cat of the dog", texts, 18)
    row, target = example.text_ids[example.text_mask], example.target_mask
    begins = (row == opt.bos_id).nonzero()[0]
    assert begins[0] == len(opt.encode_words("a cat of the dog")) and len(begins) == 2
    assert not target[: begins[0]].any() and target[begins].all()
    said = opt.decode(example.text_ids[target]).split()
    assert said == ["the", "dog", "a", "cat"]
    alone = prompts.document_example(opt, "", texts[1:2], 18)
    single = prompts.decoder_only_example(opt, "", "a cat", 18)
    np.testing.assert_array_equal(alone.text_ids, single.text_ids)
    np.testing.assert_array_equal(alone.target_mask, single.target_mask)


def test_encoder_decoder_examples_equal_the_original(goldens, t5):
    folder = goldens / "stage2_t5_a"
    for case in ("base", "emptyprompt_unfrozen"):
        texts = json.loads((folder / f"case_{case}_texts.json").read_text())
        arrays = np.load(folder / f"case_{case}.npz")
        for row, target in enumerate(texts["text_output"]):
            prompt = texts["text_input"][row] if "text_input" in texts else ""
            example = prompts.encoder_decoder_example(
                t5,
                prompt,
                target,
                input_length=arrays["text_ids"].shape[1],
                target_length=arrays["output_ids"].shape[1],
            )
            np.testing.assert_array_equal(example.input_ids, arrays["text_ids"][row])
            np.testing.assert_array_equal(example.input_mask, arrays["text_mask"][row])
            np.testing.assert_array_equal(example.target_ids, arrays["output_ids"][row])
            np.testing.assert_array_equal(
                example.target_mask, arrays["output_mask"][row]
            )


def test_several_texts_become_blanks():
    tokenizer = load_tokenizer("shapes:t5", language_model=True)
    texts = [("what color is the star ?", "red"), ("a small", "red star"), ("", "a")]

    def rows(texts, input_length=32, target_length=16):
        example = prompts.blanks_example(
            tokenizer,
            "a red star",
            texts,
            input_length=input_length,
            target_length=target_length,
        )
        decode = tokenizer._backend.decode
        return [
            decode(ids[mask].tolist(), skip_special_tokens=False)
            for ids, mask in (
                (example.input_ids, example.input_mask),
                (example.target_ids, example.target_mask),
            )
        ]

    inputs, filled = rows(texts)
    assert inputs == (
        "a red star what color is the star ?<extra_id_0> a small<extra_id_1>"
        "<extra_id_2></s>"
    )
    assert filled == "<extra_id_0> red<extra_id_1> red star<extra_id_2> a</s>"
    assert rows(texts[:1]) == ["a red star what color is the star ?</s>", "red</s>"]
    # The second text does not fit the decoder, the third does.
    assert rows(texts, target_length=5)[1] == "<extra_id_0> red<extra_id_2> a</s>"
    assert rows(texts, input_length=13)[1] == "<extra_id_0> red<extra_id_2> a</s>"
    with pytest.raises(ValueError, match="9 texts in a document need"):
        rows([("", "a")] * 9)


def test_tokenizers_of_the_other_family_are_refused(opt, t5):
    with pytest.raises(ValueError, match="decoder-only"):
        prompts.decoder_only_example(t5, "", "a", 5)
    with pytest.raises(ValueError, match="encoder-decoder"):
        prompts.encoder_decoder_example(opt, "", "a", input_length=5, target_length=5)


def test_generation_prompts(opt, t5):
    ids, mask = prompts.generation_prompts(opt, ["a photo of", "a"])
    np.testing.assert_array_equal(ids, [[2, 5, 6, 7], [1, 1, 2, 5]])
    np.testing.assert_array_equal(mask, ids != 1)
    example = prompts.decoder_only_example(opt, "a photo of", "the cat", 8)
    np.testing.assert_array_equal(example.text_ids[:4], ids[0])  # as in training
    ids, mask = prompts.generation_prompts(t5, ["cat child", ""], length=4)
    assert ids[:, -1].tolist() == [0, 0] and ids[1, 0] == t5.end_id
    np.testing.assert_array_equal(mask.sum(1), [3, 1])


def test_prefix_splits_are_uniform_over_word_boundaries():
    rng = np.random.default_rng(0)
    lengths = []
    for _ in range(3000):
        prefix, rest = prompts.draw_prefix("one two three four", rng)
        assert f"{prefix} {rest}".split() == ["one", "two", "three", "four"]
        lengths.append(len(prefix.split()))
    counts = np.bincount(lengths)
    assert len(counts) == 4 and counts.min() > 650  # the rest is never empty
    assert prompts.draw_prefix("one", rng) == ("", "one")
