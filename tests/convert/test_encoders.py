"""Image encoders of SigLIP and DINOv2 equal transformers'; their folders."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from blip2_jax.convert import encoder_folder, weights
from blip2_jax.convert.converted_arrays import ConvertedArrays
from blip2_jax.convert.encoder_folder import encoder_sizes
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.huggingface_folder import huggingface_rules
from blip2_jax.convert.lavis_file import lavis_rules
from blip2_jax.convert.positions import POSITIONS, vision_at_size
from blip2_jax.convert.tables import huggingface_settings
from blip2_jax.convert.tables.name_table import to_source
from blip2_jax.convert.towers import vision_part
from blip2_jax.inference.image_encoder import open_image_encoder
from blip2_jax.models import presets
from blip2_jax.models.presets import Blip2Config
from blip2_jax.models.sizes import IMAGE_STATISTICS
from blip2_jax.models.vision.vit import VisionTransformer
from blip2_jax.nn.trees import flatten, unflatten
from tests.support.changed_folder import changed
from tests.support.tolerances import assert_values

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")
from tests.support import peer_encoders as peers  # noqa: E402

FAMILIES = tuple(peers.CONFIGS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a function that returns model and folder of a name, written once."""
    written = {}

    def make(name):
        if name not in written:
            folder = tmp_path_factory.mktemp(name)
            written[name] = peers.write_encoder(folder, name), folder
        return written[name]

    return make


def part_arrays(folder, vision):
    return ConvertedArrays([vision_part(CheckpointFiles(folder), vision)])


def encode(arrays, vision, images):
    params = unflatten({path: np.asarray(arrays[path]) for path in arrays})
    tower = VisionTransformer(vision)
    return jax.jit(tower.apply)({"params": params["visual_encoder"]}, images)


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_equal_transformers(folders, name):
    """At the size of the positions, and at a smaller and a larger one."""
    model, folder = folders(name)
    vision = encoder_sizes(CheckpointFiles(folder))
    for size in (vision.image_size, 3 * peers.PATCH, 7 * peers.PATCH):
        sizes = vision_at_size(vision, size)
        images = np.random.default_rng(size).normal(size=(2, size, size, 3))
        images = images.astype(np.float32)
        block, normed = peers.hidden_states(model, images)
        assert normed.shape == (2, sizes.num_tokens, sizes.width)
        arrays = part_arrays(folder, sizes)
        assert_values(encode(arrays, sizes, images), normed, f"norm at {size}")
        if size == vision.image_size:
            bare = dataclasses.replace(sizes, final_norm=False)
            arrays = part_arrays(folder, bare)
            assert_values(encode(arrays, bare, images), block, "last block")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_returns_every_array_bit_for_bit(folders, name):
    _, folder = folders(name)
    source = CheckpointFiles(folder)
    part = vision_part(source, encoder_sizes(source))
    arrays = ConvertedArrays([part])
    back = to_source(unflatten({path: arrays[path] for path in arrays}), part.rules)
    assert back.keys() == {name for rule in part.rules for name in rule.names()}
    for key, array in back.items():
        np.testing.assert_array_equal(array, source[key], strict=True)


def test_a_smaller_depth_leaves_the_last_blocks_out(folders):
    _, folder = folders("siglip")
    vision = encoder_sizes(CheckpointFiles(folder))
    arrays = part_arrays(folder, dataclasses.replace(vision, depth=1))
    assert arrays.shape("visual_encoder/blocks/mlp/up/kernel")[0] == 1
    with pytest.raises(SourceError, match="has 3 layers where the model has 4"):
        arrays = part_arrays(folder, dataclasses.replace(vision, depth=4))


PUBLIC = {
    "siglip_base_224": ("siglip_vision_model", {}),
    "siglip_large_256": (
        "siglip_vision_model",
        dict(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=256,
        ),
    ),
    "siglip_so400m_384": (
        "siglip_vision_model",
        dict(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
        ),
    ),
    "dinov2_small": ("dinov2", dict(hidden_size=384, num_attention_heads=6)),
    "dinov2_base": ("dinov2", {}),
    "dinov2_large": (
        "dinov2",
        dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16),
    ),
    "dinov2_giant": (
        "dinov2",
        dict(
            hidden_size=1536,
            num_hidden_layers=40,
            num_attention_heads=24,
            use_swiglu_ffn=True,
        ),
    ),
    "dinov2_base_registers": ("dinov2_with_registers", dict(patch_size=14)),
}
# Millions of parameters of DINOv2 with the mask token, which is not read.
PARAMETERS = {
    "dinov2_small": 22.06,
    "dinov2_base": 86.58,
    "dinov2_large": 304.37,
    "dinov2_giant": 1136.48,
}


@pytest.mark.parametrize("name", PUBLIC)
def test_presets_have_the_public_sizes(name):
    model_type, settings = PUBLIC[name]
    form = encoder_folder.FORMATS[model_type]
    if model_type.startswith("dinov2"):
        settings = settings | {"image_size": 518}
    theirs = getattr(transformers, form.config_class)(**settings)
    assert form.convert(theirs) == presets.ENCODERS[name]


