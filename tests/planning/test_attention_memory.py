"""The compiler for TPUs holds no matrix of scores where the fused kernel runs."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from blip2_jax.nn import fused_attention
from blip2_jax.nn.attention import attention
from blip2_jax.parallel import sharding
from blip2_jax.planning.topology import open_topology

pytest.importorskip("libtpu", reason="libtpu is not installed")
KERNELS = 3  # forward; gradient of the queries; gradients of keys and values


def kernels(compiled) -> int:
    """Count the kernels that a compiled program runs."""
    return len(re.findall(r'custom_call_target="tpu_custom_call"', compiled.as_text()))


def value_and_gradients(x, cotangent):
    """Compute self-attention and its gradient."""
    value, pull = jax.vjp(lambda x: attention(x, x, x), x)
    return value, pull(cotangent)


def test_each_chip_runs_the_kernels_for_its_rows_and_heads():
    mesh = sharding.make_mesh(2, 1, 2, open_topology("v5e:2x2").devices)
    place = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    x = jax.ShapeDtypeStruct((4, 677, 4, 88), jnp.bfloat16, sharding=place)

    with jax.set_mesh(mesh), fused_attention.chosen("auto", "tpu"):
        compiled = jax.jit(value_and_gradients).trace(x, x).lower().compile()
    assert kernels(compiled) == KERNELS
    text = compiled.as_text()
    assert "bf16[2,2,768,88]" in text  # two rows, two heads, whole blocks
    assert "all-gather" not in text and "all-to-all" not in text


def test_no_scores_are_held_at_490_pixels():
    place = SingleDeviceSharding(open_topology("v5e:1x1").devices[0])
    x = jax.ShapeDtypeStruct((4, 1226, 16, 88), jnp.bfloat16, sharding=place)
    with fused_attention.chosen("auto", "tpu"):
        compiled = jax.jit(value_and_gradients).trace(x, x).lower().compile()
    assert kernels(compiled) == KERNELS
    assert not re.search(r"f32\[[\d,]*1226,1226\]", compiled.as_text())
    scores = 4 * 16 * 1226 * 1226 * 4  # bytes
    assert compiled.memory_analysis().temp_size_in_bytes < scores / 2
