"""Tasks: sizes with overrides, batch formats, parameters, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from blip2_jax.models import presets
from blip2_jax.models.sizes import FeaturesConfig
from blip2_jax.training import tasks
from blip2_jax.training.initial_params import parameter_shapes
from blip2_jax.training.train_config import default_config

VISION = {"width": 16, "depth": 1, "heads": 2, "mlp_dim": 16, "image_size": 28}
QFORMER = {
    "width": 16,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 16,
    "num_queries": 2,
    "vocab_size": 20,
    "projection_dim": 8,
    "max_positions": 16,
}
OPT = {
    "kind": "opt",
    "width": 16,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 16,
    "vocab_size": 20,
    "max_positions": 32,
}
T5 = {
    "kind": "t5",
    "width": 16,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 16,
    "head_width": 8,
    "vocab_size": 20,
}


def config_of(task, language=None):
    config = default_config(task).unlock()
    config.model.overrides = {"vision": VISION, "qformer": QFORMER}
    if language:
        config.model.overrides["language_model"] = language
    return config


def batch_of(task):
    ids, mask = jnp.ones((2, 4), jnp.int32), jnp.ones((2, 4), bool)
    batch = dict.fromkeys(("text_ids", "input_ids", "target_ids"), ids)
    batch |= dict.fromkeys(("text_mask", "input_mask", "target_mask"), mask)
    if not task.batch_format.startswith("text_"):
        batch |= {"image": jnp.zeros((2, 28, 28, 3), jnp.uint8)}
    return batch


@pytest.mark.parametrize(
    ("name", "language", "batch_format", "frozen"),
    [
        ("stage1", None, "image_text", {"visual_encoder"}),
        ("stage2", OPT, "decoder", {"visual_encoder", "language_model"}),
        ("stage2", T5, "encoder_decoder", {"visual_encoder", "language_model"}),
        ("contrast", None, "image_text", set()),
        ("language_model", OPT, "text_decoder", set()),
        ("language_model", T5, "text_encoder_decoder", set()),
    ],
)
def test_every_task_has_a_loss_of_its_parameters(name, language, batch_format, frozen):
    config = config_of(name, language)
    task = tasks.make_task(config)
    assert task.batch_format == batch_format
    shapes = parameter_shapes(config, task)
    assert shapes.frozen.keys() == frozen
    params = shapes.trainable | shapes.frozen
    run = lambda params, batch: task.loss(params, batch, jax.random.key(0))
    loss, metrics = jax.eval_shape(run, params, batch_of(task))
    assert loss.shape == () and loss.dtype == jnp.float32
    assert "loss" in metrics


def test_precision_is_the_compute_dtype():
    config = config_of("stage1")
    assert tasks.make_task(config).model.dtype == jnp.bfloat16
    config.precision = "float32"
    assert tasks.make_task(config).model.dtype == jnp.float32


def test_overrides_reach_into_the_preset():
    sizes = tasks.model_config(config_of("stage1").model)
    assert sizes.qformer.num_queries == 2
    restored = dataclasses.replace(
        sizes.vision, **{field: getattr(presets.EVA_VIT_G, field) for field in VISION}
    )
    assert restored == presets.EVA_VIT_G


def test_a_part_of_another_kind_is_complete():
    config = config_of("stage1")
    features = {"kind": "features", "num_tokens": 49, "width": 1280}
    config.model.overrides = {"vision": features}
    expected = FeaturesConfig(49, 1280)
    assert tasks.model_config(config.model).vision == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"qformer": {"deep": 4}},
            r"overrides\.qformer has no key 'deep'; its keys are width",
        ),
        ({"tower": {}}, r"overrides has no key 'tower'"),
        ({"language_model": {"width": 4}}, "must say its kind: features, vit, qf"),
        ({"vision": {"kind": "cnn"}}, "kind is 'cnn'"),
        ({"vision": {"kind": "features", "widht": 4}}, "widht"),
    ],
)
def test_mistakes_in_sizes_are_named(overrides, message):
    config = config_of("stage1")
    config.model.overrides = overrides
    with pytest.raises(ValueError, match=message):
        tasks.model_config(config.model)


def test_refusals():
    config = config_of("stage1")
    config.model.preset = "blip3"
    with pytest.raises(ValueError, match="unknown preset 'blip3'"):
        tasks.make_task(config)
    config = config_of("stage1")
    config.task = "stage3"
    with pytest.raises(ValueError, match="unknown task 'stage3'; there are stage1"):
        tasks.make_task(config)
    with pytest.raises(ValueError, match="needs a language model"):
        tasks.make_task(config_of("stage2"))
    config = config_of("stage1")
    config.objective = {"itc_wieght": 2.0}
    with pytest.raises(ValueError, match=r"config\.objective has no key 'itc_wieght'"):
        tasks.make_task(config)
