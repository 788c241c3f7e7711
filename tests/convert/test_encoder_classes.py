"""Every class of transformers that holds an image encoder gives the same encoder."""

import numpy as np
import pytest

from blip2_jax.convert.files.checkpoint_files import CheckpointFiles
from blip2_jax.inference.image_encoder import open_image_encoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")
_SIZES = dict(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, patch_size=6)
_VISION = dict(**_SIZES, image_size=12, intermediate_size=10)
_DINOV2 = dict(**_SIZES, image_size=12)
_TEXT = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=9)
_TEXT |= dict(num_attention_heads=2, max_position_embeddings=7)
# Family: configuration classes of the encoder alone and of a pair of encoders, and the
# classes to save, the encoder alone first.
FAMILIES = {
    "Clip": (
        ("CLIPVisionConfig", "CLIPConfig"),
        ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
        ("CLIPModel", "CLIPForImageClassification"),
    ),
    "Siglip": (
        ("SiglipVisionConfig", "SiglipConfig"),
        ("SiglipVisionModel",),
        ("SiglipModel", "SiglipForImageClassification"),
    ),
    "Dinov2": (
        ("Dinov2Config", ""),
        ("Dinov2Model", "Dinov2ForImageClassification"),
        (),
    ),
    "Dinov2WithRegisters": (
        ("Dinov2WithRegistersConfig", ""),
        ("Dinov2WithRegistersModel", "Dinov2WithRegistersForImageClassification"),
        (),
    ),
}


def write(folder, kind, config, encoder_state):
    """Write the folder of a class with the arrays of an encoder in it."""
    model = getattr(transformers, kind)(config)
    state = model.state_dict()
    for name in state:
        inner = name.removeprefix(f"{model.base_model_prefix}.")
        inner = inner.removeprefix("vision_model.")
        if inner in encoder_state and "text_model" not in name:
            state[name] = encoder_state[inner]
    model.load_state_dict(state)
    model.save_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_encoder_is_read_and_the_rest_is_not(tmp_path, family):
    torch.manual_seed(0)
    (alone, pair), encoders, pairs = FAMILIES[family]
    sizes = _DINOV2 if family.startswith("Dino") else _VISION
    config = getattr(transformers, alone)(**sizes)
    encoder = getattr(transformers, encoders[0])(config)
    state = {
        name.removeprefix("vision_model."): array
        for name, array in encoder.state_dict().items()
    }
    images = np.random.default_rng(0).integers(0, 256, (1, 12, 12, 3), np.uint8)
    outputs = []
    for kind in (*encoders, *pairs):
        own = config
        if kind in pairs:
            own = getattr(transformers, pair)(
                vision_config=_VISION, text_config=dict(_TEXT)
            )
        write(tmp_path / kind, kind, own, state)
        opened = open_image_encoder(str(tmp_path / kind))
        assert opened.config.width == 8
        outputs.append(opened.encode(images))
    assert np.abs(outputs[0]).max() > 0
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])


def test_a_clip_without_prefix_equals_transformers(tmp_path):
    """`CLIPVisionModel` as transformers 5 saves it; the last block is not used."""
    torch.manual_seed(1)
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**_VISION))
    model.eval().save_pretrained(tmp_path)
    opened = open_image_encoder(str(tmp_path))
    assert "encoder.layers.0.self_attn.q_proj.weight" in CheckpointFiles(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), np.uint8)
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
    deviation = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
    inputs = (pixels.astype(np.float32) / 255 - mean) / deviation
    with torch.no_grad():
        out = model(
            torch.tensor(inputs.transpose(0, 3, 1, 2)), output_hidden_states=True
        )
    expected = out.hidden_states[-2].numpy()
    np.testing.assert_allclose(opened.encode(pixels), expected, 1e-4, 1e-4)
