"""LoRA in training: which kernels `config.lora` adapts, and what is trained for them.

`nn.low_rank` has the method. The adapted kernels must be frozen; their matrices are
trained, whatever `config.frozen` matches. With B = 0 at the start, a run begins with
the frozen model.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from blip2_jax.nn import low_rank
from blip2_jax.nn.quantized import is_quantized, restore_kernel
from blip2_jax.nn.trees import (
    Partition,
    Tree,
    flatten,
    matches,
    merge,
    split,
    unflatten,
)
from blip2_jax.training.train_config import DEFAULT_RULES, ConfigError

TASKS = ("stage1", "stage2")  # whose runs are opened with merged kernels
# Its matmul is an `einsum` with the token table's shape, not a dense layer.
HEAD = "language_model/head/kernel"
# The paper draws A from a normal distribution without naming its deviation. This is the
# deviation of the authors' code, which draws A from a uniform distribution.
A_STD = math.sqrt(1 / 3)  # over the square root of the number of inputs


@dataclasses.dataclass(frozen=True)
class Lora:
    """The values of `config.lora`.

    Attributes:
      rank: number of columns of A and of rows of B.
      alpha: `scale` times `rank`.
      targets: patterns of the paths of the kernels to adapt.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    @property
    def scale(self) -> float:
        """Factor of A B."""
        return self.alpha / self.rank


def lora_of(config: ConfigDict) -> Lora | None:
    """Return the values of `config.lora`; None if the run has no LoRA.

    Raises:
      ConfigError: rank or targets are set without the other, or the task trains no
        BLIP-2.
    """
    section = config.get("lora")  # runs of earlier versions lack it
    if section is None or not (section.rank or section.targets):
        return None
    if not (section.rank and section.targets):
        raise ConfigError(
            f"config.lora.rank is {section.rank} and config.lora.targets is "
            f"{section.targets!r}: LoRA needs both"
        )
    if config.task not in TASKS:
        raise ConfigError(
            f"config.lora is set, but the task is {config.task!r}; LoRA is for "
            f"{' and '.join(TASKS)}"
        )
    return Lora(section.rank, section.alpha, tuple(section.targets))


def split_parameters(config: ConfigDict, shapes: Mapping[str, Any]) -> Partition:
    """Split the parameters of a model into trainable and frozen ones.

    Args:
      config: `frozen` and `lora` of a run.
      shapes: shape of every parameter of the model.

    Returns:
      The parts, the matrices of LoRA among the trainable parameters.

    Raises:
      ValueError: a pattern matches nothing (those of the defaults may), a target of
        LoRA is not frozen or is smaller than the rank, or nothing is left to train.
    """
    lora, leaves = lora_of(config), flatten(shapes)
    if lora is not None:
        leaves |= matrix_shapes(lora, leaves, config.frozen)
    return split(
        unflatten(leaves),
        config.frozen,
        optional=DEFAULT_RULES,
        trained=low_rank.is_matrix,
    )


def matrix_shapes(
    lora: Lora, shapes: Mapping[str, jax.ShapeDtypeStruct], frozen: tuple[str, ...]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of A and B of every adapted kernel by path.

    Args:
      lora: values of `config.lora`.
      shapes: shapes of the model's parameters by path.
      frozen: `config.frozen`.

    Raises:
      ConfigError: a target matches no kernel of a dense layer, or one that is not
        frozen or smaller than the rank.
    """
    kernels = [p for p in shapes if p.endswith(low_rank.KERNEL) and p != HEAD]
    for pattern in lora.targets:
        if not any(re.search(pattern, path) for path in kernels):
            raise ConfigError(
                f"config.lora.targets: {pattern!r} matches no kernel of a dense layer; "
                f"their paths are {kernels[0]}, {kernels[-1]} and so on"
            )
    matrices = {}
    for path in kernels:
        if not matches(lora.targets, path):
            continue
        *layers, inputs, outputs = shapes[path].shape
        if not matches(frozen, path):
            raise ConfigError(
                f"config.lora.targets selects {path}, which is trained: name it in "
                "config.frozen, or narrow the targets"
            )
        if lora.rank > min(inputs, outputs):
            raise ConfigError(
                f"config.lora.rank is {lora.rank}, but {path} is {inputs} x {outputs}"
            )
        sizes = (inputs, lora.rank), (lora.rank, outputs)
        for name, size in zip(low_rank.matrix_paths(path), sizes, strict=True):
            matrices[name] = jax.ShapeDtypeStruct((*layers, *size), jnp.float32)
    return matrices


def initial_matrices(
    shapes: Mapping[str, jax.ShapeDtypeStruct], key: PRNGKeyArray
) -> dict[str, jax.Array]:
    """Draw the matrices at the start: A is normal, B is 0.

    Args:
      shapes: of all trainable parameters by path; only matrices of LoRA are drawn.
      key: a path's values depend on the key and on its place among the matrices.
    """
    paths = sorted(path for path in shapes if low_rank.is_matrix(path))
    matrices = {}
    for number, path in enumerate(paths):
        shape = shapes[path].shape
        std = A_STD * shape[-2] ** -0.5 if path.endswith(low_rank.A) else 0.0
        drawn = jax.random.normal(jax.random.fold_in(key, number), shape)
        matrices[path] = std * drawn
    return matrices


def merge_parameters(config: ConfigDict, trainable: Tree, frozen: Tree) -> Tree:
    """Return the parameters of the model, with A and B merged into their kernels.

    Without LoRA no array is copied; with it, every adapted kernel is. A quantised one
    is merged as it is stored and is not quantised again.
    """
    lora, params = lora_of(config), merge(trainable, frozen)
    if lora is None:
        return params
    leaves = flatten(params)
    for path in low_rank.adapted_kernels(leaves):
        a, b = (leaves.pop(name) for name in low_rank.matrix_paths(path))
        kernel = leaves[path]
        if is_quantized(kernel):
            kernel = restore_kernel(kernel, jnp.dtype(config.precision))
        leaves[path] = low_rank.merge_kernel_on_device(kernel, a, b, lora.scale)
    return unflatten(leaves)


def check_same_lora(config: ConfigDict, former: ConfigDict, name: str) -> None:
    """Check that a run may start from the checkpoint of a run with LoRA.

    Args:
      config: configuration of the new run.
      former: configuration of the run that it starts from.
      name: directory of that run.

    Raises:
      ConfigError: the former run has LoRA and the new one has another `config.lora`.
    """
    lora = lora_of(former)
    if lora not in (None, lora_of(config)):
        raise ConfigError(
            f"{name} was trained with {lora}; this run has another config.lora: set "
            "the same, or convert that run (blip2-jax convert --to blip2_jax) and "
            "start from the folder, which has the matrices merged"
        )
