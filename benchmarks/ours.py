"""Our side of the benchmarks; `harness` starts it as a process of its own."""

from __future__ import annotations

import functools
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import given
import harness
import numpy as np


def main() -> None:
    """Serve one of the contestants below."""
    harness.serve({
        "training": Training, "generation": Generation, "reranking": Reranking,
        "images": Images,
    })  # fmt: skip


class Machine:
    """What every contestant of ours can tell."""

    def versions(self) -> str:
        """Of what it runs on."""
        import jax  # noqa: F401

        return harness.versions("jax")

    def gemm(self, size: int = 2048, times: int = 5) -> float:
        """GFLOP/s of a square fp32 product: the median."""
        import jax
        import jax.numpy as jnp

        product = jax.jit(functools.partial(jnp.matmul, precision="highest"))
        left = jnp.asarray(given.images(size, size))
        product(left, left).block_until_ready()
        taken = [
            harness.seconds(lambda: product(left, left).block_until_ready())[0]
            for _ in range(times)
        ]
        return 2e-9 * size**3 / statistics.median(taken)

    def bandwidth(self, gigabytes: float = 1.0, times: int = 5) -> float:
        """GB/s of a product of a large fp32 matrix with one vector: the best."""
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


def parameters(sizes: Any, shapes: Any) -> Any:
    """The given weights under our names, as numpy arrays."""
    import jax

    from blip2_jax.convert import names
    from blip2_jax.convert.lavis import stage1_rules
    from blip2_jax.convert.lavis_stage2 import stage2_rules

    rules = (stage2_rules if sizes.language_model else stage1_rules)(sizes)
    source = jax.eval_shape(lambda tree: names.to_source(tree, rules), shapes)
    arrays = {
        name: given.weight(name, source[name].shape)
        for rule in rules
        for name in rule.names()
    }
    return names.to_ours_complete(arrays, rules)


class Training(Machine):
    """The step that `launch/train.py` runs, on one batch."""

    def __init__(
        self, sizes: dict[str, Any], rows: int, text: int, target: int = 0,
        precision: str = "float32", scan: bool = True,
    ) -> None:  # fmt: skip
        """Build the step.

        Args:
          sizes: a model (`presets.to_plain`).
          rows: of the batch.
          text: tokens of a text; of the encoder's input in an encoder-decoder.
          target: tokens of a decoder's target.
          precision, scan: of the configuration.
        """
        import jax

        from blip2_jax import sharding
        from blip2_jax.training import optimizer, partition, schedule
        from blip2_jax.training.state import create_state
        from blip2_jax.training.step import make_train_step
        from blip2_jax.training.tasks import compute_dtype, make_task

        config = configuration(sizes, precision, scan)
        task = make_task(config)
        shapes = jax.eval_shape(task.init_params, jax.random.key(0))
        parts = partition.split(parameters(task.model.config, shapes), config.frozen)
        rate = schedule.make_schedule(config.optimizer, config.steps)
        adamw = optimizer.make_optimizer(config.optimizer, rate, parts.trainable)
        dtype = compute_dtype(config)
        frozen = jax.tree.map(lambda array: array.astype(dtype), parts.frozen)
        create = lambda tree: create_state(tree, adamw)
        state = jax.eval_shape(create, parts.trainable)
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        step = make_train_step(
            task, adamw, rate, mesh, state, frozen, seed=config.seed
        )
        self.state = jax.jit(create, out_shardings=step.state)(parts.trainable)
        self.frozen = jax.device_put(frozen, step.frozen)
        fields = batch(task.model.config, rows, text, target)
        self.batch = jax.device_put(fields, step.batch)
        self.train_step = step

    def step(self) -> float:
        """Seconds of one step."""
        return harness.seconds(self._step)[0]

    def compare(self, negatives: Sequence[Sequence[int]] | None = None) -> float:
        """The loss of one step, with the peer's negatives (images, texts) replayed."""
        from blip2_jax.objectives import Negatives

        replay = None
        if negatives:
            image, text = (np.asarray(part, np.int32) for part in negatives)
            replay = Negatives(image=image, text=text)
        return float(self._step(replay)["loss"])

    def gigaflops(self) -> float:
        """Of all matrix products of the step, in billions."""
        import jax

        from blip2_jax import dot_count

        with jax.set_mesh(self.train_step.mesh):
            found = dot_count.dots(
                self.train_step.jitted, self.state, self.frozen, self.batch, None
            )
        return sum(dot.flops for dot in found) / 1e9

    def _step(self, replay: Any = None) -> Any:
        import jax

        self.state, metrics = self.train_step(
            self.state, self.frozen, self.batch, replay
        )
        jax.block_until_ready(self.state)
        return metrics


