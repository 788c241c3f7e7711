"""The compiler for TPUs makes 8-bit matmuls of a quantised image encoder."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from blip2_jax.models.presets import EVA_VIT_G
from blip2_jax.models.vision.vit import VisionTransformer
from blip2_jax.nn.quantized import quantized_shapes
from blip2_jax.planning.topology import open_topology


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize("scheme, expected", [("", 0), ("int8_matmul", 6)])
def test_matmuls_with_kernels_run_in_8_bits(scheme, expected, topology):
    """A scanned block has six kernels; the two matmuls of attention stay bf16."""
    pytest.importorskip("libtpu")
    device = open_topology(topology).devices[0]
    layout = SingleDeviceSharding(device)
    model = VisionTransformer(dataclasses.replace(EVA_VIT_G, depth=2), jnp.bfloat16)
    images = jnp.zeros((8, 224, 224, 3), jnp.bfloat16)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images)["params"])
    stored = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params
    )
    schemes = {"visual_encoder/": scheme}
    tower = quantized_shapes({"visual_encoder": stored}, schemes)["visual_encoder"]
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
        (tower, images),
    )
    encode = jax.jit(lambda params, images: model.apply({"params": params}, images))
    compiled = encode.lower(*arguments).compile().as_text()
    assert len(re.findall(r"= s32\[[^ ]* (?:convolution|dot)\(", compiled)) == expected
