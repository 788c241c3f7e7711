"""Names and shapes of every released checkpoint at full size, without allocation."""

import functools
import json

import jax
import pytest

from blip2_jax.convert.huggingface_folder import huggingface_rules
from blip2_jax.convert.language_families.registry import language_sizes
from blip2_jax.convert.lavis_file import lavis_arrays, lavis_rules, released_sizes
from blip2_jax.convert.model_source import TOWERS, ModelSource, expected_shapes
from blip2_jax.convert.tables import lavis
from blip2_jax.models.presets import PRESETS, RELEASED, preset
from blip2_jax.models.sizes import OPTConfig
from tests.support import peer_models as peers
from tests.support.goldens import GOLDENS

VIT_G = [
    name
    for name in RELEASED
    if PRESETS[name].language_model and not PRESETS[name].vision.pre_norm
]


@functools.cache
def keys(name):
    return json.loads((GOLDENS / f"keys_{name}.json").read_text())


def shapes_of(arrays):
    return {name: list(array.shape) for name, array in arrays.items()}


@pytest.mark.parametrize("name", RELEASED)
def test_names_in_released_files(name):
    """A LAVIS file lacks the frozen towers but holds aliases of token tables."""
    config, expected = preset(name), keys(f"{name}_checkpoint")
    has_tower = any(key.startswith("visual_encoder.") for key in expected)
    elsewhere = TOWERS[1:] if has_tower else TOWERS

    def write(arrays):
        model = ModelSource(config, arrays, "test", elsewhere=elsewhere)
        return dict(lavis_arrays(model))

    written = jax.eval_shape(write, expected_shapes(config))
    assert shapes_of(written) == expected


@pytest.mark.parametrize("name", RELEASED)
def test_every_name_in_both_directions(name):
    """The table yields every parameter of the model and every name of the file."""
    config = preset(name)
    rules = lavis_rules(config)
    theirs = {
        key: jax.ShapeDtypeStruct(tuple(shape), "float16")
        for key, shape in keys(name).items()
        if key != lavis.POSITION_IDS
    }

    def convert(arrays):
        return {k: v for rule in rules for k, v in rule.to_ours(arrays).items()}

    def back(arrays):
        return {k: v for rule in rules for k, v in rule.to_source(arrays).items()}

    ours = jax.eval_shape(convert, theirs)
    assert shapes_of(ours) == shapes_of(expected_shapes(config))
    assert jax.eval_shape(back, ours) == theirs


class Shapes(dict):
    """A source whose values are unknown."""

    path = "keys.json"

    def shape(self, name):
        return tuple(self[name])


@pytest.mark.parametrize("name", RELEASED)
def test_released_files_are_recognised(name):
    """Sizes follow from shapes, in complete files and in those without towers."""
    assert released_sizes(Shapes(keys(name))).vision == preset(name).vision
    sizes = released_sizes(Shapes(keys(f"{name}_checkpoint")))
    assert sizes.language_model == preset(name).language_model
    assert sizes.vision == preset(name).vision


def meta_model(name):
    """Return transformers' model of this size, without allocation."""
    torch, transformers = peers.torch_and_transformers()
    config = preset(name)
    sizes = config.language_model
    if isinstance(sizes, OPTConfig):
        text = transformers.OPTConfig(
            hidden_size=sizes.width,
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.heads,
            ffn_dim=sizes.mlp_dim,
            word_embed_proj_dim=sizes.width,
            vocab_size=sizes.vocab_size,
        )
    else:
        text = transformers.T5Config(
            d_model=sizes.width,
            d_kv=64,
            d_ff=sizes.mlp_dim,
            num_layers=sizes.depth,
            num_heads=sizes.heads,
            feed_forward_proj="gated-gelu",
            vocab_size=32128,
            tie_word_embeddings=False,
            decoder_start_token_id=0,
        )
    kwargs = {"vision_config": {"image_size": config.vision.image_size}}
    theirs = transformers.Blip2Config(text_config=text, **kwargs)
    with torch.device("meta"):
        return transformers.Blip2ForConditionalGeneration(theirs), text


@pytest.mark.parametrize("name", VIT_G)
def test_huggingface_at_full_size(name):
    model, text = meta_model(name)
    config = preset(name)
    rules = huggingface_rules(config)

    def convert(arrays):
        return {k: v for rule in rules for k, v in rule.to_source(arrays).items()}

    written = jax.eval_shape(convert, expected_shapes(config))
    assert shapes_of(written) == shapes_of(model.state_dict())
    ours = language_sizes(text)
    assert (ours.width, ours.depth, ours.heads, ours.mlp_dim, ours.vocab_size) == (
        config.language_model.width,
        config.language_model.depth,
        config.language_model.heads,
        config.language_model.mlp_dim,
        config.language_model.vocab_size,
    )
