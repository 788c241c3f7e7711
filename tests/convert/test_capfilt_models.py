"""Names, sizes and settings of BLIP's captioner and of CLIP."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from blip2_jax.convert.blip import blip_rules, blip_shapes, open_blip
from blip2_jax.convert.clip import clip_model_rules, clip_shapes, open_clip
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.tables import capfilt_settings as settings
from blip2_jax.models.blip_presets import BLIP_BASE, BLIP_LARGE
from blip2_jax.models.vision.clip import CLIP_LARGE
from tests.support import capfilt_models as capfilt
from tests.support.changed_folder import changed
from tests.support.peer_models import torch_and_transformers


def meta_model(kind, config):
    """Return a model of transformers without allocation."""
    torch, _ = torch_and_transformers()
    with torch.device("meta"):
        return kind(config)


def shapes_of(arrays):
    return {name: tuple(array.shape) for name, array in arrays.items()}


def written(rules, shapes):
    """Return the names and shapes that a table makes of a model's parameters."""
    convert = lambda arrays: {
        name: array for rule in rules for name, array in rule.to_source(arrays).items()
    }
    return shapes_of(jax.eval_shape(convert, shapes))


@pytest.mark.parametrize("config", [BLIP_BASE, BLIP_LARGE], ids=["base", "large"])
def test_blip_has_the_names_of_transformers_at_full_size(config):
    _, transformers = torch_and_transformers()
    vision = config.vision
    theirs = transformers.BlipConfig(
        vision_config=dict(
            hidden_size=vision.width,
            intermediate_size=vision.mlp_dim,
            num_hidden_layers=vision.depth,
            num_attention_heads=vision.heads,
        ),
        text_config={"num_attention_heads": 12},
    )
    model = meta_model(transformers.BlipForConditionalGeneration, theirs)
    names = written(blip_rules(config, huggingface=True), blip_shapes(config))
    assert names == shapes_of(model.state_dict())
    assert names["vision_model.embeddings.position_embedding"][1] == 577


def test_clip_has_the_names_of_transformers_at_full_size():
    _, transformers = torch_and_transformers()
    vision = dict(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        patch_size=14,
    )
    text = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    theirs = transformers.CLIPConfig(
        vision_config=vision, text_config=text, projection_dim=768
    )
    model = meta_model(transformers.CLIPModel, theirs)
    names = written(clip_model_rules(CLIP_LARGE), clip_shapes(CLIP_LARGE))
    assert names == shapes_of(model.state_dict())
    assert names["vision_model.embeddings.position_embedding.weight"][0] == 257


def block(width, mlp_dim, image_width=None):
    """Count the parameters of a block with norms; with cross-attention to an image."""
    attention = 4 * (width**2 + width) + 2 * width
    cross = 0
    if image_width:
        cross = 2 * (width**2 + width) + 2 * (image_width * width + width) + 2 * width
    mlp = 2 * width * mlp_dim + mlp_dim + width + 2 * width
    return attention + cross + mlp


def count(shapes):
    return sum(int(np.prod(leaf.shape)) for leaf in shapes.values())


def test_blip_large_has_446_million_parameters():
    vision = 16 * 16 * 3 * 1024 + 1024 + 1024 + 577 * 1024 + 2 * 1024
    vision += 24 * block(1024, 4096)
    words = 30524
    text = (words + 512) * 768 + 2 * 768 + 12 * block(768, 3072, 1024)
    head = 768**2 + 768 + 2 * 768 + words
    assert count(blip_shapes(BLIP_LARGE)) == vision + text + head == 446_290_492


def test_clip_large_has_428_million_parameters():
    vision = 14 * 14 * 3 * 1024 + 1024 + 257 * 1024 + 4 * 1024 + 24 * block(1024, 4096)
    text = (49408 + 77) * 768 + 2 * 768 + 12 * block(768, 3072)
    heads = 1024 * 768 + 768 * 768 + 1
    assert count(clip_shapes(CLIP_LARGE)) == vision + text + heads == 427_616_513


SECTIONS = {
    "blip": (settings.BLIP, settings.BLIP_VISION, settings.BLIP_TEXT),
    "clip": (settings.CLIP, settings.CLIP_VISION, settings.CLIP_TEXT),
}


@pytest.mark.parametrize("family", SECTIONS)
def test_all_settings_of_transformers_are_known(family):
    """Newer versions of transformers may add one, which must be looked at."""
    _, transformers = torch_and_transformers()
    make = capfilt.blip_config if family == "blip" else capfilt.clip_config
    declared = json.loads(make(transformers).to_json_string(use_diff=False))
    top, vision, text = SECTIONS[family]
    assert top.problem(declared) == ""
    assert vision.problem(declared["vision_config"]) == ""
    assert text.problem(declared["text_config"]) == ""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("capfilt")
    capfilt.write_blip(path / "blip")
    capfilt.write_clip(path / "clip")
    return path


