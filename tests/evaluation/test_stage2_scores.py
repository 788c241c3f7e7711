"""Captions and answers of a stand-in model, scored."""

import numpy as np
import pytest

from blip2_jax.data.sources.base import Question, Record
from blip2_jax.evaluation.stage2 import (
    Stage2Evaluator,
    answer_scores,
    evaluate_answers,
    evaluate_captions,
)
from blip2_jax.metrics.vqa import AnsweredQuestion

CAPTIONS = ("a red dog runs on grass", "two men play ball", "a girl climbs a wall")


class Data:
    """Three images, the second in two records: as `EvaluationSet`, where it is used."""

    image_key = "features"
    blank_image = np.zeros((1, 1), np.float32)

    def __init__(self, broken=(), questions=False):
        self._broken = broken
        self.records = [
            Record(
                str(place),
                image_id,
                () if questions else (CAPTIONS[image_id],),
                (Question(f"q{image_id}", (CAPTIONS[image_id],) * 10, place),)
                if questions
                else (),
            )
            for place, image_id in enumerate((0, 1, 1, 2))
        ]

    def image(self, place):
        if place in self._broken:
            return None
        return np.full((1, 1), self.records[place].image_id, np.float32)


class Writer:
    """Says the right thing of each image; remembers the batches."""

    def __init__(self):
        self.batches = []

    def caption(self, images=None, *, features, **settings):
        self.batches.append((len(features), settings))
        return [CAPTIONS[int(value)] for value in features[:, 0, 0]]

    def answer(self, images=None, questions=(), *, features, image_of, **settings):
        assert len(features) == len(set(image_of))  # each is encoded once
        features = features[np.array(image_of)]
        assert questions == [f"q{int(value)}" for value in features[:, 0, 0]]
        return self.caption(features=features)


def test_captions_join_the_records_of_an_image():
    writer = Writer()
    result = evaluate_captions(
        writer,
        Data(),
        batch_size=2,
        settings={"num_beams": 3},
        metrics=("bleu", "cider"),
        tokenizer="python",
    )
    assert result.captions == dict(enumerate(CAPTIONS))
    assert result.references[1] == (CAPTIONS[1],) * 2
    assert result.scores.scores["bleu_4"] == pytest.approx(100, abs=1e-3)
    assert writer.batches == [(2, {"num_beams": 3}), (1, {"num_beams": 3})]


def test_a_broken_image_gets_no_caption():
    result = evaluate_captions(
        Writer(), Data(broken=(3,)), metrics=("bleu",), tokenizer="python"
    )
    assert sorted(result.captions) == [0, 1]


def test_answers():
    result = evaluate_answers(Writer(), Data(broken=(0,), questions=True), batch_size=3)
    assert result.scores == {"exact_match": 100, "vqa_accuracy": 100}
    assert [(each.question_id, each.answer) for each in result.replies] == [
        (1, CAPTIONS[1]),
        (2, CAPTIONS[1]),
        (3, CAPTIONS[2]),
    ]
    with pytest.raises(ValueError, match="questions"):
        evaluate_answers(Writer(), Data())


def test_questions_without_answers_are_asked_and_not_scored():
    data = Data(questions=True)
    data.records = [
        Record("0", 0, (), (Question("q0", (), "a"), Question("q0", (), "b")))
    ]
    result = evaluate_answers(Writer(), data)
    assert result.scores == {}
    assert [(each.question_id, each.answer) for each in result.replies] == [
        ("a", CAPTIONS[0]),
        ("b", CAPTIONS[0]),
    ]


def test_answers_by_kind():
    questions = [
        AnsweredQuestion("yes", ("yes",) * 10, "yes/no"),
        AnsweredQuestion("3", ("2",) * 10, "number"),
    ]
    assert answer_scores(questions) == {
        "exact_match": 50,
        "vqa_accuracy": 50,
        "vqa_accuracy_yes/no": 100,
        "vqa_accuracy_number": 0,
    }
    assert answer_scores([AnsweredQuestion("a", ("a",))]) == {"exact_match": 100}


def test_the_evaluator_does_what_there_is_to_do():
    evaluate = lambda data: Stage2Evaluator(
        lambda params: Writer(),
        data,
        batch_size=4,
        caption_settings={},
        answer_settings={},
    )({})
    assert {"cider", "bleu_4", "rouge_l"} <= set(evaluate(Data()))
    assert evaluate(Data(questions=True))["exact_match"] == 100
