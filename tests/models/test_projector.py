"""Projectors in place of the Q-Former: cells, parameters, loss, captions, refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.configs import ablation_projector
from blip2_jax.convert.files.errors import SourceError
from blip2_jax.convert.huggingface_folder import renamed_rules
from blip2_jax.convert.lavis_file import lavis_rules
from blip2_jax.losses.stage2 import Stage2Options, stage2_loss
from blip2_jax.models.blip2 import init_params, parameter_shapes
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.models.presets import Blip2Config, from_plain, to_plain
from blip2_jax.models.qformer.projector import Projector
from blip2_jax.models.sizes import (
    FeaturesConfig,
    OPTConfig,
    ProjectorConfig,
    QFormerConfig,
    ViTConfig,
)
from blip2_jax.nn.trees import flatten
from blip2_jax.perf import flops
from blip2_jax.training.tasks import make_task, model_config

JOINS = ("concatenate", "average")
VIT = ViTConfig(8, 1, 2, 8, image_size=56, patch_size=8)  # 7 x 7 patches and a class


def config_of(join):
    return Blip2Config(
        VIT,
        QFormerConfig(16, 2, 2, 16),
        OPTConfig(12, 1, 2, 16, vocab_size=20, max_positions=40, dropout=0.0),
        projector=ProjectorConfig(9, join, hidden_width=6),
    )


@functools.cache
def tiny(join):
    model = Blip2Stage2(config_of(join))
    return model, jax.jit(lambda key: init_params(model, key))(jax.random.key(0))


def batch(rows=2):
    ids = jax.random.randint(jax.random.key(1), (rows, 4), 3, 20)
    images = jax.random.normal(jax.random.key(2), (rows, 56, 56, 3))
    mask = jnp.ones((rows, 4), bool)
    return {"image": images, "text_ids": ids, "text_mask": mask, "target_mask": mask}


def test_a_cell_joins_its_patches_and_is_zero_beyond_the_edge():
    # 7 x 7 patches, 3 cells in a row: of 3, 3 and 1 patches.
    image = np.random.default_rng(0).normal(size=(2, 1 + 49, 4)).astype(np.float32)
    grid = image[:, 1:].reshape(2, 7, 7, 4)
    cells = Projector(ProjectorConfig(9), 49).apply({}, image)
    assert cells.shape == (2, 9, 9 * 4)
    np.testing.assert_array_equal(cells[:, 4], grid[:, 3:6, 3:6].reshape(2, -1))
    corner = np.zeros((2, 3, 3, 4), np.float32)
    corner[:, 0, 0] = grid[:, 6, 6]
    np.testing.assert_array_equal(cells[:, 8], corner.reshape(2, -1))


def test_an_average_is_over_the_patches_that_exist():
    image = np.random.default_rng(0).normal(size=(2, 1 + 49, 4)).astype(np.float32)
    grid = image[:, 1:].reshape(2, 7, 7, 4)
    projector = Projector(ProjectorConfig(9, "average", hidden_width=4), 49)
    identity = {"hidden": {"kernel": np.eye(4), "bias": np.zeros(4)}}
    cells = projector.apply({"params": identity}, image)
    expected = np.stack([grid[:, 3:6, 6].mean((1,)), grid[:, 6, 6]], axis=1)
    gelu = functools.partial(jax.nn.gelu, approximate=False)
    np.testing.assert_allclose(cells[:, [5, 8]], gelu(expected), atol=1e-6)


@pytest.mark.parametrize("join", JOINS)
def test_the_projector_replaces_the_qformer(join):
    model, params = tiny(join)
    assert "qformer" not in params
    assert "query_tokens" not in params
    kernel = params["language_projection"]["kernel"]
    assert kernel.shape == ({"concatenate": 9 * 8, "average": 6}[join], 12)
    loss = jax.jit(
        jax.value_and_grad(
            lambda p: stage2_loss(model, p, batch(), None, Stage2Options())[0]
        )
    )
    value, gradients = loss(params)
    assert np.isfinite(value)
    moved = {path for path, g in flatten(gradients).items() if np.abs(g).max() > 0}
    assert {"language_projection/kernel", "ln_vision/scale"} <= moved
    assert ("projector/hidden/kernel" in moved) == (join == "average")


def test_a_token_sees_the_patches_of_its_cell_only():
    model, params = tiny("average")
    bound = model.bind({"params": params})
    features = jax.random.normal(jax.random.key(0), (1, 50, 8))
    change = features.at[:, 1].add(1.0)  # the first patch
    difference = bound.encode_queries(features) - bound.encode_queries(change)
    changed = np.abs(difference[0]).max(axis=1) > 0
    assert changed.tolist() == [True] + [False] * 8


def test_a_projector_has_no_attention():
    model, params = tiny("average")
    features = jnp.zeros((1, 50, 8))
    with pytest.raises(ValueError, match="no attention"):
        model.bind({"params": params}).attention_maps(features)


def test_flops_are_those_of_the_kernels():
    for join in JOINS:
        config = config_of(join)
        shapes = flatten(parameter_shapes(Blip2Stage2(config)))
        kernels = [
            leaf.size
            for path, leaf in shapes.items()
            if path.startswith(("projector/", "language_projection"))
            and path.endswith("kernel")
        ]
        terms = flops.stage2(config, text=4)
        counted = terms["projector"] + terms["projection"]
        assert counted == 2 * 9 * sum(kernels)


def test_sizes_are_stored_and_read():
    config = config_of("average")
    assert from_plain(to_plain(config)) == config
    without = dataclasses.replace(config, projector=None)
    assert "projector" not in to_plain(without)


@pytest.mark.parametrize("tokens, message", [(8, "square"), (36, "empty")])
def test_impossible_cells_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config_of("average"), projector=ProjectorConfig(tokens))


def test_a_question_in_the_qformer_needs_a_qformer():
    model = Blip2Stage2(config_of("average"), question_in_qformer=True)
    with pytest.raises(ValueError, match="projector in place"):
        parameter_shapes(model)


def test_other_formats_and_stage_1_have_no_projector():
    config = config_of("average")
    with pytest.raises(SourceError, match="no projector"):
        lavis_rules(config)
    with pytest.raises(ValueError, match="no projector"):
        renamed_rules(config, [])
    stage1 = ablation_projector.get_config("shapes,mlp").unlock()
    stage1.task = "stage1"
    with pytest.raises(ValueError, match="stage 1 trains the Q-Former"):
        make_task(stage1)


@pytest.mark.parametrize("world, tokens", ablation_projector.TOKENS.items())
def test_all_bridges_of_a_world_give_equally_many_tokens(world, tokens):
    for bridge in ablation_projector.BRIDGES:
        config = ablation_projector.get_config(f"{world},{bridge}")
        assert model_config(config.model).num_visual_tokens == tokens
        assert bool(config.init.from_run) == (bridge == "qformer_stage1")


def test_features_without_a_grid_use_the_tokens_of_the_largest_square():
    assert FeaturesConfig(257, 8).num_patches == 256
