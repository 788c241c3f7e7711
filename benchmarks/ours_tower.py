"""Our image tower by itself in the benchmarks."""

from __future__ import annotations

from typing import Any

from benchmarks import given
from benchmarks.ours_base import Stepper, drawn_parameters


class Tower(Stepper):
    """The frozen image tower, forward, on random weights."""

    def __init__(
        self, sizes: dict[str, Any], rows: int, precision: str, attention: str
    ) -> None:
        """Arguments as of `ours_training.Training`."""
        import jax
        import jax.numpy as jnp

        from blip2_jax.models import presets
        from blip2_jax.models.vision.vit import VisionTransformer

        vision: Any = presets.from_plain(sizes).vision
        dtype = jnp.dtype(precision)
        tower = VisionTransformer(vision, dtype)
        size = vision.image_size
        images = jnp.asarray(given.images(rows, size, size, 3))
        shapes = jax.eval_shape(tower.init, jax.random.key(0), images)["params"]
        params = drawn_parameters(shapes, ["."], dtype)
        self._run = jax.jit(lambda params, x: tower.apply({"params": params}, x))
        self._given, self._attention = (params, images), attention

    def counted(self) -> list[float | None]:
        """FLOPs an image, those of a batch, device's peak; None where not known."""
        import jax

        from blip2_jax.perf import dot_count
        from blip2_jax.perf.meters import peak_flops

        batch = sum(dot.flops for dot in dot_count.count_dots(self._run, *self._given))
        return [batch / len(self._given[1]), batch, peak_flops(jax.devices()[0])]

    def _step(self) -> None:
        import jax

        from blip2_jax.nn import fused_attention

        with fused_attention.chosen(self._attention):
            jax.block_until_ready(self._run(*self._given))
