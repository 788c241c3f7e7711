"""`launch/evaluate.py` on run directories: records, predictions, refusals."""

import json

import pytest

from blip2_jax.cli import report
from blip2_jax.cli.evaluate import main
from blip2_jax.convert.native_folder import write_folder
from blip2_jax.evaluation.examples import read_examples, statistics_of
from blip2_jax.evaluation.stage1_scores import Stage1Scorer
from blip2_jax.training.open_model import open_model
from tests.support.tiny_runs import make_run

DATA = {"kind": "shapes", "split": "validation", "size": 6, "texts": "both"}


@pytest.fixture(scope="module", params=["stage1", "stage2"])
def run(request, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp(request.param) / "run", request.param)


def evaluate(monkeypatch, run, task, out, *more):
    """The exit code, and the record if there is one."""
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


@pytest.mark.parametrize("run", ["stage1"], indirect=True)
def test_a_retrieval_that_was_killed_goes_on(run, tmp_path, monkeypatch):
    score, asked = Stage1Scorer.match_logits, []

    def killed_at_the_fourth(*arguments):
        asked.append(arguments)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return score(*arguments)

    arguments = (monkeypatch, run, "retrieval")
    _, whole = evaluate(*arguments, tmp_path / "whole.json")
    monkeypatch.setattr(Stage1Scorer, "match_logits", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        evaluate(*arguments, tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists() and (tmp_path / "r.rerank").is_dir()
    _, record = evaluate(*arguments, tmp_path / "r.json")
    assert len(asked) == 4 + 3  # six images, of which three were done
    assert record["scores"] == whole["scores"]
    assert not (tmp_path / "r.rerank").exists()


def check_examples(record, out):
    """The scores follow from the examples; every score has an interval around it."""
    examples = read_examples(out.with_suffix(".examples.jsonl"))
    assert len(examples) == record["examples"]
    statistics = statistics_of(examples)
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
    """And shows where its queries look, in two of the pictures."""
    evaluate(monkeypatch, run, "captioning", tmp_path / "c.json")
    given = [str(tmp_path / "c.json"), "--out", str(tmp_path / "r"), "--maps", "2"]
    assert report.main(given) == 0
    page = (tmp_path / "r.html").read_text()
    queries = run.config.model.overrides.qformer.num_queries
    assert page.count("data:image/png;base64,") == 2 * (1 + queries)
    assert page.count("data:image/jpeg;base64,") == 6  # three best, three worst


def test_questions(run, tmp_path, capsys, monkeypatch):
    code, record = evaluate(monkeypatch, run, "vqa", tmp_path / "q.json")
    if run.config.task == "stage1":
        assert (code, record) == (1, None)
        assert "needs a language model" in capsys.readouterr().err
        return
    assert code == 0
    assert 0 <= record["scores"]["exact_match"] <= 100
    answers = json.loads((tmp_path / "q.predictions.json").read_text())
    assert all(set(each) == {"question_id", "answer"} for each in answers)
    check_examples(record, tmp_path / "q.json")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task", "wups"], "there are retrieval, captioning, vqa"),
        (["--model", "no/such/run"], "no file or folder 'no/such/run'"),
        (["--data", "{broken"], "--data is no JSON"),
        (["--data", "no_such.json"], "no_such.json"),
        (["--config.rerunk=3"], "rerunk"),
        (["--config.variant=mine"], "variant 'mine': there are official, lavis"),
        (["--config.result_format=coco"], "there are vqa, gqa"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_bad_input_gives_one_sentence_and_exit_code_1(
    run, more, message, capsys, monkeypatch
):
    arguments = ["--model", str(run.directory), "--task", "captioning"]
    assert main([*arguments, *more]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said
    assert len(said.splitlines()) == 1
    assert not list(run.directory.glob("evaluation_*"))


def test_a_converted_folder_scores_as_its_run(run, tmp_path, monkeypatch):
    task = "retrieval" if run.config.task == "stage1" else "vqa"
    write_folder(open_model(run.directory), tmp_path / "folder")
    monkeypatch.chdir(tmp_path)
    found = []
    for number, model in enumerate((run.directory, "folder")):
        out = tmp_path / f"{number}.json"
        given = ["--model", str(model), "--task", task, "--out", str(out)]
        given += ["--data", json.dumps(DATA), "--config.decoding.max_new_tokens=2"]
        assert main([*given, "--config.text_length=20"]) == 0
        record = json.loads(out.read_text())
        found.append((record["scores"], record["digests"]))
    assert found[0] == found[1]
