"""One training step of a small model on any mesh, in one process or several.

    python one_step.py stage1 2,2,2 OUT.npz

Environment variables hold the number of the process (`hosts.join`).
"""

import functools
import math
import sys

import jax
import numpy as np

from blip2_jax.nn.trees import flatten
from blip2_jax.parallel import hosts, sharding
from blip2_jax.training import initial_params
from blip2_jax.training.optimizer import make_optimizer
from blip2_jax.training.schedule import make_schedule
from blip2_jax.training.state import create_state
from blip2_jax.training.step import make_train_step
from blip2_jax.training.tasks import make_task
from blip2_jax.training.train_config import default_config

B, T = 8, 5
FINE_TUNES = {"retrieval": "stage1", "vqa": "stage2"}  # with the image encoder trained
STAGES = FINE_TUNES | {"t5": "stage2", "lora": "stage2"}
SIZES = {
    "vision": {"width": 16, "depth": 2, "heads": 2, "mlp_dim": 16, "image_size": 28},
    "qformer": {
        "width": 16,
        "depth": 1,
        "heads": 2,
        "mlp_dim": 16,
        "num_queries": 2,
        "vocab_size": 24,
        "projection_dim": 8,
        "max_positions": 16,
        "dropout": 0.0,
    },
}
OPT = {
    "kind": "opt",
    "width": 16,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 16,
    "vocab_size": 24,
    "max_positions": 32,
}
T5 = {
    "kind": "t5",
    "width": 16,
    "depth": 2,
    "heads": 2,
    "head_width": 8,
    "mlp_dim": 16,
    "vocab_size": 24,
}
# Adam's first moment after one step, as a factor of the gradient.
MOMENT = 0.1


def config_of(task):
    stage = STAGES.get(task, task)
    config = default_config(stage).unlock()
    config.precision, config.steps = "float32", 10
    model = T5 if task == "t5" else OPT
    language = {"language_model": model} if stage == "stage2" else {}
    if task in FINE_TUNES:
        config.frozen = ("^language_model/",) if language else ()
        config.optimizer.layer_decay = 0.9
        config.model.remat = "full"
    if task == "lora":
        config.lora.rank, config.lora.targets = 2, ("^language_model/",)
    config.model.question_in_qformer = task == "vqa"
    config.model.overrides = SIZES | language
    config.frozen_sources.vision = config.frozen_sources.language_model = "random"
    # A learning rate of 0 would hide the first update. An epsilon near the size of the
    # gradients keeps Adam's division from magnifying rounding errors.
    config.optimizer.warmup_start_learning_rate = 1e-3
    config.optimizer.warmup_steps, config.optimizer.eps = 5, 1e-3
    return config


def rows(task):
    """Return a global batch, as the data pipeline makes it."""
    rng = np.random.default_rng(0)
    mask = np.arange(T)[None] < (np.arange(B) % 3 + 3)[:, None]
    tokens = lambda: rng.integers(3, 23, (B, T), dtype=np.int32)
    question = (
        {"question_ids": tokens(), "question_mask": mask[::-1]} if task == "vqa" else {}
    )
    image = rng.integers(0, 256, (B, 28, 28, 3), dtype=np.uint8)
    if task == "t5":
        text = {"input_ids": tokens(), "input_mask": mask[::-1], "target_ids": tokens()}
    else:
        text = {"text_ids": tokens(), "text_mask": mask}
    return (
        question
        | text
        | {
            "image": image,
            **(
                {"target_mask": mask}
                if STAGES.get(task, task) == "stage2"
                else {"image_id": np.array([0, 1, 2, 3, 4, 5, 6, 0], np.int32)}
            ),
            "position": np.arange(B),
            "_key": ["k"] * B,
        }
    )


def prepare(config, task, mesh):
    """Return state, frozen parameters and step of a new run."""
    shapes = initial_params.parameter_shapes(config, task)
    frozen, _ = initial_params.load_frozen_parameters(config, task, shapes.frozen, mesh)
    start = initial_params.initialise(config, task, shapes.trainable, mesh)
    schedule = make_schedule(config.optimizer, config.steps)
    optimizer = make_optimizer(config.optimizer, schedule, shapes.trainable)
    create = functools.partial(create_state, optimizer=optimizer)
    sharded = config.optimizer.sharded
    shapes = jax.eval_shape(create, start.trainable)
    layout = sharding.tree_shardings(shapes, mesh, sharded)
    state = jax.jit(create, out_shardings=layout)(start.trainable)
    step = make_train_step(
        task,
        optimizer,
        schedule,
        mesh,
        state,
        frozen,
        seed=config.seed,
        shard_over_data=sharded,
    )
    return state, frozen, step


@functools.cache
def one_step(task, axes, sharded=False):
    """Return parameters after one step, gradients and metrics as host arrays."""
    config = config_of(task)
    config.optimizer.sharded = sharded
    mesh = sharding.make_mesh(*axes, devices=jax.devices()[: math.prod(axes)])
    state, frozen, step = prepare(config, make_task(config), mesh)
    own = sharding.local_rows(B, mesh)
    batch = {name: np.asarray(array)[own] for name, array in rows(task).items()}
    state, metrics = step(state, frozen, sharding.make_global_batch(batch, mesh))
    trainable, mean, metrics = hosts.to_host(
        (state.trainable, state.optimizer[0].mu, metrics)
    )
    gradients = {path: m / MOMENT for path, m in flatten(mean).items()}
    negatives = metrics.pop("negatives", None)
    if negatives is not None:
        metrics["negatives_image"] = negatives.image
        metrics["negatives_text"] = negatives.text
    return flatten(trainable), gradients, metrics


if __name__ == "__main__":
    task, axes, path = sys.argv[1:]
    hosts.join()
    parts = one_step(task, tuple(map(int, axes.split(","))))
    flat = {
        f"{i}:{name}": value
        for i, part in enumerate(parts)
        for name, value in part.items()
    }
    if hosts.is_first():
        np.savez(path, **flat)
