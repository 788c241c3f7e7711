"""`blip2-jax caption` and `blip2_jax.load` on run directories."""

import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

import blip2_jax
from blip2_jax.cli.caption import main
from blip2_jax.inference.model import Blip2
from blip2_jax.nn.trees import merge
from tests.support.tiny_runs import make_run


@pytest.fixture(scope="module", params=["stage1", "stage2"])
def run(request, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp(request.param) / "run", request.param)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(2)]
    for path in paths:
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return [str(path) for path in paths]


def test_load_gives_the_parameters_of_the_run(run, photos):
    loaded = blip2_jax.load(run.directory)
    expected = jax.device_get(merge(run.frozen, run.state.trainable))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected)
    assert isinstance(loaded, Blip2)
    assert loaded.model == run.task.model
    half = blip2_jax.load(run.directory, precision="bfloat16")
    assert half.params["visual_encoder"]["class_token"].dtype == "bfloat16"


def test_captions_are_printed_a_line_each(run, photos, capsys):
    arguments = ["--model", str(run.directory), "--num_beams", "2"]
    arguments += ["--max_new_tokens", "4", "--image", *photos]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    model = blip2_jax.load(run.directory)
    texts = model.caption(photos, num_beams=2, max_new_tokens=4)
    expected = [f"{path}: {text}" for path, text in zip(photos, texts, strict=True)]
    assert lines == expected


def test_questions_or_texts_about_every_image(run, photos, capsys):
    flag = "--text" if run.config.task == "stage1" else "--question"
    arguments = ["--model", str(run.directory), "--image", *photos]
    assert main([*arguments, flag, "a red circle", "what is blue?"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith(f"{photos[0]}: what is blue?")
    assert lines[2].startswith(f"{photos[1]}: a red circle")


@pytest.mark.parametrize("run", ["stage2"], indirect=True)
def test_conversations_examples_and_several_images(run, photos, capsys):
    model, short = blip2_jax.load(run.directory), {"num_beams": 1, "max_new_tokens": 3}
    start = ["--model", str(run.directory), "--num_beams", "1", "--max_new_tokens", "3"]
    start += ["--question", "a star?", "why?", "--image"]

    def printed(*arguments):
        assert main([*start, *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    answers = model.converse(photos[0], ["a star?", "why?"], **short)
    assert printed(photos[0], "--dialogue") == [
        f"{photos[0]}: a star? -> {answers[0]}",
        f"{photos[0]}: why? -> {answers[1]}",
    ]
    both = model.answer([photos], ["a star?", "why?"], **short)
    assert printed(*photos, "--together") == [
        f"{photos[0]} + {photos[1]}: a star? -> {both[0]}",
        f"{photos[0]} + {photos[1]}: why? -> {both[1]}",
    ]
    context = {"history": [("red?", "no")], "examples": [(photos[1], "blue?", "yes")]}
    expected = model.answer(photos[0], ["a star?", "why?"], **context, **short)
    turns = ["--history", "red?", "no", "--example", photos[1], "blue?", "yes"]
    assert [line.split(" -> ")[1] for line in printed(photos[0], *turns)] == expected


@pytest.mark.parametrize(
    ("code", "change", "message"),
    [
        (1, {"--image": "no.png"}, "no image file 'no.png'"),
        (1, {"--image": __file__}, "not an image"),
        (1, {"--model": "no/such/run"}, "no file or folder 'no/such/run'"),
        (1, {"--model": str(pathlib.Path(__file__).parent)}, "no weights in"),
        (1, {"--which": "7"}, "has no checkpoint 7"),
        (2, {"--which": "bset"}, "'bset' is not best, last or a step"),
        (2, {"--num_beams": "0"}, "num_beams=0: expected at least 1"),
    ],
)
@pytest.mark.parametrize("run", ["stage1"], indirect=True)
def test_bad_input_gives_one_sentence(run, photos, code, change, message, capsys):
    arguments = {"--model": str(run.directory), "--image": photos[0]} | change
    assert main([part for pair in arguments.items() for part in pair]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("run", ["stage1"], indirect=True)
def test_a_question_for_a_stage1_model_is_refused(run, photos, capsys):
    arguments = ["--model", str(run.directory), "--image", photos[0]]
    assert main([*arguments, "--question", "why"]) == 2
    assert "needs a language model" in capsys.readouterr().err
