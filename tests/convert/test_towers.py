"""Checkpoints of image encoders and language models from their own projects."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from blip2_jax.convert import weights
from blip2_jax.convert.converted_arrays import ConvertedArrays
from blip2_jax.convert.detect import DESCRIPTIONS, KINDS, LANGUAGE, VISION, kind_of
from blip2_jax.convert.files.checkpoint_files import CheckpointFiles, SourceError
from blip2_jax.convert.language_families.registry import FAMILIES
from blip2_jax.convert.towers import vision_part
from blip2_jax.inference.image_encoder import own_sizes
from blip2_jax.models.presets import EVA_VIT_G
from blip2_jax.models.sizes import FeaturesConfig, ViTConfig
from blip2_jax.nn import trees
from tests.support import golden_stage1, golden_stage2
from tests.support import peer_models as peers

CLIP = ViTConfig(
    24,
    2,
    4,
    40,
    28,
    activation="quick_gelu",
    layer_norm_eps=1e-5,
    key_bias=True,
    patch_bias=False,
    pre_norm=True,
)


def eva_arrays():
    """Return the golden image encoder with the unused arrays of EVA's file."""
    arrays = load_file(golden_stage1.STAGE1 / "weights.safetensors")
    prefix = "visual_encoder."
    tower = {
        k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)
    }
    depth = golden_stage1.config().vision.depth
    last = {
        name.replace("blocks.0.", f"blocks.{depth}."): array
        for name, array in tower.items()
        if name.startswith("blocks.0.")
    }
    return tower | last | {"norm.weight": np.ones(3, np.float32)}


@pytest.mark.parametrize("prefix", ["", "visual."])
def test_eva(tmp_path, prefix):
    """Read LAVIS's file, and EVA's own with its text tower."""
    arrays = {prefix + name: array for name, array in eva_arrays().items()}
    if prefix:
        arrays |= {"text.ln.weight": np.ones(2, np.float32)}
        arrays |= {"logit_scale": np.ones((), np.float32)}
    path = peers.write_pickle(tmp_path / "eva.pt", arrays, wrapper="")
    arrays = weights.open_arrays(path, golden_stage1.config())
    expected = {"visual_encoder": golden_stage1.params()["visual_encoder"]}
    peers.assert_same(arrays, trees.flatten(expected))


def clip_model():
    torch, transformers = peers.torch_and_transformers()
    torch.manual_seed(0)
    vision = dict(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
    )
    text = dict(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        vocab_size=9,
        max_position_embeddings=7,
    )
    config = transformers.CLIPConfig(vision_config=vision, text_config=text)
    return transformers.CLIPModel(config).eval()


def openai(state):
    """Rename transformers' arrays to OpenAI's names."""
    named = {}
    for name, array in state.items():
        if not name.startswith("vision_model."):
            continue
        name = name.removeprefix("vision_model.")
        for theirs, new in (
            ("embeddings.class_embedding", "class_embedding"),
            ("embeddings.patch_embedding.", "conv1."),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("pre_layrnorm.", "ln_pre."),
            ("post_layernorm.", "ln_post."),
            ("encoder.layers.", "transformer.resblocks."),
            ("self_attn.", "attn."),
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("fc1", "c_fc"),
            ("fc2", "c_proj"),
        ):
            name = name.replace(theirs, new)
        named[name] = array
    joined = {}
    for name, array in named.items():
        if ".attn.q_proj." in name:
            parts = [named[name.replace("q_proj", f"{p}_proj")] for p in "qkv"]
            joined[name.replace("q_proj.", "in_proj_")] = np.concatenate(parts)
        elif ".attn.k_proj." not in name and ".attn.v_proj." not in name:
            joined[name] = array
    return joined | {"proj": np.ones((3, 3), np.float32)}


def test_clip_of_openai_and_of_transformers(tmp_path):
    model = clip_model()
    model.save_pretrained(tmp_path / "theirs")
    config = dataclasses.replace(golden_stage1.config(), vision=CLIP)
    theirs = weights.open_arrays(tmp_path / "theirs", config)
    state = {name: array.numpy() for name, array in model.state_dict().items()}
    path = peers.write_pickle(tmp_path / "clip.pth", openai(state), wrapper="")
    ours = weights.open_arrays(path, config)
    assert len(ours) == 21
    peers.assert_same(ours, theirs)


# As OpenAI's folder of CLIP ViT-L declares its images.
CLIP_IMAGES = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}


