"""The compiler for TPUs holds no matrix of scores where the fused kernel runs."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.attention_memory import encoder_gradient
from blip2_jax.nn import fused_attention
from blip2_jax.nn.attention import attention
from blip2_jax.parallel import sharding
from blip2_jax.planning.topology import open_topology

pytest.importorskip("libtpu", reason="libtpu is not installed")
KERNELS = 3  # forward; gradient of the queries; gradients of keys and values


def kernels(compiled) -> int:
    """Count the kernels that a compiled program runs."""
    return len(re.findall(r'custom_call_target="tpu_custom_call"', compiled.as_text()))


def test_each_chip_runs_the_kernels_for_its_rows_and_heads():
    mesh = sharding.make_mesh(2, 1, 2, open_topology("v5e:2x2").devices)
    place = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    x = jax.ShapeDtypeStruct((4, 677, 4, 88), jnp.bfloat16, sharding=place)

    def run(x, cotangent):
        value, pull = jax.vjp(lambda x: attention(x, x, x), x)
        return value, pull(cotangent)

    with jax.set_mesh(mesh), fused_attention.chosen("auto", "tpu"):
        compiled = jax.jit(run).trace(x, x).lower().compile()
    assert kernels(compiled) == KERNELS
    text = compiled.as_text()
    assert "bf16[2,2,768,88]" in text  # two rows, two heads, whole blocks
    assert "all-gather" not in text and "all-to-all" not in text


@pytest.mark.slow
def test_a_trained_vit_g_at_490_pixels_holds_no_scores():
    device = open_topology("v5e:1x1").devices[0]
    program, arguments = encoder_gradient(device, 490, "none", rows=2, depth=2)
    with fused_attention.chosen("auto", "tpu"):
        compiled = program.trace(*arguments).lower().compile()
    assert kernels(compiled) == KERNELS
    assert not re.search(r"f32\[[\d,]*1226,1226\]", compiled.as_text())
    scores = 2 * 16 * 1226 * 1226 * 4  # bytes of one block
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    assert temporaries < 4 * scores, temporaries / scores
