"""Training on cached features, against training on the images."""

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from blip2_jax.cli.evaluation_run import evaluate_run
from blip2_jax.evaluation.eval_config import default_evaluation
from blip2_jax.evaluation.evaluators import make_evaluator
from blip2_jax.inference.load import load
from blip2_jax.models.sizes import ViTConfig
from blip2_jax.nn.trees import flatten, merge
from blip2_jax.parallel import sharding
from blip2_jax.training import cached_features
from blip2_jax.training.cached_features import encoder_digest
from blip2_jax.training.loop import Loop, flops_per_image
from blip2_jax.training.setup import set_up
from blip2_jax.training.train_config import ConfigError, read_config
from tests.support.feature_caches import cache_job, write_cache
from tests.support.tiny_runs import make_run, tiny_config

STEPS = 2


def config_of(task, precision, **changes):
    """Return a configuration without augmentation."""
    config = tiny_config(task).unlock()
    config.precision = precision
    config.steps, config.optimizer.warmup_steps = STEPS, 1
    config.data.image.augment = False
    config.update_from_flattened_dict(changes)
    return config


def on_cache(config, cache):
    """Return a configuration that reads a cache in place of its images."""
    config = config.copy_and_resolve_references()
    config.data.train = ({"kind": "cached_features", "path": str(cache)},)
    return config


def run_steps(config, directory, batch_of=lambda rows: rows):
    """Take some steps; returns parameters and losses."""
    run = set_up(config, directory)
    losses = []
    for _ in range(STEPS):
        batch = sharding.make_global_batch(batch_of(next(run.batches)), run.mesh)
        run.state, metrics = run.train_step(run.state, run.frozen, batch, None)
        losses.append(float(metrics["loss"]))
    run.batches.close()
    return flatten(jax.device_get(run.state.trainable)), losses


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("task", "precision"),
    [
        ("stage2", "float32"),
        pytest.param("stage1", "float32", marks=SLOW),
        pytest.param("stage1", "bfloat16", marks=SLOW),
        pytest.param("stage2", "bfloat16", marks=SLOW),
    ],
)
def test_steps_equal_those_on_rounded_encoder_outputs(tmp_path, task, precision):
    config = config_of(task, precision)
    write_cache(tmp_path / "cache", config)
    encoder = cache_job(tmp_path / "unused", config)._encoder

    def encode(rows):
        images = rows.pop("image")
        halves = [np.asarray(encoder.encode(half)) for half in (images[:4], images[4:])]
        features = np.concatenate(halves).astype(ml_dtypes.bfloat16)
        return rows | {"features": features}

    expected, expected_losses = run_steps(config, tmp_path / "a", encode)
    params, losses = run_steps(on_cache(config, tmp_path / "cache"), tmp_path / "b")
    assert losses == expected_losses
    for path, value in expected.items():
        np.testing.assert_array_equal(params[path], value)
    _, of_images = run_steps(config, tmp_path / "c")
    # float32: the rounding of the features; bfloat16: that of another program.
    rtol = 2e-3 if precision == "float32" else 1e-2
    np.testing.assert_allclose(losses, of_images, rtol=rtol)


def test_a_run_on_a_cache_captions_pictures(tmp_path, capsys):
    config = config_of("stage2", "float32", **{"evaluation.every": 0})
    write_cache(tmp_path / "cache", config)
    run = set_up(on_cache(config, tmp_path / "cache"), tmp_path / "run")
    assert not any(path.startswith("visual") for path in flatten(run.frozen))
    assert any(path.startswith("language_model/") for path in flatten(run.frozen))
    assert any("features of random from" in line for line in run.report)
    assert flops_per_image(config, True) < flops_per_image(config)
    assert Loop(run).run() == 0
    model = load(tmp_path / "run")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    texts = model.caption(list(images), max_new_tokens=4)
    assert len(texts) == 2
    with pytest.raises(ValueError):  # another encoder
        load(tmp_path / "run", vision="shapes:vision").caption(list(images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"features of the encoder \w{12} \(random\), .* \w{12} \(random"),
        (
            {"model.overrides.vision.image_size": 48},
            "images of 32 px, the model has 48 px",
        ),
        ({"model.overrides.vision.patch_size": 8}, "5 tokens x 16, .* 17 tokens x 16"),
        ({"model.overrides.vision.heads": 4}, "an encoder of heads 2, .* heads 4"),
        ({"frozen": ()}, "features of a frozen encoder, but this run trains visual"),
        (
            {
                "model.overrides.vision": {
                    "kind": "features",
                    "num_tokens": 5,
                    "width": 32,
                }
            },
            "5 tokens x 16, the model has 5 tokens x 32",
        ),
    ],
)
def test_another_encoder_is_refused(tmp_path, changes, message):
    config = config_of("stage1", "float32")
    write_cache(tmp_path / "cache", config)
    config = on_cache(config, tmp_path / "cache")
    for key, value in changes.items():
        *parents, name = key.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[name] = value
    with pytest.raises(ConfigError, match=message) as raised:
        set_up(config, tmp_path / "run")
    assert str(tmp_path / "cache") in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_model_of_features_reads_any_cache_of_its_size(tmp_path):
    config = config_of("stage1", "float32")
    write_cache(tmp_path / "cache", config, dtype="int8")
    config = on_cache(config, tmp_path / "cache")
    config.frozen = ()
    sizes = {"kind": "features", "num_tokens": 5, "width": 16}
    config.model.overrides.vision = sizes
    _, losses = run_steps(config, tmp_path / "run")
    assert np.isfinite(losses).all()


