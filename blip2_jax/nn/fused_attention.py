"""cuDNN's fused attention kernel, and the context that selects it.

    with fused_attention.chosen("cudnn"):
        ...  # programs traced here use cuDNN's kernel where it applies

The choice is a context and not a module field because it does not change the model.
`jax.jit` traces again under another choice.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

CHOICES = ("xla", "cudnn", "auto")
MAX_HEAD_WIDTH = 128  # forward and backward, on every GPU the kernel supports
MIN_COMPUTE_CAPABILITY = 8  # major version

_choice = jax.make_user_context("xla")


def chosen(
    choice: str, platform: str | None = None
) -> contextlib.AbstractContextManager[None]:
    """Return a context that selects the attention kernel of programs traced in it.

    Args:
      choice: "xla" = matmuls and a softmax. "cudnn" = cuDNN's kernel where
        `is_possible`. "auto" = cuDNN's kernel for attention without mask and bias, as
        in image towers, on a GPU that supports it (there it is faster, see
        docs/performance.md), "xla" elsewhere.
      platform: platform the programs are compiled for; None = JAX's default backend.

    Raises:
      ValueError: `choice` is unknown, or is "cudnn" for a platform other than GPU.
    """
    platform = platform or jax.default_backend()
    on_gpu = platform in ("gpu", "cuda")
    if choice not in CHOICES:
        known = ", ".join(CHOICES)
        raise ValueError(f"attention is {choice!r}; it must be one of {known}")
    if choice == "cudnn" and not on_gpu:
        raise ValueError(
            f"attention is 'cudnn', which needs an NVIDIA GPU; this program is for "
            f"{platform}: choose 'xla' or 'auto'"
        )
    if choice == "auto" and not (on_gpu and _has_kernel()):
        choice = "xla"
    return _choice(choice)


def _has_kernel() -> bool:
    """Return True if this process's GPU is new enough, or if it has no GPU to ask."""
    device = jax.local_devices()[0]
    capability = getattr(device, "compute_capability", MIN_COMPUTE_CAPABILITY)
    # NVIDIA reports a version such as "9.0", AMD a name.
    number = re.match(r"\d+", str(capability))
    return number is not None and int(number[0]) >= MIN_COMPUTE_CAPABILITY


def is_chosen(*, restricted: bool) -> bool:
    """Return True if the context selects cuDNN; `restricted` = has a mask or bias."""
    return _choice.value == "cudnn" or (_choice.value == "auto" and not restricted)


def is_possible(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    *,
    restricted: bool,
    dropout: bool,
) -> bool:
    """Return True if cuDNN's kernel supports this attention.

    It needs half precision and a head width of 8, 16, ... 128.

    Args:
      query: array or shape.
      key: array or shape.
      restricted: has a mask or a bias. The kernel takes both as one bias, which it
        differentiates only for even T and S.
      dropout: drops attention weights. Never supported: the kernel's random bits
        depend on the mesh, those of `nn.dropout` do not.
    """
    width, lengths = query.shape[-1], (query.shape[1], key.shape[1])
    is_half = query.dtype in (jnp.bfloat16, jnp.float16)
    fits = width <= MAX_HEAD_WIDTH and width % 8 == 0
    return is_half and fits and not dropout and not (restricted and _odd(lengths))


def fused(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    mask: Bool[Array, ...] | None,
    bias: Float[Array, ...] | None,
    scale: float,
    plain: Callable[..., Float[Array, "B T H K"]],
    implementation: Any = "cudnn",
) -> Float[Array, "B T H K"]:
    """Compute attention with cuDNN's kernel, where `is_possible`.

    Args:
      query: queries, in half precision like `key` and `value`.
      key: keys.
      value: values.
      mask: True = may attend; None = no mask.
      bias: added to the scores, rounded to the compute dtype; None = no bias.
      scale: factor of the scores.
      plain: attention of (query, key, value) by XLA, used for the gradient with odd
        lengths, which JAX does not pass to cuDNN even without a bias.
      implementation: of `jax.nn.dot_product_attention`.
    """
    run = functools.partial(
        jax.nn.dot_product_attention, scale=scale, implementation=implementation
    )
    lengths = (query.shape[1], key.shape[1])
    if mask is None and bias is None:
        if _odd(lengths):
            return _run_forward_only(run, plain, query, key, value)
        return run(query, key, value)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*_leading(mask), *lengths))
    if bias is not None:
        bias = bias.astype(query.dtype)
        bias = jnp.broadcast_to(bias, (*_leading(bias), *lengths))
    return run(query, key, value, bias, mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run_forward_only(
    run: Callable[..., Array], plain: Callable[..., Array], *arrays: Array
) -> Array:
    """Call `run`, or `plain` when the result is differentiated."""
    return run(*arrays)


def _forward(
    run: Callable[..., Array], plain: Callable[..., Array], *arrays: Array
) -> tuple[Array, Any]:
    return jax.vjp(plain, *arrays)


def _backward(
    run: Callable[..., Array],
    plain: Callable[..., Array],
    pullback: Any,
    cotangent: Array,
) -> tuple[Array, ...]:
    return pullback(cotangent)


_run_forward_only.defvjp(_forward, _backward)


def _odd(lengths: tuple[int, int]) -> bool:
    return any(length % 2 for length in lengths)


def _leading(restriction: Array) -> tuple[int, ...]:
    """Return the batch and head axes of a mask or bias, 1 where it has none."""
    return (1, 1, *restriction.shape)[-4:-2]
