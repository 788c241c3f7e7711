"""`blip2-jax features`: files that training reads in place of images."""

import json

import numpy as np
import pytest
from PIL import Image

from blip2_jax.cli import features
from blip2_jax.data.shapes.source import ShapesSource
from blip2_jax.data.sources.features import FeaturesSource
from blip2_jax.inference.image_encoder import open_image_encoder
from blip2_jax.inference.load import load
from tests.support.tiny_runs import make_run

SHAPES = {"kind": "shapes", "split": "train", "size": 8, "count": 1}


def test_features_are_those_of_the_encoder(tmp_path, capsys):
    options = ["--model=shapes:vision", f"--data={json.dumps(SHAPES)}"]
    assert features.main([*options, f"--out={tmp_path / 'out'}", "--batch_size=4"]) == 0
    out = capsys.readouterr().out
    assert "--config.model.overrides.vision.num_tokens=5" in out
    assert "--config.model.overrides.vision.width=128" in out
    source = FeaturesSource(str(tmp_path / "out"), SHAPES)
    assert len(source) == 8 and source.keys() == ShapesSource("train", 8).keys()
    stored = np.stack([source.load_features(index) for index in range(8)])
    assert stored.dtype == np.float16 and stored.shape == (8, 5, 128)
    images = np.stack([ShapesSource("train", 8).load_image(i) for i in range(8)])
    expected = load("shapes_stage1")._encode_images(images)
    # float16 has 11 significant bits.
    np.testing.assert_allclose(stored.astype(np.float32), expected, 1e-3, 1e-4)
    assert features.main([*options, f"--out={tmp_path / 'out'}"]) == 1
    assert "exists already" in capsys.readouterr().err


def test_broken_images_are_left_out_and_counted(tmp_path, capsys):
    names = [f"{number:03}.png" for number in range(120)]
    for number, name in enumerate(names):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / name)
    (tmp_path / "007.png").write_bytes(b"broken")
    rows = [{"image": name, "caption": text} for name in names for text in "ab"]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    make_run(tmp_path / "run", "stage1")
    spec = {
        "kind": "annotations",
        "path": str(tmp_path / "data.json"),
        "images": str(tmp_path),
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    out = tmp_path / "out"
    code = features.main(
        [
            f"--model={tmp_path / 'run'}",
            f"--data={tmp_path / 'spec.json'}",
            f"--out={out}",
        ]
    )
    output = capsys.readouterr()
    assert code == 0, output.err
    assert output.out.startswith("left out: ") and "007.png" in output.out
    keys = json.loads((out / "keys.json").read_text())
    assert len(keys) == len(np.load(out / "features.npy")) == 119
    assert sorted(path.name for path in out.iterdir()) == ["features.npy", "keys.json"]


@pytest.mark.parametrize("spec", ["shapes:vision", "shapes", "shapes_stage1"])
def test_encoders_of_the_package(spec):
    encoder = open_image_encoder(spec)
    assert (encoder.config.num_tokens, encoder.config.width) == (5, 128)
    assert encoder.encode(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 5, 128)


def test_sources_without_images_are_refused(tmp_path, capsys):
    for data, code in (("[]", 2), ('[{"kind": "shapes", "size": 0}]', 1)):
        options = ["--model=shapes:vision", f"--data={data}"]
        assert features.main([*options, f"--out={tmp_path / 'out'}"]) == code
        assert capsys.readouterr().err.startswith("error: ")
        assert not (tmp_path / "out").exists()