def configuration(sizes: dict[str, Any], precision: str, scan: bool) -> Any:
    """A training configuration for a model of these sizes, at a constant rate."""
    from ml_collections import ConfigDict

    from blip2_jax.training.config import default_config

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
    """A batch without padding for a model of these sizes."""
    from blip2_jax.presets import FeaturesConfig, OPTConfig

    vision, language = model.vision, model.language_model
    if isinstance(vision, FeaturesConfig):
        fields = {"features": given.images(rows, vision.num_tokens, vision.width)}
    else:
        size = vision.image_size
        fields = {"image": given.images(rows, size, size, 3)}
    if language is None:
        ids = given.ids("text", rows, text, model.qformer.vocab_size)
        return fields | {"text_ids": ids.astype(np.int32), "text_mask": ids > 0}
    if isinstance(language, OPTConfig):
        ids = given.ids("text", rows, text, language.vocab_size, [language.bos_id])
        fields |= {"text_ids": ids.astype(np.int32), "text_mask": ids > 0}
        return fields | {"target_mask": ids > 0}
    ids = given.ids("text", rows, text, language.vocab_size)
    targets = given.ids("target", rows, target, language.vocab_size)
    fields |= {"input_ids": ids.astype(np.int32), "input_mask": ids > 0}
    return fields | {
        "target_ids": targets.astype(np.int32), "target_mask": targets > 0
    }  # fmt: skip


class Generation(Machine):
    """`read_stage2` and `write_stage2`, each compiled once, as the API runs them."""

    def __init__(
        self, sizes: dict[str, Any], rows: int, prompt: Sequence[int],
        beams: int, tokens: int, precision: str = "float32", scan: bool = True,
    ) -> None:  # fmt: skip
        """Build a model that writes `tokens` tokens behind a prompt."""
        import jax
        import jax.numpy as jnp

        from blip2_jax import presets
        from blip2_jax.generation.config import DecodingConfig
        from blip2_jax.generation.programs import read_stage2, write_stage2
        from blip2_jax.models.blip2 import init_params
        from blip2_jax.models.blip2_stage2 import Blip2Stage2

        self.config = presets.from_plain(sizes)
        dtype = jnp.dtype(precision)
        model = Blip2Stage2(self.config, dtype, scan=scan)
        shapes = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
        params = parameters(self.config, shapes)
        self.params = jax.tree.map(lambda a: jnp.asarray(a, dtype), params)
        decoding = DecodingConfig(
            num_beams=beams, max_new_tokens=tokens, min_new_tokens=tokens
        )
        language: Any = self.config.language_model
        end = getattr(language, "eos_id", language.vocab_size - 1)
        self._read = jax.jit(functools.partial(read_stage2, model))
        self._write = jax.jit(
            lambda params, read: write_stage2(
                model, params, read, decoding, eos_id=end
            ).ids
        )
        vision: Any = self.config.vision
        ids = np.broadcast_to(np.asarray(prompt, np.int32), (rows, len(prompt)))
        features = given.images(rows, vision.num_tokens, vision.width)
        self._given = [jnp.asarray(each) for each in (features, ids, ids >= 0)]
        self._tokens = tokens

    def generate(self) -> float:
        """Seconds from features to ids."""
        return harness.seconds(self._run)[0]

    def ids(self) -> list[list[int]]:
        """What it writes."""
        return self._run()[:, 0].tolist()

    def decoding(self) -> float:
        """Seconds of the tokens behind the first, prefill left out."""
        read = self._read(self.params, *self._given)
        read[0].block_until_ready()
        return harness.seconds(lambda: np.asarray(self._write(self.params, read)))[0]

    def gigabytes(self) -> float:
        """Weights and cache that one decoded token reads, on the average."""
        import jax

        read = jax.eval_shape(self._read, self.params, *self._given)
        count = lambda tree: sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
        )
        language = self.params["language_model"]
        unread = count(language["embeddings"].get("position", ()))
        prefix = count((read[1].key, read[1].value))
        length = read[1].mask.shape[1]
        generated = prefix / length * self._tokens / 2
        return (count(language) - unread + prefix + generated) / harness.GB

    def export(self, file: str) -> None:
        """Write the weights under the names of `Blip2ForConditionalGeneration`."""
        import safetensors.numpy

        from blip2_jax.convert import huggingface, names
        from blip2_jax.convert.lavis_stage2 import stage2_rules

        rules = [huggingface.renamed(rule) for rule in stage2_rules(self.config)]
        params = {name: np.asarray(a) for name, a in names.flatten(self.params).items()}
        arrays = names.to_source(names.nest(params), rules)
        safetensors.numpy.save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()}, file
        )

    def _run(self) -> np.ndarray:
        read = self._read(self.params, *self._given)
        return np.asarray(self._write(self.params, read))


