"""A stage-2 model that writes its prompts with a chat template."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import blip2_jax
from blip2_jax.convert.huggingface_export import write_huggingface
from blip2_jax.convert.model_source import ModelSource
from blip2_jax.convert.native_folder import write_folder
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.models.blip2 import init_params
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.sizes import (
    FeaturesConfig,
    LlamaConfig,
    QFormerConfig,
    ViTConfig,
)
from blip2_jax.nn.trees import flatten
from tests.support.chat_tokenizers import write_chatml

TURNS = [("is it red?", "no"), ("is it a dog?", "yes.")]
FEATURES = np.random.default_rng(0).normal(size=(1, 3, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    write_chatml(folder)
    plain = load_tokenizer(str(folder), language_model=True)
    config = Blip2Config(
        FeaturesConfig(3, 8),
        QFormerConfig(16, 1, 2, 16, num_queries=2, vocab_size=24, max_positions=16),
        LlamaConfig(
            16,
            1,
            2,
            1,
            8,
            16,
            vocab_size=plain.vocab_size,
            pad_id=plain.pad_id,
            bos_id=None,
            eos_id=plain.eos_id,
        ),
    )
    return ModelSource(
        config,
        random_arrays(config),
        "test",
        language_tokenizer=str(folder),
        prompt_template="chat",
    )


def random_arrays(config):
    params = init_params(Blip2Stage2(config), jax.random.key(0))
    return {path: np.asarray(array) for path, array in flatten(params).items()}


@pytest.fixture(scope="module")
def model(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "folder"
    write_folder(source, folder)
    return folder, blip2_jax.load(folder)


def prompts_of(monkeypatch, model, call):
    """Return the token ids of the prompts that a call makes."""
    seen = []
    original = model._prompt_arrays

    def record(prompts, questions=None):
        arrays = original(prompts, questions)
        seen.extend(ids[mask].tolist() for ids, mask in zip(*arrays[:2], strict=True))
        return arrays

    monkeypatch.setattr(model, "_prompt_arrays", record)
    call()
    return seen


def test_every_call_writes_turns(model, monkeypatch):
    _, generator = model
    tokenizer = generator.language_tokenizer
    theirs = tokenizer.template._tokenizer

    def expected(*texts):
        roles = ("user", "assistant")
        messages = [
            {"role": roles[i % 2], "content": text} for i, text in enumerate(texts)
        ]
        return theirs.apply_chat_template(
            messages, tokenize=True, return_dict=False, add_generation_prompt=True
        )

    few = {"features": FEATURES, "max_new_tokens": 2, "num_beams": 1}
    calls = {
        "caption": (lambda: generator.caption(**few), expected("")),
        "prompt": (
            lambda: generator.caption(prompt="a photo", **few),
            expected("a photo"),
        ),
        "generate": (
            lambda: generator.generate(prompts="a photo", **few),
            expected("a photo"),
        ),
        "answer": (
            lambda: generator.answer(questions="What is it?", **few),
            expected("what is it?"),
        ),
        "history": (
            lambda: generator.answer(questions="why?", history=TURNS, **few),
            expected(*(text for turn in TURNS for text in turn), "why?"),
        ),
        "score": (
            lambda: generator.score(features=FEATURES, texts="dog", questions="why?"),
            expected("why?"),
        ),
    }
    for name, (call, ids) in calls.items():
        with monkeypatch.context() as patch:
            assert prompts_of(patch, generator, call) == [ids], name


def test_a_conversation_holds_all_turns(model, monkeypatch):
    _, generator = model
    few = {"features": FEATURES, "max_new_tokens": 2, "num_beams": 1}
    ask = lambda: answers.extend(generator.converse(None, ["a?", "b?"], **few))
    answers = []
    first, second = prompts_of(monkeypatch, generator, ask)
    user = generator.language_tokenizer.encode_words("<|im_start|>user")
    starts = [ids.count(user[0]) for ids in (first, second)]
    assert starts == [2, 4] and len(answers) == 2


def test_generation_stops_at_the_end_of_a_turn(model):
    """Samples are as good as uniform; only the end of a turn ends them."""
    _, generator = model
    tokenizer = generator.language_tokenizer
    texts = generator.caption(
        features=FEATURES,
        sample=True,
        num_beams=1,
        temperature=100.0,
        num_return_sequences=64,
        max_new_tokens=32,
        return_scores=True,
    )[0]
    rows = [text.token_ids.tolist() for text in texts]
    ended = [row for row in rows if row[-1] == tokenizer.end_id]
    assert 0 < len(ended) < len(rows)
    assert all(tokenizer.end_id not in row[:-1] for row in rows)
    assert all(len(row) == 32 for row in rows if row not in ended)
    assert any(tokenizer.eos_id in row[:-1] for row in rows)


def test_a_folder_remembers_the_template(model, source):
    folder, generator = model
    assert generator.language_tokenizer.template is not None
    plain = blip2_jax.load(folder, prompt_template="plain")
    assert plain.language_tokenizer.template is None
    with pytest.raises(ValueError, match="must be one of plain, chat"):
        blip2_jax.load(folder, prompt_template="chatml")
    with pytest.raises(ValueError, match="--prompt_template does not apply"):
        blip2_jax.load("shapes_stage1", prompt_template="chat")
    with pytest.raises(ValueError, match="has no chat template"):
        blip2_jax.load("shapes", prompt_template="chat")


def test_an_exported_folder_ends_texts_at_the_end_of_a_turn(source, model, tmp_path):
    pytest.importorskip("torch", reason="transformers' processors need it")
    vision = ViTConfig(8, 1, 2, 16, image_size=28)
    config = dataclasses.replace(source.config, vision=vision)
    seeing = dataclasses.replace(source, config=config, arrays=random_arrays(config))
    write_huggingface(seeing, tmp_path / "out")
    tokenizer = model[1].language_tokenizer
    assert tokenizer.end_id != tokenizer.eos_id
    for name, section in (("generation_config", ""), ("config", "text_config")):
        content = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        declared = content[section] if section else content
        assert declared["eos_token_id"] == tokenizer.end_id, name
    back = blip2_jax.load(tmp_path / "out", prompt_template="chat")
    assert back.language_tokenizer.end_id == tokenizer.end_id
