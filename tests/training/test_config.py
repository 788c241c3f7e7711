"""Configurations: keys, checks, stored form; every experiment builds and steps."""

import importlib.util
import math
import pathlib
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from blip2_jax.cli.config_options import list_configs
from blip2_jax.data.pipeline import training_batches
from blip2_jax.models.sizes import FeaturesConfig
from blip2_jax.nn.trees import flatten
from blip2_jax.parallel.sharding import make_global_batch, make_mesh
from blip2_jax.training import train_config as configuration
from blip2_jax.training.initial_params import parameter_shapes
from blip2_jax.training.schedule import make_schedule
from blip2_jax.training.tasks import make_task, model_config
from blip2_jax.training.train_config import ConfigError, default_config
from tests.support import one_step
from tests.support.shrunk_presets import ROWS, shrunk

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
# tests/training/test_finetune.py and tests/convert/test_llama_folders.py test these.
OF_FILES = ("finetune", "stage2_language_model")
FILES = [CONFIGS / f"{name}.py" for name in list_configs() if name not in OF_FILES]
# Arguments after ':' in `--config`, besides none.
VARIANTS = {
    "stage1_vitg": ["original"],
    "stage1_vitl": ["original"],
    "stage2_opt2_7b": ["original", "vitl", "vitl,original"],
    "stage2_opt6_7b": ["original"],
    "stage2_flant5xl": ["original", "vitl"],
    "stage2_flant5xxl": ["original"],
    "caption_coco": ["opt6.7b", "flant5xl", "opt2.7b,frozen"],
    "vqa_v2": ["opt6.7b", "flant5xl", "opt2.7b,train", "flant5xl,train,frozen"],
    "retrieval_coco": ["vitl", "vitg,without_itg", "frozen"],
    "ablation_stage1": ["flant5xl", "opt2.7b,with"],
    "ablation_qformer": ["num_queries=64", "num_queries=16,opt2.7b"],
    "shapes_tables": [
        "opt",
        "t5_without_stage1",
        "small_opt_small",
        "captions_t5",
        "questions_opt",
        "retrieval_without_itg",
    ],
    "shapes_tower_image": ["small"],
    "shapes_tower_opt": ["small"],
    "shapes_tower_t5": ["small"],
}
EXPERIMENTS = [
    (path, text) for path in FILES for text in ("", *VARIANTS.get(path.stem, ()))
]
EVERY = pytest.mark.parametrize(
    ("path", "text"),
    EXPERIMENTS,
    ids=[f"{path.stem}:{text}".rstrip(":") for path, text in EXPERIMENTS],
)


def load(path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def changed(config, **changes):
    config = config.copy_and_resolve_references().unlock()
    config.update_from_flattened_dict(changes)
    return config.lock()


NAN, INF = float("nan"), float("inf")


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
        ("data.train", (), "config.data.train is empty"),
    ],
)
def test_invalid_values(key, value, message):
    config = changed(default_config(), **{"data.train": ({"kind": "shapes"},)})
    configuration.validate(config)
    with pytest.raises(ConfigError, match=message):
        configuration.validate(changed(config, **{key: value}))


NONSENSE = [
    ("seed", 2**70),
    ("steps", 2**40),
    ("batch_size", 0),
    ("log_every", 0),
    *[("optimizer.learning_rate", value) for value in (0.0, -1e-4, NAN, INF)],
    ("optimizer.warmup_start_learning_rate", -1e-6),
    ("optimizer.final_learning_rate", -1e-6),
    ("optimizer.weight_decay", -0.05),
    *[("optimizer.b1", value) for value in (2.0, 1.0, -0.1, NAN)],
    ("optimizer.b2", 1.0),
    ("optimizer.eps", 0.0),
    ("optimizer.clip", -1.0),
    ("optimizer.layer_decay", 0.0),
    ("optimizer.layer_decay", 1.5),
    *[("optimizer.rate_factors", v) for v in (((1, 2),), (("(", 1.0),), (("a", -1),))],
    ("optimizer.rate_factors", ("abc",)),
    *[("data.max_text_length", value) for value in (-1, 0, 2)],
    ("data.max_target_length", -1),
    ("data.prefetch", -1),
    ("data.max_broken_share", 2.0),
    ("data.image.size", 0),
    ("data.image.min_scale", 0.0),
    ("data.image.flip", 1.5),
    ("evaluation.batch_size", 0),
    ("evaluation.max_new_tokens", 0),
    ("evaluation.num_beams", 0),
    ("evaluation.rerank", -1),
    ("frozen", ("(",)),
    ("carried", ("*",)),
    *[("model.overrides.qformer.dropout", v) for v in (1.0, -0.1, 7, NAN, "a", True)],
    ("model.overrides.qformer.heads", 0),
    ("model.overrides.qformer.num_queries", -1),
    ("model.overrides.language_model.layer_norm_eps", -1e-6),
    ("objective.label_smoothing", 1.0),
    ("objective.itm_weight", -1.0),
    ("objective.itm_every", 0),
]


