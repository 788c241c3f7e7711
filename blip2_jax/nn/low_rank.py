"""Low-rank adaptation (LoRA, Hu et al. 2021) of dense layers.

A dense layer with the frozen kernel W computes x W + scale (x A) B. The trained
matrices A and B are parameters beside the kernel:

    PATH/kernel [in, out]    PATH/lora_a [in, rank]    PATH/lora_b [rank, out]

In stacked blocks they have the leading axis L of the kernel, so that `Stack` slices
them with it. Layers do not know of them: `with_low_rank` intercepts their calls.

Training does not merge W + scale A B into one kernel, because a step would then hold a
copy of every adapted kernel and a gradient of the same size (together 10 GB for the
blocks of OPT-2.7B in bfloat16), and compute that gradient by full-size matmuls.
Kernels are merged for evaluation, inference and export (`merge_kernel`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from blip2_jax.nn.folded_norm import FoldedDense, Normed
from blip2_jax.nn.precision import einsum

KERNEL, A, B = "/kernel", "/lora_a", "/lora_b"  # ends of paths
T = TypeVar("T")


def is_matrix(path: str) -> bool:
    """Return True if a path is that of a matrix A or B."""
    return path.endswith((A, B))


def matrix_paths(kernel_path: str) -> tuple[str, str]:
    """Return the paths of A and B beside a kernel."""
    layer = kernel_path.removesuffix(KERNEL)
    return layer + A, layer + B


def adapted_kernels(paths: Iterable[str]) -> list[str]:
    """Return the paths of the kernels that have matrices A and B among `paths`."""
    return [path.removesuffix(A) + KERNEL for path in paths if path.endswith(A)]


def with_low_rank(function: Callable[..., T], scale: float) -> Callable[..., T]:
    """Return a function in which dense layers add `scale (x A) B` to their output.

    Args:
      function: applies modules to parameters; layers without A and B are unchanged.
      scale: factor of the added term.
    """

    @functools.wraps(function)
    def adapted(*args: Any, **kwargs: Any) -> T:
        with nn.intercept_methods(functools.partial(_call_adapted, scale)):
            return function(*args, **kwargs)

    return adapted


def _call_adapted(
    scale: float,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Call a module; add the low-rank term if it is a dense layer that has one."""
    layer, out = context.module, call(*args, **kwargs)
    is_dense = isinstance(layer, nn.Dense | FoldedDense)
    if not is_dense or context.method_name != "__call__":
        return out
    if not layer.has_variable("params", A[1:]):
        return out
    x = args[0].applied() if isinstance(args[0], Normed) else args[0]
    a: Array = layer.get_variable("params", A[1:]).astype(layer.dtype)
    b: Array = layer.get_variable("params", B[1:]).astype(layer.dtype)
    hidden = einsum("...i,ir->...r", x.astype(layer.dtype), a)
    return out + einsum("...r,ro->...o", hidden * scale, b)


def merge_kernel(
    kernel: Float[np.ndarray, "*L inputs outputs"],
    a: Float[np.ndarray, "*L inputs rank"],
    b: Float[np.ndarray, "*L rank outputs"],
    scale: float,
) -> Float[np.ndarray, "*L inputs outputs"]:
    """Compute W + scale A B on the host in fp32, in the dtype of the kernel.

    Stacked kernels are merged layer by layer, so that memory holds one layer in fp32.
    """
    merged = np.empty_like(kernel)
    for layer in np.ndindex(kernel.shape[:-2]):
        added = scale * (a[layer].astype(np.float32) @ b[layer].astype(np.float32))
        merged[layer] = kernel[layer].astype(np.float32) + added
    return merged


def merge_kernel_on_device(
    kernel: Float[Array, "*L inputs outputs"],
    a: Float[Array, "*L inputs rank"],
    b: Float[Array, "*L rank outputs"],
    scale: float,
) -> Float[Array, "*L inputs outputs"]:
    """Compute `merge_kernel` on the devices of the kernel, with its sharding."""

    def merge(kernel: Array, a: Array, b: Array) -> Array:
        added = scale * einsum("...ir,...ro->...io", a, b)
        return (kernel.astype(jnp.float32) + added).astype(kernel.dtype)

    return jax.jit(merge, out_shardings=kernel.sharding)(kernel, a, b)
