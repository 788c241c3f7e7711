"""KerasHub's BLIP-2 on JAX as contestants in their own process.

`--keras_python` names an interpreter with keras-hub, jax and safetensors. The language
model is OPT. KerasHub's model reads images; `tower` replaces its image encoder, so that
it reads features.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import keras
import keras_hub
import numpy as np
import safetensors.numpy
from keras_hub.src.utils.transformers import convert_blip2

from benchmarks import harness, shared_inputs

CHANNELS = 3


def main() -> None:
    """Serve one of the contestants below."""
    harness.serve({"training": Training, "generation": Generation})


class Peer:
    """Base of the contestants in KerasHub."""

    def versions(self) -> str:
        """Return the versions of its libraries."""
        import jax  # noqa: F401

        return harness.versions("keras_hub", "keras", "jax")


class Training(Peer):
    """`train_on_batch` of Keras, a jitted step of AdamW, on `BLIP2Backbone`.

    `BLIP2CausalLM` drops the positions of the queries before it computes logits, so
    that it does not learn the first token of a text. The model here has its head, the
    tied embedding, at the positions that predict the text, as in the other contestants.
    """

    def __init__(
        self, sizes: dict[str, Any], rows: int, text: int, weights: str
    ) -> None:
        """Build the model; arguments as ours, and a file of weights."""
        backbone = load_backbone(sizes, weights)
        freeze_opt(backbone.language_model)
        start = sizes["qformer"]["num_queries"] - 1
        predicting = backbone(backbone.input)[:, start:-1, :]
        logits = backbone.token_embedding(predicting, reverse=True)
        self.model = keras.Model(backbone.input, logits)
        optimizer = keras.optimizers.AdamW(
            1e-4, weight_decay=0.05, beta_2=0.98, epsilon=1e-8
        )
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(optimizer=optimizer, loss=loss)
        language = sizes["language_model"]
        words, first = language["vocab_size"], [language["bos_id"]]
        ids = shared_inputs.ids("text", rows, text, words, first).astype(np.int32)
        self._batch = inputs(sizes["vision"], ids), ids

    def step(self) -> float:
        """Run one step; returns its seconds."""
        return harness.seconds(self._step)[0]

    def compare(self) -> dict[str, Any]:
        """Run one step; returns its loss."""
        return {"loss": self._step(), "negatives": None}

    def _step(self) -> float:
        self.model.reset_metrics()  # the loss is a mean since the last reset
        return float(self.model.train_on_batch(*self._batch))  # waits for the device


class Generation(Peer):
    """`BLIP2CausalLM.generate`."""

    def __init__(
        self,
        sizes: dict[str, Any],
        rows: int,
        prompt: Sequence[int],
        beams: int,
        tokens: int,
        weights: str,
    ) -> None:
        """Build the model; arguments as ours, and a file of weights."""
        samplers = keras_hub.samplers
        sampler = samplers.BeamSampler(beams) if beams > 1 else samplers.GreedySampler()
        backbone = load_backbone(sizes, weights)
        self.model = keras_hub.models.BLIP2CausalLM(None, backbone)
        self.model.compile(sampler=sampler)
        ids = np.zeros((rows, len(prompt) + tokens), np.int32)
        ids[:, : len(prompt)] = prompt
        mask = np.zeros_like(ids)
        mask[:, : len(prompt)] = 1
        self._inputs = inputs(sizes["vision"], ids, mask)
        self._tokens = tokens

    def generate(self) -> float:
        """Generate from features; returns the seconds."""
        return harness.seconds(self._run)[0]

    def ids(self) -> list[list[int]]:
        """Return the generated ids after the prompt."""
        return self._run()[:, -self._tokens :].tolist()

    def _run(self) -> np.ndarray:
        outputs = self.model.generate(dict(self._inputs), stop_token_ids=None)
        return np.asarray(outputs["token_ids"])


def load_backbone(sizes: dict[str, Any], weights: str) -> Any:
    """Build the model of these sizes with weights under the names of transformers.

    KerasHub's converter knows these names, but not `tower`.

    Raises:
      SystemExit: the file has weights that the model lacks.
    """
    vision, reader = sizes["vision"], sizes["qformer"]
    language = sizes["language_model"]
    qformer = keras_hub.models.BLIP2QFormer(
        num_query_tokens=reader["num_queries"],
        num_layers=reader["depth"],
        num_heads=reader["heads"],
        hidden_dim=reader["width"],
        intermediate_dim=reader["mlp_dim"],
        vision_dim=vision["width"],
        cross_attention_frequency=2,
        dropout=reader["dropout"],
        layer_norm_epsilon=1e-12,
    )
    opt = keras_hub.models.BLIP2CustomOPT(
        vocabulary_size=language["vocab_size"],
        num_layers=language["depth"],
        num_heads=language["heads"],
        hidden_dim=language["width"],
        intermediate_dim=language["mlp_dim"],
        num_query_tokens=reader["num_queries"],
        dropout=language["dropout"],
        max_sequence_length=language["max_positions"],
        qformer_hidden_dim=reader["width"],
    )
    encoder = tower(vision["num_tokens"], vision["width"])
    backbone = keras_hub.models.BLIP2Backbone(encoder, qformer, opt)
    source = Source(weights)
    convert_blip2._convert_qformer_weights(qformer, source)
    convert_blip2._convert_projection_weights(opt.language_projection, source)
    convert_blip2._convert_opt_weights(opt, source)
    norm = encoder.get_layer("post_layernorm")
    for variable, name in ((norm.gamma, "weight"), (norm.beta, "bias")):
        source.port_weight(variable, f"vision_model.post_layernorm.{name}")
    if source.unused:
        raise SystemExit(f"unknown weights: {sorted(source.unused)}")
    return backbone


class Source:
    """A file of weights in the form that KerasHub's converter reads."""

    def __init__(self, file: str) -> None:
        self.unused = safetensors.numpy.load_file(file)
        del self.unused["language_model.lm_head.weight"]  # the token embedding again

    def port_weight(
        self,
        keras_variable: Any,
        hf_weight_key: str,
        hook_fn: Callable[[np.ndarray, list[int]], np.ndarray] | None = None,
    ) -> None:
        """Assign the array `hf_weight_key`, changed by the hook."""
        array = self.unused.pop(hf_weight_key)
        if hook_fn:
            array = hook_fn(array, list(keras_variable.shape))
        keras_variable.assign(array)


