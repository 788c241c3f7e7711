"""The rule that decides which kernel computes attention, and the context behind it.

    with fused_attention.chosen("auto", platform="tpu"):
        ...  # programs traced here use a fused kernel where it is possible and better

The choice is a context and not a module field because it does not change the model.
`jax.jit` traces again under another choice. The kernels are in `cudnn_attention` and
`tpu_attention`.
"""

from __future__ import annotations

import contextlib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from blip2_jax.parallel.row_gather import current_batch_shards

CHOICES = ("xla", "cudnn", "pallas", "auto")
MAX_HEAD_WIDTH = 128  # of both kernels, forward and backward, on every device
MIN_COMPUTE_CAPABILITY = 8  # major version
# Fewest queries and keys for which `auto` selects the TPU's kernel; below, XLA's form
# moves fewer bytes (docs/performance.md).
MIN_TPU_LENGTH = 512


class _Selection(NamedTuple):
    """A kernel, and whether it runs wherever it can or only where it is faster."""

    kernel: str
    everywhere: bool = False


_selection = jax.make_user_context(_Selection("xla"))


def chosen(
    choice: str, platform: str | None = None
) -> contextlib.AbstractContextManager[None]:
    """Return a context that selects the attention kernel of programs traced in it.

    Args:
      choice: "xla" = matmuls and a softmax. "cudnn" = cuDNN's kernel wherever
        `kernel_of` finds it possible. "pallas" = the TPU's kernel, likewise. "auto" =
        the kernel of the platform where it is better than "xla": on a GPU that
        supports cuDNN's, for attention without mask and bias, as in image towers; on a
        TPU, for long sequences of this kind; never on a CPU.
      platform: platform the programs are compiled for; None = JAX's default backend.

    Raises:
      ValueError: `choice` is unknown, or is a kernel of another platform.
    """
    platform = platform or jax.default_backend()
    platform = {"cuda": "gpu"}.get(platform, platform)
    if choice not in CHOICES:
        known = ", ".join(CHOICES)
        raise ValueError(f"attention is {choice!r}; it must be one of {known}")
    kernel = {"gpu": "cudnn", "tpu": "pallas"}.get(platform, "xla")
    if choice in ("cudnn", "pallas") and choice != kernel:
        needed = "an NVIDIA GPU" if choice == "cudnn" else "a TPU"
        raise ValueError(
            f"attention is {choice!r}, which needs {needed}; this program is for "
            f"{platform}: choose 'xla' or 'auto'"
        )
    if choice == "xla" or (choice == "auto" and kernel == "cudnn" and not _has_cudnn()):
        kernel = "xla"
    return _selection(_Selection(kernel, everywhere=choice == kernel))


def _has_cudnn() -> bool:
    """Return True if this process's GPU is new enough, or if it has no GPU to ask."""
    device = jax.local_devices()[0]
    capability = getattr(device, "compute_capability", MIN_COMPUTE_CAPABILITY)
    # NVIDIA reports a version such as "9.0", AMD a name.
    number = re.match(r"\d+", str(capability))
    return number is not None and int(number[0]) >= MIN_COMPUTE_CAPABILITY


def kernel_of(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    *,
    restricted: bool,
    dropout: bool,
) -> str:
    """Return the kernel that computes this attention: "xla", "cudnn" or "pallas".

    Both fused kernels need half precision and a head width of 8, 16, ... 128.

    Args:
      query: array or shape.
      key: array or shape.
      restricted: has a mask or a bias. cuDNN's kernel takes both as one bias, which it
        differentiates only for even T and S; the TPU's kernel takes none.
      dropout: drops attention weights. Never supported: the kernels' random bits
        depend on the mesh, those of `nn.dropout` do not.
    """
    kernel, everywhere = _selection.value
    width, lengths = query.shape[-1], (query.shape[1], key.shape[1])
    if dropout or width > MAX_HEAD_WIDTH or width % 8:
        return "xla"
    if kernel == "cudnn":
        is_half = query.dtype in (jnp.bfloat16, jnp.float16)
        is_wanted = everywhere or not restricted
        is_odd = any(length % 2 for length in lengths)
        return (
            kernel if is_half and is_wanted and not (restricted and is_odd) else "xla"
        )
    if kernel == "pallas":
        is_wanted = everywhere or min(lengths) >= MIN_TPU_LENGTH
        is_possible = query.dtype == jnp.bfloat16 and not restricted
        divides = query.shape[0] % current_batch_shards() == 0
        return kernel if is_wanted and is_possible and divides else "xla"
    return "xla"
