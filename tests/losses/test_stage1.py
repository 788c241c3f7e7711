"""The stage-1 loss against the original: intermediate values, losses, gradients."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from blip2_jax.convert.tables import name_table
from blip2_jax.losses import hard_negatives
from blip2_jax.losses.hard_negatives import Negatives
from blip2_jax.losses.stage1 import Stage1Options, stage1_loss
from blip2_jax.nn import trees
from blip2_jax.nn.similarity import max_query_similarity
from tests.support.golden_stage1 import (
    STAGE1,
    batch_of,
    load_case,
    load_params,
    model,
    params,
    rules,
)
from tests.support.tolerances import assert_gradients, assert_values

ORIGINAL = Stage1Options()
CASES = ["base", "dup", "imageid_unfrozen"]


def recorded_negatives(case):
    read = lambda name: jnp.asarray(case[name].reshape(-1), jnp.int32)
    return Negatives(image=read("neg_image_idx"), text=read("neg_text_idx"))


def full_batch(case):
    """Add image ids to all cases, so that they share one compiled program."""
    batch = batch_of(case)
    return {"image_id": jnp.arange(len(case["image"])), **batch}


@functools.cache
def compiled_gradient(options):
    loss = lambda params, batch, negatives: stage1_loss(
        model(), params, batch, None, options, negatives
    )
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def loss_and_gradients(case, options=ORIGINAL, negatives=None):
    negatives = negatives or recorded_negatives(case)
    run = compiled_gradient(options)
    (_, metrics), gradients = run(params(), full_batch(case), negatives)
    return metrics, name_table.to_source(jax.device_get(gradients), rules())


def check_losses(metrics, expected):
    for ours, theirs in [("itc", "itc"), ("itm", "itm"), ("itg", "lm")]:
        assert_values(metrics[f"loss_{ours}"], expected[f"loss_{theirs}"].mean(), ours)
    assert_values(metrics["loss"], expected["loss"].mean())


def check_gradients(gradients, file):
    expected = load_file(STAGE1 / file)
    assert len(expected) > 100
    for name, gradient in expected.items():
        assert_gradients(gradients[name], gradient, name)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients(name):
    case = load_case(f"case_{name}")
    metrics, gradients = loss_and_gradients(case)
    check_losses(metrics, case)
    right = case["itm_logits"].argmax(-1) == case["itm_labels"]
    np.testing.assert_allclose(metrics["itm_accuracy"], right.mean(), rtol=1e-6)
    check_gradients(gradients, f"grads_{name}.safetensors")


def test_gradient_through_both_sides():
    case, options = load_case("case_base"), Stage1Options(full_itc_gradient=True)
    metrics, gradients = loss_and_gradients(case, options)
    check_losses(metrics, case)
    check_gradients(gradients, "grads_base_attachedgather.safetensors")


def test_two_ranks_average_within_shards():
    case, ranks = load_case("case_base"), load_case("ddp2")
    options = Stage1Options(num_shards=2)
    metrics, gradients = loss_and_gradients(case, options, recorded_negatives(ranks))
    check_losses(metrics, ranks)
    check_gradients(gradients, "ddp2_grads.safetensors")


def test_unshared_keys_and_values_change_nothing():
    case, options = load_case("case_base"), Stage1Options(share_kv=False)
    run = jax.jit(lambda p, b, n: stage1_loss(model(), p, b, None, options, n)[1])
    check_losses(run(params(), full_batch(case), recorded_negatives(case)), case)


@jax.jit
def intermediates(params, batch, negatives, decoder_ids):
    """Return every quantity that the original recorded, by its name."""
    bound = model().bind({"params": params})
    qformer, tokens = bound.qformer, bound.query_tokens
    ids, mask = batch["text_ids"], batch["text_mask"]
    image = bound.image_keys_values(bound.encode_image(batch["image"]))
    hidden, cache = qformer.query_pass(tokens, image)
    text = qformer.text_pass(ids, mask)
    queries = bound.project_queries(hidden)
    texts = bound.project_text(text[:, 0])
    similarity = max_query_similarity(queries, texts) / params["temperature"]
    positives = hard_negatives.same_image(batch["image_id"])

    join = lambda a, b, c: jnp.concatenate([a, b, c])
    itm_image = jax.tree.map(lambda x: join(x, x[negatives.image], x), image)
    itm_ids, itm_mask = (join(x, x, x[negatives.text]) for x in (ids, mask))
    multimodal = qformer.multimodal_pass(tokens, itm_ids, itm_mask, itm_image)
    lm_hidden = qformer.generate_pass(decoder_ids, mask, cache)
    return {
        "query_output": hidden,
        "text_output": text,
        "image_feats": queries,
        "text_feats": texts,
        "sim_i2t": similarity,
        "sim_t2i": similarity.T,
        "weights_i2t": hard_negatives.negative_weights(similarity, positives),
        "weights_t2i": hard_negatives.negative_weights(similarity.T, positives),
        "itm_hidden": multimodal,
        "itm_logits": bound.itm_logits(multimodal[:, : hidden.shape[1]]),
        "lm_hidden": lm_hidden,
        "lm_logits": qformer.lm_logits(lm_hidden),
    }


@pytest.mark.parametrize("name", CASES)
def test_intermediates(name):
    case = load_case(f"case_{name}")
    ours = intermediates(
        params(),
        full_batch(case),
        recorded_negatives(case),
        jnp.asarray(case["decoder_input_ids"]),
    )
    for quantity, value in ours.items():
        assert_values(value, case[quantity], quantity)


def decayed_paths():
    """Return our paths of the arrays that the original decays, including `temp`."""
    groups = json.loads((STAGE1 / "optim_groups.json").read_text())
    decayed = {n for group in groups if group["weight_decay"] for n in group["params"]}
    assert "temp" in decayed
    return {
        path
        for rule in rules()
        for sources, paths in zip(
            rule.source_names(), rule.target_paths(), strict=False
        )
        if decayed.intersection(sources)
        for path in paths
    }


def test_five_steps_of_adamw():
    """Compare the loss of each step and the final weights, except key biases."""
    record = load_case("train5")
    cases = [load_case("case_base"), load_case("case_dup")]
    trained = {
        path: weight
        for path, weight in trees.flatten(params()).items()
        if not path.startswith("visual_encoder/")
    }
    frozen = {p: w for p, w in trees.flatten(params()).items() if p not in trained}
    decayed = decayed_paths()
    rates = jnp.asarray(record["lr"], jnp.float32)
    optimizer = optax.adamw(
        lambda count: rates[count],
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.05,
        mask={path: path in decayed for path in trained},
    )

    @jax.jit
    def update(weights, gradients, state):
        updates, state = optimizer.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state

    state, run = optimizer.init(trained), compiled_gradient(ORIGINAL)
    for step, loss in enumerate(record["loss"]):
        read = lambda name, s=step: jnp.asarray(record[name][s], jnp.int32)
        negatives = Negatives(image=read("neg_image_idx"), text=read("neg_text_idx"))
        tree = trees.unflatten(trained | frozen)
        batch = full_batch(cases[step % 2])
        (_, metrics), gradients = run(tree, batch, negatives)
        assert_values(metrics["loss"], loss, f"step {step}")
        flat = trees.flatten(gradients)
        trained, state = update(trained, {path: flat[path] for path in trained}, state)
    expected = trees.flatten(load_params("train5_weights.safetensors"))
    for path, weight in trained.items():
        if not path.endswith("key/bias"):
            assert_values(weight, expected[path], path)
