"""Attention by a fused kernel on a TPU: JAX's splash attention.

The scores exist only block by block in the chip's vector memory, in the forward and in
the backward pass. `fused_attention` decides where the kernel is used.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from blip2_jax.nn.precision import MATMUL_OUTPUT
from blip2_jax.parallel.row_gather import batch_axes

LANES = 128  # the kernel's blocks are multiples of this
MAX_BLOCK = 640  # rows or columns of scores in vector memory


def tpu_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    scale: float,
    *,
    interpret: bool = False,
) -> Float[Array, "B T H K"]:
    """Compute attention without mask, bias and dropout with the TPU's kernel.

    XLA does not partition a kernel. On a mesh, each device runs it for its own rows
    and, if `tensor` divides them, its own heads.

    Args:
      query: queries.
      key: keys.
      value: values.
      scale: factor of the scores.
      interpret: run the kernel's operations with XLA, on any device.
    """
    run = functools.partial(_attend, scale, interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return run(query, key, value)
    tensor = mesh.shape.get("tensor", 1)
    heads = "tensor" if tensor > 1 and query.shape[2] % tensor == 0 else None
    spec = PartitionSpec(batch_axes() or None, None, heads)
    sharded = jax.shard_map(
        run,
        in_specs=(spec, spec, spec),
        out_specs=spec,
        # All axes: a kernel may not be left to the partitioner along any of them.
        axis_names=set(mesh.axis_names),
        check_vma=False,  # the kernel's outputs do not say along which axes they vary
    )
    return sharded(query, key, value)


# Checkpointed so that the backward pass keeps the inputs without padding. The kernel
# names its outputs, so that it does not run again.
@functools.partial(
    jax.checkpoint,
    static_argnums=(0, 1),
    policy=jax.checkpoint_policies.save_only_these_names(MATMUL_OUTPUT),
)
def _attend(
    scale: float, interpret: bool, query: Array, key: Array, value: Array
) -> Array:
    """Pad to whole blocks, run the kernel on every row and cut the padding off."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    queries, keys = query.shape[1], key.shape[1]
    padded_queries, padded_keys = padded_length(queries), padded_length(keys)
    full = splash.FullMask((padded_queries, padded_keys))
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([full] * query.shape[2]),
        block_sizes=_block_sizes(padded_queries, padded_keys),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=MATMUL_OUTPUT,
        interpret=interpret,
    )
    segments = None
    if padded_keys > keys:  # every query belongs to the segment of the real keys
        is_padding = np.arange(padded_keys) >= keys
        segments = splash.SegmentIds(
            jnp.zeros(padded_queries, jnp.int32), jnp.asarray(is_padding, jnp.int32)
        )
    context = jax.vmap(lambda *arrays: kernel(*arrays, segments))(
        _by_head(
            (query.astype(jnp.float32) * scale).astype(query.dtype), padded_queries
        ),
        _by_head(key, padded_keys),
        _by_head(value, padded_keys),
    )
    return context.swapaxes(1, 2)[:, :queries]


def padded_length(length: int) -> int:
    """Round a length up to a multiple of `LANES`."""
    return -(-length // LANES) * LANES


def block_length(padded: int) -> int:
    """Return the largest block that divides a padded length."""
    sizes = range(LANES, min(padded, MAX_BLOCK) + 1, LANES)
    return max(size for size in sizes if padded % size == 0)


def _block_sizes(queries: int, keys: int) -> Any:
    """Return the kernel's blocks for padded lengths."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    query_block, key_block = block_length(queries), block_length(keys)
    return splash.BlockSizes(
        block_q=query_block,
        block_kv=key_block,
        block_q_dkv=query_block,
        block_kv_dkv=key_block,
        block_q_dq=query_block,
        block_kv_dq=key_block,
    )


def _by_head(x: Float[Array, "B T H K"], length: int) -> Float[Array, "B H T K"]:
    """Pad with zeros to a length and put the heads first."""
    x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))
    return x.swapaxes(1, 2)
