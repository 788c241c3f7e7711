"""Export of runs to Hugging Face, to LAVIS and to this package's folder."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import blip2_jax
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.huggingface_export import write_huggingface
from blip2_jax.convert.lavis_file import write_lavis
from blip2_jax.convert.native_folder import read_folder, write_folder
from blip2_jax.data.shapes.render import render
from blip2_jax.data.shapes.world import scene
from blip2_jax.inference.load import ExtraWeights, open_model
from blip2_jax.training import frozen
from blip2_jax.training.setup import set_up
from tests.support import peer_models as peers
from tests.support.tiny_runs import make_run, tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "stage2"
    make_run(path, "stage2")
    return path


def pictures():
    return [render(scene("heldout", index)) for index in range(4)]


def test_transformers_generates_the_same_texts(run, tmp_path):
    _, transformers = peers.torch_and_transformers()
    notes = write_huggingface(open_model(run), tmp_path / "out")
    assert "1 row added to the token table for <image>" in notes[-1]
    kind = transformers.Blip2ForConditionalGeneration
    theirs, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    processor = transformers.Blip2Processor.from_pretrained(tmp_path / "out")
    images = [Image.fromarray(picture) for picture in pictures()]
    prompts = ["", "a large", "there is a small red", "what is"]
    inputs = processor(images=images, text=prompts, padding=True, return_tensors="pt")
    model = blip2_jax.load(run)
    for settings in ({"num_beams": 1}, {"num_beams": 5}):
        ids = theirs.eval().generate(**inputs, max_new_tokens=12, **settings)
        new = ids[:, inputs["input_ids"].shape[1] :]
        expected = processor.batch_decode(new, skip_special_tokens=True)
        texts = model.generate(pictures(), prompts, max_new_tokens=12, **settings)
        assert texts == [text.strip() for text in expected]


def test_a_converted_run_captions_like_the_run(run, tmp_path):
    write_folder(open_model(run), tmp_path / "ours")
    ours, theirs = read_folder(tmp_path / "ours"), open_model(run)
    peers.assert_same(ours.arrays, theirs.arrays)
    assert ours.elsewhere == ("visual_encoder/", "language_model/")
    captions = blip2_jax.load(tmp_path / "ours").caption(pictures(), num_beams=1)
    assert captions == blip2_jax.load(run).caption(pictures(), num_beams=1)


def test_opening_a_run_warns_of_nothing(run):
    """Orbax warns of every checkpoint that is opened to be read."""
    code = (
        "from blip2_jax.inference.load import open_model\n"
        f"list(open_model({str(run)!r}).arrays.values())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "absl" not in done.stderr


def test_digests_are_those_before_the_cast(run, tmp_path):
    """A conversion to another dtype keeps the digests of the run."""
    source = open_model(run)
    write_folder(source, tmp_path / "half", dtype="bfloat16")
    half = read_folder(tmp_path / "half").arrays
    path = "language_model/embeddings/token"
    assert half[path].dtype == "bfloat16"
    assert half.origin(path)["digest"] == source.arrays.origin(path)["digest"]
    assert half.origin(path)["dtype"] == "float32"


def test_a_stage1_run_is_exported(tmp_path):
    torch, transformers = peers.torch_and_transformers()
    make_run(tmp_path / "stage1", "stage1")
    source = open_model(tmp_path / "stage1")
    notes = write_huggingface(source, tmp_path / "out")
    assert "have no place in Blip2ForImageTextRetrieval" in notes[0]
    theirs = transformers.Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "out")
    processor = transformers.Blip2Processor.from_pretrained(tmp_path / "out")
    texts = ["a red circle", "a small blue star above a large ring"]
    images = [Image.fromarray(picture) for picture in pictures()[:2]]
    inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        itm = theirs.eval()(**inputs, use_image_text_matching_head=True)
    match = blip2_jax.load(tmp_path / "stage1").match(pictures()[:2], texts)
    expected = itm.logits_per_image.softmax(-1)[:, 1].numpy()
    np.testing.assert_allclose(match.itm, expected, atol=1e-5)

    write_lavis(source, tmp_path / "stage1.pth")
    names = list(CheckpointFiles(tmp_path / "stage1.pth"))
    assert not any(name.startswith("visual_encoder") for name in names)
    write_lavis(source, tmp_path / "all.pth", complete=True)
    sizes = peers.write_sizes(tmp_path / "sizes.json", source.config)
    back = open_model(tmp_path / "all.pth", ExtraWeights(sizes=sizes))
    peers.assert_same(back.arrays, source.arrays)


def test_the_text_branch_comes_from_stage1_and_is_carried(run, tmp_path):
    pytest.importorskip("torch", reason="a LAVIS file is a pickle")
    make_run(tmp_path / "stage1", "stage1")
    write_lavis(open_model(tmp_path / "stage1"), tmp_path / "stage1.pth", complete=True)
    write_lavis(open_model(run), tmp_path / "stage2.pth", complete=True)
    sizes = peers.write_sizes(tmp_path / "sizes.json", open_model(run).config)
    without = open_model(tmp_path / "stage2.pth", ExtraWeights(sizes=sizes))
    assert "without the Q-Former's text branch" in without.summary()
    extra = ExtraWeights(sizes=sizes, text_branch=str(tmp_path / "stage1.pth"))
    source = open_model(tmp_path / "stage2.pth", extra)
    assert f"{len(source.carried())} of them the Q-Former's text" in source.summary()
    stage1 = open_model(tmp_path / "stage1").arrays
    for path in source.carried():
        np.testing.assert_array_equal(source.arrays[path], stage1[path])
    carried = {"temperature", "itm_head/kernel", "qformer/head/bias"}
    assert carried <= {*source.carried()}
    with pytest.raises(SourceError, match="without a text branch"):
        open_model(
            tmp_path / "stage2.pth",
            ExtraWeights(sizes=sizes, text_branch=str(tmp_path / "stage2.pth")),
        )


def test_a_frozen_tower_of_another_project_trains(tmp_path):
    pytest.importorskip("torch", reason="a LAVIS file is a pickle")
    """`frozen_sources` and `init.from_weights` accept LAVIS files."""
    make_run(tmp_path / "stage1", "stage1")
    source = open_model(tmp_path / "stage1")
    write_lavis(source, tmp_path / "stage1.pth", complete=True)
    config = tiny_config("stage1").unlock()
    config.init.from_weights = (str(tmp_path / "stage1.pth"),)
    config.frozen_sources.vision = str(tmp_path / "stage1.pth")
    (arrays,) = frozen.initial_weights(config).values()
    assert set(arrays) == set(source.arrays)
    again = set_up(config, tmp_path / "again")
    again.checkpoints.close()
    assert "new (random): 0 arrays" in again.report
    np.testing.assert_array_equal(
        again.frozen["visual_encoder"]["class_token"],
        source.arrays["visual_encoder/class_token"],
    )


def test_frozen_weights_may_move_but_not_change(tmp_path):
    pytest.importorskip("torch", reason="a LAVIS file is a pickle")
    make_run(tmp_path / "first", "stage1")
    first = open_model(tmp_path / "first")
    write_lavis(first, tmp_path / "a.pth", complete=True)
    write_folder(first, tmp_path / "other")

    def config_with(source):
        config = tiny_config("stage1").unlock()
        config.frozen_sources.vision = str(source)
        return config

    again = set_up(config_with(tmp_path / "a.pth"), tmp_path / "run")
    again.checkpoints.save(0, again.trees(), {})
    again.checkpoints.close()
    (tmp_path / "a.pth").rename(tmp_path / "b.pth")
    with pytest.raises(SourceError, match=r"a\.pth"):
        blip2_jax.load(tmp_path / "run")
    for name in ("b.pth", "other"):  # moved; converted
        spec = str(tmp_path / name)
        blip2_jax.load(tmp_path / "run", vision=spec)
        set_up(config_with(spec), tmp_path / "run").checkpoints.close()

    arrays = dict(CheckpointFiles(tmp_path / "b.pth"))
    arrays["visual_encoder.cls_token"] = arrays["visual_encoder.cls_token"] + 1
    changed = str(peers.write_pickle(tmp_path / "c.pth", arrays))
    for use in (
        lambda: set_up(config_with(changed), tmp_path / "run"),
        lambda: blip2_jax.load(tmp_path / "run", vision=changed),
    ):
        with pytest.raises(frozen.WeightsError, match="visual_encoder/class_token was"):
            use()
