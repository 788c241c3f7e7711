"""The model card of a run: its parts, training and scores."""

import json

import yaml

from blip2_jax.cli.model_card import model_card
from blip2_jax.inference.load import open_model
from tests.support.tiny_runs import make_run


def test_the_card_of_a_run(tmp_path):
    run = tmp_path / "my_run"
    make_run(run, "stage1")
    record = {"task": "retrieval", "scores": {"image_to_text_r1": 41.5}, "examples": 9}
    (run / "evaluation_retrieval.json").write_text(json.dumps(record))
    card = model_card(open_model(run), str(run), "blip2_jax", "me/mine")
    front, body = card.split("---\n")[1:3]
    assert yaml.safe_load(front) == {
        "library_name": "blip2_jax",
        "tags": ["blip-2", "jax"],
    }
    assert "# mine" in body
    assert "| `qformer` | `my_run` |" in body
    assert "No licence is stated here" in body
    assert "- stage1, 250,000 steps of 8 rows" in body
    assert "- started from: random values" in body
    assert "- data (kinds of sources): shapes" in body
    assert "| retrieval | image_to_text_r1 | 41.50 | 9 |" in body
    assert 'model = blip2_jax.load("me/mine")' in body
    assert str(tmp_path) not in card  # paths of this machine say nothing to others
