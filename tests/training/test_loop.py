"""The training loop on a toy task: files, checkpoints, stops and errors."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest
from jax.profiler import ProfileData

from blip2_jax.training import loop as loops
from blip2_jax.training import tasks
from blip2_jax.training.checkpoints import Checkpoints
from blip2_jax.training.frozen import WeightsError
from blip2_jax.training.guards import NonFiniteLoss
from blip2_jax.training.loop import train
from blip2_jax.training.metrics_log import read_metrics, read_step_lines
from blip2_jax.training.setup import Evaluation
from blip2_jax.training.train_config import ConfigError, read_config
from tests.support import toy_task


@pytest.fixture(autouse=True)
def stage1_is_a_toy(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "stage1", toy_task.make_toy)


def toy_config(**changes):
    config = toy_task.get_config().unlock()
    config.update_from_flattened_dict(changes)
    return config.lock()


def losses(run_dir) -> dict[int, float]:
    return {
        line["step"]: line["loss"] for line in read_metrics(run_dir) if "loss" in line
    }


def test_a_kernel_that_is_not_there_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        train(toy_config(**{"model.attention": "cudnn"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_leaves_what_the_documentation_lists(tmp_path):
    config = toy_config()
    assert train(config, tmp_path / "run") == 0
    run = tmp_path / "run"
    assert read_config(run) == config
    assert list(losses(run)) == list(range(1, 21))
    line = read_metrics(run)[-1]
    assert line["itm_prior_entropy"] == pytest.approx(0.6365, abs=1e-4)
    for name in (
        "temperature",
        "images_per_second_per_chip",
        "data_wait_share",
        "peak_memory_gb",
        "learning_rate",
        "grad_norm",
        "broken_samples",
    ):
        assert line[name] >= 0
    assert Checkpoints(run, read_only=True).steps() == [15, 20]
    assert list((run / "tensorboard").iterdir())
    sources = json.loads((run / "sources.json").read_text())
    assert list(sources["frozen"]) == ["visual_encoder/kernel"]
    meta = Checkpoints(run, read_only=True).meta(20)
    assert meta == {
        "step": 20,
        "seed": 0,
        "position": 160,
        "broken_samples": {"shapes:train": 0},
    }


def test_a_profile_of_some_steps(tmp_path):
    run = tmp_path / "run"
    for text in ("3", "3:2", "0:2", "19:21", "a:b"):
        with pytest.raises(ValueError, match=rf"config\.profile is '{text}'.* 1 to 20"):
            train(toy_config(profile=text), run)
    assert not run.exists()
    train(toy_config(), tmp_path / "plain")
    train(toy_config(profile="3:4"), run)
    assert losses(run) == losses(tmp_path / "plain")
    (trace,) = (run / "profile").rglob("*.xplane.pb")
    numbers = ProfileData.from_file(str(trace))
    steps = {
        dict(event.stats).get("step_num")
        for plane in numbers.planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    }
    assert steps == {3, 4}


def test_frozen_weights_are_not_in_checkpoints_and_do_not_move(tmp_path):
    train(toy_config(steps=3), tmp_path)
    trees = (
        Checkpoints(tmp_path, read_only=True).read(3, ("trainable", "optimizer")).trees
    )
    assert list(trees["trainable"]) == ["qformer"]


@pytest.mark.parametrize("stop_at", [7, 10])
def test_sigterm_saves_and_the_same_command_continues_bit_for_bit(
    tmp_path, monkeypatch, stop_at
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(toy_config(), whole) == 0
    launch = loops.Loop.launch_step

    def launch_and_signal(self, step):
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return launch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(loops.Loop, "launch_step", launch_and_signal)
        assert train(toy_config(), stopped) == 128 + signal.SIGTERM
    assert Checkpoints(stopped, read_only=True).find("last") == stop_at
    assert train(toy_config(**{"data.workers": 0, "log_every": 1}), stopped) == 0
    assert losses(stopped) == losses(whole)
    assert_same_end(stopped, whole)


def assert_same_end(left, right) -> None:
    names = ("trainable", "optimizer")
    trees = [
        Checkpoints(run, read_only=True).read(20, names).trees for run in (left, right)
    ]
    jax.tree.map(np.testing.assert_array_equal, *trees)


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    train(toy_config(steps=4), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    assert train(toy_config(steps=4), tmp_path) == 0
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_another_configuration_is_refused_by_key(tmp_path):
    train(toy_config(steps=4), tmp_path)
    changed = toy_config(steps=4, **{"optimizer.b2": 0.5, "log_every": 7})
    with pytest.raises(ConfigError, match=r"optimizer\.b2 \(was 0\.98, is 0\.5\);"):
        train(changed, tmp_path)


def test_other_frozen_weights_are_refused_by_name(tmp_path):
    train(toy_config(steps=4), tmp_path)
    path = tmp_path / "sources.json"
    sources = json.loads(path.read_text())
    sources["frozen"]["visual_encoder/kernel"]["digest"] = "0" * 64
    path.write_text(json.dumps(sources))
    with pytest.raises(WeightsError, match="visual_encoder/kernel"):
        train(toy_config(steps=4), tmp_path)


def test_other_data_is_refused(tmp_path):
    train(toy_config(steps=4), tmp_path)
    path = tmp_path / "sources.json"
    path.write_text(path.read_text().replace('"records": 64', '"records": 65'))
    with pytest.raises(ConfigError, match="the data of this run was"):
        train(toy_config(steps=4), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    def make_bad(config):
        task = toy_task.make_toy(config)

        def loss(params, batch, key, negatives=None):
            value, metrics = task.loss(params, batch, key)
            value = jax.numpy.where(params["qformer"]["kernel"].sum() == 0, 0, value)
            bad = jax.lax.cond(
                (batch["image_id"] == 63).any(), lambda: jax.numpy.nan, lambda: 0.0
            )
            return value + bad, metrics | {"loss": value + bad}

        return dataclasses.replace(task, loss=loss)

    monkeypatch.setitem(tasks.TASKS, "stage1", make_bad)
    with pytest.raises(NonFiniteLoss) as raised:
        train(toy_config(**{"checkpoint.every": 1, "checkpoint.keep": 100}), tmp_path)
    saved = Checkpoints(tmp_path, read_only=True).steps()
    step = (saved or [0])[-1] + 1
    assert f"step {step}: loss = nan" in str(raised.value)
    last = saved[-1] if saved else "none"
    assert f"last good checkpoint: {last}" in str(raised.value)
    assert "62" in str(raised.value)


def test_evaluation_needs_an_evaluator(tmp_path):
    sources = ({"kind": "shapes", "split": "validation", "size": 8},)
    config = toy_config(**{"evaluation.every": 5, "evaluation.sources": sources})
    with pytest.raises(ConfigError, match="was given no evaluator"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_best_checkpoint_is_kept_by_the_evaluators_score(tmp_path):
    sources = ({"kind": "shapes", "split": "validation", "size": 8},)
    changes = {"evaluation.every": 5, "evaluation.sources": sources}
    scores = iter([0.1, 0.4, 0.2, 0.3])

    def make_evaluator(config, task):
        assert task.name == config.task
        sample = [{"key": "a", "said": "x"}]
        return lambda params: Evaluation(
            {"itm_r_mean": next(scores), "other": 1.0}, sample
        )

    assert train(toy_config(**changes), tmp_path, make_evaluator) == 0
    assert Checkpoints(tmp_path, read_only=True).best() == (10, 0.4)
    evaluated = [x for x in read_metrics(tmp_path) if "evaluation/other" in x]
    assert [line["step"] for line in evaluated] == [5, 10, 15, 20]
    samples, broken = read_step_lines(tmp_path / "samples.jsonl")
    assert [line["step"] for line in samples] == [5, 10, 15, 20] and not broken
    assert samples[0]["samples"] == [{"key": "a", "said": "x"}]
    (start,), _ = read_step_lines(tmp_path / "starts.jsonl")
    assert start["step"] == 0 and start["jax"] == jax.__version__


EVALUATED = {
    "steps": 4,
    "evaluation.every": 2,
    "evaluation.sources": ({"kind": "shapes", "split": "validation", "size": 8},),
}


def constant_score(config, task):
    return lambda params: Evaluation({"score": 1.0})


def test_a_wrong_metric_loses_no_steps(tmp_path):
    wrong = toy_config(**EVALUATED, **{"evaluation.metric": "scroe"})
    with pytest.raises(ConfigError, match="'scroe'; the scores are score"):
        train(wrong, tmp_path, constant_score)
    assert Checkpoints(tmp_path, read_only=True).steps() == [2]
    right = toy_config(**EVALUATED, **{"evaluation.metric": "score"})
    assert train(right, tmp_path, constant_score) == 0
    assert list(losses(tmp_path)) == [1, 2, 3, 4]
    with pytest.raises(ConfigError, match=r"evaluation\.metric \(was 'scroe', is 'b'"):
        train(toy_config(**EVALUATED, **{"evaluation.metric": "b"}), tmp_path)


def test_a_stop_at_the_last_step_does_not_drop_its_evaluation(tmp_path, monkeypatch):
    config = toy_config(**EVALUATED, **{"evaluation.metric": "score"})
    monkeypatch.setattr(loops.Loop, "stop_requested", lambda self, step, stop: step > 3)
    train(config, tmp_path, constant_score)
    evaluated = [x["step"] for x in read_metrics(tmp_path) if "evaluation/score" in x]
    assert evaluated == [2, 4]
    assert Checkpoints(tmp_path, read_only=True).meta(4)["metric"] == 1.0


def test_nothing_is_written_where_the_set_up_fails(tmp_path):
    run = tmp_path / "run"
    for changes, message in (
        ({"batch_size": 12}, "batch size 12 .* use 8 or 16"),
        ({"frozen_sources.vision": "/no/such.safetensors"}, "/no/such.safetensors"),
        ({"data.tokenizer.qformer": "/no/such"}, "/no/such"),
        ({"optimizer.warmup_steps": 20}, "warmup_steps"),
        ({"mesh.fsdp": 3}, "8 devices"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            train(toy_config(**changes), run)
        assert not run.exists()


def test_a_mesh_of_eight_continues_on_a_mesh_that_divides_parameters(tmp_path):
    train(toy_config(), tmp_path / "whole")
    config = toy_config(steps=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops.Loop, "stop_requested", lambda self, step, stop: step == 10)
        train(config, tmp_path / "moved")
    other = {"mesh.fsdp": 4, "mesh.data": 2, "optimizer.sharded": True}
    train(toy_config(**other), tmp_path / "moved")
    whole, moved = losses(tmp_path / "whole"), losses(tmp_path / "moved")
    np.testing.assert_allclose(
        list(moved.values()), list(whole.values()), rtol=1e-5, atol=0
    )
