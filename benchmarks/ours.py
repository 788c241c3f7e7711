"""Our contestants; `harness` starts this module in its own process."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import harness, shared_inputs
from benchmarks.ours_base import Machine, export, parameters
from benchmarks.ours_images import Images, TrainingPath
from benchmarks.ours_tower import Tower
from benchmarks.ours_training import Training


def main() -> None:
    """Serve one of our contestants, with the CPU settings of training."""
    from blip2_jax.parallel.host_memory import disable_async_dispatch

    disable_async_dispatch()
    harness.serve(
        {
            "training": Training,
            "generation": Generation,
            "reranking": Reranking,
            "images": Images,
            "training_path": TrainingPath,
            "tower": Tower,
        }
    )


class Generation(Machine):
    """Prefill and decoding, each compiled once, as the API runs them."""

    def __init__(
        self,
        sizes: dict[str, Any],
        rows: int,
        prompt: Sequence[int],
        beams: int,
        tokens: int,
        precision: str = "float32",
        scan: bool = True,
    ) -> None:
        """Build a model that generates `tokens` tokens after a prompt."""
        import jax
        import jax.numpy as jnp

        from blip2_jax.generation.decoding_config import DecodingConfig
        from blip2_jax.inference import language_programs
        from blip2_jax.inference.decoding_program import decode_tokens
        from blip2_jax.models import presets
        from blip2_jax.models.blip2 import parameter_shapes
        from blip2_jax.models.blip2_stage2 import Blip2Stage2

        self.config = presets.from_plain(sizes)
        dtype = jnp.dtype(precision)
        model = Blip2Stage2(self.config, dtype, scan=scan)
        shapes = parameter_shapes(model)
        params = parameters(self.config, shapes)
        self.params = jax.tree.map(lambda a: jnp.asarray(a, dtype), params)
        decoding = DecodingConfig(
            num_beams=beams, max_new_tokens=tokens, min_new_tokens=tokens
        )
        language: Any = self.config.language_model
        end = getattr(language, "eos_id", language.vocab_size - 1)
        self._read = functools.partial(language_programs.prefill_language_model, model)
        self._write = lambda params, read, weights: (
            decode_tokens(
                model,
                "language_model",
                params,
                read[0],
                read[1],
                decoding,
                eos_id=end,
                pad_id=language.pad_id,
                weights=weights,
            ).ids
        )
        self._weights = None
        if language_programs.should_unstack_weights(self.params):
            self._weights = language_programs.unstack_weights(model, self.params)
        vision: Any = self.config.vision
        ids = np.broadcast_to(np.asarray(prompt, np.int32), (rows, len(prompt)))
        features = shared_inputs.images(rows, vision.num_tokens, vision.width)
        arrays = map(jnp.asarray, (features, ids, ids >= 0))
        self._inputs = (*arrays, (), self._weights)
        self._tokens = tokens

    def generate(self) -> float:
        """Generate from features; returns the seconds."""
        return harness.seconds(self._run)[0]

    def ids(self) -> list[list[int]]:
        """Return the generated ids."""
        return self._run()[:, 0].tolist()

    def decoding(self) -> float:
        """Decode the tokens after the first, without prefill; returns the seconds."""
        read = self._read(self.params, *self._inputs)
        read[0].block_until_ready()
        return harness.seconds(lambda: self._decode(read))[0]

    def gigabytes(self) -> float:
        """Return the mean size of weights and cache that a decoded token reads."""
        import jax

        read = jax.eval_shape(self._read, self.params, *self._inputs)
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
        """Write the weights for the peers that read a file."""
        export(self.config, self.params, file)

    def _run(self) -> np.ndarray:
        return self._decode(self._read(self.params, *self._inputs))

    def _decode(self, read: Any) -> np.ndarray:
        return np.asarray(self._write(self.params, read, self._weights))


class Reranking(Machine):
    """The matching head over images and texts, as evaluation runs it."""

    def __init__(self, sizes: dict[str, Any], count: int, texts: int, text: int):
        """Prepare `count` images and `texts` texts of `text` tokens."""
        import jax

        from blip2_jax.evaluation.stage1_scorer import Stage1Scorer
        from blip2_jax.models import presets
        from blip2_jax.models.blip2 import parameter_shapes
        from blip2_jax.models.blip2_stage1 import Blip2Stage1

        config = presets.from_plain(sizes)
        model = Blip2Stage1(config)
        shapes = parameter_shapes(model)
        params = jax.tree.map(jax.numpy.asarray, parameters(config, shapes))
        self._scorer = Stage1Scorer(model, params, batch_size=texts)
        vision = config.vision
        self._features = shared_inputs.images(count, vision.num_tokens, vision.width)
        ids = shared_inputs.ids("text", texts, text, config.qformer.vocab_size)
        self._texts = ids.astype(np.int32), ids > 0

    def rerank(self) -> float:
        """Score every image with every text; returns the seconds."""
        return harness.seconds(self._scores)[0]

    def scores(self) -> list[list[float]]:
        """Return the logits of a match."""
        return np.stack(self._scores()).tolist()

    def _scores(self) -> list[np.ndarray]:
        return [
            self._scorer.match_logits(features, *self._texts)[:, 1]
            for features in self._features
        ]


if __name__ == "__main__":
    main()
