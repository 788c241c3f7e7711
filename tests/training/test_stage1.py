"""The stage-1 loss against the original: intermediates, losses, every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_stage1 import (
    STAGE1,
    apply,
    assert_gradients,
    assert_values,
    batch_of,
    config,
    load_case,
    model,
    params,
    rules,
)
from safetensors.numpy import load_file

from blip2_jax import objectives
from blip2_jax.convert import names
from blip2_jax.objectives import Negatives
from blip2_jax.training.stage1 import Stage1Options, stage1_loss


def recorded_negatives(case):
    read = lambda name: jnp.asarray(case[name].reshape(-1), jnp.int32)
    return Negatives(image=read("neg_image_idx"), text=read("neg_text_idx"))


def loss_and_gradients(case, options=Stage1Options(), negatives=None, key=None):
    batch, negatives = batch_of(case), negatives or recorded_negatives(case)
    loss = lambda p: stage1_loss(model(), p, batch, key, options, negatives)
    (_, metrics), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params())
    return metrics, names.to_source(jax.device_get(gradients), rules())


def check_gradients(gradients, file):
    expected = load_file(STAGE1 / file)
    assert len(expected) > 100
    for name, gradient in expected.items():
        assert_gradients(gradients[name], gradient, name)


CASES = ["base", "dup", "imageid_unfrozen"]


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients(name):
    case = load_case(f"case_{name}")
    metrics, gradients = loss_and_gradients(case)
    for ours, theirs in [("itc", "itc"), ("itm", "itm"), ("itg", "lm")]:
        assert_values(metrics[f"loss_{ours}"], case[f"loss_{theirs}"], ours)
    assert_values(metrics["loss"], case["loss"])
    right = case["itm_logits"].argmax(-1) == case["itm_labels"]
    np.testing.assert_allclose(metrics["itm_accuracy"], right.mean(), rtol=1e-6)
    check_gradients(gradients, f"grads_{name}.safetensors")


@pytest.mark.parametrize(
    "options",
    [Stage1Options(share_kv=False), Stage1Options(full_itc_gradient=True)],
    ids=["unshared", "full_itc_gradient"],
)
def test_options_with_the_same_losses(options):
    case = load_case("case_base")
    metrics, gradients = loss_and_gradients(case, options)
    assert_values(metrics["loss"], case["loss"])
    attached = "_attachedgather" if options.full_itc_gradient else ""
    check_gradients(gradients, f"grads_base{attached}.safetensors")


def test_two_ranks_average_within_shards():
    ranks = load_case("ddp2")
    metrics, gradients = loss_and_gradients(
        load_case("case_base"), Stage1Options(num_shards=2), recorded_negatives(ranks)
    )
    for ours, theirs in [("itc", "itc"), ("itm", "itm"), ("itg", "lm")]:
        assert_values(metrics[f"loss_{ours}"], ranks[f"loss_{theirs}"].mean(), ours)
    check_gradients(gradients, "ddp2_grads.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_intermediates(name):
    case = load_case(f"case_{name}")
    batch, negatives = batch_of(case), recorded_negatives(case)
    ids, mask = batch["text_ids"], batch["text_mask"]
    features = apply("encode_image", batch["image"])
    image = apply("image_keys_values", features)
    hidden, cache = apply("query_pass", image)
    assert_values(hidden, case["query_output"])
    queries = apply("project_queries", hidden)
    assert_values(queries, case["image_feats"])
    text = apply("text_pass", ids, mask)
    assert_values(text, case["text_output"])
    texts = apply("project_text", text[:, 0])
    assert_values(texts, case["text_feats"])

    similarity = objectives.similarities(queries, texts) / params()["temperature"]
    assert_values(similarity, case["sim_i2t"])
    assert_values(similarity.T, case["sim_t2i"])
    ids_of = batch.get("image_id", jnp.arange(len(similarity)))
    positives = objectives.same_image(ids_of)
    weights = objectives.negative_weights(similarity, positives)
    assert_values(weights, case["weights_i2t"])
    weights = objectives.negative_weights(similarity.T, positives)
    assert_values(weights, case["weights_t2i"])

    join = lambda a, b, c: jnp.concatenate([a, b, c])
    itm_image = jax.tree.map(lambda x: join(x, x[negatives.image], x), image)
    itm_ids, itm_mask = (join(x, x, x[negatives.text]) for x in (ids, mask))
    multimodal = apply("multimodal_pass", itm_ids, itm_mask, itm_image)
    assert_values(multimodal, case["itm_hidden"])
    count = config().qformer.num_queries
    assert_values(apply("itm_logits", multimodal[:, :count]), case["itm_logits"])

    decoder_ids = jnp.asarray(case["decoder_input_ids"])
    hidden = apply("generate_pass", decoder_ids, mask, cache)
    assert_values(hidden, case["lm_hidden"])
    assert_values(apply("lm_logits", hidden), case["lm_logits"])
