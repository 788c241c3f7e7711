"""Homogeneous blocks whose parameters are stacked on a leading layer axis.

One tree serves both ways to run it: `lax.scan` (one compiled block, whatever the
depth) or an unrolled loop (faster on CPU, easy to inspect), with equal results.

    class Tower(nn.Module):
        def setup(self):
            block = Block(..., parent=None)  # a template: it owns no parameters
            self.stack = Stack(block, depth, scan=True, remat="none")
            example = jnp.zeros((1, 1, width), dtype)
            self.blocks = self.param("blocks", self.stack.init, example)

        def __call__(self, x):
            x, _ = self.stack(self.blocks, x)

Every method of a block that is run has the form
`method(x, *shared, per_layer) -> (x, output)`; `per_layer` is that layer's slice of
a tree with a leading axis L (a cache, a dropout key) or None, and outputs come back
stacked on a leading axis L.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from blip2_jax.nn import cpu_decoding
from blip2_jax.nn.precision import PRODUCT
from blip2_jax.parallel.sharding import gather_layer, is_parameter_sharded

# What the backward pass may keep of a block; the rest is computed again.
REMAT_POLICIES: dict[str, Any] = {
    "none": None,  # keep everything: no rematerialisation
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
        jax.checkpoint_policies.save_only_these_names(PRODUCT),
    ),
}


def keep_all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """A policy: the backward pass gathers weights from other devices again.

    Kept, those of all layers would make the model whole on every device.
    """
    return primitive.name != "sharding_constraint"


def remat_policy(name: str) -> Any:
    """The policy called `name`.

    Raises:
      ValueError: no such policy; the message lists those there are.
    """
    if name not in REMAT_POLICIES:
        known = ", ".join(REMAT_POLICIES)
        raise ValueError(f"unknown remat policy {name!r}; there are {known}")
    return REMAT_POLICIES[name]


@dataclasses.dataclass(frozen=True)
class Stack:
    """`depth` copies of `block`, a linen module made with `parent=None`."""

    block: nn.Module
    depth: int
    scan: bool = True
    remat: str = "none"

    def init(self, key: PRNGKeyArray, *example: Any, method: Any = None) -> PyTree:
        """Parameters of all blocks, each leaf with a leading axis L.

        Args:
          key: split once per layer.
          *example: arguments of the block before `per_layer`, for their shapes.
          method: the block's method to run; None = `__call__`.
        """

        def init_block(layer_key: PRNGKeyArray) -> PyTree:
            variables = self.block.init(layer_key, *example, None, method=method)
            return variables["params"]

        return jax.vmap(init_block)(jax.random.split(key, self.depth))

    def __call__(
        self,
        params: PyTree,
        x: PyTree,
        *shared: Any,
        per_layer: PyTree = None,
        method: Any = None,
    ) -> tuple[PyTree, PyTree]:
        """Runs the blocks in order.

        Args:
          params: what `init` returned, or `unstacked_weights` of it: run unrolled.
          x: what the first block receives and each hands to the next.
          *shared: given to every block.
          per_layer: a tree with leading axis L; block l receives slice l. Of lists
            that stand for a leading axis it receives element l.
          method: the block's method to run; None = `__call__`.

        Returns:
          The last block's `x`, and the blocks' outputs stacked on a leading axis L, or
          in lists where `params` is one.
        """

        def body(carry: PyTree, layer: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            weights, extra = layer
            weights = gather_layer(weights)
            variables = {"params": weights}
            return self.block.apply(variables, carry, *shared, extra, method=method)

        if isinstance(params, list):
            body = _turned(body)
        policy = remat_policy(self.remat)
        if policy is None and is_parameter_sharded():
            policy = keep_all_but_gathered
        if policy is not None:
            body = jax.checkpoint(body, policy=policy, prevent_cse=not self.scan)
        if self.scan and not isinstance(params, list):
            return jax.lax.scan(body, x, (params, per_layer), length=self.depth)
        outputs = []
        for index in range(self.depth):
            x, output = body(x, _layer((params, per_layer), index))
            outputs.append(output)
        join = list if isinstance(params, list) else jnp.stack
        return x, jax.tree.map(lambda *leaves: join(leaves), *outputs)

    def apart(self, stacked: PyTree) -> list[PyTree]:
        """The trees of single layers of a tree with a leading axis L."""
        return [_layer(stacked, index) for index in range(self.depth)]

    def unstacked_weights(self, params: PyTree) -> list[PyTree]:
        """Parameters layer by layer, as a CPU reads them fastest for few rows."""
        return [cpu_decoding.transpose_kernels(layer) for layer in self.apart(params)]


def _turned(body: Any) -> Any:
    """`body` with the kernels of `unstacked_weights`."""

    def run(*given: Any) -> Any:
        with nn.intercept_methods(cpu_decoding.dense_layers):
            return body(*given)

    return run


def _layer(tree: PyTree, index: int) -> PyTree:
    """One layer of a tree whose leaves, arrays or lists, begin with the layers."""
    is_list = lambda leaf: isinstance(leaf, list)
    return jax.tree.map(lambda leaf: leaf[index], tree, is_leaf=is_list)
