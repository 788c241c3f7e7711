"""Current transformers as contestants in their own process.

`--torch_python` names an interpreter with torch and transformers 5. In generation the
input is features, so that a norm replaces the image tower.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import safetensors.torch
import torch
import transformers

from benchmarks import harness, shared_inputs


def main() -> None:
    """Serve one of the contestants below."""
    harness.serve({"generation": Generation, "training": Training})


class Tower(torch.nn.Module):
    """The norm after an image tower."""

    def __init__(self, width: int):
        super().__init__()
        self.post_layernorm = torch.nn.LayerNorm(width, eps=1e-5)

    def forward(self, features: torch.Tensor, **_: Any) -> Any:
        """Return the output in the form of an image tower."""
        return types.SimpleNamespace(last_hidden_state=self.post_layernorm(features))


class Peer:
    """Base of the contestants in transformers."""

    def versions(self) -> str:
        """Return the versions of its libraries."""
        return harness.versions("torch", "transformers")


class Generation(Peer):
    """`Blip2ForConditionalGeneration.generate`."""

    def __init__(
        self,
        sizes: dict[str, Any],
        rows: int,
        prompt: Sequence[int],
        beams: int,
        tokens: int,
        weights: str,
    ) -> None:
        """Build the model; `weights` is a file with this model's names."""
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
        self._inputs = {
            "pixel_values": torch.from_numpy(
                shared_inputs.images(rows, vision["num_tokens"], vision["width"])
            ),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
        }
        self.module_kwargs = {
            "num_beams": beams,
            "max_new_tokens": tokens,
            "min_new_tokens": tokens,
            "do_sample": False,
            "eos_token_id": language["vocab_size"] - 1,
        }
        self._tokens = tokens

    def generate(self) -> float:
        """Generate from features; returns the seconds."""
        return harness.seconds(self._run)[0]

    def ids(self) -> list[list[int]]:
        """Return the generated ids after the prompt."""
        return self._run()[:, -self._tokens :].tolist()

    @torch.no_grad()
    def _run(self) -> torch.Tensor:
        return self.model.generate(**self._inputs, **self.module_kwargs)


class Training(Peer):
    """A step of stage 2 in bfloat16 with SDPA, on random weights."""

    def __init__(
        self, sizes: dict[str, Any], rows: int, text: int, target: int, device: str
    ) -> None:
        """Build the model: frozen weights in bfloat16, others in float32."""
        vision, language = sizes["vision"], sizes["language_model"]
        config = configuration(sizes)
        with torch.device(device):
            model = transformers.Blip2ForConditionalGeneration._from_config(
                config, attn_implementation="sdpa"
            )
        for part in (model.vision_model, model.language_model):
            part.requires_grad_(False).to(torch.bfloat16)
        model.vision_model.post_layernorm.requires_grad_(True).float()
        self.model, self.device = model.train(), device
        model.vision_model.eval()
        model.language_model.eval()
        trained = [each for each in model.parameters() if each.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained,
            lr=1e-4,
            betas=(0.9, 0.98),
            weight_decay=0.05,
            fused=device == "cuda",
        )
        words, size = language["vocab_size"], vision["image_size"]
        ids = torch.from_numpy(shared_inputs.ids("text", rows, text, words))
        queries = torch.full(
            (rows, sizes["qformer"]["num_queries"]), config.image_token_index
        )
        labels = torch.cat([torch.full_like(queries, -100), ids], dim=1)
        if target:
            labels = torch.from_numpy(shared_inputs.ids("target", rows, target, words))
        ids = torch.cat([queries, ids], dim=1)
        pixels = torch.from_numpy(shared_inputs.images(rows, size, size, 3))
        self._inputs = {
            "pixel_values": pixels.permute(0, 3, 1, 2).contiguous().to(device),
            "input_ids": ids.to(device),
            "labels": labels.to(device),
            "attention_mask": torch.ones_like(ids).to(device),
        }

    def step(self) -> float:
        """Run one step; returns its seconds."""
        return harness.seconds(self._step)[0]

    def device_peak(self) -> float:
        """Return the peak memory of the device in GB."""
        return harness.device_peak(torch.cuda.max_memory_allocated())

    def _step(self) -> float:
        with torch.autocast(self.device, torch.bfloat16):
            loss = self.model(**self._inputs).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()  # waits for the device


def configuration(sizes: dict[str, Any]) -> Any:
    """Return the configuration of these sizes; for features the tower is one block."""
    vision, qformer = sizes["vision"], sizes["qformer"]
    language = sizes["language_model"]
    tower = {
        "hidden_size": vision["width"],
        "num_hidden_layers": vision.get("depth", 1),
        "num_attention_heads": vision.get("heads", 1),
        "intermediate_size": vision.get("mlp_dim", 1),
        "image_size": vision.get("image_size", 14),
        "patch_size": vision.get("patch_size", 14),
        "layer_norm_eps": 1e-6,
    }
    reader = {
        "hidden_size": qformer["width"],
        "num_hidden_layers": qformer["depth"],
        "num_attention_heads": qformer["heads"],
        "intermediate_size": qformer["mlp_dim"],
        "encoder_hidden_size": vision["width"],
        "vocab_size": qformer["vocab_size"],
    }
    return transformers.Blip2Config(
        vision_config=tower,
        qformer_config=reader,
        text_config=text_configuration(language),
        num_query_tokens=qformer["num_queries"],
        image_token_index=language["vocab_size"] - 2,
    )


def text_configuration(language: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the language model."""
    width, depth, heads = (language[name] for name in ("width", "depth", "heads"))
    words = {"vocab_size": language["vocab_size"]}
    if language["kind"] == "opt":
        return words | {
            "model_type": "opt",
            "hidden_size": width,
            "word_embed_proj_dim": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "ffn_dim": language["mlp_dim"],
            "max_position_embeddings": language["max_positions"],
        }
    return words | {
        "model_type": "t5",
        "d_model": width,
        "num_layers": depth,
        "num_heads": heads,
        "d_ff": language["mlp_dim"],
        "d_kv": language["head_width"],
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    }


if __name__ == "__main__":
    main()
