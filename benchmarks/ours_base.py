"""Base of our contestants, and the shared weights under our names."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import harness, shared_inputs


class Machine:
    """Base of our contestants: versions and rates of the machine."""

    def versions(self) -> str:
        """Return the versions of its libraries and the device."""
        import jax

        device = jax.devices()[0]
        where = "" if device.platform == "cpu" else f" on one {device.device_kind}"
        return harness.versions("jax") + where

    def gemm(self, size: int = 2048, times: int = 5) -> float:
        """Measure the median GFLOP/s of a square fp32 matmul."""
        import jax
        import jax.numpy as jnp

        product = jax.jit(functools.partial(jnp.matmul, precision="highest"))
        left = jnp.asarray(shared_inputs.images(size, size))
        product(left, left).block_until_ready()
        taken = [
            harness.seconds(lambda: product(left, left).block_until_ready())[0]
            for _ in range(times)
        ]
        return 2e-9 * size**3 / statistics.median(taken)

    def bandwidth(self, gigabytes: float = 1.0, times: int = 5) -> float:
        """Measure the best GB/s of a large fp32 matrix-vector product."""
        import jax
        import jax.numpy as jnp

        columns = 4096
        matrix = jnp.ones((int(gigabytes * harness.GB / 4 / columns), columns))
        vector = jnp.ones((columns,))
        product = jax.jit(lambda a, b: a @ b)
        product(matrix, vector).block_until_ready()
        best = min(
            harness.seconds(lambda: product(matrix, vector).block_until_ready())[0]
            for _ in range(times)
        )
        return matrix.nbytes / harness.GB / best


class Stepper(Machine):
    """A contestant whose turn is one `_step`, which waits for the device."""

    def _step(self) -> Any:
        raise NotImplementedError

    def step(self) -> float:
        """Run one step; returns its seconds."""
        return harness.seconds(self._step)[0]

    def profile(self, directory: str) -> None:
        """Write a profile of three steps, for TensorBoard and xprof."""
        import jax

        with jax.profiler.trace(directory):
            for _ in range(3):
                self._step()

    def device_peak(self) -> float:
        """Return the peak memory of the device in GB."""
        from blip2_jax.perf.meters import peak_memory_bytes

        return peak_memory_bytes() / harness.GB


def parameters(sizes: Any, shapes: Any) -> Any:
    """Return the shared weights under our names, as numpy arrays."""
    import jax

    from blip2_jax.convert.tables import name_table
    from blip2_jax.convert.tables.lavis import stage1_rules, stage2_rules
    from blip2_jax.nn import trees

    rules = (stage2_rules if sizes.language_model else stage1_rules)(sizes)
    source = jax.eval_shape(lambda tree: name_table.to_source(tree, rules), shapes)
    ours: dict[str, Any] = {}
    for rule in rules:
        made = {
            name: shared_inputs.weight(name, source[name].shape)
            for name in rule.names()
        }
        ours |= rule.to_ours(made)
    return trees.unflatten(ours)


def export(sizes: Any, params: Any, file: str) -> None:
    """Write stage-2 weights under the names of `Blip2ForConditionalGeneration`."""
    import safetensors.numpy

    from blip2_jax.convert.huggingface_folder import renamed_rule
    from blip2_jax.convert.tables import name_table
    from blip2_jax.convert.tables.lavis import stage2_rules
    from blip2_jax.nn import trees

    rules = [renamed_rule(rule) for rule in stage2_rules(sizes)]
    leaves = {name: np.asarray(leaf) for name, leaf in trees.flatten(params).items()}
    arrays = name_table.to_source(trees.unflatten(leaves), rules)
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()}, file
    )


def drawn_parameters(shapes: Any, frozen: Sequence[str], dtype: Any) -> Any:
    """Make random weights on the device, leaf by leaf, never all on the host.

    They repeat the same few million numbers, because drawing billions of them on the
    device would take minutes of compilation.

    Args:
      shapes: of the tree.
      frozen: regexes of the paths that are in `dtype`; the others are fp32.
      dtype: the compute dtype.
    """
    import jax
    import jax.numpy as jnp

    from blip2_jax.nn import trees

    drawn = {
        kind: shared_inputs.weight("drawn", [shared_inputs.DRAWN]).astype(kind)
        for kind in (dtype, jnp.float32)
    }

    def weight(path: str, shape: tuple[int, ...]) -> Any:
        kind = dtype if trees.matches(frozen, path) else jnp.float32
        if not shape:
            return jnp.full((), shared_inputs.TEMPERATURE, kind)
        if path.endswith("scale"):
            return jnp.ones(shape, kind)
        return jax.device_put(np.resize(drawn[kind], shape))

    flat = trees.flatten(shapes)
    return trees.unflatten({path: weight(path, flat[path].shape) for path in flat})
