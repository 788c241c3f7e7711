"""The stage-1 model equals the original; precomputed features as input."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from blip2_jax.models.blip2 import init_params
from blip2_jax.models.blip2_stage1 import Blip2Stage1
from blip2_jax.models.sizes import FeaturesConfig
from tests.support.golden_stage1 import batch_of, config, load_case, model, params
from tests.support.tolerances import assert_values


def test_features_and_scores_equal_the_original():
    case = load_case("features")
    batch = batch_of(case)

    @jax.jit
    def run(params, batch):
        bound = model().bind({"params": params})
        ids, mask, tokens = batch["text_ids"], batch["text_mask"], bound.query_tokens
        image = bound.image_keys_values(bound.encode_image(batch["image"]))
        queries, _ = bound.qformer.query_pass(tokens, image)
        text = bound.qformer.text_pass(ids, mask)
        multimodal = bound.qformer.multimodal_pass(tokens, ids, mask, image)
        multimodal = multimodal[:, : len(tokens)]
        outputs = {
            "image_embeds": queries,
            "image_embeds_proj": bound.project_queries(queries),
            "text_embeds": text,
            "text_embeds_proj": bound.project_text(text),
            "multimodal_embeds": multimodal,
            "itm_logits": bound.itm_logits(multimodal),
        }
        cosines = jnp.einsum(
            "bqc,bc->bq",
            outputs["image_embeds_proj"],
            outputs["text_embeds_proj"][:, 0],
        )
        return outputs | {"itc_score": cosines.max(axis=1, keepdims=True)}

    for name, value in run(params(), batch).items():
        assert_values(value, case[name], name)


def test_a_model_of_features_has_no_tower():
    vision = FeaturesConfig(17, 48)
    features_model = Blip2Stage1(dataclasses.replace(config(), vision=vision))
    fresh = jax.eval_shape(lambda: init_params(features_model, jax.random.key(0)))
    assert fresh.keys() == params().keys() - {"visual_encoder"}
    shapes = lambda tree: {k: jax.tree.map(jnp.shape, tree[k]) for k in fresh}
    assert shapes(fresh) == shapes(params())

    encode = features_model.bind({"params": params()}).encode_image
    half = jax.eval_shape(encode, jnp.zeros((2, 17, 48), jnp.float16))
    assert (half.shape, half.dtype) == ((2, 17, 48), jnp.float32)
    with pytest.raises(ValueError, match=r"features \[B, 17, 48\]"):
        jax.eval_shape(encode, jnp.zeros((2, 16, 48)))


def test_fresh_parameters_match_the_golden_tree():
    fresh = jax.eval_shape(lambda: init_params(model(), jax.random.key(0)))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params())
