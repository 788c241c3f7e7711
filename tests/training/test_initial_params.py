"""Initial parameters from random values, runs and files; the frozen manifest."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from blip2_jax.convert.files.checkpoint_files import SourceError
from blip2_jax.convert.files.digests import digest
from blip2_jax.convert.positions import interpolate_positions
from blip2_jax.models.presets import PRESETS
from blip2_jax.models.sizes import ViTConfig
from blip2_jax.nn.trees import flatten, unflatten
from blip2_jax.parallel import sharding
from blip2_jax.training import frozen, initial_params
from blip2_jax.training.checkpoints import Checkpoints
from blip2_jax.training.tasks import Task
from blip2_jax.training.train_config import default_config, write_config

QUERY = {"qformer/layer_0/query_mlp/kernel": (4, 8)}
TEXT = {"qformer/layer_0/text_mlp/kernel": (4, 8), "qformer/embeddings/word": (9, 4)}
TOWER = {"visual_encoder/blocks/kernel": (2, 4, 4), "visual_encoder/class_token": (4,)}
MODEL = {"language_model/embeddings/token": (6, 4)}
CARRIED = ("^qformer/embeddings/word$", "/text_mlp/")


def task_of(name, *parts):
    """Return a task that has these parameters and computes nothing."""
    shapes = {path: shape for part in parts for path, shape in part.items()}

    def init_params(key):
        keys = jax.random.split(key, len(shapes))
        return unflatten(
            {
                path: jax.random.normal(subkey, shape)
                for subkey, (path, shape) in zip(keys, shapes.items(), strict=True)
            }
        )

    return Task(name, None, init_params, lambda *_: None, "image_text", ())


STAGE1 = task_of("stage1", QUERY, TEXT, TOWER, {"temperature": ()})
STAGE2 = task_of("stage2", QUERY, TOWER, MODEL, {"language_projection/kernel": (4, 4)})


def config_of(task, **changes):
    config = default_config(task).unlock()
    config.carried = CARRIED if task == "stage2" else ()
    for key, value in changes.items():
        config[key.split("__")[0]][key.split("__")[1]] = value
    return config


def mesh():
    return sharding.make_mesh(data=2, fsdp=4)


def start(config, task):
    shapes = initial_params.parameter_shapes(config, task)
    return initial_params.initialise(config, task, shapes.trainable, mesh())


@pytest.fixture
def stage1_run(tmp_path):
    """Return the directory of a run with a stage-1 checkpoint, and its parameters."""
    initial = start(config_of("stage1"), STAGE1)
    checkpoints = Checkpoints(tmp_path / "stage1")
    checkpoints.save(7, {"trainable": initial.trainable}, {})
    checkpoints.close()
    return str(tmp_path / "stage1"), flatten(jax.device_get(initial.trainable))


def write(path, shapes, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {
        name: np.asarray(rng.normal(size=shape)).astype(dtype)
        for name, shape in shapes.items()
    }
    save_file(arrays, path)
    return arrays


def load(config, task):
    shapes = initial_params.parameter_shapes(config, task)
    return initial_params.load_frozen_parameters(config, task, shapes.frozen, mesh())


def test_from_scratch_is_random_and_reported():
    first, again = (start(config_of("stage1"), STAGE1) for _ in range(2))
    assert first.report == ["from scratch: 4 arrays are random"]
    assert first.carried == {}
    jax.tree.map(np.testing.assert_array_equal, first.trainable, again.trainable)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(first.trainable))
    config = config_of("stage1")
    config.seed = 1
    other = flatten(start(config, STAGE1).trainable)
    word = "qformer/embeddings/word"
    assert not np.array_equal(other[word], flatten(first.trainable)[word])


def test_stage2_takes_and_carries_parameters(stage1_run):
    run, arrays = stage1_run
    initial = start(config_of("stage2", init__from_run=run), STAGE2)
    trainable, carried = flatten(initial.trainable), flatten(initial.carried)
    assert trainable.keys() == QUERY.keys() | {"language_projection/kernel"}
    assert carried.keys() == TEXT.keys()
    for path, value in (trainable | carried).items():
        if path in arrays:
            np.testing.assert_array_equal(value, arrays[path])
    assert initial.report == [
        f"from {run}: taken 1 arrays (qformer 1)",
        f"from {run}: carried 2 arrays (qformer 2)",
        f"from {run}: left 1 arrays (temperature 1)",
        "new (random): 1 arrays (language_projection 1)",
    ]


def test_files_have_priority_over_the_run(stage1_run, tmp_path):
    run, _ = stage1_run
    file = tmp_path / "query.safetensors"
    arrays = write(file, QUERY)
    config = config_of("stage2", init__from_run=run, init__from_weights=(str(file),))
    path = next(iter(QUERY))
    np.testing.assert_array_equal(
        flatten(start(config, STAGE2).trainable)[path], arrays[path]
    )


def test_a_source_array_of_another_shape_is_an_error(tmp_path):
    file = str(tmp_path / "x.safetensors")
    write(file, {"qformer/layer_0/query_mlp/kernel": (4, 9)})
    with pytest.raises(frozen.WeightsError, match=r"query_mlp/kernel is \(4, 9\) in"):
        start(config_of("stage2", init__from_weights=(file,)), STAGE2)


def test_weights_of_another_model_are_an_error(tmp_path):
    file = str(tmp_path / "x.safetensors")
    write(file, {"something/else": (2,)})
    with pytest.raises(frozen.WeightsError, match="hold no parameter of this model"):
        start(config_of("stage2", init__from_weights=(file,)), STAGE2)


def test_a_carried_pattern_without_a_match_is_an_error(tmp_path):
    file = str(tmp_path / "x.safetensors")
    write(file, QUERY)
    with pytest.raises(ValueError, match="carried rule"):
        start(config_of("stage2", init__from_weights=(file,)), STAGE2)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_frozen_weights_are_cast_placed_and_recorded(tmp_path, dtype):
    file = str(tmp_path / "tower.safetensors")
    arrays = write(file, TOWER, dtype)
    config = config_of("stage1", frozen_sources__vision=file)
    parameters, manifest = load(config, STAGE1)
    for path, array in flatten(parameters).items():
        assert array.dtype == jnp.bfloat16
        np.testing.assert_array_equal(array, arrays[path].astype(ml_dtypes.bfloat16))
        assert manifest[path] == {
            "source": file,
            "digest": digest(arrays[path]),
            "shape": list(TOWER[path]),
            "dtype": str(np.dtype(dtype)),
        }


def test_no_source_for_frozen_weights_is_an_error(tmp_path):
    with pytest.raises(frozen.WeightsError, match=r"frozen_sources\.vision is empty"):
        load(config_of("stage1"), STAGE1)
    with pytest.raises(SourceError, match=r"no file or folder .missing\.safetensors"):
        load(config_of("stage1", frozen_sources__vision="missing.safetensors"), STAGE1)
    file = str(tmp_path / "half.safetensors")
    write(file, {"visual_encoder/class_token": (4,)})
    with pytest.raises(frozen.WeightsError, match=r"1 frozen .*encoder/blocks/kernel"):
        load(config_of("stage1", frozen_sources__vision=file), STAGE1)


def test_frozen_weights_of_another_shape_are_an_error(tmp_path):
    file = str(tmp_path / "tower.safetensors")
    write(file, TOWER | {"visual_encoder/class_token": (5,)})
    with pytest.raises(frozen.WeightsError, match=r"class_token is \(5,\)"):
        load(config_of("stage1", frozen_sources__vision=file), STAGE1)


def test_random_towers_are_reproducible():
    config = config_of("stage2")
    config.frozen_sources.vision = config.frozen_sources.language_model = "random"
    assert load(config, STAGE2)[1] == load(config, STAGE2)[1]


def test_a_tower_may_come_from_a_run(tmp_path):
    tower = task_of("contrast", TOWER)
    trained = start(config_of("contrast"), tower).trainable
    checkpoints = Checkpoints(tmp_path / "tower")
    checkpoints.save(3, {"trainable": trained}, {})
    checkpoints.close()
    config = config_of("stage1", frozen_sources__vision=str(tmp_path / "tower"))
    parameters, _ = load(config, STAGE1)
    path = "visual_encoder/class_token"
    np.testing.assert_array_equal(
        flatten(parameters)[path], flatten(trained)[path].astype(jnp.bfloat16)
    )


def test_a_directory_of_files_is_one_source(tmp_path):
    for name, shape in TOWER.items():
        write(tmp_path / f"{name.rsplit('/', 1)[1]}.safetensors", {name: shape})
    weights = frozen.open_weights(str(tmp_path), PRESETS["shapes"])
    assert set(weights) == TOWER.keys() and len(weights) == 2


def test_verify_manifest_names_differing_arrays(tmp_path):
    file = str(tmp_path / "tower.safetensors")
    config = config_of("stage1", frozen_sources__vision=file)
    arrays = write(file, TOWER)
    _, before = load(config, STAGE1)
    frozen.verify_manifest(before, before)
    arrays["visual_encoder/class_token"] = arrays["visual_encoder/class_token"] + 1e-6
    save_file(arrays, file)
    _, after = load(config, STAGE1)
    with pytest.raises(frozen.WeightsError, match=r"1 frozen arrays.*class_token was"):
        frozen.verify_manifest(before, after)
    with pytest.raises(frozen.WeightsError, match="is missing"):
        frozen.verify_manifest(before, {})


def test_digest_does_not_depend_on_memory_layout():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert digest(array) == digest(np.asfortranarray(array))
    assert digest(array) == digest(array.astype(">f4"))
    assert digest(array) != digest(array + 1)
    assert digest(np.float32(1)) == digest(np.ones((), np.float32))


POSITIONS = "visual_encoder/position_embedding"


TWO_BY_TWO = ViTConfig(4, 1, 2, 4, image_size=28)


def at_28_pixels(config):
    """Set the image encoder to four patches and the class token, of width 4."""
    config.model.overrides = {"vision": {"image_size": 28, "width": 4, "heads": 2}}
    return config


def towers(num_positions):
    """Return shapes of a tower with `num_positions`, and a task that has five."""
    arrays = TOWER | {POSITIONS: (num_positions, 4)}
    model = TOWER | {POSITIONS: (5, 4)}
    return arrays, task_of("stage1", QUERY, model)


def test_a_trained_tower_starts_from_weights_of_another_size(tmp_path):
    """It is stored in fp32, and the report mentions the interpolation."""
    shapes, task = towers(17)
    file = str(tmp_path / "tower.safetensors")
    arrays = write(
        file, shapes | {"qformer/layer_0/query_mlp/kernel": (4, 8)}, np.float16
    )
    config = at_28_pixels(config_of("stage1", frozen_sources__vision=file))
    config.frozen = ()
    initial = start(config, task)
    trainable = flatten(initial.trainable)
    assert all(array.dtype == jnp.float32 for array in trainable.values())
    for path in TOWER:
        np.testing.assert_array_equal(trainable[path], arrays[path].astype(np.float32))
    resized = interpolate_positions(arrays[POSITIONS], TWO_BY_TWO)
    np.testing.assert_array_equal(trainable[POSITIONS], resized.astype(np.float32))
    assert initial.report == [
        f"from {file}: taken 3 arrays (visual_encoder 3)",
        f"from {file}: carried 0 arrays",
        f"from {file}: left 0 arrays",
        f"from {file}: position embeddings resized from 4 x 4 to 2 x 2 patches",
        "new (random): 1 arrays (qformer 1)",
    ]


def test_a_frozen_tower_is_resized_and_recorded(tmp_path):
    shapes, task = towers(10)
    file = str(tmp_path / "tower.safetensors")
    arrays = write(file, shapes)
    config = at_28_pixels(config_of("stage1", frozen_sources__vision=file))
    parameters, manifest = load(config, task)
    resized = interpolate_positions(arrays[POSITIONS], TWO_BY_TWO)
    assert manifest[POSITIONS]["digest"] == digest(resized)
    assert manifest[POSITIONS]["notes"] == [
        "position embeddings resized from 3 x 3 to 2 x 2 patches"
    ]
    np.testing.assert_array_equal(
        flatten(parameters)[POSITIONS], resized.astype(ml_dtypes.bfloat16)
    )
    frozen.verify_manifest(manifest, load(config, task)[1])


def test_a_run_of_another_size_has_priority_over_the_tower_source(tmp_path):
    shapes, task = towers(17)
    trained = start(config_of("contrast"), task_of("contrast", shapes)).trainable
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(3, {"trainable": trained}, {})
    checkpoints.close()
    run = str(tmp_path / "run")
    config = config_of("stage1", init__from_run=run, frozen_sources__vision="random")
    config.frozen = ()
    initial = start(at_28_pixels(config), task)
    path = "visual_encoder/class_token"
    np.testing.assert_array_equal(
        flatten(initial.trainable)[path], flatten(trained)[path]
    )
    assert any("resized from 4 x 4 to 2 x 2" in line for line in initial.report)


def test_a_trained_tower_without_weights_is_an_error(stage1_run):
    run, _ = stage1_run
    config = config_of("stage2", init__from_run=run)
    config.frozen = ("^language_model/",)
    with pytest.raises(frozen.WeightsError, match=r"visual_encoder/ is to be trained"):
        start(config, STAGE2)
    config.frozen_sources.vision = "random"
    assert "visual_encoder 2" in start(config, STAGE2).report[-1]


def test_a_task_may_train_carried_parameters(stage1_run):
    """VQA trains the text branch that stage 2 carried."""
    run, arrays = stage1_run
    vqa = task_of("stage2", QUERY, TEXT, TOWER, MODEL)
    initial = start(config_of("stage2", init__from_run=run), vqa)
    for path in TEXT:
        np.testing.assert_array_equal(flatten(initial.trainable)[path], arrays[path])
    assert initial.carried == {}


def test_the_best_checkpoint_of_a_run_may_have_the_lowest_score(tmp_path):
    config = default_config("stage1").unlock()
    config.evaluation.mode = "min"
    write_config(tmp_path, config)
    checkpoints = Checkpoints(tmp_path, mode="min")
    for step, score in ((1, 0.5), (2, 0.9)):
        trees = {"trainable": {"temperature": jnp.float32(step)}}
        checkpoints.save(step, trees, {}, score)
    checkpoints.close()
    assert frozen.read_checkpoint(tmp_path, "best") == (1, {"temperature": 1.0})
