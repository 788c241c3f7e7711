"""Two-stage retrieval equals the original's scores, ranks and recalls."""

import json

import numpy as np
import pytest

from blip2_jax.evaluation.stage1_scorer import Stage1Scorer
from blip2_jax.metrics.retrieval import recalls
from tests.support import golden_stage1 as golden
from tests.support import tolerances

# The original's names of the recalls, in the order of its golden.
NAMES = (
    "i2t_r1",
    "i2t_r5",
    "i2t_r10",
    "i2t_mean",
    "t2i_r1",
    "t2i_r5",
    "t2i_r10",
    "t2i_mean",
    "r_mean",
)


@pytest.fixture(scope="module")
def case():
    return golden.load_case("retrieval")


@pytest.fixture(scope="module")
def first_stage(case):
    scorer = Stage1Scorer(golden.model(), golden.params(), batch_size=5)
    pixels = case["image"].transpose(0, 2, 3, 1)
    images = scorer.encode_images(pixels[i : i + 5] for i in range(0, 12, 5))
    ids = case["input_ids"].astype(np.int32)
    mask = case["attention_mask"] != 0
    return scorer, images, ids, mask, scorer.cosine(images, ids, mask)


def test_first_stage(case, first_stage):
    _, images, _, _, cosine = first_stage
    tolerances.assert_values(images.queries, case["image_feats"])
    tolerances.assert_values(cosine, case["sims_i2t"])


@pytest.mark.parametrize("k", [4, 8, 12])
def test_reranked(case, first_stage, k):
    scorer, images, ids, mask, cosine = first_stage
    scores = scorer.rerank(images, ids, mask, cosine, k)
    for actual, name in ((scores.image_to_text, "i2t"), (scores.text_to_image, "t2i")):
        expected = case[f"score_{name}_k{k}"]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(np.argsort(actual), np.argsort(expected))
    texts = json.loads((golden.STAGE1 / "retrieval_texts.json").read_text())
    owner = np.array([texts["txt2img"][str(i)] for i in range(len(ids))])
    result = recalls(scores, owner)
    actual = [result[name] for name in NAMES]
    np.testing.assert_allclose(actual, case[f"metrics_k{k}"][:9], rtol=1e-9)
