"""Name tables of stage 2: LAVIS, OPT, T5 and Hugging Face."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.convert.huggingface_folder import huggingface_rules
from blip2_jax.convert.language_families.registry import language_model_rules
from blip2_jax.convert.tables import lavis, name_table
from blip2_jax.convert.tables.lavis import stage2_rules
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.presets import Blip2Config, preset
from blip2_jax.models.sizes import (
    FeaturesConfig,
    OPTConfig,
    QFormerConfig,
    T5Config,
    ViTConfig,
)
from tests.support import golden_stage2 as golden
from tests.support.tolerances import assert_values


@pytest.mark.parametrize("name", golden.NAMES)
def test_round_trip_is_bit_exact(name):
    source = golden.source(name)
    back = name_table.to_source(golden.params(name), golden.rules(name))
    assert back.keys() | {lavis.POSITION_IDS} == source.keys()
    for key, array in back.items():
        np.testing.assert_array_equal(array, source[key], key)


def test_a_missing_layer_is_named():
    source = dict(golden.source("stage2_opt_a"))
    del source["opt_model.model.decoder.layers.1.fc1.weight"]
    with pytest.raises(ValueError, match="language_model/blocks/mlp/up/kernel"):
        name_table.to_ours_complete(
            source, golden.rules("stage2_opt_a"), ignore=[lavis.POSITION_IDS]
        )


def test_stage1_has_no_stage2_table():
    with pytest.raises(ValueError, match=r"config\.language_model"):
        stage2_rules(preset("pretrain"))


def test_features_have_no_huggingface_table():
    config = golden.config("stage2_opt_a")
    config = Blip2Config(FeaturesConfig(2, 3), config.qformer, config.language_model)
    with pytest.raises(ValueError, match="EVA-CLIP's image encoder only"):
        huggingface_rules(config)


VISION = ViTConfig(16, 2, 2, 24, image_size=28)
QFORMER = QFormerConfig(16, 2, 2, 24, num_queries=4, vocab_size=20, max_positions=16)
LANGUAGE = {
    "opt": OPTConfig(16, 2, 2, 24, vocab_size=40, max_positions=32),
    "t5": T5Config(
        16,
        2,
        2,
        24,
        head_width=8,
        vocab_size=40,
        relative_buckets=8,
        relative_max_distance=10,
    ),
}


def text_config(transformers, config):
    if isinstance(config, OPTConfig):
        return transformers.OPTConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=24,
            max_position_embeddings=32,
            word_embed_proj_dim=16,
        )
    return transformers.T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=10,
        feed_forward_proj="gated-gelu",
        dense_act_fn="gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )


def huggingface_model(config):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.Blip2ForConditionalGeneration(
        transformers.Blip2Config(
            vision_config=dict(
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=28,
                patch_size=14,
            ),
            qformer_config=dict(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=24,
                vocab_size=20,
                max_position_embeddings=16,
                encoder_hidden_size=16,
            ),
            text_config=text_config(transformers, config).to_dict(),
            num_query_tokens=4,
        )
    ).eval()
    for name, parameter in model.named_parameters():
        if not name.startswith("language_model."):
            torch.nn.init.normal_(parameter, std=0.3)
        if name.endswith("self_attn.qkv.bias"):  # the released models have none
            parameter.data[16:32] = 0
    return model


@functools.partial(jax.jit, static_argnums=0)
def project(model, params, images):
    bound = model.bind({"params": params})
    return bound.project(bound.encode_queries(bound.encode_image(images)))


@pytest.mark.parametrize("family", LANGUAGE)
def test_equals_huggingface(family):
    """Names in both directions, and the queries projected to the language model."""
    theirs = huggingface_model(LANGUAGE[family])
    import torch

    config = Blip2Config(VISION, QFORMER, LANGUAGE[family])
    source = {key: value.numpy() for key, value in theirs.state_dict().items()}
    rules = huggingface_rules(config)
    params = name_table.to_ours_complete(source, rules)
    back = name_table.to_source(params, rules)
    assert back.keys() == source.keys()
    for key, array in back.items():
        np.testing.assert_array_equal(array, source[key], key)

    images = np.random.default_rng(0).normal(size=(2, 28, 28, 3)).astype(np.float32)
    with torch.no_grad():
        features = theirs.vision_model(torch.tensor(images.transpose(0, 3, 1, 2)))
        queries = theirs.qformer(
            query_embeds=theirs.query_tokens.expand(2, -1, -1),
            encoder_hidden_states=features.last_hidden_state,
        ).last_hidden_state
        expected = theirs.language_projection(queries).numpy()
    projected = project(Blip2Stage2(config, jnp.float32), params, images)
    assert_values(projected, expected)


def test_language_model_alone():
    """A frozen language model is read from its own project's checkpoint."""
    config = golden.config("stage2_t5_a").language_model
    prefix = "t5_model."
    source = {
        name.removeprefix(prefix): array
        for name, array in golden.source("stage2_t5_a").items()
        if name.startswith(prefix)
    }
    alone = name_table.to_ours_complete(source, language_model_rules(config))
    expected = golden.params("stage2_t5_a")["language_model"]
    jax.tree.map(np.testing.assert_array_equal, alone["language_model"], expected)
