"""From stage 1 to a VQA fine-tune: weights carried over, training, evaluation, use."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import blip2_jax
from blip2_jax.convert.files.checkpoint_files import SourceError
from blip2_jax.convert.lavis_file import lavis_arrays
from blip2_jax.convert.native_folder import write_folder
from blip2_jax.data.shapes.render import render
from blip2_jax.data.shapes.world import scene
from blip2_jax.evaluation.evaluators import make_evaluator
from blip2_jax.inference.load import open_model
from blip2_jax.nn.trees import flatten
from blip2_jax.training.loop import train
from blip2_jax.training.setup import set_up
from blip2_jax.training.train_config import default_config
from blip2_jax.training.trained_model import open_run
from tests.support import tiny_runs

QUESTIONS = ["what color is the circle?", "is there a star?"]
QUERY_BRANCH = "qformer/layer_0/query_mlp/up/kernel"
TEXT_BRANCH = "qformer/layer_0/text_mlp/up/kernel"


def vqa_config(run, vision):
    """Questions at 48 instead of 32 pixels; only the language model is frozen."""
    config = tiny_runs.tiny_config("stage2").unlock()
    config.carried = default_config("stage2").carried
    config.steps, config.log_every, config.batch_size = 1, 1, 8
    config.model.question_in_qformer = True
    config.model.overrides.vision.image_size = config.data.image.size = 48
    config.frozen = ("^language_model/",)
    config.frozen_sources.vision = vision
    config.init.from_run = run
    config.objective = {"mean_over": "texts"}
    config.optimizer.layer_decay, config.optimizer.warmup_steps = 0.9, 0
    config.optimizer.learning_rate = 1e-4
    questions = {"kind": "shapes", "split": "train", "size": 16, "texts": "questions"}
    config.data.train = ({"kind": "per_question", "of": questions},)
    config.data.max_text_length = 40
    config.evaluation.every = 1
    config.evaluation.metric = "exact_match"
    config.evaluation.sources = (questions | {"size": 4, "count": 1},)
    config.evaluation.max_new_tokens = 3
    return config.lock()


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Directories of a stage-1, a stage-2 and a VQA run, each started from the last."""
    root = tmp_path_factory.mktemp("chain")
    first = tiny_runs.make_run(root / "stage1", "stage1")
    save_file(jax.device_get(flatten(first.frozen)), root / "vit.safetensors")
    config = tiny_runs.tiny_config("stage2").unlock()
    config.carried = default_config("stage2").carried
    config.init.from_run = str(root / "stage1")
    second = set_up(config.lock(), root / "stage2")
    second.checkpoints.save(0, second.trees(), {})
    second.checkpoints.close()
    config = vqa_config(str(root / "stage2"), str(root / "vit.safetensors"))
    assert train(config, root / "vqa", make_evaluator) == 0
    return root


def test_the_text_branch_is_carried_from_stage_1_into_training(chain):
    first = open_run(chain / "stage1").arrays
    run = set_up(
        vqa_config(str(chain / "stage2"), str(chain / "vit.safetensors")),
        chain / "again",
        make_evaluator,
    )
    trainable = flatten(run.state.trainable)
    for path in (QUERY_BRANCH, TEXT_BRANCH, "qformer/embeddings/word"):
        np.testing.assert_array_equal(trainable[path], first[path])
    assert "itm_head/kernel" in flatten(run.carried)
    assert all(array.dtype == jnp.float32 for array in trainable.values())
    assert any("resized from 2 x 2 to 3 x 3 patches" in line for line in run.report)
    trained = open_run(chain / "vqa").arrays
    for path in (QUERY_BRANCH, TEXT_BRANCH, "visual_encoder/blocks/mlp/up/kernel"):
        change = np.abs(np.asarray(trained[path]) - trainable[path]).max()
        assert 0 < change < 2e-4, path


def test_evaluation_in_the_loop_asks_the_questions(chain):
    lines = (chain / "vqa" / "metrics.jsonl").read_text().splitlines()
    names = {name for line in lines for name in json.loads(line)}
    assert {"loss", "texts"} <= names
    assert any(name.endswith("exact_match") for name in names)


def test_a_loaded_model_answers_with_the_question_in_the_qformer(chain, tmp_path):
    model = blip2_jax.load(chain / "vqa")
    assert model.model.question_in_qformer
    photos = [render(scene("train", number)) for number in range(2)]
    settings = {"num_beams": 1, "max_new_tokens": 3}
    answers = model.answer(photos, QUESTIONS, **settings)
    assert len(model.caption(photos, **settings)) == 2  # without a question
    assert model.features(photos, mode="image")["image_embeds"].shape == (2, 4, 16)
    source = open_model(chain / "vqa")
    write_folder(source, tmp_path / "folder")
    again = blip2_jax.load(tmp_path / "folder")
    assert again.answer(photos, QUESTIONS, **settings) == answers
    with pytest.raises(SourceError, match="whose Q-Former reads questions"):
        list(lavis_arrays(source))
