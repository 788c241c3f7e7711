"""A stack of equal blocks whose parameters are stacked on a leading layer axis.

The same parameters run under `lax.scan`, which compiles one block whatever the depth,
or in an unrolled loop, which is faster on a CPU and easy to inspect. Results are equal.

    class Tower(nn.Module):
        def setup(self):
            block = Block(..., parent=None)  # a template: it owns no parameters
            self.stack = Stack(block, depth, scan=True, remat="none")
            example = jnp.zeros((1, 1, width), dtype)
            self.blocks = self.stack.parameters(self, example)

        def __call__(self, x):
            x, _ = self.stack(self.blocks, x)

A method of a block that a stack runs has the form
`method(x, *shared, per_layer) -> (x, output)`. `per_layer` is the layer's slice of a
tree with a leading axis L (a KV cache, dropout keys), or None. The outputs are stacked
on a leading axis L.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from blip2_jax.nn import cpu_decoding
from blip2_jax.nn.precision import MATMUL_OUTPUT
from blip2_jax.parallel.sharding import gather_layer, is_parameter_sharded

# What the backward pass keeps of a block; it recomputes the rest.
REMAT_POLICIES: dict[str, Any] = {
    "none": None,  # keep everything: no rematerialisation
    "full": jax.checkpoint_policies.nothing_saveable,
    # Outputs of dense layers, but not of the batched matmuls of attention.
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
        jax.checkpoint_policies.save_only_these_names(MATMUL_OUTPUT),
    ),
}


def save_all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """Rematerialisation policy: gather sharded weights again in the backward pass.

    If the gathered weights of all layers were kept, every device would hold the whole
    model.
    """
    return primitive.name != "sharding_constraint"


def remat_policy(name: str) -> Any:
    """Return the rematerialisation policy called `name`.

    Raises:
      ValueError: `name` is not in `REMAT_POLICIES`.
    """
    if name not in REMAT_POLICIES:
        known = ", ".join(REMAT_POLICIES)
        raise ValueError(f"unknown remat policy {name!r}; expected one of {known}")
    return REMAT_POLICIES[name]


@dataclasses.dataclass(frozen=True)
class Stack:
    """`depth` copies of `block`, a linen module made with `parent=None`."""

    block: nn.Module
    depth: int
    scan: bool = True
    remat: str = "none"

    def parameters(
        self, module: nn.Module, *example: Any, method: Any = None
    ) -> PyTree:
        """Return a module's parameter `blocks`; create it while the module is created.

        `module.param` compares the parameter with a fresh one leaf by leaf, which fails
        if blocks hold further parameters (`nn.low_rank`). The blocks check their own.

        Args:
          module: the module that owns the stack; call this in its `setup`.
          *example: see `init`.
          method: see `init`.
        """
        if module.has_variable("params", "blocks"):
            return module.get_variable("params", "blocks")
        init = functools.partial(self.init, method=method)
        return module.param("blocks", init, *example)

    def init(self, key: PRNGKeyArray, *example: Any, method: Any = None) -> PyTree:
        """Draw the parameters of all blocks, each leaf with a leading axis L.

        Args:
          key: split once per layer.
          *example: arguments of the block before `per_layer`, for their shapes.
          method: method of the block to run; None = `__call__`.
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
        """Run the blocks in order.

        Args:
          params: from `init`, or from `unstacked_weights` (decoding on a CPU).
          x: input of the first block; each block passes its output to the next.
          *shared: passed to every block.
          per_layer: tree with a leading axis L; block l receives slice l. With
            unstacked weights, a tree of lists.
          method: method of the block to run; None = `__call__`.

        Returns:
          The last block's `x`, and the blocks' outputs stacked on a leading axis L;
          with unstacked weights, a tree of lists.
        """

        def run_block(x: PyTree, layer: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            block_params, extra = layer
            variables = {"params": gather_layer(block_params)}
            return self.block.apply(variables, x, *shared, extra, method=method)

        if isinstance(params, list):
            return cpu_decoding.run_layers(run_block, params, x, per_layer)
        policy = remat_policy(self.remat)
        if policy is None and is_parameter_sharded():
            policy = save_all_but_gathered
        if policy is not None:
            run_block = jax.checkpoint(
                run_block, policy=policy, prevent_cse=not self.scan
            )
        if self.scan:
            return jax.lax.scan(run_block, x, (params, per_layer), length=self.depth)
        outputs = []
        for layer in self.unstack((params, per_layer)):
            x, output = run_block(x, layer)
            outputs.append(output)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)

    def unstack(self, tree: PyTree) -> list[PyTree]:
        """Split a tree with a leading axis L into one tree per layer."""
        return [
            jax.tree.map(lambda leaf, index=index: leaf[index], tree)
            for index in range(self.depth)
        ]

    def unstacked_weights(self, params: PyTree) -> list[PyTree]:
        """Return the layers' parameters in the layout of `cpu_decoding`."""
        return [cpu_decoding.transpose_kernels(layer) for layer in self.unstack(params)]
