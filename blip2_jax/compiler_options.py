"""What large programs ask of XLA, by platform."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.sharding import Mesh

OPTIONS: dict[str, dict[str, Any]] = {
    # Instructions in a thrifty order. The usual one starts whatever could run beside
    # something else, and so keeps more; a training step takes as long in either.
    "cpu": {"xla_cpu_enable_concurrency_optimized_scheduler": False},
    # Products by cuBLAS alone. Otherwise each different one is also compiled and timed
    # in dozens of forms of Triton: minutes for a step of stage 1. What is left is
    # compiled on all cores.
    "gpu": {
        "xla_gpu_enable_triton_gemm": False,
        "xla_gpu_enable_llvm_module_compilation_parallelism": True,
    },
}


def compiler_options(mesh: Mesh) -> dict[str, Any]:
    """For `jax.jit(compiler_options=...)` of a program over this mesh.

    An option that this version of XLA does not know is left out.
    """
    wanted = OPTIONS.get(mesh.devices.flat[0].platform, {})
    return {name: value for name, value in wanted.items() if _is_known(name, value)}


@functools.cache
def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda x: x + 1, compiler_options={name: value}).lower(0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
