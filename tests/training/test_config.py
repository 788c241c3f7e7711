"""The schema, its checks, its stored form, and that every experiment's model builds."""

import importlib.util
import pathlib

import jax
import pytest

from blip2_jax.training import config as configuration
from blip2_jax.training.config import ConfigError, default_config
from blip2_jax.training.initialise import parameter_shapes
from blip2_jax.training.partition import flatten
from blip2_jax.training.schedule import make_schedule
from blip2_jax.training.tasks import make_task

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
FILES = sorted(CONFIGS.glob("*.py"))


def load(path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def changed(config, **changes):
    config = config.copy_and_resolve_references().unlock()
    config.update_from_flattened_dict(changes)
    return config.lock()


def test_an_unknown_key_cannot_be_set():
    config = default_config()
    with pytest.raises(AttributeError, match="stpes"):
        config.stpes = 3
    with pytest.raises(TypeError):
        config.steps = "many"


@pytest.mark.parametrize("task", configuration.TASKS)
def test_the_stored_form_reads_back_equal(task, tmp_path):
    config = default_config(task).unlock()
    config.data.train = ({"kind": "shapes", "split": "train", "size": 8},)
    config.model.overrides = {"qformer": {"depth": 2}}
    config.lock()
    configuration.write_config(tmp_path, config)
    back = configuration.read_config(tmp_path)
    assert back == configuration.canonical(config)
    assert configuration.to_plain(back) == configuration.to_plain(config)
    configuration.check_same_run(back, config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("task", "stage3", "config.task is 'stage3'; it must be one of stage1"),
        ("precision", "float16", "config.precision is 'float16'"),
        ("optimizer.name", "sgd", "'sgd'; it must be one of adamw, muon"),
        ("steps", 0, "config.steps is 0; it must be 1 or more"),
        ("data.workers", -1, "config.data.workers is -1; it must not be negative"),
        ("evaluation.every", 5, "config.evaluation.sources is empty"),
        ("data.train", (), "config.data.train names no source"),
    ],
)
def test_values_that_cannot_be(key, value, message):
    config = changed(default_config(), **{"data.train": ({"kind": "shapes"},)})
    configuration.validate(config)
    with pytest.raises(ConfigError, match=message):
        configuration.validate(changed(config, **{key: value}))


def test_only_what_changes_no_loss_may_differ_in_a_run_that_continues():
    config = changed(
        default_config(), **{"data.train": ({"kind": "tars", "paths": "a"},)}
    )
    same = {
        "data.workers": 3,
        "mesh.fsdp": 2,
        "log_every": 1,
        "checkpoint.keep": 9,
        "evaluation.every": 7,
        "logging.wandb": True,
        "compilation_cache": "x",
    }
    configuration.check_same_run(config, changed(config, **same))
    other = {"seed": 1, "steps": 5, "data.train": ({"kind": "tars", "paths": "b"},)}
    with pytest.raises(ConfigError) as raised:
        configuration.check_same_run(config, changed(config, **other))
    message = str(raised.value)
    for part in (
        "seed (was 0, is 1)",
        "steps (was 250000, is 5)",
        "data.train[0].paths (was 'a', is 'b')",
    ):
        assert part in message


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_experiment_builds_at_full_size(path):
    module = load(path)
    first = module.__doc__.splitlines()[0]
    assert first.startswith("python launch/") and f"configs/{path.name}" in first
    config = module.get_config()
    assert config.is_locked
    configuration.validate(config)
    make_schedule(config.optimizer, config.steps)
    shapes = parameter_shapes(config, make_task(config))
    assert all(
        isinstance(leaf, jax.ShapeDtypeStruct)
        for leaf in flatten(shapes.trainable).values()
    )
    assert bool(shapes.frozen) == bool(config.frozen)


@pytest.mark.parametrize(
    ("name", "batch", "steps", "last_rate"),
    [
        ("stage1_vitg", 1680, 250_000, 1e-5),
        ("stage1_vitl", 2320, 250_000, 1e-5),
        ("stage2_opt2_7b", 1920, 80_000, 5e-5),
        ("stage2_opt6_7b", 1920, 80_000, 5e-5),
        ("stage2_flant5xl", 1520, 80_000, 5e-5),
        ("stage2_flant5xxl", 1520, 80_000, 5e-5),
    ],
)
def test_the_papers_numbers(name, batch, steps, last_rate):
    """Section 3.4 of the paper."""
    config = load(CONFIGS / f"{name}.py").get_config()
    optimizer = config.optimizer
    assert (config.batch_size, config.steps) == (batch, steps)
    assert (optimizer.b1, optimizer.b2, optimizer.weight_decay) == (0.9, 0.98, 0.05)
    assert (optimizer.learning_rate, optimizer.warmup_steps) == (1e-4, 2000)
    assert optimizer.final_learning_rate == last_rate
    assert config.data.image.size == 224


def test_a_run_from_before_a_key_had_its_default():
    config = default_config()
    plain = configuration.to_plain(config)
    del plain["data"]["length_buckets"]
    stored = configuration.from_plain(plain)
    configuration.check_same_run(stored, config)
    other = changed(config, **{"data.length_buckets": (16, 32)})
    with pytest.raises(ConfigError, match=r"data\.length_buckets \(was \[\], is \[16"):
        configuration.check_same_run(stored, other)