OPEN = {"blip": open_blip, "clip": open_clip}
REFUSED = [
    ("blip", "no_such_setting", 3),
    ("blip", "tie_word_embeddings", False),
    ("blip", "vision_config__no_such_setting", 3),
    ("blip", "vision_config__hidden_act", "mish"),
    ("blip", "vision_config__num_channels", 4),
    ("blip", "vision_config__num_attention_heads", 5),
    ("blip", "text_config__is_decoder", False),
    ("blip", "text_config__no_such_setting", 3),
    ("blip", "text_config__vocab_size", 99),
    ("blip", "text_config__num_hidden_layers", 7),
    ("blip", "vision_config__image_size", 64),
    ("clip", "no_such_setting", 3),
    ("clip", "projection_dim", 17),
    ("clip", "vision_config__hidden_act", "mish"),
    ("clip", "text_config__hidden_act", "mish"),
    ("clip", "text_config__eos_token_id", [2, 3]),
    ("clip", "text_config__max_position_embeddings", 77),
    ("clip", "text_config_dict", {"no_such_setting": 3}),
]


@pytest.mark.parametrize("family, name, value", REFUSED)
def test_a_refusal_names_file_setting_and_value(folders, tmp_path, family, name, value):
    folder = changed(folders / family, tmp_path / "x", **{name: value})
    with pytest.raises(SourceError, match=r"config\.json") as error:
        OPEN[family](CheckpointFiles(folder))
    name, value = ("no_such_setting", 3) if isinstance(value, dict) else (name, value)
    words = [name.split("__")[-1].replace("hidden_act", "act"), value]
    if name.endswith("attention_heads"):
        words = ["heads", value]
    for word in words:
        assert str(word) in str(error.value)


# As in the released folders, and values that declare other images.
PROCESSORS = {
    "blip": {
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "BlipImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "BlipProcessor",
        "resample": 3,
        "size": {"height": 48, "width": 48},
        "size_divisor": 32,
    },
    "clip": {
        "crop_size": 28,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 28,
    },
}
OTHER_IMAGES = [
    ("blip", "size", {"height": 64, "width": 64}),
    ("blip", "do_center_crop", True),
    ("blip", "image_mean", [0.5, 0.5, 0.5]),
    ("clip", "size", {"height": 28, "width": 28}),
    ("clip", "crop_size", {"height": 32, "width": 28}),
    ("clip", "do_center_crop", False),
]


@pytest.mark.parametrize("family, name, value", OTHER_IMAGES)
def test_other_preprocessing_of_images_is_refused(
    folders, tmp_path, family, name, value
):
    folder = changed(folders / family, tmp_path / "x")
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(PROCESSORS[family]))
    OPEN[family](CheckpointFiles(folder))
    file.write_text(json.dumps(PROCESSORS[family] | {name: value}))
    with pytest.raises(SourceError, match=rf"preprocessor_config\.json: {name} is"):
        OPEN[family](CheckpointFiles(folder))


def test_older_folders_of_clip_declare_their_sections_twice(folders, tmp_path):
    text = json.loads((folders / "clip" / "config.json").read_text())["text_config"]
    text = {name: text[name] for name in settings.CLIP_TEXT.used}
    folder = changed(
        folders / "clip",
        tmp_path / "x",
        text_config_dict=text,
        text_config__num_attention_heads=1,
    )
    assert open_clip(CheckpointFiles(folder)).config.text.heads == 3


@pytest.mark.parametrize("family", OPEN)
def test_every_array_is_accounted_for(folders, tmp_path, family):
    folder = changed(folders / family, tmp_path / "x")
    file = folder / "model.safetensors"
    arrays = load_file(file)
    save = lambda content: save_file(content, file, metadata={"format": "pt"})
    save(arrays | {"vision_model.extra": np.zeros(3, np.float32)})
    with pytest.raises(SourceError, match=r"does not have: vision_model\.extra"):
        OPEN[family](CheckpointFiles(folder))
    name = "vision_model.post_layernorm.bias"
    save({key: value for key, value in arrays.items() if key != name})
    with pytest.raises(SourceError, match=r"vision_norm/bias \(no vision_model\.post"):
        OPEN[family](CheckpointFiles(folder))
    (folder / "config.json").unlink()
    save(arrays)
    with pytest.raises(SourceError, match="this folder has no config"):
        OPEN[family](CheckpointFiles(folder))


def test_half_precision_is_kept(tmp_path):
    torch, _ = torch_and_transformers()
    model = capfilt.blip_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    source = open_blip(CheckpointFiles(tmp_path))
    assert source.arrays.precision == "bfloat16"
    assert source.tokenizer == ""
