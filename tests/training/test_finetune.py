"""`configs/finetune.py`: a model of any origin is fine-tuned on data in any layout."""

import json
import math

import numpy as np
import pytest

import blip2_jax
from blip2_jax.cli import report
from blip2_jax.configs.finetune import get_config
from blip2_jax.evaluation.evaluators import make_evaluator
from blip2_jax.planning.batch_fit import fitting_batch_size
from blip2_jax.training.loop import train
from blip2_jax.training.setup import set_up
from blip2_jax.training.train_config import ConfigError, check_same_run, read_config
from tests.support import layouts
from tests.support import peer_models as peers
from tests.support.generated_data import picture
from tests.support.tiny_runs import make_run, tiny_config

PHOTOS = 30


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Write a Hugging Face folder of each kind and a run; return paths by name."""
    directory = tmp_path_factory.mktemp("models")
    for name in ("opt", "t5", "retrieval"):
        peers.write_huggingface(directory / name, name)
    make_run(directory / "run", "stage2")
    return directory


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Write a CSV of captions and a JSON file of questions beside the same images."""
    directory = tmp_path_factory.mktemp("photos")
    names = [f"{number}.jpg" for number in range(PHOTOS)]
    for number, name in enumerate(names):
        picture(number).save(directory / name)
    lines = [f"{name},a red circle {number}" for number, name in enumerate(names)]
    (directory / "captions.csv").write_text("\n".join(["file_name,text", *lines]))
    rows = [
        {"image": name, "question": "is there a circle?", "answer": ["yes"]}
        for name in names
    ]
    (directory / "questions.json").write_text(json.dumps(rows))
    return directory


@pytest.mark.parametrize(
    ("model", "data", "options", "metric"),
    [
        ("opt", "captions.csv", "", "cider"),
        ("t5", "questions.json", "", "exact_match"),
        ("retrieval", "captions.csv", "", "itm_r_mean"),
        ("run", "captions.csv", ",vision", "cider"),
        # An example in docs/finetune.md runs this one.
        pytest.param("shapes", "captions.csv", "", "cider", marks=pytest.mark.slow),
        ("opt", "captions.csv", ",lora", "cider"),
        pytest.param(
            *("retrieval", "captions.csv", ",lora=2,vision", "itm_r_mean"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_one_command(models, photos, tmp_path, model, data, options, metric):
    path = model if model == "shapes" else models / model
    argument = f"{path},{photos / data},epochs=1,batch=8{options}"
    config = get_config(argument).unlock()
    config.data.workers = 0
    assert config.steps == math.ceil(0.9 * PHOTOS) // 8
    assert train(config.lock(), tmp_path / "run", make_evaluator) == 0
    lines = [
        json.loads(line)
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert f"evaluation/{metric}" in lines[-1]
    assert (
        report.main(["--runs", str(tmp_path / "run"), "--out", f"{tmp_path}/page"]) == 0
    )
    page = (tmp_path / "page.html").read_text()
    assert f"finished {config.steps} steps" in page and metric.replace("_", " ") in page
    assert "Samples through training" in page and "data:image/jpeg" in page
    trained = blip2_jax.load(tmp_path / "run")
    assert trained.caption(np.zeros((28, 28, 3), np.uint8), max_new_tokens=3)
    # The same command continues the run.
    check_same_run(read_config(tmp_path / "run"), get_config(argument))


def test_prompt_and_augmentation_are_the_models_own(models, photos):
    data = photos / "captions.csv"
    released = get_config(f"{models / 'opt'},{data}")
    assert (released.data.prompt, released.data.image.augment) == ("a photo of", True)
    run = get_config(f"{models / 'run'},{data}")
    former = read_config(models / "run")
    assert run.data.prompt == former.data.prompt
    assert run.data.image.augment == former.data.image.augment
    shipped = get_config(f"shapes,{data}")
    assert (shipped.data.prompt, shipped.data.image.augment) == ("", False)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", "needs a model and data"),
        ("{models}/opt", "needs a model and data"),
        ("{models}/opt,{photos}/captions.csv,dora", "does not know 'dora'; .* lora"),
        ("{models}/opt,{photos}/captions.csv,epochs=no", "expected a positive integer"),
        ("{models}/opt,{photos}/captions.csv,retrieval", "a stage-2 model, which"),
        ("{models}/retrieval,{photos}/captions.csv,vqa", "a stage-1 model, which"),
        ("{models}/opt,{photos}/captions.csv,vqa", "has no questions, which vqa needs"),
    ],
)
def test_what_does_not_fit_is_said(models, photos, argument, message):
    with pytest.raises(ConfigError, match=message):
        get_config(argument.format(models=models, photos=photos))


def test_a_tower_that_a_run_has_trained_is_not_replaced(models, photos, tmp_path):
    config = tiny_config("stage2").unlock()
    config.frozen = ("^language_model/",)
    run = set_up(config.lock(), tmp_path / "run")
    run.checkpoints.save(0, run.trees(), {})
    run.checkpoints.close()
    argument = f"{tmp_path / 'run'},{photos / 'captions.csv'}"
    for option in ("", ",lora", ",lora,vision"):
        with pytest.raises(ConfigError, match="has trained visual_encoder/, which"):
            get_config(argument + option)
    assert get_config(f"{argument},vision").init.from_run


def test_the_batch_fits_the_memory(models, photos):
    config = get_config(f"{models / 'opt'},{photos / 'captions.csv'}")
    sizes = [fitting_batch_size(config, 2**n, 64) for n in (10, 20, 22, 30)]
    assert sizes[0] == 1 and sizes[-1] == 64
    assert sizes[2] == pytest.approx(4 * sizes[1], rel=0.5)


def test_every_layout_is_taken(models, tmp_path):
    config = get_config(f"{models / 'opt'},{layouts.write_text_files(tmp_path)}")
    assert config.data.train[0]["of"]["kind"] == "text_files"