def test_the_evaluation_decides_if_the_encoder_is_loaded(tmp_path):
    config = config_of("stage1", "float32")
    write_cache(tmp_path / "cache", config)
    config = on_cache(config, tmp_path / "cache")
    config.evaluation.every = 2
    for sources, loaded in (
        (({"kind": "shapes", "split": "validation", "size": 8},), True),
        (config.data.train, False),
    ):
        config.evaluation.sources = sources
        directory = tmp_path / str(loaded)
        run = set_up(config, directory, lambda config, task: lambda params: {})
        paths = flatten(run.frozen)
        assert any(path.startswith("visual") for path in paths) == loaded
        run.batches.close()


def evaluation_of(run_directory, data):
    """Return the configuration of an evaluation of a run."""
    stage1 = read_config(run_directory).task == "stage1"
    evaluation = default_evaluation("retrieval" if stage1 else "captioning").unlock()
    evaluation.model, evaluation.data = str(run_directory), data
    evaluation.out = f"{run_directory}.json"
    evaluation.tokenizer, evaluation.rerank = "python", 2
    return evaluation


def test_evaluation_on_a_cache_of_another_encoder_is_refused(tmp_path):
    make_run(tmp_path / "run", "stage1")
    other = config_of("stage1", "float32", seed=4)
    other.data.train = ({"kind": "shapes", "split": "validation", "size": 8},)
    write_cache(tmp_path / "cache", other)
    data = on_cache(other, tmp_path / "cache").data.train
    with pytest.raises(ConfigError, match="holds features of the encoder"):
        evaluate_run(evaluation_of(tmp_path / "run", data))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["stage1", "stage2"])
def test_evaluation_on_a_cache_needs_no_encoder(tmp_path, task):
    config = config_of(task, "float32")
    config.data.train = ({"kind": "shapes", "split": "validation", "size": 8},)
    write_cache(tmp_path / "cache", config)
    scores = []
    for data in (config.data.train, on_cache(config, tmp_path / "cache").data.train):
        evaluated = config.copy_and_resolve_references()
        evaluated.data.train = evaluated.evaluation.sources = data
        evaluated.evaluation.every = evaluated.evaluation.rerank = 2
        run = set_up(evaluated, tmp_path / data[0]["kind"], make_evaluator)
        scores.append(run.evaluator(merge(run.state.trainable, run.frozen)).scores)
        run.batches.close()
        if data[0]["kind"] == "cached_features":
            run.checkpoints.save(0, run.trees(), {})
            run.checkpoints.close()
            record, _ = evaluate_run(evaluation_of(run.directory, data))
            assert record["scores"]
    of_images, of_cache = scores
    assert of_images.keys() == of_cache.keys()
    names = [name for name in of_images if "loss" in name or task == "stage2"]
    assert names
    for name in names:
        assert of_cache[name] == pytest.approx(of_images[name], rel=1e-2), name


def test_a_run_notices_another_cache(tmp_path):
    config = config_of("stage1", "float32")
    write_cache(tmp_path / "cache", config)
    first = on_cache(config, tmp_path / "cache")
    set_up(first, tmp_path / "run").batches.close()
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    write_cache(tmp_path / "cache", config, dtype="int8")
    with pytest.raises(ConfigError, match="other cached features"):
        set_up(first, tmp_path / "run")


def test_sizes_of_the_manifest_are_those_of_the_encoder(tmp_path):
    config = config_of("stage1", "bfloat16")
    origin = cache_job(tmp_path, config).origin
    assert (origin.num_tokens, origin.width, origin.resolution) == (5, 16, 32)
    assert origin.precision == "bfloat16" and origin.crops == 1
    assert dataclasses.asdict(origin)["sizes"]["depth"] == 1


def test_a_cache_of_an_earlier_version_lacks_newer_sizes(tmp_path):
    origin = cache_job(tmp_path, config_of("stage1", "bfloat16")).origin
    assert "num_registers" not in origin.sizes  # as before that field
    vision = ViTConfig(**origin.sizes)
    other = dataclasses.replace(origin, digest=encoder_digest({}))
    cached_features.check_encoder([other], vision, {}, "weights")
    registers = dataclasses.replace(vision, layer_scale=True)
    with pytest.raises(ConfigError, match="layer_scale False, the model has layer_sca"):
        cached_features.check_encoder([other], registers, {}, "weights")
