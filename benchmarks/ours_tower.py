"""Our image tower alone, as a contestant."""

from __future__ import annotations

from typing import Any

from benchmarks import shared_inputs
from benchmarks.ours_base import Stepper, drawn_parameters


class Tower(Stepper):
    """The frozen image tower, forward, on random weights."""

    def __init__(
        self, sizes: dict[str, Any], rows: int, precision: str, attention: str
    ) -> None:
        """Build the tower; arguments as in `ours_training.Training`."""
        import jax
        import jax.numpy as jnp

        from blip2_jax.models import presets
        from blip2_jax.models.vision.vit import VisionTransformer

        vision: Any = presets.from_plain(sizes).vision
        dtype = jnp.dtype(precision)
        tower = VisionTransformer(vision, dtype)
        size = vision.image_size
        images = jnp.asarray(shared_inputs.images(rows, size, size, 3))
        shapes = jax.eval_shape(tower.init, jax.random.key(0), images)["params"]
        params = drawn_parameters(shapes, ["."], dtype)
        self._run = jax.jit(lambda params, x: tower.apply({"params": params}, x))
        self._inputs, self._attention = (params, images), attention

    def counted(self) -> list[float | None]:
        """Return FLOPs of an image and of a batch, and the device's peak if known."""
        import jax

        from blip2_jax.perf import dot_count
        from blip2_jax.perf.meters import peak_flops

        batch = sum(dot.flops for dot in dot_count.count_dots(self._run, *self._inputs))
        return [batch / len(self._inputs[1]), batch, peak_flops(jax.devices()[0])]

    def _step(self) -> None:
        import jax

        from blip2_jax.nn import fused_attention

        with fused_attention.chosen(self._attention):
            jax.block_until_ready(self._run(*self._inputs))
