"""Layers shared by all models: dense, norms, feed-forward, multi-head attention.

Parameters are fp32 and cast to the compute dtype where they are used; norms compute
in fp32. Kernels are [in, out]; attention kernels have H * K columns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from blip2_jax.nn.attention import attention
from blip2_jax.nn.dropout import dropout
from blip2_jax.nn.folded_norm import FoldedDense, Normed
from blip2_jax.nn.precision import MATMUL_OUTPUT, precision_of
from blip2_jax.nn.quantized import is_quantized, quantized_matmul

INITIAL_STD = 0.02  # of BERT, OPT and the vision towers
MATRICES = ("kernel", "token", "word")  # parameter names of weight matrices


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Compute the exact GELU (Hendrycks and Gimpel 2016) in fp32.

    Uses erf, as PyTorch does; `jax.nn.gelu` uses erfc, three times as slow on a CPU.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def normal(std: float = INITIAL_STD) -> nn.initializers.Initializer:
    """Return a normal initialiser with standard deviation `std`."""
    return nn.initializers.normal(std)


def subtree(
    name: str, shape: tuple[int, ...]
) -> Callable[[PRNGKeyArray], dict[str, Array]]:
    """Return an initialiser of a subtree that holds one normal matrix."""
    return lambda key: {name: normal()(key, shape)}


def scale_matrices(
    params: PyTree, factor: Callable[[tuple[str, ...]], float]
) -> PyTree:
    """Multiply every kernel and token table by `factor(path)`."""

    def scale(path: tuple[Any, ...], leaf: Array) -> Array:
        names = tuple(str(entry.key) for entry in path)
        return leaf * factor(names) if names[-1] in MATRICES else leaf

    return jax.tree_util.tree_map_with_path(scale, params)


class Dense(nn.Dense):
    """A dense layer whose kernel may be quantised (`nn.quantized`)."""

    # Does not call the method of nn.Dense, which interceptors of calls would see too.
    @nn.compact
    def __call__(self, inputs: Float[Array, "... inputs"]) -> Float[Array, "... D"]:
        """Apply the layer."""
        x = inputs.astype(self.dtype)
        kernel = self._kernel(x.shape[-1])
        if is_quantized(kernel):
            out = quantized_matmul(x, kernel)
        else:
            contracted = (((x.ndim - 1,), (0,)), ((), ()))
            out = jax.lax.dot_general(
                x, kernel.astype(self.dtype), contracted, precision=self.precision
            )
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            out += bias.astype(self.dtype)
        return out

    def _kernel(self, inputs: int) -> Any:
        """Return the kernel as it is stored; a new layer gets a plain one."""
        if self.has_variable("params", "kernel"):
            stored: Any = self.get_variable("params", "kernel")
            if is_quantized(stored):  # has other leaves than `param` would check
                return stored
        return self.param("kernel", self.kernel_init, (inputs, self.features))


def dense(
    features: int,
    dtype: DTypeLike,
    *,
    use_bias: bool = True,
    kernel_init: nn.initializers.Initializer | None = None,
) -> Dense:
    """Build a dense layer that computes in `dtype` with this package's precision.

    Its parameters are `kernel` [in, out] and `bias` [out].
    """
    return Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        precision=precision_of(dtype),
        kernel_init=kernel_init or normal(),
    )


def layer_norm(epsilon: float, dtype: DTypeLike) -> nn.Module:
    """Build a layer norm that computes in fp32 and returns `dtype`.

    The backward pass keeps only its input.
    """
    return nn.remat(nn.LayerNorm)(epsilon=epsilon, dtype=dtype, use_fast_variance=False)


def rms_norm(epsilon: float, dtype: DTypeLike) -> nn.Module:
    """Build an RMS norm that computes in fp32 and returns `dtype`."""
    return nn.remat(nn.RMSNorm)(epsilon=epsilon, dtype=dtype)


class Mlp(nn.Module):
    """Feed-forward block: `up`, an activation, `down`.

    With `gated`, the activation is that of `gate` and multiplies `up`. The backward
    pass keeps the outputs of `up` and `gate` and recomputes the activation.
    """

    mlp_dim: int
    width: int
    activation: str
    dtype: DTypeLike
    gated: bool = False

    def setup(self) -> None:
        """Create submodules and parameters."""
        self.up = dense(self.mlp_dim, self.dtype)
        if self.gated:
            self.gate = dense(self.mlp_dim, self.dtype)
        self.down = dense(self.width, self.dtype)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Apply the block."""
        gate = self.gate(x) if self.gated else None
        return checkpoint_name(self._activate(self.up(x), gate), MATMUL_OUTPUT)

    @nn.remat
    def _activate(
        self, up: Float[Array, "... F"], gate: Float[Array, "... F"] | None
    ) -> Float[Array, "... D"]:
        activation = ACTIVATIONS[self.activation]
        hidden = activation(up) if gate is None else activation(gate) * up
        return self.down(hidden)


