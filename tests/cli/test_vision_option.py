"""`--vision PATH` of `train`: an image encoder whose sizes need not be typed."""

import pytest

from blip2_jax.cli import train
from blip2_jax.inference.load import open_model
from blip2_jax.models import presets
from blip2_jax.training.tasks import model_config
from blip2_jax.training.train_config import check_same_run, read_config
from tests.support.processes import SUPPORT

pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5")
from tests.support import peer_encoders as peers

TINY = f"--config={SUPPORT / 'tiny_experiment.py'}"


@pytest.mark.parametrize(
    ("name", "tokens"),
    [pytest.param("siglip", 9, marks=pytest.mark.slow), ("dinov2_registers", 13)],
)
def test_one_step_of_stage_1_on_an_encoder(tmp_path, capsys, name, tokens):
    """The run stores the sizes, and is the same run when the command is repeated."""
    peers.write_encoder(tmp_path / "encoder", name)
    command = [TINY, f"--vision={tmp_path / 'encoder'}", "--image_size=18"]
    command += [f"--workdir={tmp_path / 'run'}", "--config.steps=1"]
    command += ["--config.optimizer.warmup_steps=0", "--config.data.workers=0"]
    assert train.main(command) == 0, capsys.readouterr().err
    stored = read_config(tmp_path / "run")
    assert stored.model.overrides.vision.statistics
    given = train.requested_config(train.make_parser().parse_args(command))
    check_same_run(stored, given)
    vision = open_model(tmp_path / "run").config.vision
    assert (vision.image_size, vision.num_tokens) == (18, tokens)
    assert vision.final_norm


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image_size=18"], "--image_size needs --vision"),
        (["--vision=x", "--config.data.image.size=9"], "--image_size sets the image"),
        (["--vision=shapes"], "--vision shapes is no image encoder by itself"),
        (["--vision=shapes:vision", "--image_size=65"], "multiple of the patch size"),
    ],
)
def test_what_is_no_encoder_is_refused(tmp_path, capsys, arguments, message):
    assert train.main([TINY, f"--workdir={tmp_path / 'run'}", *arguments]) != 0
    assert message in capsys.readouterr().err


def test_an_encoder_by_its_name_in_the_presets():
    arguments = train.make_parser().parse_args([TINY])
    config = train.requested_config(arguments).unlock()
    config.model.overrides = {"vision": {"kind": "dinov2_base", "image_size": 224}}
    vision = model_config(config.model).vision
    assert vision == presets.at_resolution(presets.DINOV2_BASE, 224)
    config.model.overrides = {"vision": {"kind": "dinov3"}}
    with pytest.raises(ValueError, match=r"dinov3.*siglip_base_224"):
        model_config(config.model)
