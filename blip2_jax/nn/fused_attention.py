"""cuDNN's fused attention, for what it can do; and how a program asks for it.

    with fused_attention.chosen("cudnn"):
        ...  # all that is traced here attends by cuDNN where it can

The choice is a context and not a field of every module: which kernel computes a
product says nothing about the model. `jax.jit` traces again under another choice.
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
MAX_HEAD_WIDTH = 128  # of every GPU that cuDNN's kernel runs on, backward too
OLDEST_GPU = 8  # major compute capability that the kernel needs

_choice = jax.make_user_context("xla")


def chosen(
    choice: str, platform: str | None = None
) -> contextlib.AbstractContextManager[None]:
    """A context: what computes attention in the programs that are traced in it.

    Args:
      choice: "xla": products and a softmax, always. "cudnn": cuDNN's kernel where
        `is_possible`. "auto": the same on a GPU that has it, for attention without
        mask and bias, as in image towers, where it is faster (docs/performance.md);
        "xla" elsewhere.
      platform: what the programs are for; None: where this process computes.

    Raises:
      ValueError: an unknown choice, or cuDNN without a GPU.
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
    """Whether this process's GPU is new enough; one that is not here is taken to be.

    NVIDIA's have a number, "9.0"; AMD's a name.
    """
    capability = getattr(jax.local_devices()[0], "compute_capability", OLDEST_GPU)
    number = re.match(r"\d+", str(capability))
    return number is not None and int(number[0]) >= OLDEST_GPU


def is_chosen(*, restricted: bool) -> bool:
    """Whether attention, with a mask or bias or without, is cuDNN's where it can."""
    return _choice.value == "cudnn" or (_choice.value == "auto" and not restricted)


def is_possible(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    *,
    restricted: bool,
    dropout: bool,
) -> bool:
    """Whether cuDNN's kernel can do it, as `jax.nn.dot_product_attention` demands.

    Args:
      query, key: arrays or shapes; half precision, heads of 8, 16, ... 128.
      restricted: there is a mask or a bias. The kernel takes both as one bias, and
        differentiates only where T and S are even.
      dropout: of the probabilities. The kernel's bits are not those of
        `models/dropout.py`, which are the same on any mesh.
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
    """Attention where `is_possible`; the bias is rounded to the compute dtype.

    Args:
      query, key, value, mask, bias: see `attention.attention`.
      scale: multiplies the scores.
      plain: attention of (query, key, value) by XLA. Odd lengths are differentiated
        so: jax refuses them to cuDNN, without a bias too.
      implementation: of `jax.nn.dot_product_attention`.
    """
    run = functools.partial(
        jax.nn.dot_product_attention, scale=scale, implementation=implementation
    )
    lengths = (query.shape[1], key.shape[1])
    if mask is None and bias is None:
        if _odd(lengths):
            return _forward(run, plain, query, key, value)
        return run(query, key, value)
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*_leading(mask), *lengths))
    if bias is not None:
        bias = bias.astype(query.dtype)
        bias = jnp.broadcast_to(bias, (*_leading(bias), *lengths))
    return run(query, key, value, bias, mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _forward(
    run: Callable[..., Array], plain: Callable[..., Array], *arrays: Array
) -> Array:
    """`run` where nothing is differentiated, or else `plain`."""
    return run(*arrays)


def _forward_of(
    run: Callable[..., Array], plain: Callable[..., Array], *arrays: Array
) -> tuple[Array, Any]:
    return jax.vjp(plain, *arrays)


def _backward_of(
    run: Callable[..., Array], plain: Callable[..., Array], pullback: Any, d: Array
) -> tuple[Array, ...]:
    return pullback(d)


_forward.defvjp(_forward_of, _backward_of)


def _odd(lengths: tuple[int, int]) -> bool:
    return any(length % 2 for length in lengths)


def _leading(restriction: Array) -> tuple[int, ...]:
    """Batch and heads of a mask or bias, 1 where it has none."""
    return (1, 1, *restriction.shape)[-4:-2]
