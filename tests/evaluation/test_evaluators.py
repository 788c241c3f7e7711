"""The examples that a run keeps of each evaluation."""

from blip2_jax.evaluation.evaluators import SAMPLES, select_samples


def test_the_same_few_examples_are_kept_without_counts():
    captions = [
        {"unit": "image", "id": n, "said": "x", "bleu": [1], "part": "in"}
        for n in range(20)
    ]
    kept = select_samples(captions)
    assert len(kept) == SAMPLES and kept[0] == {"unit": "image", "id": 0, "said": "x"}
    assert select_samples(captions) == kept
    assert select_samples([]) == []


def test_searches_are_kept_from_images():
    texts = [{"unit": "text", "id": n, "owner": 0} for n in range(4)]
    assert select_samples([*texts, {"unit": "image", "id": 7}]) == [
        {"unit": "image", "id": 7}
    ]
    assert len(select_samples(texts)) == 4
