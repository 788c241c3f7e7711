"""Chat templates: ids equal those of transformers; targets are the assistant's turn."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from blip2_jax.data.data_config import data_config
from blip2_jax.data.examples import DrawnText, TextFormat
from blip2_jax.data.text.chat import Conversation
from blip2_jax.data.text.prompts import (
    decoder_only_example,
    dialogue_prompt,
    generation_prompts,
    target_ids,
)
from blip2_jax.data.text.tokenizers import load_tokenizer
from tests.support.chat_tokenizers import (
    CHATML,
    INST,
    write_chatml,
    write_sentencepiece,
)

QUESTION = "what is in the picture?"


def load_chat(folder):
    return load_tokenizer(
        str(folder), language_model=True, prompt_template="chat"
    ), AutoTokenizer.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chatml")
    write_chatml(folder)
    return load_chat(folder)


@pytest.fixture(scope="module")
def inst(tmp_path_factory):
    """Llama 2's style: the template writes BOS and a space before an answer."""
    folder = tmp_path_factory.mktemp("inst")
    write_sentencepiece(folder, add_bos_token=True, chat_template=INST)
    return load_chat(folder)


@pytest.fixture(params=["chatml", "inst"])
def pair(request):
    return request.getfixturevalue(request.param)


def messages(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def ids_of(theirs, *texts, opening=True):
    return theirs.apply_chat_template(
        messages(*texts),
        tokenize=True,
        return_dict=False,
        add_generation_prompt=opening,
    )


def test_prompts_equal_transformers(pair):
    ours, theirs = pair
    for prompt in ("", QUESTION, "  two dogs \n"):
        assert ours.prompt_ids(prompt) == ids_of(theirs, prompt.strip())
    ids, mask = generation_prompts(ours, ["", QUESTION])
    assert ids[1][mask[1]].tolist() == ids_of(theirs, QUESTION)
    assert mask[:, -1].all() and not mask[0].all()


def test_control_tokens_are_single_ids_and_bos_comes_once(chatml, inst):
    ours, theirs = chatml
    ids = ours.prompt_ids(QUESTION)
    assert ids.count(theirs.convert_tokens_to_ids("<|im_start|>")) == 2
    assert ours.end_id == theirs.convert_tokens_to_ids("<|im_end|>") != ours.eos_id
    ours, theirs = inst
    assert ours.prompt_ids(QUESTION).count(theirs.bos_token_id) == 1
    assert ours.end_id == ours.eos_id == theirs.eos_token_id


def test_all_turns_are_the_templates(pair):
    ours, theirs = pair
    turns = (("is it red?", "no."), ("a dog?", "yes"))
    prompt = dialogue_prompt(turns, QUESTION, "{}")
    texts = [text for turn in turns for text in turn]
    assert ours.prompt_ids(prompt) == ids_of(theirs, *texts, QUESTION)
    assert prompt == Conversation(turns, QUESTION)


def test_prompt_and_target_are_the_whole_conversation(pair):
    ours, theirs = pair
    full = ids_of(theirs, QUESTION, "two dogs", opening=False)
    ids = ours.prompt_ids(QUESTION) + target_ids(ours, QUESTION, " two dogs ")
    assert ids == full[: len(ids)] and ids[-1] == ours.end_id
    assert theirs.decode(full[len(ids) :]).strip() == ""
    example = decoder_only_example(ours, QUESTION, "two dogs", 64)
    assert example.text_ids[example.text_mask].tolist() == ids
    targets = example.text_ids[example.target_mask]
    assert targets.tolist() == target_ids(ours, QUESTION, "two dogs")
    assert ours.decode(targets) == "two dogs"


def test_without_a_prompt_the_template_is_no_target(pair):
    ours, _ = pair
    example = decoder_only_example(ours, "", "two dogs", 64)
    targets = example.text_ids[example.target_mask].tolist()
    assert targets == target_ids(ours, "", "two dogs")
    with pytest.raises(ValueError, match="leaves no room"):
        decoder_only_example(ours, "", "two dogs", len(ours.prompt_ids("")) + 1)


def test_a_template_in_the_configuration(tmp_path):
    write_chatml(tmp_path, in_config=True)
    ours, theirs = load_chat(tmp_path)
    assert ours.prompt_ids(QUESTION) == ids_of(theirs, QUESTION)


def test_a_template_that_writes_the_date_writes_the_same_one_every_day(tmp_path):
    write_chatml(tmp_path, CHATML + "{{ strftime_now('%d %b %Y') }}")
    ours, _ = load_chat(tmp_path)
    assert ours.template.opening("").endswith("26 Jul 2024")


def test_a_turn_without_a_special_token_ends_with_the_end_of_a_text(tmp_path):
    write_chatml(tmp_path, "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    ours, theirs = load_chat(tmp_path)
    assert ours.end_id == theirs.eos_token_id


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{{ raise_exception('no users') }}", "template fails: no users"),
        ("{{ '<|eot_id|>' }}", "writes <|eot_id|>, which is no token"),
    ],
)
def test_templates_that_cannot_be_used(tmp_path, template, message):
    write_chatml(tmp_path, template)
    with pytest.raises(ValueError, match="tokenizer .*" + message.replace("|", r"\|")):
        load_chat(tmp_path)


def test_encoder_decoders_have_none(tmp_path):
    spec = {"language_model": True, "prompt_template": "chat"}
    with pytest.raises(ValueError, match="has no chat template"):
        load_tokenizer("shapes:t5", **spec)
    with pytest.raises(ValueError, match="must be one of plain, chat"):
        load_tokenizer("shapes:opt", language_model=True, prompt_template="llama")


def options(folder, **more):
    tokenizer = {"language_model": str(folder)}
    keys = {"prompt_template": "chat", "max_text_length": 48, **more}
    return data_config({"tokenizer": tokenizer, **keys})


def test_rows_of_training(tmp_path):
    write_chatml(tmp_path)
    text_format = TextFormat(options(tmp_path), "decoder")
    ours, theirs = load_chat(tmp_path)
    rows = text_format.arrays([DrawnText(QUESTION, "two dogs")])
    expected = ids_of(theirs, QUESTION, "two dogs", opening=False)
    ids = rows["text_ids"][0][rows["text_mask"][0]].tolist()
    assert ids == expected[: len(ids)] and ids[-1] == ours.end_id
    assert text_format._question_prompt == "{}"


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("text_decoder", {}, "not for format text_decoder"),
        ("decoder", {"prefix_split": "prefix"}, "exclude each other"),
    ],
)
def test_formats_without_turns(tmp_path, name, more, message):
    write_chatml(tmp_path)
    with pytest.raises(ValueError, match=message):
        TextFormat(options(tmp_path, **more), name)


def test_tokens_are_numbers_of_the_table(pair):
    ours, _ = pair
    ids, _ = generation_prompts(ours, [QUESTION], 64)
    assert ids.dtype == np.int32 and ids.max() < ours.vocab_size
