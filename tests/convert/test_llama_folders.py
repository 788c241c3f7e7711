"""Folders of the Llama family: round trips, declared settings, sizes, stage 2."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from blip2_jax.configs import stage2_language_model
from blip2_jax.convert.files.checkpoint_files import SourceError
from blip2_jax.convert.language_families.registry import (
    FAMILIES,
    SETTINGS,
    language_model_rules,
    language_sizes,
)
from blip2_jax.convert.language_folder import language_options, language_sizes_of
from blip2_jax.convert.tables import name_table
from blip2_jax.convert.vocabulary import check_vocabulary
from blip2_jax.convert.weights import open_arrays
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.inference.generator import Blip2Generator
from blip2_jax.models import presets
from blip2_jax.models.blip2 import init_params
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.sizes import FeaturesConfig, QFormerConfig
from blip2_jax.nn.trees import flatten
from blip2_jax.parallel.sharding import make_global_batch, make_mesh
from blip2_jax.training.tasks import make_task, model_config
from blip2_jax.training.train_config import ConfigError
from tests.support import one_step
from tests.support.changed_folder import changed
from tests.support.llama_peers import MODELS, SCALED, ours, peer
from tests.support.spaced_words import write_tokenizer


@pytest.mark.parametrize("name", MODELS)
def test_names_are_complete_and_the_round_trip_is_bit_exact(name):
    config, params = ours(name)
    source = {key: value.numpy() for key, value in peer(name).state_dict().items()}
    rules = language_model_rules(config, target="")
    back = name_table.to_source(params, rules)
    assert back.keys() == source.keys()
    for key, array in back.items():
        np.testing.assert_array_equal(array, source[key], key)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a function that returns the folder of a model, written once."""
    root = tmp_path_factory.mktemp("llama")

    def make(name):
        if not (root / name).exists():
            peer(name).save_pretrained(root / name)
        return root / name

    return make


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_has_its_sizes_and_weights(folders, name):
    config, params = ours(name)
    folder = folders(name)
    assert language_sizes_of(folder) == config
    vision, qformer = FeaturesConfig(3, 8), QFormerConfig(16, 1, 2, 16)
    arrays = open_arrays(folder, presets.Blip2Config(vision, qformer, config))
    expected = flatten({"language_model": params})
    assert set(arrays) == set(expected)
    for path, array in expected.items():
        np.testing.assert_array_equal(arrays[path], array, path)


@pytest.mark.parametrize("name", MODELS)
def test_all_settings_of_transformers_are_known(name):
    """Newer versions of transformers may add one, which must be looked at."""
    config = peer(name).config
    declared = json.loads(config.to_json_string(use_diff=False))
    assert SETTINGS[config.model_type].problem(declared) == ""


@pytest.mark.parametrize("name", [*MODELS, *SCALED])
def test_sizes_survive_the_way_to_transformers_and_back(name):
    import transformers

    config, _ = ours(name)
    write = FAMILIES[config.family].write
    declared = write(config, config.vocab_size, config.eos_id)
    theirs = transformers.AutoConfig.for_model(**declared)
    assert language_sizes(theirs) == config


def test_settings_of_earlier_versions_of_transformers(folders, tmp_path):
    folder = changed(
        folders("llama"),
        tmp_path / "x",
        rope_parameters=None,
        rope_theta=500.0,
        rope_scaling={"type": "linear", "factor": 2.0},
        head_dim=None,
    )
    config = dataclasses.replace(
        ours("llama")[0], rope_theta=500.0, rope_scaling="linear", rope_factor=2.0
    )
    assert language_sizes_of(folder) == config


