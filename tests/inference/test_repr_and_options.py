"""What a model and the package say about themselves, and errors of `load`."""

import re

import pytest

import blip2_jax
from tests.support.public_models import photos, stage1, stage2
from tests.support.tiny_runs import make_run


def test_repr_names_origin_parts_precision_and_devices(tmp_path):
    make_run(tmp_path / "run", "stage2")
    text = repr(blip2_jax.load(tmp_path / "run"))
    assert text.startswith("Blip2Generator: stage 2, 0.0")
    assert f"M parameters, from {tmp_path / 'run'} (run)\n" in text
    assert "  image encoder: ViT, 32 px, width 16, 1 blocks, " in text
    assert "  Q-Former: 4 queries, width 16, 2 blocks, " in text
    assert "  language model: OPT, width 16, 1 blocks, 452 words, " in text
    assert "  precision: float32\n" in text
    assert re.search(r"  devices: cpu:0 \(cpu\)$", text)


def test_repr_of_models_built_from_parts():
    text = repr(stage1())
    assert text.startswith("Blip2Retriever: stage 1, ")
    assert "from" not in text and "language model" not in text
    parts = [float(count) for count in re.findall(r"([\d.]+) M", repr(stage2()))]
    assert parts[0] == pytest.approx(sum(parts[1:]), abs=0.02)


def test_dir_lists_the_public_names():
    assert dir(blip2_jax) == sorted(blip2_jax.__all__)
    for name in dir(blip2_jax):
        assert getattr(blip2_jax, name) is not None


def test_unknown_options_of_load_are_answered_with_all_options(tmp_path):
    with pytest.raises(ValueError, match="load has no key 'visoin'") as caught:
        blip2_jax.load(tmp_path, visoin="eva.pth")
    assert (
        "its keys are which, precision, batch_size, mesh, devices, quantize, "
        in str(caught.value)
    )
    assert "(did you mean 'vision'?)" in str(caught.value)
    with pytest.raises(ValueError, match="did you mean 'batch_size'"):
        blip2_jax.load(tmp_path, batchsize=3)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_rows(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size}: expected at least"):
        stage2(batch_size=batch_size)
    assert stage2().caption(photos(1), num_beams=1, max_new_tokens=2)
