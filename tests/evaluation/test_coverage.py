"""What is scored was there: examples left out are counted, too many are an error."""

import dataclasses
import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.data.broken_samples import TooManyBrokenSamples
from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.data.sources.base import Question, Record
from blip2_jax.data.text.tokenizers import load_tokenizer
from blip2_jax.evaluation.captioning import CaptioningTask
from blip2_jax.evaluation.evaluators import combine_tasks
from blip2_jax.evaluation.held_out_loss import mean_losses
from blip2_jax.evaluation.retrieval import RetrievalTask, make_gallery
from blip2_jax.evaluation.tasks import EvaluationBatches
from blip2_jax.evaluation.vqa import VqaTask
from blip2_jax.inference.retriever import Blip2Retriever
from tests.evaluation.test_text_tasks import FakeData, FakeModel
from tests.support import golden_stage1 as golden
from tests.support.generated_data import bert_directory, encoded, picture


def write_annotations(folder, numbers, captions=2, missing=()):
    """Write pictures with captions; pictures in `missing` are annotated only."""
    folder.mkdir()
    rows = []
    for number in numbers:
        if number not in missing:
            path = folder / f"{number}.png"
            path.write_bytes(encoded(picture(number, 6, 6)))
        texts = [f"w{20 + 5 * number + n} w{30 + number}" for n in range(captions)]
        rows.append({"image": f"{number}.png", "caption": texts, "image_id": number})
    (folder / "a.json").write_text(json.dumps(rows))
    path, images = str(folder / "a.json"), str(folder)
    return {"kind": "annotations", "path": path, "images": images}


@pytest.mark.parametrize("what", ["missing", "not an image"])
def test_retrieval_leaves_out_images_that_cannot_be_read(tmp_path, what):
    """The scores are those of the images that are there, with their texts."""
    gone = (2, 5)
    tokenizer = load_tokenizer(bert_directory(tmp_path / "bert"), language_model=False)
    model = Blip2Retriever(
        golden.model(), golden.params(), qformer_tokenizer=tokenizer, batch_size=4
    )
    size = model.model.config.vision.image_size
    missing = gone if what == "missing" else ()
    spec = write_annotations(tmp_path / "whole", range(9), missing=missing)
    if not missing:
        for number in gone:
            (tmp_path / "whole" / f"{number}.png").write_bytes(b"no image")
    rest = write_annotations(
        tmp_path / "rest", [n for n in range(9) if n not in gone], missing=()
    )
    results = []
    for source in (spec, rest):
        data = EvaluationSet([source], size, max_broken_share=0.3)
        for rerank in (0, 3, 100):
            gallery = make_gallery(data, tokenizer, 12)
            batches = EvaluationBatches(data, batch_size=4)
            results.append(RetrievalTask(gallery, rerank).run(model, batches))
    for partial, whole in zip(results[:3], results[3:], strict=True):
        assert partial.metrics == pytest.approx(whole.metrics)
        assert [e["ranks"] for e in partial.examples] == [
            e["ranks"] for e in whole.examples
        ]
        assert partial.coverage.record() == {
            "unit": "images",
            "all": 9,
            "scored": 7,
            "left_out": {"not readable": 2},
        }
        assert partial.notice == (
            "7 images, 14 texts\nscored: 7 of 9 images; left out: 2 not readable"
        )
        assert whole.notice == "7 images, 14 texts"


def test_missing_images_are_an_error_before_a_model_runs(tmp_path):
    spec = write_annotations(tmp_path / "a", range(6), missing=range(6))
    with pytest.raises(
        TooManyBrokenSamples,
        match=r"6 of 6 records .* 6 missing image \(0\.png \(/.*/a/0\.png\), 1\.png",
    ):
        EvaluationSet([spec], 16)
    spec = write_annotations(tmp_path / "b", range(6), missing=[1])
    with pytest.raises(TooManyBrokenSamples, match="1 of 6 records"):
        EvaluationSet([spec], 16)
    data = EvaluationSet([spec], 16, max_broken_share=0.2)
    assert "broken: 1 missing image (1.png" in data.notice()
    (tmp_path / "b" / "3.png").write_bytes(b"no image")
    assert data.image(2) is not None
    with pytest.raises(TooManyBrokenSamples, match=r"2 of 6 records .* not an image"):
        data.image(3)