REFUSED = {
    "hidden_act": "gelu",
    "attention_dropout": 0.1,
    "rope_scaling": {"rope_type": "proportional", "factor": 2.0},
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mscale": 2.0},
    "quantization_config": {"load_in_8bit": True},
    "vocab_size": 41,
    "num_hidden_layers": 3,
    "eos_token_id": None,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_file_and_setting(folders, tmp_path, name):
    folder = changed(folders("llama"), tmp_path / "x", **{name: REFUSED[name]})
    words = {"rope_parameters": "mscale", "rope_scaling": "'proportional'"}
    with pytest.raises(SourceError) as error:
        language_sizes_of(folder)
    for word in ("config.json", words.get(name, name)):
        assert word in str(error.value)


def test_weights_of_another_rotation_are_refused(folders, tmp_path):
    """No array shows the base of the rotary frequencies."""
    config, _ = ours("llama")
    folder = changed(
        folders("llama"),
        tmp_path / "x",
        rope_parameters={"rope_type": "default", "rope_theta": 7.0},
    )
    vision, qformer = FeaturesConfig(3, 8), QFormerConfig(16, 1, 2, 16)
    with pytest.raises(SourceError, match=r"declares rope_theta 7\.0, the model has"):
        open_arrays(folder, presets.Blip2Config(vision, qformer, config))


def test_a_window_limits_the_positions(folders, tmp_path):
    assert language_sizes_of(folders("mistral")).max_positions == 64
    wide = changed(folders("mistral"), tmp_path / "x", sliding_window=None)
    assert language_sizes_of(wide).max_positions == 128
    windows = {"use_sliding_window": True, "sliding_window": 32, "layer_types": None}
    narrow = changed(folders("qwen2"), tmp_path / "y", max_window_layers=1, **windows)
    assert language_sizes_of(narrow).max_positions == 32
    other = {"layer_types": ["full_attention", "chunked_attention"]}
    strange = changed(folders("qwen3"), tmp_path / "z", **other)
    with pytest.raises(SourceError, match="chunked_attention"):
        language_sizes_of(strange)


def test_other_architectures_are_named(folders, tmp_path):
    folder = changed(folders("llama"), tmp_path / "x", model_type="gemma")
    with pytest.raises(SourceError, match="has model_type 'gemma'"):
        language_options(folder)


@pytest.mark.parametrize("begin", [None, "<s>"])
def test_the_tokenizer_says_how_texts_begin_and_end(folders, tmp_path, begin):
    folder = changed(folders("llama"), tmp_path / "x", eos_token_id=[9, 2])
    write_tokenizer(folder, begin)
    options = language_options(folder)
    assert options["kind"] == "llama"
    assert (options["bos_id"], options["eos_id"]) == (1 if begin else None, 2)
    assert options["pad_id"] == 2


def test_one_step_of_stage2(folders, tmp_path):
    """A folder is the frozen language model; its sizes and tokenizer are its own."""
    folder = changed(folders("llama3"), tmp_path / "x")
    write_tokenizer(folder)
    config = one_step.config_of("stage2")
    sizes = {"language_model": language_options(folder)}
    config.model.overrides = one_step.SIZES | sizes
    config.frozen_sources.language_model = str(folder)
    task, mesh = make_task(config), make_mesh(devices=jax.devices()[:1])
    assert (task.batch_format, task.model.config.language_model.bos_id) == (
        "decoder",
        None,
    )
    state, frozen, step = one_step.prepare(config, task, mesh)
    before = flatten(jax.device_get(state.trainable))
    batch = make_global_batch(one_step.rows("stage2"), mesh)
    state, metrics = step(state, frozen, batch)
    assert 0 < metrics["loss"] < 20
    after = flatten(jax.device_get(state.trainable))
    assert not np.array_equal(after["query_tokens"], before["query_tokens"])
    expected = flatten({"language_model": ours("llama3")[1]})
    for path, array in flatten(frozen).items():
        if path in expected:
            np.testing.assert_array_equal(array, expected[path], path)


def test_a_configuration_for_any_folder(folders, tmp_path):
    folder = changed(folders("granite"), tmp_path / "x")
    write_tokenizer(folder, "<s>")
    config = stage2_language_model.get_config(str(folder))
    sizes = model_config(config.model)
    assert sizes.language_model == language_sizes_of(folder)
    assert sizes.language_model.residual_scale == 0.7
    assert config.data.tokenizer.language_model == str(folder)
    with pytest.raises(ConfigError, match="needs the folder"):
        stage2_language_model.get_config()


def config_of(language_model):
    return presets.Blip2Config(
        FeaturesConfig(3, 8),
        QFormerConfig(16, 1, 2, 16, num_queries=2, vocab_size=24, max_positions=16),
        language_model,
    )


def test_model_and_tokenizer_begin_texts_alike(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path), language_model=True)
    sizes, _ = ours("llama")
    check_vocabulary(tokenizer, config_of(dataclasses.replace(sizes, bos_id=None)))
    with pytest.raises(ValueError, match=r"bos_id .* is 1, but .* is None"):
        check_vocabulary(tokenizer, config_of(sizes))


def test_captions_without_bos_and_prompt(tmp_path):
    """The queries alone precede the caption."""
    sizes, language_model = ours("llama")
    model = Blip2Stage2(config_of(dataclasses.replace(sizes, bos_id=None)))
    params = init_params(model, jax.random.key(0)) | {"language_model": language_model}
    tokenizer = load_tokenizer(write_tokenizer(tmp_path), language_model=True)
    generator = Blip2Generator(model, params, language_tokenizer=tokenizer)
    features = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    captions = generator.caption(features=features, max_new_tokens=4, num_beams=2)
    alone = generator.caption(features=features[1:], max_new_tokens=4, num_beams=2)
    assert captions[1:] == alone
    words = {word for caption in captions for word in caption.split()}
    assert words and all(word.startswith("w") for word in words)