class Reranking(Machine):
    """The matching head over images and texts, as evaluation runs it."""

    def __init__(self, sizes: dict[str, Any], count: int, texts: int, text: int):
        """`count` images with `texts` texts of `text` tokens each."""
        import jax

        from blip2_jax import presets
        from blip2_jax.evaluation.stage1_scores import Stage1Scorer
        from blip2_jax.models.blip2 import init_params
        from blip2_jax.models.blip2_stage1 import Blip2Stage1

        config = presets.from_plain(sizes)
        model = Blip2Stage1(config)
        shapes = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
        params = jax.tree.map(jax.numpy.asarray, parameters(config, shapes))
        self._scorer = Stage1Scorer(model, params, batch_size=texts)
        vision = config.vision
        self._features = given.images(count, vision.num_tokens, vision.width)
        ids = given.ids("text", texts, text, config.qformer.vocab_size)
        self._texts = ids.astype(np.int32), ids > 0

    def rerank(self) -> float:
        """Seconds to score every image with every text."""
        return harness.seconds(self._scores)[0]

    def scores(self) -> list[list[float]]:
        """Logits of a match."""
        return np.stack(self._scores()).tolist()

    def _scores(self) -> list[np.ndarray]:
        return [
            self._scorer.match_logits(features, *self._texts)[:, 1]
            for features in self._features
        ]


class Images:
    """The training path of photos: decode, crop, flip; normalised as a batch."""

    def __init__(self, tars: Sequence[str], count: int, size: int):
        """Read the photos' bytes."""
        import jax

        from blip2_jax.data.images import ImageConfig
        from blip2_jax.models.vit import normalize_images

        self._files = harness.photos(tars, count)
        self._config = ImageConfig(size=size)
        self._normalize = jax.jit(normalize_images)

    def versions(self) -> str:
        """Of what decodes and resizes."""
        import PIL  # noqa: F401

        return harness.versions("PIL")

    def load(self, rows: int = 8) -> float:
        """Seconds for all photos, in batches."""
        return harness.seconds(lambda: self._load(rows))[0]

    def _load(self, rows: int) -> None:
        from blip2_jax.data.images import decode_image, training_image

        rng = np.random.default_rng(0)
        for start in range(0, len(self._files), rows):
            ready = [
                training_image(
                    decode_image(data, key, self._config.at_least), self._config, rng
                )
                for key, data in self._files[start : start + rows]
            ]
            self._normalize(np.stack(ready)).block_until_ready()


if __name__ == "__main__":
    main()
