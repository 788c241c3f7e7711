"""T5: equal to transformers; decoding equal to the full forward pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.convert.tables import name_table
from blip2_jax.convert.tables.towers import t5_rules
from blip2_jax.models import presets
from blip2_jax.models.language.t5 import T5, distances
from blip2_jax.models.language.t5_block import relative_buckets
from blip2_jax.models.sizes import T5Config
from tests.support.decoding_steps import fork, histories, run_steps
from tests.support.tolerances import assert_values

CONFIG = T5Config(
    16,
    2,
    2,
    24,
    head_width=6,
    decoder_depth=3,
    vocab_size=40,
    activation="gelu_new",
    relative_buckets=8,
    relative_max_distance=10,
)


def torch_model(config):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=config.vocab_size,
            d_model=config.width,
            d_kv=config.head_width,
            d_ff=config.mlp_dim,
            num_layers=config.depth,
            num_decoder_layers=config.decoder_depth,
            num_heads=config.heads,
            relative_attention_num_buckets=config.relative_buckets,
            relative_attention_max_distance=config.relative_max_distance,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
        )
    ).eval()


@functools.cache
def init(config):
    model, batch = T5(config), empty_batch()
    method = model.training_logits
    build = jax.jit(lambda key: model.init(key, None, batch, method=method)["params"])
    # Larger weights than the initial ones, so that mistakes show; not so large that
    # rounding does (times five it moves logits by 1e-4, times three by 2e-6).
    return jax.tree.map(lambda leaf: leaf * 3, build(jax.random.key(0)))


def empty_batch():
    ids, mask = jnp.ones((1, 2), jnp.int32), jnp.ones((1, 2), bool)
    return dict.fromkeys(("input_ids", "target_ids"), ids) | dict.fromkeys(
        ("input_mask", "target_mask"), mask
    )


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, batch):
    return model.bind({"params": params}).training_logits(None, batch)[0]


def make_batch(side="right"):
    rng = np.random.default_rng(0)
    mask = np.arange(7) < np.array([7, 2, 4])[:, None]
    targets = np.arange(12) < np.array([12, 9, 1])[:, None]
    return {
        "input_ids": rng.integers(3, 40, (3, 7)),
        "input_mask": mask if side == "right" else mask[:, ::-1].copy(),
        "target_ids": rng.integers(3, 40, (3, 12)),
        "target_mask": targets,
    }


@pytest.mark.parametrize("side", ["right", "left"])
def test_equals_transformers(side):
    theirs = torch_model(CONFIG)
    import torch

    source = {key: value.numpy() for key, value in theirs.state_dict().items()}
    params = name_table.to_ours_complete(source, t5_rules(CONFIG))
    batch = make_batch(side)
    start = np.concatenate([np.zeros((3, 1), int), batch["target_ids"][:, :-1]], axis=1)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(batch["input_ids"]),
            attention_mask=torch.tensor(batch["input_mask"]).long(),
            decoder_input_ids=torch.tensor(start),
        ).logits.numpy()
    actual = np.asarray(forward(T5(CONFIG), params, batch))
    real = batch["target_mask"]
    # The initial head of transformers makes logits of some 4: the same bound, scaled.
    assert_values(actual[real] / 4, expected[real] / 4, side)


def test_buckets():
    """Eight rows up to distance 10: 0-3 for the past, 4-7 (encoder) for the future."""
    near = np.arange(-12, 6)[None]
    both = relative_buckets(near, bidirectional=True, buckets=8, max_distance=10)
    np.testing.assert_array_equal(
        both[0], [3, 3, 3, 3, 3, 3, 3, 3, 2, 2, 2, 1, 0, 5, 6, 6, 6, 7]
    )
    past = relative_buckets(near, bidirectional=False, buckets=8, max_distance=10)
    np.testing.assert_array_equal(
        past[0], [7, 7, 7, 7, 7, 6, 5, 4, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0]
    )
    assert distances(3).tolist() == [[0, 1, 2], [-1, 0, 1], [-2, -1, 0]]


def test_scan_unrolled_and_remat_are_equal():
    expected = forward(T5(CONFIG), init(CONFIG), make_batch())
    actual = forward(T5(CONFIG, jnp.float32, False, "full"), init(CONFIG), make_batch())
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_decoding_equals_the_full_forward_pass():
    """Prompts are padded on the left; three beams fork."""
    model, params = T5(CONFIG), init(CONFIG)
    batch = make_batch("left")
    batch = {name: batch[name] for name in ("input_ids", "input_mask")}
    bind = lambda: model.bind({"params": params})
    embeds, mask = bind().embed(batch["input_ids"]), batch["input_mask"]
    logits, prefix = bind().prefill(embeds, mask)
    weights = bind().unstacked_weights()
    unstacked_logits, unstacked_prefix = bind().prefill(embeds, mask, weights)
    assert_values(unstacked_logits, logits, "unstacked")
    new = np.random.default_rng(1).integers(3, 40, (3, 3, 6))
    forks = fork(*new.shape)
    steps = run_steps(bind, prefix, new, forks)
    unstacked = run_steps(bind, unstacked_prefix, new, forks)
    assert_values(np.array(unstacked), np.array(steps), "unstacked")

    def full(ids):
        ids = np.concatenate([ids, np.zeros((3, 1), int)], axis=1)
        targets = {"target_ids": ids, "target_mask": np.ones(ids.shape, bool)}
        return forward(model, params, batch | targets)

    assert_values(logits, full(new[:, 0])[:, 0])
    for time, actual in enumerate(steps):
        tokens = histories(new, forks[time])
        for beam in range(3):
            expected = full(tokens[:, beam])[:, time + 1]
            assert_values(actual[:, beam], expected, f"{time} {beam}")


def test_dropout_needs_a_key():
    model, params, batch = T5(CONFIG), init(CONFIG), make_batch()

    @jax.jit
    def run(key):
        return model.bind({"params": params}).training_logits(None, batch, key)[0]

    first, again = run(jax.random.key(1)), run(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - run(jax.random.key(2))).max() > 1e-3
    assert np.abs(first - forward(model, params, batch)).max() > 1e-3


@pytest.mark.parametrize(
    ("config", "billions"),
    [
        (presets.FLAN_T5_SMALL, 0.077),
        (presets.FLAN_T5_BASE, 0.248),
        (presets.FLAN_T5_LARGE, 0.783),
        (presets.FLAN_T5_XL, 2.850),
        (presets.FLAN_T5_XXL, 11.135),
    ],
)
def test_sizes(config, billions):
    model, batch = T5(config), empty_batch()
    tree = jax.eval_shape(
        lambda key: model.init(key, None, batch, method=model.training_logits),
        jax.random.key(0),
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert count / 1e9 == pytest.approx(billions, abs=6e-4)


# (rows of the table, largest distance): usual and odd ones, then some at which XLA's
# logarithm falls on the other side of an integer than torch's.
BUCKETS = [(32, 128), (16, 32), (8, 10), (9, 64), (21, 80), (4, 3), (33, 4096)]
BUCKETS += [(6, 81), (12, 81), (11, 135), (36, 243)]


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_equal_transformers_for_every_distance(bidirectional):
    """A logarithm in float32 can fall just below an integer."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers")
    attention = transformers.models.t5.modeling_t5.T5Attention
    for buckets, furthest in BUCKETS:
        relative = np.arange(-furthest - 9, furthest + 9)
        theirs = attention._relative_position_bucket(
            torch.tensor(relative), bidirectional, buckets, furthest
        )
        ours = relative_buckets(
            jnp.asarray(relative)[None],
            bidirectional=bidirectional,
            buckets=buckets,
            max_distance=furthest,
        )
        np.testing.assert_array_equal(ours[0], theirs, f"{buckets} {furthest}")


@pytest.mark.parametrize(
    "sizes", [{"relative_buckets": 3}, {"relative_max_distance": 4}]
)
def test_impossible_buckets_are_refused(sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        dataclasses.replace(CONFIG, **sizes)
