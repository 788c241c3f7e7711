"""KerasHub's contestants beside ours, at small size, in an interpreter with keras-hub.

`BLIP2_JAX_KERAS_PYTHON` names it.
"""

import os

import pytest

from benchmarks import harness, ours, stage2_step


@pytest.fixture
def peer(tmp_path):
    """Return a function that starts KerasHub with the weights of our contestant."""
    python = os.environ.get("BLIP2_JAX_KERAS_PYTHON")
    if not python:
        pytest.skip("BLIP2_JAX_KERAS_PYTHON names no interpreter with keras-hub")

    def start(kind, contestant, settings):
        file = str(tmp_path / "weights.safetensors")
        contestant.export(file)
        settings = settings | {"weights": file}
        return harness.Worker("KerasHub", python, "keras_peer", kind, settings, 1)

    return start


@pytest.mark.slow
def test_kerashub_reports_our_losses(peer):
    settings = {"sizes": stage2_step.sizes_of("opt", True, 0.0), "rows": 2, "text": 8}
    training = ours.Training(**settings)
    with peer("training", training, settings) as keras:
        theirs = [keras.ask("compare")["loss"] for _ in range(3)]
        assert keras.ask("step") > 0 and "keras_hub" in keras.ask("versions")
    losses = [training.compare() for _ in range(3)]
    assert losses == pytest.approx(theirs, rel=1e-6) and losses[2] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 5])
def test_kerashub_generates_our_ids(peer, beams):
    settings = {
        "sizes": stage2_step.sizes_of("opt", True, 0.0),
        "rows": 2,
        "prompt": (2, 20, 30),
        "beams": beams,
        "tokens": 6,
    }
    generation = ours.Generation(**settings)
    with peer("generation", generation, settings) as keras:
        assert keras.ask("ids") == generation.ids()
        assert keras.ask("generate") > 0