@pytest.mark.parametrize(("key", "value"), NONSENSE)
def test_nonsense_values_are_refused_by_key(key, value):
    config = changed(default_config(), **{"data.train": ({"kind": "shapes"},)}).unlock()
    *path, name = key.split(".")
    node = config
    for part in path:
        if part not in node:
            node[part] = ConfigDict()
        node = node[part]
    node[name] = value
    with pytest.raises(ConfigError, match=rf"config\.{re.escape(key)} (is|has) "):
        configuration.validate(config)


def test_a_continued_run_may_change_only_keys_that_do_not_change_losses():
    config = changed(
        default_config(), **{"data.train": ({"kind": "tars", "paths": "a"},)}
    )
    same = {
        "data.workers": 3,
        "mesh.fsdp": 2,
        "log_every": 1,
        "checkpoint.keep": 9,
        "evaluation.every": 7,
        "evaluation.sources": ({"kind": "shapes", "split": "validation"},),
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


@pytest.mark.parametrize(
    ("key", "value"), [("metric", "loss"), ("mode", "min"), ("rerank", 0)]
)
def test_a_continued_run_selects_the_best_checkpoint_by_the_same_score(key, value):
    config = default_config()
    with pytest.raises(ConfigError, match=rf"evaluation\.{key} \(was .*, is "):
        configuration.check_same_run(
            config, changed(config, **{f"evaluation.{key}": value})
        )


def test_former_source_kinds_are_the_same_run():
    config = changed(
        default_config("stage1"), **{"data.train": ({"kind": "per_question"},)}
    )
    former = changed(config, **{"data.train": ({"kind": "each_question"},)})
    configuration.check_same_run(former, config)


def experiment(name, text=""):
    module = load(CONFIGS / f"{name}.py")
    return module.get_config(text) if text else module.get_config()


@EVERY
def test_every_experiment_builds_at_full_size(path, text):
    module = load(path)
    first = module.__doc__.splitlines()[0]
    assert first.startswith(f"blip2-jax train --config {path.stem}")
    config = experiment(path.stem, text)
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
    config = experiment(name)
    optimizer = config.optimizer
    assert (config.batch_size, config.steps) == (batch, steps)
    assert (optimizer.b1, optimizer.b2, optimizer.weight_decay) == (0.9, 0.98, 0.05)
    assert (optimizer.learning_rate, optimizer.warmup_steps) == (1e-4, 2000)
    assert optimizer.final_learning_rate == last_rate
    assert config.data.image.size == 224


@pytest.mark.parametrize(
    ("name", "size", "batch", "epoch", "rate", "b2", "decay", "trained"),
    [
        ("caption_coco:opt2.7b", 364, 256, 566_747, 1e-5, 0.999, 1.0, 1.1),
        ("caption_coco:opt6.7b", 364, 256, 566_747, 1e-5, 0.999, 0.95, 1.1),
        ("caption_coco:flant5xl", 364, 256, 566_747, 1e-5, 0.999, 1.0, 1.1),
        ("vqa_v2:opt2.7b", 490, 128, 658_111, 1e-5, 0.999, 0.95, 1.2),
        ("vqa_v2:opt6.7b", 490, 128, 658_111, 1e-5, 0.999, 0.9, 1.2),
        ("vqa_v2:flant5xl", 490, 128, 658_111, 1e-5, 0.999, 0.95, 1.2),
        ("retrieval_coco:vitl", 364, 224, 566_747, 5e-6, 0.98, 1.0, 0.5),
        ("retrieval_coco:vitg", 364, 224, 566_747, 1e-5, 0.999, 0.95, 1.2),
    ],
)
def test_the_papers_fine_tunes(name, size, batch, epoch, rate, b2, decay, trained):
    """Appendix, tables 7 to 9; the image encoder is trained: 1.1, 1.2 B parameters."""
    config = experiment(*name.split(":"))
    optimizer = config.optimizer
    assert (config.batch_size, config.steps) == (batch, 5 * epoch // batch)
    assert (optimizer.learning_rate, optimizer.warmup_steps) == (rate, 1000)
    assert (optimizer.b1, optimizer.b2, optimizer.weight_decay) == (0.9, b2, 0.05)
    assert optimizer.layer_decay == decay
    sizes = model_config(config.model)
    assert config.data.image.size == sizes.vision.image_size == size
    assert sizes.vision.pre_norm == name.endswith("vitl")
    assert not any("visual_encoder" in rule for rule in config.frozen)
    assert config.model.question_in_qformer == name.startswith("vqa")
    prompts = {"c": ("a photo of", ""), "v": ("", "Question: {} Answer:")}
    prompt = (config.data.prompt, config.data.question_prompt)
    assert prompt == prompts.get(name[0], ("", ""))
    shapes = parameter_shapes(config, make_task(config)).trainable
    count = sum(math.prod(leaf.shape) for leaf in flatten(shapes).values())
    assert round(count / 1e9, 1) == trained
    if name == "caption_coco:opt2.7b":  # as in a published log of the original
        assert count == 1_093_619_584


def test_the_originals_numbers():
    """The numbers of the original's training files where they differ from the paper."""
    first = experiment("stage1_vitg", "original")
    second = experiment("stage2_opt2_7b", "original")
    assert (first.batch_size, second.batch_size) == (1600, 1024)
    warmups = [config.optimizer.warmup_steps for config in (first, second)]
    assert warmups == [5000, 2000]
    for config in (first, second):
        optimizer = config.optimizer
        assert (optimizer.b2, optimizer.final_learning_rate) == (0.999, 1e-5)
        assert optimizer.original_decay and len(config.data.train) == 2


def test_an_unknown_argument_after_the_name():
    with pytest.raises(ConfigError, match="'vitg,vitl' after ':' in --config"):
        experiment("retrieval_coco", "vitg,vitl")
    with pytest.raises(ConfigError, match="or flant5xl; frozen"):
        experiment("caption_coco", "flant5xxl")


FAST = ("vqa_v2:flant5xl", "retrieval_coco")
# At tiny sizes these repeat a step that another experiment takes: OPT-2.7B's,
# FlanT5-XL's, "vitl,original", `stage1_vitl`, the standard sizes of the small towers,
# another number of queries, other data.
TWINS = (
    "opt6_7b",
    "opt6.7b",
    "flant5xxl",
    "flant5xl:original",
    "flant5xl:vitl",
    "stage1_vitl:original",
    "stage2_opt2_7b:original",
    "retrieval_coco:vitl",
    "ablation_stage1:",
    "num_queries=",
    "qformer_real_size",
    "vqa_v2:opt2.7b,train",
    ":small",
    ":t5_without_stage1",
)
REPEATED = (("stage2_opt2_7b", "vitl"), ("shapes_tables", ""), ("shapes_tables", "opt"))
DEMO = ("shapes_stage1", "shapes_stage2_opt", "shapes_stage2_t5")  # `make demo`


@pytest.mark.parametrize(
    ("path", "text"),
    [
        pytest.param(
            path,
            text,
            id=f"{path.stem}:{text}".rstrip(":"),
            marks=() if f"{path.stem}:{text}".rstrip(":") in FAST else pytest.mark.slow,
        )
        for path, text in EXPERIMENTS
        if not any(twin in f"{path.stem}:{text}" for twin in TWINS)
        and (path.stem, text) not in REPEATED
        and path.stem not in DEMO
    ],
)
def test_every_experiment_takes_a_step(path, text):
    """With the experiment's objective, optimizer and data, but a tiny model."""
    config = shrunk(experiment(path.stem, text))
    task, mesh = make_task(config), make_mesh(devices=jax.devices()[:1])
    state, frozen, step = one_step.prepare(config, task, mesh)
    before = flatten(jax.device_get(state.trainable))
    batches = training_batches(
        config.data, task.batch_format, seed=0, batch_size=config.batch_size
    )
    batch = next(batches)
    batches.close()
    vision = model_config(config.model).vision
    if "image" in batch and isinstance(vision, FeaturesConfig):
        batch["features"] = np.ones((ROWS, 4, 16), np.float32)
        del batch["image"]
    state, metrics = step(state, frozen, make_global_batch(batch, mesh))
    assert metrics["finite"] == 1 and metrics["grad_norm"] > 0
    after = flatten(jax.device_get(state.trainable))
    assert any((after[path] != before[path]).any() for path in before)


def test_a_stored_run_without_a_key_has_its_default():
    config = default_config()
    plain = configuration.to_plain(config)
    del plain["data"]["length_buckets"]
    stored = configuration.from_plain(plain)
    configuration.check_same_run(stored, config)
    other = changed(config, **{"data.length_buckets": (16, 32)})
    with pytest.raises(ConfigError, match=r"data\.length_buckets \(was \[\], is \[16"):
        configuration.check_same_run(stored, other)
