"""Caption and VQA scores equal the official code's and a closed form."""

import itertools
import json
import shutil

import numpy as np
import pytest

from blip2_jax.data.sources.registry import build_source
from blip2_jax.metrics.bleu import bleu, bleu_counts
from blip2_jax.metrics.captions import caption_scores
from blip2_jax.metrics.vqa import AnsweredQuestion, agreement
from blip2_jax.metrics.vqa_answers import normalise_answer, strip_marks

JAVA = pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")
NAMES = {"METEOR": "meteor", "ROUGE_L": "rouge_l", "CIDEr": "cider"} | {
    f"Bleu_{n}": f"bleu_{n}" for n in range(1, 5)
}


@pytest.fixture(scope="module")
def photos(testdata, tmp_path_factory):
    """100 records of Flickr8k's test images, their references, some captions."""
    references = testdata / "data" / "flickr8k" / "flickr8k_test_gt.json"
    images = tmp_path_factory.mktemp("none")
    spec = {"kind": "annotations", "path": str(references), "images": str(images)}
    source = build_source(spec)
    records = [source.record(index) for index in range(100)]
    # Partly right captions: words of the image's own captions and of another image's.
    captions = {}
    for number, record in enumerate(records):
        own, other = record.captions[0].split(), records[number - 1].captions[1].split()
        words = own[: 2 + number % 9] + other[: number % 5]
        captions[record.image_id] = " ".join(words)
    return references, records, captions


@JAVA
def test_captions_score_as_in_the_official_evaluation(photos, tmp_path, monkeypatch):
    """`COCOEvalCap` on the file of results that a server takes."""
    from pycocoevalcap import eval as official
    from pycocotools.coco import COCO

    references, records, captions = photos
    monkeypatch.setattr(official, "Spice", official.Rouge)  # SPICE's models are large
    predictions = [
        {"image_id": record.original_id, "caption": captions[record.image_id]}
        for record in records
    ]
    (tmp_path / "results.json").write_text(json.dumps(predictions))
    truth = COCO(str(references))
    results = truth.loadRes(str(tmp_path / "results.json"))
    evaluation = official.COCOEvalCap(truth, results)
    evaluation.params["image_id"] = [record.original_id for record in records]
    evaluation.evaluate()
    ours = caption_scores(
        captions,
        {record.image_id: record.captions for record in records},
        metrics=("bleu", "rouge_l", "cider", "meteor"),
        tokenizer="java",
    )
    actual = {name: ours.scores[mine] for name, mine in NAMES.items()}
    assert actual == pytest.approx(
        {name: 100 * evaluation.eval[name] for name in NAMES}, abs=1e-9
    )
    for record in records[:50]:
        each = evaluation.imgToEval[record.original_id]
        mine = ours.per_image[record.image_id]
        assert mine["cider"] == pytest.approx(100 * each["CIDEr"])
        assert mine["rouge_l"] == pytest.approx(100 * each["ROUGE_L"])


def test_sums_over_captions_give_the_scores_of_the_set_and_of_its_parts(photos):
    _, records, captions = photos
    references = {record.image_id: record.captions for record in records}
    parts = {key: ("far" if key % 3 else "near") for key in captions}
    options = {"metrics": ("bleu", "rouge_l", "cider"), "tokenizer": "python"}
    whole = caption_scores(captions, references, parts=parts, **options)
    for part in ("", "_near", "_far"):
        keys = [key for key in captions if not part or part == f"_{parts[key]}"]
        alone = caption_scores({k: captions[k] for k in keys}, references, **options)
        for name, value in alone.scores.items():
            assert whole.scores[f"{name}{part}"] == value
        for name in ("cider", "rouge_l"):
            values = [whole.per_image[key][f"{name}{part}"] for key in keys]
            assert sum(values) / len(values) == pytest.approx(alone.scores[name])
        sums = sum(map(_array, (whole.bleu_counts[key] for key in keys)))
        for order in range(1, 5):
            assert bleu(sums, order) == pytest.approx(
                alone.scores[f"bleu_{order}"], rel=1e-6
            )


def _array(counts):
    return np.array(counts, np.float64)


def test_bleu_counts_by_hand():
    """Clipped n-grams; of two equally near lengths the shorter one."""
    counts = bleu_counts("the the cat sat", ["the cat", "a cat sat on the mat"])
    assert counts == [4, 2, 3, 4, 2, 3, 0, 2, 0, 1]
    assert bleu(_array(counts), 1) == pytest.approx(75)
    assert bleu(_array([2, 4, 2, 2, 1, 1, 0, 0, 0, 0]), 2) == pytest.approx(
        100 * 2.718281828**-1
    )
    assert bleu(_array([0] * 10), 4) == 0


