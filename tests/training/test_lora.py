"""Training with LoRA: what is trained, saved, resumed, opened and refused."""

import jax
import numpy as np
import pytest

import blip2_jax
from blip2_jax.cli.convert import main
from blip2_jax.convert.native_folder import read_folder, write_folder
from blip2_jax.convert.peft_adapter import read_adapter
from blip2_jax.data.shapes.render import render
from blip2_jax.data.shapes.world import scene
from blip2_jax.inference.load import open_model
from blip2_jax.nn import low_rank
from blip2_jax.nn.trees import flatten, unflatten
from blip2_jax.training import loop as loops
from blip2_jax.training.checkpoints import Checkpoints
from blip2_jax.training.loop import train
from blip2_jax.training.setup import set_up
from blip2_jax.training.train_config import ConfigError
from tests.support.tiny_runs import make_run, tiny_config

RANK, SCALE = 2, 2.0
TARGETS = (
    "^language_model/blocks/attention/(query|value)/kernel$",
    "^qformer/layer_0/cross_attention/query/kernel$",
    "^visual_encoder/blocks/mlp/up/kernel$",
)
# Width 16, one block in each tower, feed-forward of 32: rank (in + out) each.
TRAINED = RANK * (2 * (16 + 16) + (16 + 16) + (16 + 32))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Write a converted folder of a model whose texts depend on the image."""
    root = tmp_path_factory.mktemp("base")
    make_run(root / "run", "stage2", factor=30)
    write_folder(open_model(root / "run"), root / "folder")
    return root / "folder"


def config_of(base, **changes):
    config = tiny_config("stage2").unlock()
    config.init.from_weights = (str(base),)
    config.frozen_sources.vision = config.frozen_sources.language_model = str(base)
    config.frozen = (".",)
    config.lora.rank, config.lora.alpha = RANK, SCALE * RANK
    config.lora.targets = TARGETS
    config.steps, config.log_every, config.checkpoint.every = 4, 1, 2
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e-2, 0
    config.update_from_flattened_dict(changes)
    return config.lock()


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """Return the directory of a finished run."""
    directory = tmp_path_factory.mktemp("runs") / "lora"
    assert train(config_of(base), directory) == 0
    return directory


def saved(directory, step=4):
    names = ("trainable", "optimizer", "carried")
    return Checkpoints(directory, read_only=True).read(step, names).trees


def test_a_run_trains_the_matrices_alone_and_begins_with_the_base(base, tmp_path):
    run = set_up(config_of(base), tmp_path / "run")
    trainable = flatten(run.state.trainable)
    assert len(trainable) == 8 and all(map(low_rank.is_matrix, trainable))
    assert sum(leaf.size for leaf in trainable.values()) == TRAINED
    assert f"{TRAINED:,} trainable" in run.report[1]
    assert "new (random): 8 arrays (language_model 4, qformer 2, visual_encoder 2)" in (
        run.report
    )
    assert np.abs(trainable["language_model/blocks/attention/query/lora_a"]).max() > 0
    expected = read_folder(base).arrays
    for path, leaf in flatten(run.parameters()).items():
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_checkpoints_hold_the_matrices_alone(run):
    trees = saved(run)
    assert trees.keys() == {"trainable", "optimizer"}
    paths = flatten(trees["trainable"])
    assert len(paths) == 8 and all(map(low_rank.is_matrix, paths))


def test_a_stopped_run_continues_bit_for_bit(base, run, tmp_path):
    stopped = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops.Loop, "stop_requested", lambda self, step, stop: step == 2)
        train(config_of(base), stopped)
    assert Checkpoints(stopped, read_only=True).find("last") == 2
    assert train(config_of(base), stopped) == 0
    jax.tree.map(np.testing.assert_array_equal, saved(stopped), saved(run))


def test_a_run_opens_with_merged_kernels_and_frozen_weights_unchanged(base, run):
    source, before = open_model(run), read_folder(base).arrays
    assert set(source.arrays) == set(before)
    matrices = flatten(saved(run)["trainable"])
    adapted = low_rank.adapted_kernels(matrices)
    assert len(adapted) == 4
    for path in before:
        if path not in adapted:
            np.testing.assert_array_equal(source.arrays[path], before[path])
            continue
        a, b = (matrices[name] for name in low_rank.matrix_paths(path))
        assert np.abs(b).max() > 0, path
        np.testing.assert_allclose(
            source.arrays[path], before[path] + SCALE * (a @ b), rtol=1e-6, atol=1e-6
        )
    # Of the towers, those with merged kernels cannot be left out of a LAVIS file.
    assert source.elsewhere == ()


def test_loss_and_texts_are_those_of_the_converted_run(base, run, tmp_path):
    write_folder(open_model(run), tmp_path / "folder")
    merged = blip2_jax.load(tmp_path / "folder")
    pictures = [render(scene("heldout", index)) for index in range(4)]
    settings = {"num_beams": 1, "max_new_tokens": 8}
    texts = merged.caption(pictures, **settings)
    assert blip2_jax.load(run).caption(pictures, **settings) == texts
    assert blip2_jax.load(base).caption(pictures, **settings) != texts
    # The step's loss, with A and B beside the kernels, is that of the merged ones.
    again = set_up(config_of(base, steps=4), run)
    batch = next(iter(again.batches))
    batch = {
        name: rows
        for name, rows in batch.items()
        if name != "position" and not name.startswith("_")
    }
    params = {**flatten(again.frozen), **flatten(again.state.trainable)}
    unmerged = again.task.loss(unflatten(params), batch, None)[0]
    expected = again.task.loss(merged.params, batch, None)[0]
    np.testing.assert_allclose(unmerged, expected, rtol=1e-6)


def test_convert_writes_the_matrices_for_peft(base, tmp_path, capsys):
    run = set_up(config_of(base), tmp_path / "run")
    run.checkpoints.save(0, run.trees(), {})
    run.checkpoints.close()
    out = tmp_path / "adapter"
    arguments = ["--model", str(tmp_path / "run"), "--to", "peft", "--out", str(out)]
    assert main(arguments) == 0
    said = f"LoRA of rank {RANK} on 4 kernels, {TRAINED} parameters"
    assert said in capsys.readouterr().out
    pairs = read_adapter(str(out))
    assert {name: pair.b.shape[0] for name, pair in pairs.items()} == {
        "language_model.model.decoder.layers.0.self_attn.q_proj.weight": 16,
        "language_model.model.decoder.layers.0.self_attn.v_proj.weight": 16,
        "qformer.encoder.layer.0.crossattention.attention.query.weight": 16,
        "vision_model.encoder.layers.0.mlp.fc1.weight": 32,
    }
    assert all(pair.scale == SCALE for pair in pairs.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora.rank": 0}, "config.lora.rank is 0 and .* LoRA needs both"),
        ({"lora.targets": ()}, "LoRA needs both"),
        ({"lora.rank": -1}, "config.lora.rank is -1; it must not be negative"),
        ({"lora.alpha": 0.0}, "config.lora.alpha is 0.0; it must be above 0"),
        ({"lora.targets": ("(",)}, "config.lora.targets has '\\('"),
        ({"lora.targets": ("/bias$",)}, "'/bias\\$' matches no kernel of a dense"),
        ({"lora.rank": 17}, "rank is 17, but .*query/kernel is 16 x 16"),
        ({"frozen": ("^visual_encoder/", "^language_model/")}, "qformer/.* is trained"),
    ],
)
def test_what_does_not_fit_is_said(base, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        set_up(config_of(base, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_lora_is_for_blip2_and_frozen_encoders_in_chunks(tmp_path):
    config = tiny_config("stage1").unlock()
    config.lora.rank, config.lora.targets = 2, ("^visual_encoder/",)
    config.optimizer.accumulate, config.batch_size = 2, 16
    with pytest.raises(ValueError, match=r"this run trains visual_encoder/.*/lora_a"):
        set_up(config, tmp_path / "run")
    config.task, config.optimizer.accumulate = "contrast", 1
    with pytest.raises(ConfigError, match="the task is 'contrast'; LoRA is for stage1"):
        set_up(config, tmp_path / "run")


def test_a_run_with_other_lora_does_not_start_from_it(base, run, tmp_path):
    start = {"init.from_run": str(run), "init.which": "last"}
    again = set_up(config_of(base, **start), tmp_path / "same")
    matrices = flatten(saved(run)["trainable"])
    for path, leaf in flatten(again.state.trainable).items():
        np.testing.assert_array_equal(leaf, matrices[path])
    with pytest.raises(ConfigError, match=r"this run has another config\.lora"):
        set_up(config_of(base, **start, **{"lora.alpha": 1.0}), tmp_path / "other")