def test_malformed_rows_are_an_error_of_an_evaluation(tmp_path):
    spec = write_annotations(tmp_path / "a", range(4))
    path = tmp_path / "a" / "a.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([*rows, {"image": "0.png", "caption": 5}]))
    with pytest.raises(TooManyBrokenSamples, match=r"1 of 5 .*a\.json row 5"):
        EvaluationSet([spec], 16)
    data = EvaluationSet([spec], 16, max_broken_share=0.2)
    assert len(data.records) == 4
    assert data.broken_stats.counts == {"malformed row": 1}


def captioned(share=1.0, broken=()):
    """Return three captioned images, one without captions and one with a question."""
    data = FakeData(broken=broken)
    question = Question("what?", ("a",))
    data.records += [Record("x", 3), Record("y", 4, questions=(question,))]
    data.max_broken_share = share
    return data


def test_captioning_counts_what_it_does_not_score():
    task = CaptioningTask(metrics=("bleu",), tokenizer="python")
    batches = EvaluationBatches(captioned(broken=(3,)))
    result = task.run(FakeModel(), batches)
    assert result.coverage.record() == {
        "unit": "images",
        "all": 4,
        "scored": 2,
        "left_out": {"not readable": 1, "without captions": 1},
    }
    assert "scored: 2 of 4 images; left out: 1 not readable, 1 w" in result.notice
    with pytest.raises(TooManyBrokenSamples, match="1 without captions; the limit is"):
        task.run(FakeModel(), EvaluationBatches(captioned(0.2)))
    whole = task.run(FakeModel(), EvaluationBatches(FakeData()))
    assert whole.coverage.record()["left_out"] == {}
    assert "left out" not in whole.notice


def test_questions_without_answers_are_counted():
    data = FakeData(broken=(0,), questions=True)
    unanswered = dataclasses.replace(data.records[3].questions[0], answers=())
    data.records[3] = dataclasses.replace(data.records[3], questions=(unanswered,))
    data.max_broken_share = 0.25
    result = VqaTask().run(FakeModel(), EvaluationBatches(data))
    assert result.coverage.record() == {
        "unit": "questions",
        "all": 4,
        "scored": 2,
        "left_out": {"whose image is not readable": 1, "without answers": 1},
    }
    assert "scored: 2 of 4 questions" in result.notice
    assert len(result.predictions) == 3  # the server may know the answer
    data.max_broken_share = 0.2
    model = FakeModel()
    with pytest.raises(TooManyBrokenSamples, match="1 without answers"):
        VqaTask().run(model, EvaluationBatches(data))
    assert not model.batches  # nothing was asked


def test_a_training_run_logs_what_its_evaluation_leaves_out(caplog):
    tasks = [CaptioningTask(metrics=("bleu",), tokenizer="python")]
    batches = EvaluationBatches(captioned())
    with caplog.at_level(logging.WARNING):
        combine_tasks(lambda params: FakeModel(), tasks, batches)({})
    assert "scored: 3 of 4 images" in caplog.text


def test_held_out_losses_are_those_of_the_rows_that_are_there():
    def loss(params, batch, key):
        value = params * batch["features"].mean()
        return value, {"loss": value}

    def batches(levels, size):
        """Yield batches in which rows with level 0 are broken."""
        levels = [*levels, *[0] * (-len(levels) % size)]
        for start in range(0, len(levels), size):
            rows = np.array(levels[start : start + size], np.float32)[:, None]
            yield {"features": rows, "valid": rows[:, 0] != 0, "_key": []}

    whole = mean_losses(loss, jnp.float32(1), batches([1, 2, 3, 4, 5, 6, 7], 3))
    broken = [1, 0, 2, 3, 0, 0, 4, 0, 5, 6, 7]
    assert mean_losses(loss, jnp.float32(1), batches(broken, 3)) == whole
    assert whole["loss"] == pytest.approx(3.5)
