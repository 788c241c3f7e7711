"""The Llama family: equal to transformers; decoding equal to the full forward pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.convert.language_families import llama
from blip2_jax.generation import DecodingConfig, decode
from blip2_jax.generation.decoder import bound_decoder
from blip2_jax.losses.objectives import lm_loss
from blip2_jax.models import presets
from blip2_jax.models.language.llama import Llama, rotary_frequencies
from blip2_jax.models.sizes import LlamaConfig
from tests.support.decoding_steps import fork, histories, run_steps
from tests.support.llama_peers import EOS, MODELS, SCALED, SIZES, VOCAB, ours, peer
from tests.support.tolerances import assert_gradients, assert_ids, assert_values

TINY = LlamaConfig(16, 2, 4, 2, 8, 20, vocab_size=VOCAB, max_positions=32)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, ids, mask):
    bound = model.bind({"params": params})
    return bound.logits(bound.hidden(bound.embed(ids), mask))


def padded(side, rows=3, length=6):
    ids = np.random.default_rng(0).integers(3, VOCAB, (rows, length))
    mask = np.arange(length) < np.array([length, 2, 4])[:rows, None]
    return ids, mask if side == "right" else mask[:, ::-1].copy()


@pytest.mark.parametrize("name", [*MODELS, *SCALED])
def test_logits_equal_transformers(name):
    theirs, (config, params) = peer(name), ours(name)
    import torch

    for side in ("right", "left"):
        ids, mask = padded(side)
        with torch.no_grad():
            expected = theirs(
                input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long()
            ).logits.numpy()
        actual = np.asarray(forward(Llama(config), params, ids, mask))
        assert_values(actual[mask], expected[mask], side)


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_of_the_queries_equal_transformers(name):
    theirs, (config, params) = peer(name), ours(name)
    import torch

    ids, mask = padded("right")
    targets = mask & (np.arange(6) > 0)
    queries = np.random.default_rng(1).normal(size=(3, 4, config.width))
    queries = queries.astype(np.float32)
    prefix = torch.tensor(queries, requires_grad=True)
    words = theirs.get_input_embeddings()(torch.tensor(ids))
    seen = torch.tensor(np.concatenate([np.ones((3, 4), bool), mask], 1)).long()
    labels = np.concatenate([np.full((3, 4), -100), np.where(targets, ids, -100)], 1)
    expected = theirs(
        inputs_embeds=torch.cat([prefix, words], 1),
        attention_mask=seen,
        labels=torch.tensor(labels),
    ).loss
    expected.backward()

    @jax.jit
    @jax.value_and_grad
    def loss(queries):
        batch = {"text_ids": ids, "text_mask": mask, "target_mask": targets}
        return lm_loss(
            *Llama(config).bind({"params": params}).training_logits(queries, batch)
        )

    value, gradient = loss(queries)
    assert_values(value, expected.item(), "loss")
    assert_gradients(gradient, prefix.grad.numpy(), "gradient")


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_generated_ids_equal_transformers(name, beams):
    theirs, (config, params) = peer(name), ours(name)
    import torch

    _, mask = padded("left")
    embeds = np.random.default_rng(2).normal(size=(3, 6, config.width))
    embeds = embeds.astype(np.float32)
    with torch.no_grad():
        expected = theirs.generate(
            inputs_embeds=torch.tensor(embeds),
            attention_mask=torch.tensor(mask).long(),
            max_new_tokens=8,
            num_beams=beams,
            do_sample=False,
        ).numpy()

    @jax.jit
    def generate(params):
        bind = lambda: Llama(config).bind({"params": params})
        logits, prefix = bind().prefill(embeds, jnp.asarray(mask))
        decoder = bound_decoder(bind, EOS, config.pad_id)
        settings = DecodingConfig(max_new_tokens=8, num_beams=beams)
        return decode(decoder, logits, prefix, settings)

    found = jax.device_get(generate(params))
    for row, length in enumerate(found.lengths[:, 0]):
        assert_ids(found.ids[row, 0, :length], expected[row][:length], f"{beams} beams")
        assert set(expected[row][length:].tolist()) <= {config.pad_id, EOS}


@pytest.mark.parametrize("name", ["llama3", "linear", "granite"])
def test_decoding_equals_the_full_forward_pass(name):
    """Prompts are padded on the left; three beams fork; weights may be unstacked."""
    config, params = ours(name)
    model, (prompt, mask) = Llama(config), padded("left")
    bind = lambda: model.bind({"params": params})
    embeds, mask = bind().embed(prompt), jnp.asarray(mask)
    logits, prefix = bind().prefill(embeds, mask)
    weights = bind().unstacked_weights()
    unstacked_logits, unstacked_prefix = bind().prefill(embeds, mask, weights)
    assert_values(logits, forward(model, params, prompt, mask)[:, -1])
    assert_values(unstacked_logits, logits, "unstacked")

    new = np.random.default_rng(1).integers(3, VOCAB, (3, 3, 4))
    forks = fork(*new.shape)
    steps = run_steps(bind, prefix, new, forks)
    unstacked = run_steps(bind, unstacked_prefix, new, forks)
    assert_values(np.array(unstacked), np.array(steps), "unstacked")
    for time, actual in enumerate(steps):
        tokens = histories(new, forks[time])
        for beam in range(3):
            ids = np.concatenate([prompt, tokens[:, beam]], axis=1)
            real = np.concatenate([mask, np.arange(4) <= time + np.zeros((3, 1))], 1)
            full = forward(model, params, ids, real.astype(bool))
            assert_values(actual[:, beam], full[:, 6 + time], f"{time} {beam}")


def init(config):
    batch = {"text_ids": jnp.ones((1, 2), jnp.int32)}
    batch |= dict.fromkeys(("text_mask", "target_mask"), jnp.ones((1, 2), bool))
    model = Llama(config)
    method = model.training_logits
    return lambda key: model.init(key, None, batch, method=method)["params"]


def test_scan_unrolled_and_remat_are_equal():
    params = jax.jit(init(TINY))(jax.random.key(0))
    ids, mask = padded("right")
    expected = forward(Llama(TINY), params, ids, mask)
    for remat in ("none", "full"):
        unrolled = Llama(TINY, jnp.float32, False, remat)
        assert_values(forward(unrolled, params, ids, mask), expected, remat)


def test_more_positions_than_the_model_has():
    bound = Llama(TINY).bind({"params": jax.jit(init(TINY))(jax.random.key(0))})
    _, prefix = bound.prefill(jnp.zeros((1, 20, 16)), jnp.ones((1, 20), bool))
    with pytest.raises(ValueError, match="take 33 positions; this Llama has 32"):
        bound.init_generated(prefix, 1, 13)


def test_llama3_scaling_divides_low_frequencies_only():
    config = presets.LLAMA_3_2_1B
    plain = rotary_frequencies(LlamaConfig(1, 1, 1, 1, 64, 1, rope_theta=500_000.0))
    ratio = plain / rotary_frequencies(config)
    assert ratio[0] == 1 and ratio[-1] == 32
    assert np.all(np.diff(ratio) >= -1e-5)


@pytest.mark.parametrize("name", SCALED)
def test_frequencies_equal_transformers(name):
    """Of a head of 32 dimensions, of which some pairs turn fast and some slowly."""
    pytest.importorskip("torch", reason="torch is not installed")
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = SCALED[name] | {"rope_theta": 500.0}
    for factor in ("short_factor", "long_factor"):
        if factor in scaling:
            scaling[factor] = np.linspace(1, 3, 16).tolist()
    settings = SIZES | {"head_dim": 32, "rope_parameters": dict(scaling)}
    theirs = transformers.LlamaConfig(**settings)
    expected, attention = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](theirs, "cpu")
    config = llama.read(theirs)
    np.testing.assert_allclose(rotary_frequencies(config), expected.numpy(), rtol=1e-6)
    assert config.rope_attention_factor == pytest.approx(attention, rel=1e-12)


def test_longrope_ends_where_its_frequencies_would_change():
    """In transformers they do for a whole batch with a longer text."""
    factors = {"rope_short_factors": (1.0,) * 4, "rope_long_factors": (2.0,) * 4}
    config = dataclasses.replace(
        TINY, rope_scaling="longrope", rope_original_positions=24, **factors
    )
    assert (config.position_limit, TINY.position_limit) == (24, 32)
    assert dataclasses.replace(config, rope_long_factors=[2.0] * 4) == config
    with pytest.raises(ValueError, match=r"rope_long_factors holds \(\); .* needs 4"):
        dataclasses.replace(config, rope_long_factors=())
    with pytest.raises(ValueError, match="'none' needs 0 numbers"):
        dataclasses.replace(config, rope_scaling="none")


WRONG = {
    "kv_heads": (3, "no multiple of kv_heads 3"),
    "head_width": (7, "must be even"),
    "rope_scaling": ("ntk", "'ntk'; it must be one of none, linear, dynamic"),
    "rope_low_factor": (4.0, "must exceed"),
    "rope_factor": (0.0, "above 0"),
}


@pytest.mark.parametrize("field", WRONG)
def test_impossible_sizes_are_refused(field):
    value, message = WRONG[field]
    sizes = dict(width=16, depth=1, heads=4, kv_heads=2, head_width=4, mlp_dim=8)
    with pytest.raises(ValueError, match=message):
        LlamaConfig(**sizes | {field: value})


@pytest.mark.parametrize(
    ("config", "billions"),
    [
        (presets.LLAMA_2_7B, 6.738),
        (presets.VICUNA_13B, 13.016),
        (presets.LLAMA_3_2_1B, 1.236),
        (presets.MISTRAL_7B, 7.242),
        (presets.PHI_3_MINI, 3.821),
        (presets.QWEN2_5_0_5B, 0.494),
        (presets.QWEN3_0_6B, 0.596),
        (presets.SMOLLM2_135M, 0.1345),
    ],
)
def test_sizes(config, billions):
    tree = jax.eval_shape(init(config), jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert count / 1e9 == pytest.approx(billions, abs=6e-4)