def tower(tokens: int, width: int) -> Any:
    """Make an image encoder whose "image" holds features: `as_image`, then a norm."""
    columns = -(-width // CHANNELS)
    image = keras.Input((tokens, columns, CHANNELS))
    features = keras.layers.Reshape((tokens, columns * CHANNELS))(image)
    norm = keras.layers.LayerNormalization(epsilon=1e-5, name="post_layernorm")
    model = keras.Model(image, norm(features[:, :, :width]))
    model.image_size = (tokens, columns)
    return model


def as_image(features: np.ndarray) -> np.ndarray:
    """Lay features [B, P, D] out as an image [B, P, D/3 rounded up, 3]."""
    rows, tokens, width = features.shape
    padded = np.pad(features, ((0, 0), (0, 0), (0, -width % CHANNELS)))
    return padded.reshape(rows, tokens, -1, CHANNELS)


def inputs(
    vision: dict[str, Any], ids: np.ndarray, mask: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return the model's inputs for token ids [B, T]; without a mask all count."""
    features = shared_inputs.images(len(ids), vision["num_tokens"], vision["width"])
    return {
        "images": as_image(features),
        "token_ids": ids,
        "padding_mask": np.ones_like(ids) if mask is None else mask,
    }


def freeze_opt(opt: Any) -> None:
    """Freeze the language model, but not the projection, which is one of its layers."""
    for layer in (opt.embeddings_layer, *opt.transformer_layers, opt.layer_norm):
        layer.trainable = False


if __name__ == "__main__":
    main()
