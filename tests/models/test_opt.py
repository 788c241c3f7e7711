"""OPT: equal to transformers; decoding equal to the full forward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.convert.tables import name_table
from blip2_jax.convert.tables.towers import opt_rules
from blip2_jax.models import presets
from blip2_jax.models.language.opt import OPT
from blip2_jax.models.sizes import OPTConfig
from tests.support.decoding_steps import fork, histories, run_steps
from tests.support.tolerances import assert_values

CONFIGS = {
    "pre_norm": OPTConfig(16, 3, 2, 24, vocab_size=40, max_positions=32),
    "post_norm": OPTConfig(
        16, 3, 2, 24, vocab_size=40, max_positions=32, embed_width=12, pre_norm=False
    ),
}


def torch_model(config):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            ffn_dim=config.mlp_dim,
            max_position_embeddings=config.max_positions,
            word_embed_proj_dim=config.embedding_width,
            do_layer_norm_before=config.pre_norm,
            init_std=0.5,
        )
    ).eval()


@functools.cache
def init(config):
    batch = {"text_ids": jnp.ones((1, 2), jnp.int32)}
    batch |= dict.fromkeys(("text_mask", "target_mask"), jnp.ones((1, 2), bool))
    model = OPT(config)
    method = model.training_logits
    build = jax.jit(lambda key: model.init(key, None, batch, method=method)["params"])
    # Larger weights than the initial ones, so that mistakes show; not so large that
    # attention is a choice between near ties, which rounding decides.
    return jax.tree.map(lambda leaf: leaf * 5, build(jax.random.key(0)))


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, ids, mask):
    bound = model.bind({"params": params})
    return bound.logits(bound.hidden(bound.embed(ids), mask))


def padded(side):
    ids = np.random.default_rng(0).integers(3, 40, (3, 6))
    mask = np.arange(6) < np.array([6, 2, 4])[:, None]
    return ids, mask if side == "right" else mask[:, ::-1].copy()


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers(name):
    config = CONFIGS[name]
    theirs = torch_model(config)
    import torch

    source = {key: value.numpy() for key, value in theirs.state_dict().items()}
    params = name_table.to_ours_complete(source, opt_rules(config))
    for side in ("right", "left"):
        ids, mask = padded(side)
        with torch.no_grad():
            expected = theirs(
                input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long()
            ).logits.numpy()
        actual = np.asarray(forward(OPT(config), params, ids, mask))
        assert_values(actual[mask], expected[mask], side)


@pytest.mark.parametrize("name", CONFIGS)
def test_scan_unrolled_and_remat_are_equal(name):
    config = CONFIGS[name]
    ids, mask = padded("right")
    expected = forward(OPT(config), init(config), ids, mask)
    for remat in ("none", "full"):
        actual = forward(
            OPT(config, jnp.float32, False, remat), init(config), ids, mask
        )
        assert_values(actual, expected, remat)


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_equals_the_full_forward_pass(name):
    """Prompts are padded on the left; three beams fork."""
    config, params = CONFIGS[name], init(CONFIGS[name])
    model, (prompt, mask) = OPT(config), padded("left")
    bind = lambda: model.bind({"params": params})
    embeds, mask = bind().embed(prompt), jnp.asarray(mask)
    logits, prefix = bind().prefill(embeds, mask)
    weights = bind().unstacked_weights()
    unstacked_logits, unstacked_prefix = bind().prefill(embeds, mask, weights)
    expected = forward(model, params, prompt, mask)
    assert_values(logits, expected[:, -1])
    assert_values(unstacked_logits, logits, "unstacked")

    new = np.random.default_rng(1).integers(3, 40, (3, 3, 4))
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


def test_prefill_reads_the_last_real_token_on_either_side():
    config = CONFIGS["pre_norm"]
    bound = OPT(config).bind({"params": init(config)})
    ids = np.array([[5, 6, 7, 0, 0]])
    outs = []
    for shift in (0, 2):
        moved = np.roll(ids, shift, axis=1)
        mask = jnp.asarray(moved != 0)
        outs.append(bound.prefill(bound.embed(moved), mask))
    np.testing.assert_allclose(outs[0][0], outs[1][0], rtol=1e-5, atol=1e-6)
    assert outs[0][1].next_position == outs[1][1].next_position == 3


def test_text_alone_predicts_the_next_token():
    config = CONFIGS["pre_norm"]
    ids, mask = padded("right")
    batch = {"text_ids": ids, "text_mask": mask, "target_mask": mask}
    bound = OPT(config).bind({"params": init(config)})
    logits, targets, counted = bound.training_logits(None, batch)
    expected = forward(OPT(config), init(config), ids, mask)
    np.testing.assert_allclose(logits, expected[:, :-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(targets, ids[:, 1:])
    np.testing.assert_array_equal(counted, mask[:, 1:])


def test_more_positions_than_the_table_has():
    config = CONFIGS["pre_norm"]
    bound = OPT(config).bind({"params": init(config)})
    _, prefix = bound.prefill(jnp.zeros((1, 20, 16)), jnp.ones((1, 20), bool))
    with pytest.raises(ValueError, match="take 33 positions; this OPT has 32"):
        bound.init_generated(prefix, 1, 13)


@pytest.mark.parametrize(
    ("config", "billions"),
    [
        (presets.OPT_125M, 0.125),
        (presets.OPT_350M, 0.331),
        (presets.OPT_1_3B, 1.316),
        (presets.OPT_2_7B, 2.652),
        (presets.OPT_6_7B, 6.658),
        (presets.OPT_13B, 12.853),
        (presets.OPT_30B, 29.975),
    ],
)
def test_sizes(config, billions):
    model = OPT(config)
    batch = {"text_ids": jnp.ones((1, 2), jnp.int32)}
    batch |= dict.fromkeys(("text_mask", "target_mask"), jnp.ones((1, 2), bool))
    tree = jax.eval_shape(
        lambda key: model.init(key, None, batch, method=model.training_logits),
        jax.random.key(0),
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert count / 1e9 == pytest.approx(billions, abs=6e-4)
