"""`blip2-jax evaluate` on run directories: records, predictions, errors."""

import json

import pytest

from blip2_jax.cli import report
from blip2_jax.cli.evaluate import main
from blip2_jax.convert.native_folder import write_folder
from blip2_jax.evaluation.examples import example_statistics, read_examples
from blip2_jax.evaluation.stage1_scorer import Stage1Scorer
from blip2_jax.inference.load import open_model
from tests.support.generated_data import encoded, picture
from tests.support.tiny_runs import make_run

DATA = {"kind": "shapes", "split": "validation", "size": 6, "texts": "both"}


@pytest.fixture(scope="module", params=["stage1", "stage2"])
def run(request, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp(request.param) / "run", request.param)


def evaluate(monkeypatch, run, task, out, *more):
    """The exit code and the record, None if there is none."""
    arguments = ["--model", str(run.directory), "--task", task]
    arguments += ["--data", json.dumps(DATA), "--out", str(out)]
    arguments += ["--config.decoding.max_new_tokens=4", "--config.tokenizer=python"]
    code = main([*arguments, *more])
    return code, json.loads(out.read_text()) if out.exists() else None


def test_retrieval(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "new" / "r.json"
    code, record = evaluate(monkeypatch, run, "retrieval", out, "--config.rerank=3")
    if run.config.task == "stage2":
        assert (code, record) == (1, None)
        assert "needs a stage-1 model" in capsys.readouterr().err
        return
    assert code == 0
    assert {"itc_i2t_r1", "itm_t2i_r10", "itm_r_mean"} <= set(record["scores"])
    assert record["settings"]["data"] == [DATA]
    assert record["records"] == 6
    assert "itc_i2t_r1" in capsys.readouterr().out
    assert not out.with_suffix(".rerank").exists()
    check_examples(record, out)


def test_a_model_of_the_package(tmp_path):
    out = tmp_path / "r.json"
    arguments = ["--model", "shapes_stage1", "--task", "retrieval", "--out", str(out)]
    assert main([*arguments, "--data", json.dumps(DATA), "--config.rerank=0"]) == 0
    assert json.loads(out.read_text())["records"] == 6


@pytest.mark.parametrize("run", ["stage1"], indirect=True)
def test_missing_images_are_not_scored(run, tmp_path, capsys, monkeypatch):
    rows = [{"image": f"{n}.jpg", "caption": f"a thing {n}"} for n in range(6)]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    (tmp_path / "images").mkdir()
    path, images = str(tmp_path / "captions.json"), str(tmp_path / "images")
    data = json.dumps({"kind": "annotations", "path": path, "images": images})
    out = tmp_path / "r.json"
    code, record = evaluate(monkeypatch, run, "retrieval", out, "--data", data)
    assert code != 0 and record is None
    assert "6 missing image (0.jpg (" in capsys.readouterr().err
    for number in range(5):
        image = encoded(picture(number), "JPEG")
        (tmp_path / "images" / f"{number}.jpg").write_bytes(image)
    share = "--config.max_broken_share=0.2"
    code, record = evaluate(monkeypatch, run, "retrieval", out, "--data", data, share)
    assert code == 0 and record["broken"] == {"missing image": 1}
    left_out = {"not readable": 1}
    counts = {"unit": "images", "all": 6, "scored": 5, "left_out": left_out}
    assert record["coverage"] == counts
    assert "scored: 5 of 6 images" in record["notice"]
    assert "broken: 1 missing image (5.jpg (" in capsys.readouterr().out


@pytest.mark.parametrize("run", ["stage1"], indirect=True)
def test_a_killed_retrieval_continues(run, tmp_path, monkeypatch):
    score, calls = Stage1Scorer.match_logits, []

    def killed_at_fourth_call(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score(*arguments)

    arguments = (monkeypatch, run, "retrieval")
    _, whole = evaluate(*arguments, tmp_path / "whole.json")
    monkeypatch.setattr(Stage1Scorer, "match_logits", killed_at_fourth_call)
    assert evaluate(*arguments, tmp_path / "r.json") == (130, None)
    assert not (tmp_path / "r.json").exists() and (tmp_path / "r.rerank").is_dir()
    _, record = evaluate(*arguments, tmp_path / "r.json")
    assert len(calls) == 4 + 3  # three of the six images were done
    assert record["scores"] == whole["scores"]
    assert not (tmp_path / "r.rerank").exists()


def check_examples(record, out):
    """Check that the scores follow from the examples and that all have intervals."""
    examples = read_examples(out.with_suffix(".examples.jsonl"))
    assert len(examples) == record["examples"]
    statistics = example_statistics(examples)
    assert set(record["intervals"]) == set(record["scores"]) - {"meteor"}
    for name, (low, high) in record["intervals"].items():
        value = record["scores"][name]
        assert statistics[name].value() == pytest.approx(value, abs=1e-4)
        assert 0 <= low <= value + 1e-4 and value - 1e-4 <= high


def test_captioning(run, tmp_path, monkeypatch):
    out = tmp_path / "c.json"
    code, record = evaluate(monkeypatch, run, "captioning", out, "--config.page=2")
    assert code == 0
    assert {"bleu_4", "cider", "rouge_l"} <= set(record["scores"])
    assert "split by this package" in record["notice"]
    predictions = json.loads((tmp_path / "c.predictions.json").read_text())
    assert (tmp_path / "c.html").read_text().count("<figure>") == 2
    assert [set(each) for each in predictions] == [{"image_id", "caption"}] * 6
    check_examples(record, out)


def test_a_report_opens_the_model(run, tmp_path, monkeypatch):
    """The report contains attention maps of two images."""
    evaluate(monkeypatch, run, "captioning", tmp_path / "c.json")
    arguments = [str(tmp_path / "c.json"), "--out", str(tmp_path / "r")]
    assert report.main([*arguments, "--maps", "2"]) == 0
    page = (tmp_path / "r.html").read_text()
    maps = page.count("<figcaption class=word")  # of words
    assert maps >= 2 and page.count("data:image/png;base64,") == 2 + maps
    assert page.count("data:image/jpeg;base64,") == 6  # three best, three worst


def test_questions(run, tmp_path, capsys, monkeypatch):
    code, record = evaluate(monkeypatch, run, "vqa", tmp_path / "q.json")
    if run.config.task == "stage1":
        assert (code, record) == (1, None)
        assert "needs a stage-2 model" in capsys.readouterr().err
        return
    assert code == 0
    assert 0 <= record["scores"]["exact_match"] <= 100
    answers = json.loads((tmp_path / "q.predictions.json").read_text())
    assert all(set(each) == {"question_id", "answer"} for each in answers)
    check_examples(record, tmp_path / "q.json")


@pytest.mark.parametrize(
    ("code", "more", "message"),
    [
        (1, ["--task", "wups"], "there are retrieval, captioning, vqa"),
        (1, ["--model", "no/such/run"], "no file or folder 'no/such/run'"),
        (1, ["--data", "{broken"], "--data is not valid JSON"),
        (1, ["--data", "no_such.json"], "no_such.json"),
        (2, ["--config.rerunk=3"], "rerunk"),
        (1, ["--config.variant=mine"], "variant 'mine': there are official, lavis"),
        (1, ["--config.result_format=coco"], "there are vqa, gqa"),
        (2, ["stray"], "unexpected argument 'stray'"),
    ],
)
def test_bad_input_gives_one_sentence(run, code, more, message, capsys):
    arguments = ["--model", str(run.directory), "--task", "captioning"]
    assert main([*arguments, *more]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert len(error.splitlines()) == 1
    assert not list(run.directory.glob("evaluation_*"))


def test_a_converted_folder_scores_as_its_run(run, tmp_path, monkeypatch):
    task = "retrieval" if run.config.task == "stage1" else "vqa"
    write_folder(open_model(run.directory), tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    results = []
    for number, model in enumerate((run.directory, "folder")):
        out = tmp_path / f"{number}.json"
        arguments = ["--model", str(model), "--task", task, "--out", str(out)]
        arguments += ["--data", json.dumps(DATA), "--config.decoding.max_new_tokens=2"]
        assert main([*arguments, "--config.text_length=20"]) == 0
        record = json.loads(out.read_text())
        results.append((record["scores"], record["digests"]))
    assert results[0] == results[1]
