"""`blip2-jax cache_features`: from the command line to a run on the cache."""

import json
import shutil

import pytest

from blip2_jax.cli import cache_features, train
from blip2_jax.data.feature_manifest import read_manifest
from tests.support.processes import SUPPORT

TINY = SUPPORT / "tiny_experiment.py"
SHAPES = {"kind": "shapes", "split": "train", "size": 16}


def run(capsys, *options, code=0):
    """Run the command; returns what it printed."""
    assert cache_features.main([*map(str, options)]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def options_for(out):
    """Return the options of a small cache of two shards."""
    options = [f"--config={TINY}", f"--out={out}", "--processes=1", "--batch_size=4"]
    return [*options, "--config.data.train[0].size=16", "--records_per_shard=8"]


def test_a_cache_is_announced_and_written_in_parts(tmp_path, capsys):
    out = tmp_path / "cache"
    options = options_for(out)
    text = run(capsys, *options, "--dry_run")
    assert "cache: 16 images, 283 kB (320 bytes an image), about " in text
    assert not out.exists()
    text = run(capsys, *options, "--shard=0/2")
    assert "this part is finished, but shards of others are missing" in text
    text = run(capsys, *options, "--shard=1/2")
    assert f"train with --data {out}" in text and "16 records, 5 x 32 bf16" in text
    assert read_manifest(out).origin.precision == "float32"
    text = run(capsys, *options, "--dtype=int8", code=1)
    assert "dtype is 'int8', was 'bf16'" in text and "another output" in text


@pytest.mark.slow
def test_a_cache_is_trained_on(tmp_path, capsys):
    out = tmp_path / "cache"
    run(capsys, *options_for(out))
    command = [f"--config={TINY}", f"--data={out}", f"--workdir={tmp_path / 'run'}"]
    command += ["--config.steps=2", "--config.optimizer.warmup_steps=1"]
    assert train.main(command) == 0
    assert "features of random from" in capsys.readouterr().err
    other = ["--config.seed=1", *command[:2], f"--workdir={tmp_path / 'other'}"]
    assert train.main(other) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "holds features of the encoder" in message and str(out) in message


def test_an_encoder_in_place_of_the_configurations(tmp_path, capsys):
    """`--vision`, with the sizes that it says; training takes the same option."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers", minversion="5")
    from tests.support import peer_encoders

    folder, out = tmp_path / "encoder", tmp_path / "cache"
    peer_encoders.write_encoder(folder, "dinov2_registers")
    options = [*options_for(out), f"--vision={folder}", "--image_size=18"]
    text = run(capsys, *options)
    assert f"train with --data {out}" in text and "16 records, 13 x 24 bf16" in text
    origin = read_manifest(out).origin
    assert (origin.encoder, origin.sizes["image_size"]) == (str(folder), 18)
    message = "--vision and --image_size go with --config"
    command = ["--model=shapes:vision", f"--vision={folder}", f"--out={out}"]
    assert message in run(capsys, *command, code=2)


@pytest.mark.slow
def test_encoders_by_name_in_worker_processes(tmp_path, capsys):
    out = tmp_path / "cache"
    specs = [SHAPES | {"weight": 3.0}, SHAPES | {"split": "validation", "weight": 1.0}]
    options = ["--model=shapes:vision", f"--data={json.dumps(specs)}", f"--out={out}"]
    text = run(capsys, *options, "--dtype=int8", "--processes=2")
    spec = {"kind": "cached_features", "path": str(out), "part": 1, "weight": 1.0}
    assert json.dumps(spec) in text
    manifest = read_manifest(out)
    assert [source.records for source in manifest.sources] == [16, 16]
    assert (manifest.dtype, manifest.origin.encoder) == ("int8", "shapes:vision")


@pytest.mark.parametrize(
    ("code", "options", "message"),
    [
        (2, (), "--out is missing"),
        (2, ("--out=x",), "name the image encoder: --model PATH, or --config NAME"),
        (2, ("--out=x", "--model=shapes:vision"), "--data is missing"),
        (2, ("--out=x", "--config.seed=1"), "--config.seed=1 needs --config"),
        (2, ("--out=x", f"--config={TINY}", "--crops=-1"), "crops -1"),
        (2, ("--out=x", f"--config={TINY}", "--sizes=a"), "--sizes goes with --model"),
        (
            2,
            (
                "--out=x",
                f"--config={TINY}",
                "--crops=2",
                "--config.data.image.augment=False",
            ),
            "2 crops would be equal",
        ),
        (1, ("--out=x", f"--config={TINY}", "--model=/no/w"), "/no/w"),
        (
            1,
            ("--out=x", f"--config={TINY}", "--config.frozen=()"),
            "add '^visual_encoder/' to config.frozen",
        ),
        (
            1,
            ("--out=x", "--model=shapes:vision", '--data={"kind": "shapes", "size":0}'),
            "split",
        ),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, code, options, message):
    monkeypatch.chdir(tmp_path)
    text = run(capsys, *options, "--processes=1", code=code)
    assert text.startswith("error: ") and message in text
    assert text.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_noticed_before_writing(tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    options = ["--model=shapes:vision", f"--data={json.dumps(SHAPES)}"]
    out = tmp_path / "deep" / "cache"
    text = run(capsys, *options, f"--out={out}", "--processes=1", code=1)
    assert "for 1 shards, but the disk has 1 kB free" in text
    assert not out.parent.exists()
