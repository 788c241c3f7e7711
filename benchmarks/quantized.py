"""Time towers whose kernels have 8 or 4 bits: `python -m benchmarks.quantized`.

Two blocks of ViT-g on images of 224 pixels, and four blocks of OPT-1.3B's width that
write 30 tokens greedily, with random weights. Every scheme has its turn in every round;
times are medians. Sizes are those of the blocks' parameters.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, shared_inputs
from blip2_jax.generation.decoding_config import DecodingConfig
from blip2_jax.inference import language_programs
from blip2_jax.inference.decoding_program import decode_tokens
from blip2_jax.models import presets
from blip2_jax.models.blip2 import init_params
from blip2_jax.models.blip2_stage2 import Blip2Stage2
from blip2_jax.nn.quantized import SCHEMES, quantize_parameter
from blip2_jax.nn.trees import flatten, unflatten

ROWS, TOKENS = 4, 30
HEAD = ("", "images/s", "ratio", "tokens/s", "ratio", "encoder MB", "decoder MB")
TITLE = "Quantised towers on a CPU"
PLAIN = ("float32", "bfloat16")


def main() -> int:
    """Time all schemes in turns and print the table."""
    parser = harness.arguments(__doc__ or "", rounds=5)
    options = parser.parse_args()
    sizes = model_sizes(options.tiny)
    towers = {name: Towers(sizes, name) for name in (*PLAIN, *SCHEMES)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in towers}
    for _ in range(options.rounds + 1):  # the first one compiles
        for name, tower in towers.items():
            times[name].append((tower.encode(), tower.write()))
    medians = {
        name: tuple(map(statistics.median, zip(*taken[1:], strict=True)))
        for name, taken in times.items()
    }
    base = medians["float32"]
    rows = [
        (
            name,
            f"{ROWS / encode:.2f}",
            f"{base[0] / encode:.2f}",
            f"{ROWS * TOKENS / write:.1f}",
            f"{base[1] / write:.2f}",
            *(f"{megabytes:.0f}" for megabytes in towers[name].megabytes),
        )
        for name, (encode, write) in medians.items()
    ]
    about = (
        f"{harness.versions('jax')}; batch {ROWS}, {TOKENS} new tokens, "
        f"{options.threads} threads; schemes compute in float32. Ratios are to float32."
    )
    harness.report(options, TITLE, about, harness.table(HEAD, rows))
    return 0


def model_sizes(tiny: bool) -> presets.Blip2Config:
    """Return the sizes of the model; `tiny` to test the benchmark."""
    vision = dataclasses.replace(presets.EVA_VIT_G, depth=2)
    language = dataclasses.replace(presets.OPT_1_3B, depth=4, vocab_size=8192)
    qformer = presets.QFormerConfig(width=768, depth=1)
    if tiny:
        vision = presets.ViTConfig(32, 2, 2, 64, image_size=28)
        language = presets.OPTConfig(32, 2, 2, 64, vocab_size=64, max_positions=64)
        qformer = presets.QFormerConfig(16, 1, 2, 16, num_queries=2)
    return presets.Blip2Config(vision, qformer, language)


class Towers:
    """A model whose towers are stored in one way."""

    def __init__(self, sizes: presets.Blip2Config, name: str) -> None:
        """Draw the weights, equal for all names, and store them."""
        dtype = jnp.dtype(name if name in PLAIN else "float32")
        model = Blip2Stage2(sizes, dtype)
        params = flatten(jax.jit(functools.partial(init_params, model))(_key()))
        schemes = {}
        if name in SCHEMES:
            schemes = dict.fromkeys(("visual_encoder/", "language_model/"), name)
        stored = {
            path: quantize_parameter(path, params.pop(path).astype(dtype), schemes)
            for path in list(params)
        }
        self.params = unflatten(stored)
        self.megabytes = [
            _megabytes(stored, f"{tower}/")
            for tower in ("visual_encoder", "language_model")
        ]
        vision: Any = sizes.vision
        side = vision.image_size
        self._images = jnp.asarray(shared_inputs.images(ROWS, side, side, 3), dtype)
        self._encode = jax.jit(
            lambda p, x: model.bind({"params": p}).encode_image(x).astype(jnp.float32)
        )
        self._features = self._encode(self.params, self._images).astype(dtype)
        self._model = model
        self._weights = None
        if language_programs.should_unstack_weights(self.params):
            self._weights = language_programs.unstack_weights(model, self.params)

    def encode(self) -> float:
        """Encode the images; returns the seconds."""
        run = lambda: self._encode(self.params, self._images).block_until_ready()
        return harness.seconds(run)[0]

    def write(self) -> float:
        """Decode the tokens after the first; returns the seconds."""
        ids = jnp.full((ROWS, 4), 3, jnp.int32)
        logits, prefix = language_programs.prefill_language_model(
            self._model, self.params, self._features, ids, ids > 0, (), self._weights
        )
        logits.block_until_ready()
        decoding = DecodingConfig(
            num_beams=1, max_new_tokens=TOKENS, min_new_tokens=TOKENS
        )
        decode = lambda: np.asarray(
            decode_tokens(
                self._model,
                "language_model",
                self.params,
                logits,
                prefix,
                decoding,
                eos_id=2,
                pad_id=1,
                weights=self._weights,
            ).ids
        )
        return harness.seconds(decode)[0]


def _key() -> jax.Array:
    return jax.random.key(0)


def _megabytes(stored: dict[str, Any], prefix: str) -> float:
    """Return the size of the parameters of the blocks of a tower."""
    total = sum(
        leaf.size * (0.5 if leaf.dtype == jnp.int4 else leaf.dtype.itemsize)
        for path, parameter in stored.items()
        if path.startswith(prefix) and "/blocks/" in path
        for leaf in jax.tree.leaves(parameter)
    )
    return total / 1e6


if __name__ == "__main__":
    raise SystemExit(main())
