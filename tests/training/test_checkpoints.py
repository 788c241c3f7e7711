"""Checkpoints: round trip, other meshes, retention, damaged files."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from blip2_jax.training.checkpoints import CheckpointError, Checkpoints


def make_trees(value: float = 1.0) -> dict:
    """Return small trees with the structure of those of training."""
    trainable = {
        "qformer": {"kernel": jnp.arange(64.0).reshape(8, 8) + value},
        "temperature": jnp.float32(0.07),
    }
    optimizer = optax.adamw(1e-3).init(trainable)
    return {"trainable": trainable, "optimizer": optimizer}


def save_steps(run_dir, metrics, keep=2, mode="max") -> Checkpoints:
    checkpoints = Checkpoints(run_dir, keep=keep, mode=mode)
    for step, metric in metrics.items():
        checkpoints.save(step, make_trees(step), {"step": step}, metric)
    checkpoints.wait()
    return checkpoints


def assert_equal_trees(left, right) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_round_trip_keeps_every_bit_and_the_structure(tmp_path):
    checkpoints = save_steps(tmp_path, {3: None})
    restored = checkpoints.restore(make_trees(0))
    assert restored.step == 3
    assert restored.meta == {"step": 3}
    assert_equal_trees(restored.trees, make_trees(3))


def test_a_new_run_has_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path).restore(make_trees()) is None


@pytest.mark.parametrize(("before", "after"), [((8, 1), (2, 4)), ((4, 2), (1, 1))])
def test_restores_on_another_mesh(tmp_path, before, after):
    def place(trees, shape):
        count = shape[0] * shape[1]
        devices = np.array(jax.devices()[:count]).reshape(shape)
        mesh = Mesh(devices, ("data", "fsdp"))
        rule = lambda leaf: PartitionSpec("data", "fsdp") if leaf.ndim else None
        return jax.tree.map(
            lambda leaf: jax.device_put(
                leaf, NamedSharding(mesh, rule(leaf) or PartitionSpec())
            ),
            trees,
        )

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, place(make_trees(5), before), {})
    checkpoints.close()
    targets = place(make_trees(0), after)
    restored = Checkpoints(tmp_path).restore(targets)
    assert_equal_trees(restored.trees, make_trees(5))
    kernel = restored.trees["trainable"]["qformer"]["kernel"]
    assert kernel.sharding == targets["trainable"]["qformer"]["kernel"].sharding


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 1)])
def test_keeps_the_last_ones_and_the_best(tmp_path, mode, best):
    metrics = {1: 0.1, 2: 0.9, 3: 0.5, 4: 0.5, 5: None}
    checkpoints = save_steps(tmp_path, metrics, mode=mode)
    assert checkpoints.steps() == [best, 4, 5]
    assert checkpoints.find("best") == best
    assert checkpoints.find("last") == 5
    note = json.loads((tmp_path / "best.json").read_text())
    assert note == {"step": best, "metric": metrics[best]}


def test_the_score_of_a_save_counts_before_its_files_are_complete(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step, score in ((1, 0.3), (2, 0.7)):
        checkpoints.save(step, make_trees(step), {}, score)
        assert checkpoints.best() == (step, score)
    checkpoints.close()
    assert Checkpoints(tmp_path).best() == (2, 0.7)
    assert "cannot be read" not in caplog.text


def test_an_unknown_checkpoint_is_named_with_those_there_are(tmp_path):
    checkpoints = save_steps(tmp_path, {1: None, 2: None})
    with pytest.raises(CheckpointError, match=r"'7'.*\[1, 2\]"):
        checkpoints.find("7")


def test_reads_numpy_trees_without_a_target(tmp_path):
    checkpoints = save_steps(tmp_path, {4: None})
    trees = checkpoints.read(4, ("trainable", "carried")).trees
    assert list(trees) == ["trainable"]
    assert_equal_trees(trees["trainable"], make_trees(4)["trainable"])
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(trees))


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage, caplog):
    save_steps(tmp_path, {1: None, 2: None}).close()
    damage_largest_file(tmp_path / "checkpoints" / "2", damage)
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(make_trees(0))
    assert restored.step == 1
    assert_equal_trees(restored.trees, make_trees(1))
    assert "checkpoint 2 is damaged" in caplog.text
    checkpoints.save(2, make_trees(2), {"step": 2})  # the damaged one has moved
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]


def test_nothing_but_damaged_checkpoints_is_an_error(tmp_path):
    save_steps(tmp_path, {1: None}).close()
    damage_largest_file(tmp_path / "checkpoints" / "1", "flip")
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        Checkpoints(tmp_path).restore(make_trees(0))


def damage_largest_file(path, damage: str) -> None:
    files = [file for file in (path / "trainable").rglob("*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    if damage == "delete":
        largest.unlink()
    else:
        half = len(content) // 2 if damage == "truncate" else len(content)
        largest.write_bytes(content[:half])


KILLED_WHILE_SAVING = """
import sys, jax.numpy as jnp
from blip2_jax.training.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=100)
for step in range(1, 1000):
    checkpoints.save(step, {"trainable": {"x": jnp.full((512, 512), step)}}, {})
    print(step, flush=True)
"""


def test_a_killed_save_never_looks_complete(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert process.stdout is not None
    for _ in range(8):
        process.stdout.readline()
    time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    restored = Checkpoints(tmp_path).restore(
        {"trainable": {"x": jnp.zeros((512, 512))}}
    )
    assert restored.step >= 6
    assert (restored.trees["trainable"]["x"] == restored.step).all()