class GatedMlp(nn.Module):
    """Gated feed-forward block: `down(activation(gate(x)) * up(x))`.

    The backward pass keeps the outputs of `gate` and `up` and recomputes the rest.
    """

    mlp_dim: int
    width: int
    activation: Callable[[Array], Array]
    dtype: DTypeLike
    use_bias: bool = False
    dropout: float = 0.0  # rate, of the inner activations

    def setup(self) -> None:
        """Create submodules and parameters."""
        self.gate = dense(self.mlp_dim, self.dtype, use_bias=self.use_bias)
        self.up = dense(self.mlp_dim, self.dtype, use_bias=self.use_bias)
        self.down = dense(self.width, self.dtype, use_bias=self.use_bias)

    def __call__(
        self, x: Float[Array, "B T D"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "B T D"]:
        """Apply the block; `key` is for dropout."""
        return checkpoint_name(
            self._activate(self.gate(x), self.up(x), key), MATMUL_OUTPUT
        )

    @nn.remat
    def _activate(
        self,
        gate: Float[Array, "B T F"],
        up: Float[Array, "B T F"],
        key: PRNGKeyArray | None,
    ) -> Float[Array, "B T D"]:
        return self.down(dropout(self.activation(gate) * up, self.dropout, key))


class MultiHeadAttention(nn.Module):
    """Projections to heads and back: `query`, `key`, `value`, `output`.

    Calling the module runs self-attention. For KV caches, keys shared between images or
    beams, use the projections with `attention` or `decode_attention`.
    """

    width: int  # of the output
    heads: int
    head_width: int
    dtype: DTypeLike
    use_bias: bool = True
    key_bias: bool = True  # only with use_bias
    folded: bool = False  # keys and values are projected from `Normed` vectors

    def setup(self) -> None:
        """Create submodules and parameters."""
        size = self.heads * self.head_width
        self.query = dense(size, self.dtype, use_bias=self.use_bias)
        linear = lambda use_bias: (
            FoldedDense(size, self.dtype, normal())
            if self.folded
            else dense(size, self.dtype, use_bias=use_bias)
        )
        self.key: Callable[..., Array] = linear(self.use_bias and self.key_bias)
        self.value: Callable[..., Array] = linear(self.use_bias)
        self.output = dense(self.width, self.dtype, use_bias=self.use_bias)

    def project_query(self, x: Float[Array, "B T D"]) -> Float[Array, "B T H K"]:
        """Project `x` to queries, split into heads."""
        return self._split(self.query(x))

    def project_key_value(
        self, x: Float[Array, "B S D"] | Normed
    ) -> tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]]:
        """Project `x` (`Normed` if `folded`) to keys and values, split into heads."""
        return self._split(self.key(x)), self._split(self.value(x))

    def project_output(self, context: Float[Array, "B T H K"]) -> Float[Array, "B T D"]:
        """Join the heads and project them to the model's width."""
        return self.output(context.reshape(*context.shape[:-2], -1))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        mask: Bool[Array, ...] | None = None,
        *,
        bias: Float[Array, ...] | None = None,
        scale: float | None = None,
        dropout_key: PRNGKeyArray | None = None,
        dropout_rate: float = 0.0,
    ) -> Float[Array, "B T D"]:
        """Compute self-attention; see `attention` for the arguments."""
        key, value = self.project_key_value(x)
        context = attention(
            self.project_query(x),
            key,
            value,
            mask=mask,
            bias=bias,
            scale=scale,
            dropout_key=dropout_key,
            dropout_rate=dropout_rate,
        )
        return self.project_output(context)

    def _split(self, x: Float[Array, "B T inner"]) -> Float[Array, "B T H K"]:
        return jnp.reshape(x, (*x.shape[:-1], self.heads, self.head_width))
