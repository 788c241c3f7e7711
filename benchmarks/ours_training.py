"""Our training step, as a contestant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import shared_inputs
from benchmarks.ours_base import Stepper, drawn_parameters, export, parameters


class Training(Stepper):
    """The step of `blip2-jax train`, on one batch."""

    def __init__(
        self,
        sizes: dict[str, Any],
        rows: int,
        text: int,
        target: int = 0,
        precision: str = "float32",
        scan: bool = True,
        attention: str = "xla",
        drawn: bool = False,
    ) -> None:
        """Build the step.

        Args:
          sizes: sizes of the model (`presets.to_plain`).
          rows: batch size.
          text: tokens of a text, or of the encoder's input in an encoder-decoder.
          target: tokens of the decoder's target.
          precision: `config.precision`.
          scan: `config.model.scan`.
          attention: `config.model.attention`.
          drawn: whether weights are random instead of shared with the peers; shared
            weights of a large model take minutes to make.
        """
        import jax

        from blip2_jax.nn import trees
        from blip2_jax.parallel import sharding
        from blip2_jax.training import optimizer, schedule
        from blip2_jax.training.state import create_state
        from blip2_jax.training.step import make_train_step
        from blip2_jax.training.tasks import compute_dtype, make_task

        config = configuration(sizes, precision, scan)
        task = make_task(config)
        shapes = jax.eval_shape(task.init_params, jax.random.key(0))
        dtype = compute_dtype(config)
        if drawn:
            params = drawn_parameters(shapes, config.frozen, dtype)
        else:
            params = parameters(task.model.config, shapes)
        trainable, frozen, _ = trees.split(params, config.frozen)
        del params
        rate = schedule.make_schedule(config.optimizer, config.steps)
        adamw = optimizer.make_optimizer(config.optimizer, rate, trainable)
        cast = lambda array: array.astype(dtype, copy=False)
        frozen = jax.tree.map(cast, frozen)
        create = lambda tree: create_state(tree, adamw)
        state = jax.eval_shape(create, trainable)
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        step = make_train_step(task, adamw, rate, mesh, state, frozen, seed=config.seed)
        self.frozen = jax.block_until_ready(jax.device_put(frozen, step.frozen))
        del frozen  # free the host's copy before the optimizer state is made
        self.state = jax.jit(create, out_shardings=step.state)(trainable)
        self.sizes = task.model.config
        fields = batch(self.sizes, rows, text, target)
        self.batch = jax.device_put(fields, step.batch)
        self.train_step, self._attention = step, attention

    def compare(self, negatives: Sequence[Sequence[int]] | None = None) -> float:
        """Run one step with the peer's negatives (images, texts); returns its loss."""
        from blip2_jax.losses.hard_negatives import Negatives

        replay = None
        if negatives:
            image, text = (np.asarray(part, np.int32) for part in negatives)
            replay = Negatives(image=image, text=text)
        return float(self._step(replay)["loss"])

    def export(self, file: str) -> None:
        """Write the weights for the peers that read a file."""
        from blip2_jax.nn import trees

        params = trees.merge(self.state.trainable, self.frozen)
        export(self.sizes, params, file)

    def gigaflops(self) -> float:
        """Return the FLOPs of the step's matmuls, in billions."""
        import jax

        from blip2_jax.perf import dot_count

        with jax.set_mesh(self.train_step.mesh):
            dots = dot_count.count_dots(
                self.train_step.jitted, self.state, self.frozen, self.batch, None
            )
        return sum(dot.flops for dot in dots) / 1e9

    def counted(self, text: int, target: int) -> list[float | None]:
        """Return FLOPs of an image (as in MFU), of our step, and the device's peak.

        The peak is None if it is unknown.
        """
        import jax

        from blip2_jax.perf import flops
        from blip2_jax.perf.meters import peak_flops

        peak = peak_flops(jax.devices()[0])
        fixed = flops.mfu_numerator(self.sizes, text, target)
        return [fixed, 1e9 * self.gigaflops(), peak]

    def _step(self, replay: Any = None) -> Any:
        import jax

        from blip2_jax.nn import fused_attention

        with fused_attention.chosen(self._attention):
            self.state, metrics = self.train_step(
                self.state, self.frozen, self.batch, replay
            )
        jax.block_until_ready(self.state)
        return metrics


def configuration(sizes: dict[str, Any], precision: str, scan: bool) -> Any:
    """Return a training configuration for these sizes, with a constant rate."""
    from ml_collections import ConfigDict

    from blip2_jax.training.train_config import default_config

    parts = {name: sizes[name] for name in ("vision", "qformer", "language_model")}
    parts = {name: part for name, part in parts.items() if part is not None}
    config = default_config("stage2" if "language_model" in parts else "stage1")
    config = config.unlock()
    config.model.overrides = ConfigDict(parts)
    config.model.scan = scan
    config.precision = precision
    prefixes = {"^visual_encoder/": parts["vision"]["kind"] == "vit"}
    prefixes["^language_model/"] = "language_model" in parts
    config.frozen = tuple(prefix for prefix, there in prefixes.items() if there)
    config.optimizer.final_learning_rate = config.optimizer.learning_rate
    config.optimizer.warmup_steps = 0
    config.optimizer.original_decay = True
    return config


def batch(model: Any, rows: int, text: int, target: int) -> dict[str, np.ndarray]:
    """Return a batch without padding for a model of these sizes."""
    from blip2_jax.models.sizes import FeaturesConfig

    vision, language = model.vision, model.language_model
    if isinstance(vision, FeaturesConfig):
        fields = {
            "features": shared_inputs.images(rows, vision.num_tokens, vision.width)
        }
    else:
        size = vision.image_size
        fields = {"image": shared_inputs.images(rows, size, size, 3)}
    if language is None:
        ids = shared_inputs.ids("text", rows, text, model.qformer.vocab_size)
        return fields | {"text_ids": ids.astype(np.int32), "text_mask": ids > 0}
    if not language.is_encoder_decoder:
        start = [] if language.start_id is None else [language.start_id]
        ids = shared_inputs.ids("text", rows, text, language.vocab_size, start)
        fields |= {"text_ids": ids.astype(np.int32), "text_mask": ids > 0}
        return fields | {"target_mask": ids > 0}
    ids = shared_inputs.ids("text", rows, text, language.vocab_size)
    targets = shared_inputs.ids("target", rows, target, language.vocab_size)
    fields |= {"input_ids": ids.astype(np.int32), "input_mask": ids > 0}
    return fields | {"target_ids": targets.astype(np.int32), "target_mask": targets > 0}
