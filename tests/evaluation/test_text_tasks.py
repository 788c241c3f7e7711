"""Captioning and VQA tasks with a model whose texts are known."""

import numpy as np
import pytest

from blip2_jax.cli.evaluation_run import read_candidates
from blip2_jax.data.evaluation_data import EvaluationSet
from blip2_jax.data.sources.base import Question, Record
from blip2_jax.evaluation.captioning import CaptioningTask
from blip2_jax.evaluation.eval_config import default_evaluation
from blip2_jax.evaluation.evaluators import combine_tasks, text_tasks
from blip2_jax.evaluation.tasks import EvaluationBatches
from blip2_jax.evaluation.vqa import VqaTask, server_answers
from blip2_jax.inference.scoring import RankedText

CAPTIONS = ("a red dog runs on grass", "two men play ball", "a girl climbs a wall")


class FakeData(EvaluationSet):
    """Three images, the second in two records."""

    def __init__(self, broken=(), questions=False):
        self.image_key = "features"
        self._broken = broken
        self.records = [
            Record(
                str(index),
                image_id,
                () if questions else (CAPTIONS[image_id],),
                (Question(f"q{image_id}", (CAPTIONS[image_id],) * 10, index),)
                if questions
                else (),
            )
            for index, image_id in enumerate((0, 1, 1, 2))
        ]

    def image(self, index):
        if index in self._broken:
            return None
        return np.full((1, 1), self.records[index].image_id, np.float32)


class FakeModel:
    """Gives the right text of each image, and records the batches."""

    def __init__(self):
        self.batches = []

    def caption(self, images=None, *, features, **settings):
        self.batches.append((len(features), settings))
        return [CAPTIONS[int(value)] for value in features[:, 0, 0]]

    def answer(self, images=None, questions=(), *, features, image_of, **settings):
        assert len(features) == len(set(image_of))  # each image is encoded once
        features = features[np.array(image_of)]
        assert questions == [f"q{int(value)}" for value in features[:, 0, 0]]
        return self.caption(features=features)


def test_captions_join_the_records_of_an_image():
    model = FakeModel()
    task = CaptioningTask({"num_beams": 3}, ("bleu", "cider"), "python")
    result = task.run(model, EvaluationBatches(FakeData(), batch_size=2))
    assert {e["id"]: e["said"] for e in result.examples} == dict(enumerate(CAPTIONS))
    assert result.examples[1]["references"] == [CAPTIONS[1]] * 2
    assert result.metrics["bleu_4"] == pytest.approx(100, abs=1e-3)
    assert model.batches == [(2, {"num_beams": 3}), (1, {"num_beams": 3})]


def test_a_broken_image_gets_no_caption():
    task = CaptioningTask(metrics=("bleu",), tokenizer="python")
    result = task.run(FakeModel(), EvaluationBatches(FakeData(broken=(3,))))
    assert [example["id"] for example in result.examples] == [0, 1]


def test_answers():
    data = FakeData(broken=(0,), questions=True)
    result = VqaTask().run(FakeModel(), EvaluationBatches(data, batch_size=3))
    assert result.metrics == {"exact_match": 100, "vqa_accuracy": 100}
    assert [(e["id"], e["said"]) for e in result.examples] == [
        (1, CAPTIONS[1]),
        (2, CAPTIONS[1]),
        (3, CAPTIONS[2]),
    ]
    with pytest.raises(ValueError, match="questions"):
        VqaTask().run(FakeModel(), EvaluationBatches(FakeData()))


def test_questions_without_answers_are_asked_and_not_scored():
    data = FakeData(questions=True)
    data.records = [
        Record("0", 0, (), (Question("q0", (), "a"), Question("q0", (), "b")))
    ]
    result = VqaTask().run(FakeModel(), EvaluationBatches(data))
    assert result.metrics == {}
    assert result.predictions == [
        {"question_id": "a", "answer": CAPTIONS[0]},
        {"question_id": "b", "answer": CAPTIONS[0]},
    ]


def test_answers_for_the_servers():
    vqa = [{"question_id": 7, "answer": "cat"}]
    assert server_answers([(7, "cat")], "vqa") == vqa
    gqa = [{"questionId": "07", "prediction": "cat"}]
    assert server_answers([("07", "cat")], "gqa") == gqa
    with pytest.raises(ValueError, match="'coco': there are vqa, gqa"):
        server_answers([], "coco")


def test_tasks_follow_from_the_records():
    def evaluate(data):
        tasks, batches = text_tasks(data, {}), EvaluationBatches(data, batch_size=4)
        return combine_tasks(lambda params: FakeModel(), tasks, batches)({}).scores

    assert {"cider", "bleu_4", "rouge_l"} <= set(evaluate(FakeData()))
    assert evaluate(FakeData(questions=True))["exact_match"] == 100


class RankingModel(FakeModel):
    """Ranks the right text of each image first."""

    def rank(self, images=None, candidates=(), *, questions, features, **settings):
        texts = self.answer(images, questions, features=features, **settings)
        return [
            sorted(
                (
                    RankedText(text, float(text == right), index)
                    for index, text in enumerate(candidates)
                ),
                key=lambda one: -one.score,
            )
            for right in texts
        ]


def test_answers_are_ranked_if_there_are_candidates():
    data = FakeData(questions=True)
    task = VqaTask(candidates=("no", *CAPTIONS, "yes"))
    result = task.run(RankingModel(), EvaluationBatches(data, batch_size=3))
    assert result.metrics == {"exact_match": 100, "vqa_accuracy": 100}
    task = VqaTask(candidates=("no", "yes"))
    result = task.run(RankingModel(), EvaluationBatches(data, batch_size=3))
    assert result.metrics == {"exact_match": 0, "vqa_accuracy": 0}
    assert {example["said"] for example in result.examples} == {"no"}


def test_candidates_of_a_file(tmp_path):
    config = default_evaluation("vqa")
    config.candidates = str(tmp_path / "answers.txt")
    with pytest.raises(FileNotFoundError, match=r"answers\.txt"):
        read_candidates(config)
    (tmp_path / "answers.txt").write_text("yes\n\nno \n")
    config.decoding.length_penalty = 1.0
    assert read_candidates(config) == ["yes", "no"]
    config.decoding.num_beams = 3
    with pytest.raises(ValueError, match=r"decoding\.num_beams is for generated"):
        read_candidates(config)
    config.task = "captioning"
    with pytest.raises(ValueError, match="the task is 'captioning', not vqa"):
        read_candidates(config)
