"""Kernels of 8 and 4 bits: rounding, matmuls, gradients, layers with them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blip2_jax.nn import quantized
from blip2_jax.nn.layers import Mlp, dense
from blip2_jax.nn.low_rank import with_low_rank
from blip2_jax.nn.stack import Stack
from blip2_jax.nn.trees import flatten, unflatten

IN, OUT = 64, 24
# Largest error of a kernel of normal values, relative to their deviation of 1: half a
# step of a scale that reaches up to four deviations.
STEPS = {"int8": 4 / 127, "int4": 3.5 / 7, "int8_matmul": 4 / 127, "fp8_matmul": 1 / 4}


def values(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def relative_error(actual, expected):
    return float(jnp.linalg.norm(actual - expected) / jnp.linalg.norm(expected))


@pytest.mark.parametrize("scheme", quantized.SCHEMES)
def test_rounding_keeps_layers_and_outputs_apart(scheme):
    kernel = values(2, IN, OUT) * jnp.asarray([1.0, 100.0])[:, None, None]
    stored = quantized.quantize_kernel(kernel, scheme)
    assert stored.shape == kernel.shape
    for layer, scale in ((0, 1.0), (1, 100.0)):
        error = quantized.restore_kernel(stored)[layer] - kernel[layer]
        assert 0 < float(jnp.abs(error).max()) < STEPS[scheme] / 2 * scale * 1.1
    one = quantized.quantize_kernel(kernel[0], scheme)
    np.testing.assert_array_equal(
        quantized.restore_kernel(one), quantized.restore_kernel(stored)[0]
    )


def test_a_scale_for_every_group_of_an_int4_kernel():
    kernel = values(IN, OUT).at[0].multiply(1000)
    error = quantized.restore_kernel(quantized.quantize_kernel(kernel, "int4")) - kernel
    first, second = jnp.abs(error[1 : quantized.GROUP]), jnp.abs(error[-1])
    assert float(second.max()) < 0.3 < float(first.max())
    odd = quantized.quantize_kernel(values(IN + 1, OUT), "int4")
    assert odd.stored.scale.shape == (1, OUT)


@pytest.mark.parametrize("scheme", quantized.SCHEMES)
def test_matmuls_and_their_gradient_are_those_of_the_stored_kernel(scheme):
    stored = quantized.quantize_kernel(values(IN, OUT), scheme)
    kernel, x = quantized.restore_kernel(stored), values(3, 5, IN, seed=1)
    cotangent = values(3, 5, OUT, seed=2)
    out, pull = jax.vjp(lambda x: quantized.quantized_matmul(x, stored), x)
    expected, expected_pull = jax.vjp(lambda x: x @ kernel, x)
    limit = {"int8": 1e-6, "int4": 1e-6, "int8_matmul": 0.01, "fp8_matmul": 0.04}
    assert relative_error(out, expected) < limit[scheme]
    assert relative_error(pull(cotangent)[0], expected_pull(cotangent)[0]) < 1e-6


def test_inputs_are_rounded_row_by_row():
    stored = quantized.quantize_kernel(values(IN, OUT), "int8_matmul")
    x = values(4, IN, seed=1)
    scaled = quantized.quantized_matmul(x * jnp.asarray([[1], [1e3], [1], [1]]), stored)
    np.testing.assert_array_equal(
        scaled[::2], quantized.quantized_matmul(x, stored)[::2]
    )


def test_eight_bit_matmuls_are_compiled_as_such():
    stored = quantized.quantize_kernel(values(IN, OUT), "int8_matmul")
    lowered = jax.jit(quantized.quantized_matmul).lower(values(8, IN), stored)
    assert "tensor<8x64xi8>, tensor<64x24xi8>) -> tensor<8x24xi32>" in lowered.as_text()


class Block(nn.Module):
    """A feed-forward with its residual."""

    @nn.compact
    def __call__(self, x, per_layer):
        """Run the block."""
        return x + Mlp(32, IN, "gelu", jnp.float32, name="mlp")(x), per_layer


class Tower(nn.Module):
    """A dense layer and a stack of blocks."""

    scan: bool = True

    def setup(self):
        """Create parameters."""
        self.first = dense(IN, jnp.float32)
        self.stack = Stack(Block(parent=None), 3, self.scan)
        self.blocks = self.stack.parameters(self, jnp.zeros((1, IN)))

    def __call__(self, x):
        """Run the tower."""
        return self.stack(self.blocks, self.first(x))[0]

    def decode(self, x):
        """Run the tower with unstacked weights."""
        weights = self.stack.unstacked_weights(self.blocks)
        return self.stack(weights, self.first(x))[0]


@pytest.mark.parametrize("scheme", quantized.SCHEMES)
def test_layers_of_a_stack_compute_with_quantised_kernels(scheme):
    tower, x = Tower(), values(6, IN, seed=1)
    params = jax.tree.map(
        lambda leaf: leaf * 8, tower.init(jax.random.key(0), x)["params"]
    )
    schemes = {"visual_encoder/": scheme}
    stored = {
        path: quantized.quantize_parameter(f"visual_encoder/{path}", leaf, schemes)
        for path, leaf in flatten(params).items()
    }
    are_quantized = {
        path for path, leaf in stored.items() if quantized.is_quantized(leaf)
    }
    assert are_quantized == {"blocks/mlp/up/kernel", "blocks/mlp/down/kernel"}
    restored = {
        path: quantized.restore_kernel(leaf) if path in are_quantized else leaf
        for path, leaf in stored.items()
    }
    expected = tower.apply({"params": unflatten(restored)}, x)
    plain = scheme in ("int8", "int4")
    for method in (Tower.__call__, Tower.decode):
        for scan in (True, False):
            out = Tower(scan).apply({"params": unflatten(stored)}, x, method=method)
            assert relative_error(out, expected) < (1e-6 if plain else 0.05)
    shapes = quantized.quantized_shapes(
        {"visual_encoder": jax.eval_shape(lambda: params)}, schemes
    )
    layout = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert layout(shapes["visual_encoder"]) == layout(unflatten(stored))


def test_low_rank_terms_are_added_to_quantised_layers_once():
    layer, x = dense(OUT, jnp.float32), values(4, IN, seed=1)
    a, b = values(IN, 2, seed=2), values(2, OUT, seed=3)
    stored = quantized.quantize_kernel(values(IN, OUT), "int8")
    params = {"kernel": stored, "bias": values(OUT, seed=4)}
    adapted = with_low_rank(lambda params: layer.apply({"params": params}, x), 0.5)
    merged = quantized.restore_kernel(stored) + 0.5 * a @ b
    expected = x @ merged + params["bias"]
    out = adapted(params | {"lora_a": a, "lora_b": b})
    assert relative_error(out, expected) < 1e-6


def test_unknown_schemes_are_refused():
    with pytest.raises(
        ValueError, match="unknown quantization 'int2'; expected one of"
    ):
        quantized.check_scheme("int2")
