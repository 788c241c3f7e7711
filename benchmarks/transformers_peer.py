"""Current transformers in the benchmarks, as a process of its own.

`--torch_python` names an interpreter with torch and transformers 5. The features of an
image tower are given, so that a norm stands in the tower's place.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import given
import harness
import safetensors.torch
import torch
import transformers


def main() -> None:
    """Serve the contestant below."""
    harness.serve({"generation": Generation})


class Tower(torch.nn.Module):
    """The norm behind an image tower."""

    def __init__(self, width: int):
        super().__init__()
        self.post_layernorm = torch.nn.LayerNorm(width, eps=1e-5)

    def forward(self, features: torch.Tensor, **_: Any) -> Any:
        """As a tower returns it."""
        return types.SimpleNamespace(last_hidden_state=self.post_layernorm(features))


class Generation:
    """`Blip2ForConditionalGeneration.generate`."""

    def __init__(
        self, sizes: dict[str, Any], rows: int, prompt: Sequence[int], beams: int,
        tokens: int, weights: str,
    ) -> None:  # fmt: skip
        """Arguments as ours, and a file of weights under this model's names."""
        vision, language = sizes["vision"], sizes["language_model"]
        config = configuration(sizes)
        model = transformers.Blip2ForConditionalGeneration(config)
        model.vision_model = Tower(vision["width"])
        arrays = safetensors.torch.load_file(weights)
        lacking, unknown = model.load_state_dict(arrays, strict=False)
        if unknown or any("position_ids" not in name for name in lacking):
            raise SystemExit(f"weights lack {lacking}; unknown are {unknown}")
        self.model = model.eval()
        queries = [config.image_token_index] * sizes["qformer"]["num_queries"]
        ids = torch.tensor([[*queries, *prompt]] * rows)
        self._given = {
            "pixel_values": torch.from_numpy(
                given.images(rows, vision["num_tokens"], vision["width"])
            ),
            "input_ids": ids, "attention_mask": torch.ones_like(ids),
        }  # fmt: skip
        self._how = {
            "num_beams": beams, "max_new_tokens": tokens, "min_new_tokens": tokens,
            "do_sample": False, "eos_token_id": language["vocab_size"] - 1,
        }  # fmt: skip
        self._tokens = tokens

    def versions(self) -> str:
        """Of what it runs on."""
        return harness.versions("transformers")

    def generate(self) -> float:
        """Seconds from features to ids."""
        return harness.seconds(self._run)[0]

    def ids(self) -> list[list[int]]:
        """What it writes behind the prompt."""
        return self._run()[:, -self._tokens :].tolist()

    @torch.no_grad()
    def _run(self) -> torch.Tensor:
        return self.model.generate(**self._given, **self._how)


def configuration(sizes: dict[str, Any]) -> Any:
    """Their configuration of these sizes; the image tower is one small block."""
    qformer, language = sizes["qformer"], sizes["language_model"]
    width = sizes["vision"]["width"]
    return transformers.Blip2Config(
        vision_config={
            "hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 1,
            "intermediate_size": 1, "image_size": 14, "patch_size": 14,
        },
        qformer_config={
            "hidden_size": qformer["width"], "num_hidden_layers": qformer["depth"],
            "num_attention_heads": qformer["heads"],
            "intermediate_size": qformer["mlp_dim"], "encoder_hidden_size": width,
            "vocab_size": qformer["vocab_size"],
        },
        text_config={
            "model_type": "opt", "hidden_size": language["width"],
            "word_embed_proj_dim": language["width"],
            "num_hidden_layers": language["depth"],
            "num_attention_heads": language["heads"], "ffn_dim": language["mlp_dim"],
            "vocab_size": language["vocab_size"],
            "max_position_embeddings": language["max_positions"],
        },
        num_query_tokens=qformer["num_queries"],
        image_token_index=language["vocab_size"] - 2,
    )  # fmt: skip


if __name__ == "__main__":
    main()