def test_a_clip_that_computes_something_else_is_refused(tmp_path):
    folder = tmp_path / "theirs"
    clip_model().save_pretrained(folder)
    config = dataclasses.replace(golden_stage1.config(), vision=CLIP)
    images = folder / "preprocessor_config.json"
    images.write_text(json.dumps(CLIP_IMAGES))
    weights.open_arrays(folder, config)
    assert own_sizes(str(folder)).vision == CLIP
    for field, value in (("heads", 2), ("activation", "gelu"), ("layer_norm_eps", 1.0)):
        other = dataclasses.replace(CLIP, **{field: value})
        with pytest.raises(SourceError, match=rf"declares {field} .* has {value}"):
            weights.open_arrays(folder, dataclasses.replace(config, vision=other))
    images.write_text(json.dumps(CLIP_IMAGES | {"image_mean": [0.5, 0.5, 0.5]}))
    for read in (
        lambda: weights.open_arrays(folder, config),
        lambda: own_sizes(str(folder)),
    ):
        with pytest.raises(SourceError, match=r"image_mean is \[0\.5, 0\.5, 0\.5\]"):
            read()


def test_a_tower_of_another_kind_is_an_error(tmp_path):
    path = peers.write_pickle(tmp_path / "eva.pt", eva_arrays(), wrapper="")
    config = golden_stage1.config()
    clip = dataclasses.replace(config, vision=CLIP)
    with pytest.raises(SourceError, match="is no CLIP image encoder"):
        weights.open_arrays(path, clip)
    with pytest.raises(SourceError, match="reads features"):
        vision_part(CheckpointFiles(path), FeaturesConfig(2, 3))
    bigger = dataclasses.replace(config, vision=EVA_VIT_G)
    with pytest.raises(SourceError, match="has 4 layers where the model has 39"):
        weights.open_arrays(path, bigger)


def test_positions_fit_the_size_of_the_model(tmp_path):
    path = peers.write_pickle(tmp_path / "eva.pt", eva_arrays(), wrapper="")
    config = golden_stage1.config()
    vision = dataclasses.replace(config.vision, image_size=2 * config.vision.image_size)
    arrays = ConvertedArrays([vision_part(CheckpointFiles(path), vision)])
    name = "visual_encoder/position_embedding"
    assert arrays.shape(name) == arrays[name].shape == (vision.num_tokens, vision.width)


@pytest.mark.parametrize("name", golden_stage2.NAMES)
def test_language_models(tmp_path, name):
    """Read transformers' names, with and without aliases of tied arrays."""
    family = "opt" if "opt" in name else "t5"
    prefix = f"{family}_model."
    arrays = {
        k.removeprefix(prefix): a
        for k, a in golden_stage2.source(name).items()
        if k.startswith(prefix)
    }
    expected = trees.flatten(
        {"language_model": golden_stage2.params(name)["language_model"]}
    )
    tied = (
        {"lm_head.weight"}
        if family == "opt"
        else {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    )
    for left_out, older in ((set(), False), (tied, False), (tied, True)):
        in_file = {
            k.removeprefix("model." if older else ""): a
            for k, a in arrays.items()
            if k not in left_out
        }
        path = peers.write_pickle(tmp_path / f"{len(in_file)}{older}.bin", in_file, "")
        assert kind_of(CheckpointFiles(path)) == family
        read = weights.open_arrays(path, golden_stage2.config(name))
        peers.assert_same(read, expected)
    with pytest.raises(SourceError, match="this model has no language model"):
        weights.open_arrays(path, golden_stage1.config())


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("stage2_opt_a", "heads", 1),
        ("stage2_t5_a", "layer_norm_eps", 1e-3),
        ("stage2_t5_a", "relative_max_distance", 7),
    ],
)
def test_a_language_model_that_computes_something_else_is_refused(
    tmp_path, name, field, value
):
    config, family = golden_stage2.config(name), name.split("_")[1]
    sizes = config.language_model
    prefix = f"{family}_model."
    arrays = {
        name.removeprefix(prefix): array
        for name, array in golden_stage2.source(name).items()
        if name.startswith(prefix)
    }
    save_file(arrays, tmp_path / "model.safetensors")
    declared = FAMILIES[family].write(sizes, sizes.vocab_size, 2)
    (tmp_path / "config.json").write_text(json.dumps(declared))
    weights.open_arrays(tmp_path, config)
    other = dataclasses.replace(sizes, **{field: value})
    with pytest.raises(SourceError, match=rf"declares {field} .* has {value}"):
        weights.open_arrays(tmp_path, dataclasses.replace(config, language_model=other))


def test_every_kind_has_a_description():
    assert DESCRIPTIONS.keys() == KINDS.keys() >= {*VISION, *LANGUAGE}