@pytest.mark.parametrize("name", presets.ENCODERS)
def test_presets_at_full_size(name):
    vision = presets.ENCODERS[name]
    size = vision.image_size
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    tower = VisionTransformer(vision)
    out, variables = jax.eval_shape(tower.init_with_output, jax.random.key(0), images)
    assert out.shape == (1, vision.num_tokens, vision.width)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables)) + vision.width
    if name in PARAMETERS:
        assert round(count / 1e6, 2) == PARAMETERS[name]


@pytest.mark.parametrize("model_type", encoder_folder.FORMATS)
def test_all_settings_of_transformers_are_known(model_type):
    form = encoder_folder.FORMATS[model_type]
    theirs = getattr(transformers, form.config_class)()
    declared = json.loads(theirs.to_json_string(use_diff=False))
    for section, table in form.tables.items():
        assert table.problem(declared[section] if section else declared) == ""
        for name in {**huggingface_settings.COMMON_FIXED, **table.fixed}:
            assert table.problem({name: "another"}).startswith(f"{name} is ")
        assert "does not know" in table.problem({"no_such_setting": 3})


REFUSED = {
    "siglip": {
        "vision_config__hidden_act": "no_such_function",
        "vision_config__num_channels": 4,
        "vision_config__num_hidden_layers": 2,
        "vision_config__image_size": 42,
        "model_type": "siglip2",
    },
    "dinov2_registers": {
        "qkv_bias": False,
        "hidden_size": 28,
        "num_register_tokens": 4,
        "image_size": 42,
        "a_new_setting": 1,
    },
}


@pytest.mark.parametrize(
    ("family", "name"), [(f, name) for f in REFUSED for name in REFUSED[f]]
)
def test_a_refusal_names_file_and_setting(folders, tmp_path, family, name):
    _, folder = folders(family)
    folder = changed(folder, tmp_path / "x", **{name: REFUSED[family][name]})
    key = name.split("__")[-1].replace("hidden_act", "activation")
    with pytest.raises(SourceError, match=rf"config\.json.*{key}"):
        encoder_sizes(CheckpointFiles(folder))


@pytest.mark.parametrize("family", ["siglip", "dinov2"])
def test_mean_and_deviation_of_the_folder_must_be_those_of_the_family(
    folders, tmp_path, family
):
    _, folder = folders(family)
    folder = changed(folder, tmp_path / "x")
    vision = encoder_sizes(CheckpointFiles(folder))
    mean, deviation = map(list, IMAGE_STATISTICS[vision.statistics])
    declared = {"image_mean": mean, "image_std": deviation, "resample": 2}
    declared |= {"do_center_crop": True, "size": {"shortest_edge": 256}}
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(declared))
    assert encoder_sizes(CheckpointFiles(folder)) == vision
    file.write_text(json.dumps(declared | {"image_mean": [0.4, 0.4, 0.4]}))
    with pytest.raises(SourceError, match=r"preprocessor_config.json: image_mean is"):
        encoder_sizes(CheckpointFiles(folder))


def test_another_encoder_than_the_model_has_is_refused(folders, tmp_path):
    _, siglip = folders("siglip")
    _, dinov2 = folders("dinov2")
    vision = encoder_sizes(CheckpointFiles(siglip))
    with pytest.raises(SourceError, match="is no SigLIP image encoder"):
        part_arrays(dinov2, vision)
    with pytest.raises(SourceError, match=r"heads 4, the model has 2"):
        part_arrays(siglip, dataclasses.replace(vision, heads=2))
    # A file alone declares nothing.
    file = tmp_path / "siglip.safetensors"
    save_file(load_file(siglip / "model.safetensors"), file)
    arrays, expected = part_arrays(file, vision), part_arrays(siglip, vision)
    assert all(np.array_equal(arrays[path], expected[path]) for path in expected)
    with pytest.raises(SourceError, match="does not say its sizes"):
        open_image_encoder(str(file))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_encoder_by_itself_normalises_with_its_own_statistics(folders, name):
    model, folder = folders(name)
    encoder = open_image_encoder(str(folder))
    size = encoder.config.image_size
    images = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    mean, deviation = np.array(
        IMAGE_STATISTICS["half" if "siglip" in name else "imagenet"], np.float32
    )
    pixels = (images.astype(np.float32) / 255 - mean) / deviation
    _, expected = peers.hidden_states(model, pixels)
    np.testing.assert_allclose(encoder.encode(images), expected, 1e-4, 1e-4)


def test_formats_of_others_have_no_such_model(folders):
    _, folder = folders("dinov2_registers")
    vision = encoder_sizes(CheckpointFiles(folder))
    config = Blip2Config(vision, presets.QFORMER_BASE)
    assert presets.from_plain(presets.to_plain(config)) == config
    arrays = weights.open_arrays(folder, config)
    assert flatten(unflatten(dict(arrays)))[POSITIONS].shape == (26, 24)
    with pytest.raises(ValueError, match="EVA-CLIP's image encoder only"):
        huggingface_rules(config)
    with pytest.raises(SourceError, match="EVA-CLIP and CLIP only"):
        lavis_rules(config)