# (rule of visualqa.org/evaluation, prediction, references, official score, LAVIS score)
# Of ten people seven give the first answer if there are two. With m of ten agreeing,
# the score is m/10 min((m-1)/3, 1) + (10-m)/10 min(m/3, 1).
CASES = [
    ("capital letters", "Red", ("red", "blue"), 1.0, 1.0),
    ("capital letters of people", "red", ("Red", "blue"), 1.0, 0.0),
    ("a full stop at the end", "red.", ("red", "blue"), 1.0, 1.0),
    ("a full stop of people", "red", ("red.", "blue"), 1.0, 1.0),
    ("a decimal point stays", "3.5", ("3.5", "blue"), 1.0, 1.0),
    ("a decimal point is no full stop", "35", ("3.5", "blue"), 0.0, 0.0),
    ("a number word", "two", ("2", "blue"), 1.0, 1.0),
    ("a number word of people", "2", ("two", "blue"), 1.0, 0.0),
    ("none is zero", "none", ("0", "blue"), 1.0, 1.0),
    ("eleven stays a word", "eleven", ("11", "blue"), 0.0, 0.0),
    ("articles go", "the cat", ("cat", "blue"), 1.0, 1.0),
    ("articles of people go", "cat", ("a cat", "blue"), 1.0, 0.0),
    ("an apostrophe is put back", "dont", ("don't", "blue"), 1.0, 1.0),
    ("and in what people say", "don't", ("dont", "blue"), 1.0, 0.0),
    ("a possessive stays", "dog's", ("dogs", "blue"), 0.0, 0.0),
    ("a mark becomes a space", "black/white", ("black white", "blue"), 1.0, 1.0),
    ("a hyphen too", "t-shirt", ("t shirt", "blue"), 1.0, 1.0),
    ("of people too", "t shirt", ("t-shirt", "blue"), 1.0, 1.0),
    ("a mark beside a space goes", "yes , sir", ("yes sir", "blue"), 1.0, 1.0),
    ("a comma in a number goes", "1,000", ("1000", "blue"), 1.0, 1.0),
    ("a colon stays", "7:30", ("730", "blue"), 0.0, 0.0),
    ("a colon stays for both", "7:30", ("7:30", "blue"), 1.0, 1.0),
    ("a new line is a space", "light\nblue", ("light blue", "blue"), 1.0, 1.0),
    ("a tab is a space", "light\tblue", ("light blue", "blue"), 1.0, 1.0),
    ("spaces around go", " red ", ("red", "blue"), 1.0, 1.0),
    ("the rarer answer: three of ten", "blue", ("red", "blue"), 0.9, 0.9),
    ("neither answer", "green", ("red", "blue"), 0.0, 0.0),
    ("all agree: nothing is changed", "Red", ("red",), 0.0, 1.0),
    ("all agree on an unusual spelling", "The Red.", ("The Red.",), 1.0, 0.0),
    ("no answer", "", ("red", "blue"), 0.0, 0.0),
]


@pytest.mark.parametrize(("rule", "prediction", "people", "official", "lavis"), CASES)
def test_every_rule_of_normalisation(rule, prediction, people, official, lavis):
    del rule
    first, last = people[0], people[-1]
    question = AnsweredQuestion(prediction, (first,) * 7 + (last,) * 3)
    assert agreement(question, "official") == pytest.approx(official)
    assert agreement(question, "lavis") == pytest.approx(lavis)


def closed_form(matches):
    """VQA accuracy if `matches` of ten people gave the model's answer."""
    m = matches
    return m / 10 * min((m - 1) / 3, 1) + (10 - m) / 10 * min(m / 3, 1) if m else 0.0


def test_generated_answers_with_the_originals_normalisation(goldens):
    """Every pair of texts that the original normalised, where 1 to 10 people agree."""
    original = json.loads((goldens / "misc" / "processors.json").read_text())
    marks, both = original["vqa_punct"], original["vqa_both"]
    texts = [text for text in both if text == text.strip() and "\n" not in text]
    texts = [text for text in texts if "\t" not in text]
    assert len(texts) > 15
    for number, (prediction, reference) in enumerate(itertools.product(texts, texts)):
        count = number % 10 + 1
        people = (reference,) * count + ("something else",) * (10 - count)
        question = AnsweredQuestion(prediction, people)
        differ = count < 10
        official = (
            (both[prediction], both[reference]) if differ else (prediction, reference)
        )
        lavis = both[prediction], marks[reference] if differ else reference
        for variant, (left, right) in (("official", official), ("lavis", lavis)):
            expected = closed_form(count if left == right else 0)
            assert agreement(question, variant) == pytest.approx(expected), question
    assert all(normalise_answer(text) == both[text] for text in texts)
    assert all(strip_marks(text) == marks[text] for text in texts)
