"""Image towers equal the originals, scanned and unrolled; preprocessing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.convert.tables.name_table import to_ours_complete
from blip2_jax.convert.tables.towers import clip_rules
from blip2_jax.inference.embeddings import patch_grids
from blip2_jax.models.presets import CLIP_VIT_L, SIGLIP_BASE_224
from blip2_jax.models.sizes import IMAGE_STATISTICS, FeaturesConfig, ViTConfig
from blip2_jax.models.vision.vit import (
    VisionTransformer,
    normalize_images,
    patches,
)
from tests.support.golden_stage1 import batch_of, config, load_case, model, params
from tests.support.tolerances import assert_values


@pytest.mark.parametrize("scan", [True, False])
def test_eva_equals_the_original(scan):
    case = load_case("case_base")
    tower = model(scan=scan)

    @jax.jit
    def run(params, images):
        features = tower.bind({"params": params}).encode_image(images)
        norm = params["ln_vision"]
        mean = features.mean(-1, keepdims=True)
        normed = (features - mean) / jnp.sqrt(features.var(-1, keepdims=True) + 1e-5)
        return normed * norm["scale"] + norm["bias"]

    assert_values(run(params(), batch_of(case)["image"]), case["image_embeds"])


def test_clip_equals_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = transformers.CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
    )
    peer = transformers.CLIPVisionModel(sizes).eval()
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        expected = peer(images, output_hidden_states=True).hidden_states[-2].numpy()

    tower = ViTConfig(
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
    source = openai_names(peer.state_dict(), tower.depth)
    weights = to_ours_complete(source, clip_rules(tower))
    run = jax.jit(VisionTransformer(tower).apply)
    out = run({"params": weights}, images.numpy().transpose(0, 2, 3, 1))
    assert_values(out, expected)


def openai_names(state, depth):
    """Transformers' CLIP under OpenAI's names: the first `depth` blocks."""
    state = {
        name.removeprefix("vision_model."): value.numpy()
        for name, value in state.items()
    }
    source = {
        "class_embedding": state["embeddings.class_embedding"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "conv1.weight": state["embeddings.patch_embedding.weight"],
        "ln_pre.weight": state["pre_layrnorm.weight"],
        "ln_pre.bias": state["pre_layrnorm.bias"],
    }
    renamed = {
        "self_attn.out_proj": "attn.out_proj",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
    }
    for i in range(depth):
        theirs, ours = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
        for leaf in ("weight", "bias"):
            for old, new in renamed.items():
                source[f"{ours}.{new}.{leaf}"] = state[f"{theirs}.{old}.{leaf}"]
            source[f"{ours}.attn.in_proj_{leaf}"] = np.concatenate(
                [state[f"{theirs}.self_attn.{p}_proj.{leaf}"] for p in "qkv"]
            )
    return source


@pytest.mark.parametrize("statistics", IMAGE_STATISTICS)
def test_normalize_images(statistics):
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    mean, deviation = np.array(IMAGE_STATISTICS[statistics])
    expected = (images / 255 - mean) / deviation
    out = normalize_images(jnp.asarray(images), statistics)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_patches_run_row_by_row_with_channels_last():
    images = jnp.arange(4 * 4 * 3.0).reshape(1, 4, 4, 3)
    out = patches(images, 2)
    assert out.shape == (1, 4, 12)
    np.testing.assert_array_equal(out[0, 1], images[0, :2, 2:].ravel())
    with pytest.raises(ValueError, match="patches of 3"):
        patches(images, 3)


def test_another_image_size_is_refused():
    run = lambda x: VisionTransformer(config().vision).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="56, 56"):
        jax.eval_shape(run, jnp.zeros((1, 28, 28, 3)))


def test_only_new_fields_that_are_set_are_stored():
    """Files and runs of earlier versions open, and equal those of this one."""
    stored = CLIP_VIT_L.stored_fields()
    assert "statistics" not in stored and stored["layer_norm_eps"] == 1e-5
    assert ViTConfig(**stored) == CLIP_VIT_L
    assert SIGLIP_BASE_224.extensions() == {
        "class_token": False,
        "final_norm": True,
        "statistics": "half",
    }
    assert ViTConfig(**SIGLIP_BASE_224.stored_fields()) == SIGLIP_BASE_224
    with pytest.raises(ValueError, match="statistics is 'mine'; it must be one of cl"):
        ViTConfig(4, 1, 1, 4, statistics="mine")


def test_attention_to_patches_is_cut_out():
    registers = ViTConfig(4, 1, 1, 4, image_size=28, num_registers=4)
    maps = np.arange(9.0, dtype=np.float32).reshape(1, 1, 9)
    expected = np.array([[[[5, 6], [7, 8]]]])
    np.testing.assert_array_equal(patch_grids(maps, registers), expected)
    grids = patch_grids(maps[..., 4:], FeaturesConfig(5, 4))
    np.testing.assert_array_equal(grids, expected)
    with pytest.raises(ValueError, match="7 image tokens do not form"):
        patch_grids(maps[..., :7], FeaturesConfig(7, 4))
