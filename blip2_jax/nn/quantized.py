"""Kernels of 8 or 4 bits for frozen towers, and matmuls with them.

`quantize_kernel` replaces a kernel in a parameter tree by a `QuantizedKernel`, and
`nn.layers.Dense` computes with either. The integers and their scales are qwix's. Its
`quantize_model` refuses the towers ("an unquantized param to a quantized model"),
because `Stack` holds the parameters of all blocks and applies one block as a template.

A kernel has one scale for every output channel, int4 one for every group of inputs
too. The schemes that end in `_matmul` also round the inputs, with one scale for every
row, so that the matmul itself runs in 8 bits. The gradient with respect to the inputs
is that of the stored kernel; rounding counts as the identity.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from blip2_jax.nn.precision import precision_of
from blip2_jax.nn.trees import Tree, flatten, unflatten
from blip2_jax.parallel import sharding

# Kernels in the blocks of a tower. Patch embeddings, token tables and heads are few
# parameters or sensitive to rounding.
KERNELS = r"/blocks/.*/kernel$"
GROUP = 32  # inputs of an int4 kernel that share a scale


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How kernels are stored and multiplied.

    Attributes:
      dtype: of the stored values.
      grouped: whether `GROUP` inputs share a scale, instead of all of an output.
      rounds_inputs: whether the matmul runs in `dtype`.
    """

    dtype: DTypeLike
    grouped: bool = False
    rounds_inputs: bool = False


SCHEMES = {
    "int8": Scheme(jnp.int8),
    "int4": Scheme(jnp.int4, grouped=True),
    "int8_matmul": Scheme(jnp.int8, rounds_inputs=True),
    "fp8_matmul": Scheme(jnp.float8_e4m3fn, rounds_inputs=True),
}


@struct.dataclass
class QuantizedKernel:
    """A kernel [.., inputs, outputs] in a parameter tree.

    Attributes:
      stored: a `qwix.QArray` of values and fp32 scales.
      rounds_inputs: see `Scheme`.
    """

    stored: Any
    rounds_inputs: bool = struct.field(pytree_node=False, default=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the kernel."""
        return self.stored.shape


def is_quantized(leaf: Any) -> bool:
    """Return True for a `QuantizedKernel`."""
    return isinstance(leaf, QuantizedKernel)


def check_scheme(name: str) -> None:
    """Check the name of a scheme.

    Raises:
      ValueError: it is not in `SCHEMES`.
    """
    if name not in SCHEMES:
        known = ", ".join(SCHEMES)
        raise ValueError(f"unknown quantization {name!r}; expected one of {known}")


def scheme_of(path: str, schemes: Mapping[str, str]) -> str:
    """Return the scheme of the parameter at a path; "" stores it as it is.

    Args:
      path: of the parameter.
      schemes: key of `SCHEMES` or "" by prefix of paths, such as "visual_encoder/".
    """
    if not re.search(KERNELS, path):
        return ""
    return next((s for prefix, s in schemes.items() if path.startswith(prefix)), "")


@functools.partial(jax.jit, static_argnames="scheme")
def quantize_kernel(
    kernel: Float[Array, "*L inputs outputs"], scheme: str
) -> QuantizedKernel:
    """Round a kernel to a scheme, a key of `SCHEMES`.

    An int4 kernel whose inputs do not divide into groups has one scale for each output.
    """
    import qwix  # slow to import, here and below

    chosen, inputs = SCHEMES[scheme], kernel.ndim - 2
    grouped = chosen.grouped and kernel.shape[inputs] % GROUP == 0
    stored = qwix.quantize(
        kernel.astype(jnp.float32),
        chosen.dtype,
        channelwise_axes=[axis for axis in range(kernel.ndim) if axis != inputs],
        tiled_axes={inputs: GROUP} if grouped else {},
    )
    return QuantizedKernel(stored, chosen.rounds_inputs)


def quantize_parameter(
    path: str, array: Array, schemes: Mapping[str, str]
) -> Array | QuantizedKernel:
    """Quantise a placed parameter if a scheme applies to its path; see `scheme_of`."""
    scheme = scheme_of(path, schemes)
    if not scheme:
        return array
    kernel = quantize_kernel(array, scheme)
    if not isinstance(array.sharding, NamedSharding):
        return kernel
    mesh: Any = array.sharding.mesh
    layout = sharding.tree_shardings({path: kernel}, mesh)
    return jax.device_put({path: kernel}, layout)[path]


def quantized_shapes(shapes: Tree, schemes: Mapping[str, str]) -> Tree:
    """Return the shapes of a parameter tree after `quantize_parameter`."""
    return unflatten(
        {
            path: jax.eval_shape(lambda a, s=scheme: quantize_kernel(a, s), leaf)
            if (scheme := scheme_of(path, schemes))
            else leaf
            for path, leaf in flatten(shapes).items()
        }
    )


def restore_kernel(
    kernel: QuantizedKernel, dtype: DTypeLike = jnp.float32
) -> Float[Array, "*L inputs outputs"]:
    """Return a kernel's values, rounded as they are stored."""
    import qwix

    return qwix.dequantize(kernel.stored).astype(dtype)


def quantized_matmul(
    x: Float[Array, "... inputs"], kernel: QuantizedKernel
) -> Float[Array, "... outputs"]:
    """Multiply by a kernel; the result has the dtype of `x`."""
    if kernel.rounds_inputs:
        return _rounded_matmul(x, kernel)
    weights = restore_kernel(kernel, x.dtype)
    return jnp.matmul(x, weights, precision=precision_of(x.dtype))


@jax.custom_vjp
def _rounded_matmul(x: Array, kernel: QuantizedKernel) -> Array:
    """Round each row of `x` to the kernel's dtype and multiply in it."""
    import qwix

    rows = qwix.quantize(
        x.astype(jnp.float32), kernel.stored.qtype, channelwise_axes=range(x.ndim - 1)
    )
    contracted = (((x.ndim - 1,), (0,)), ((), ()))
    return qwix.dot_general(rows, kernel.stored, contracted).astype(x.dtype)


def _forward(x: Array, kernel: QuantizedKernel) -> tuple[Array, QuantizedKernel]:
    return _rounded_matmul(x, kernel), kernel


def _backward(kernel: QuantizedKernel, cotangent: Array) -> tuple[Array, None]:
    weights = restore_kernel(kernel, cotangent.dtype)
    precision = precision_of(cotangent.dtype)
    return jnp.matmul(cotangent, weights.T, precision=precision), None


_rounded_matmul.defvjp(_forward, _backward)
