"""The authors' code (LAVIS) as contestants in their own process.

`--lavis` names a checkout, `--lavis_python` an interpreter with torch, transformers
4.33, timm, omegaconf, torchvision. `lavis_build` makes its models.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import harness, shared_inputs
from benchmarks.lavis_build import build, channels_first, image_shape, load, texts


def main() -> None:
    """Serve one of the contestants below."""
    harness.serve(
        {
            "training": Training,
            "generation": Generation,
            "reranking": Reranking,
            "images": Images,
        }
    )


class Peer:
    """Base of the original's contestants."""

    def versions(self) -> str:
        """Return the versions of its libraries."""
        import transformers  # noqa: F401

        return harness.versions("torch", "transformers")


class Training(Peer):
    """Forward, backward and AdamW as in the original's runner."""

    def __init__(
        self,
        lavis: str,
        sizes: dict[str, Any],
        rows: int,
        text: int,
        target: int = 0,
        precision: str = "float32",
        device: str = "cpu",
    ) -> None:
        """Build model and optimizer; arguments as ours.

        In bfloat16, frozen weights are stored in it, matmuls run in it (autocast), and
        the image tower and the Q-Former use torch's own attention (SDPA).
        """
        alone = torch.distributed
        alone.init_process_group("gloo", store=alone.HashStore(), rank=0, world_size=1)
        self.device, half = device, precision == "bfloat16"
        self.model = build(lavis, sizes, sizes["qformer"]["dropout"])
        self._autocast = lambda: torch.autocast(device, torch.bfloat16, enabled=half)
        if half:
            fused_attention()
            self.model.maybe_autocast = lambda *_, **__: self._autocast()
            for parameter in self.model.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.bfloat16()
        self.model.to(device)
        groups = self.model.get_optimizer_params(0.05)
        fused = {"fused": True} if device == "cuda" else {}
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), **fused)
        self.samples = samples(sizes, rows, text, target)
        self.samples["image"] = self.samples["image"].to(device)
        self.drawn: list[int] = []
        record_draws(self.drawn)

    def step(self) -> float:
        """Run one step; returns its seconds."""
        return harness.seconds(self._step)[0]

    def compare(self) -> dict[str, Any]:
        """Run one step; returns its loss and its negatives, images first."""
        self.drawn.clear()
        loss = self._step()
        half = len(self.drawn) // 2
        parts = [self.drawn[:half], self.drawn[half:]] if half else None
        return {"loss": loss, "negatives": parts}

    def device_peak(self) -> float:
        """Return the peak memory of the device in GB."""
        return harness.device_peak(torch.cuda.max_memory_allocated())

    def _step(self) -> float:
        with self._autocast():
            loss = self.model(self.samples)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()  # waits for the device


def fused_attention() -> None:
    """Use SDPA in the image tower and the Q-Former."""
    attend = torch.nn.functional.scaled_dot_product_attention
    tower = sys.modules["lavis.models.eva_vit"].Attention
    layer = sys.modules["lavis.models.blip2_models.Qformer"].BertSelfAttention

    def tower_forward(self: Any, x: torch.Tensor, rel_pos_bias: Any = None) -> Any:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        joined = torch.nn.functional.linear(x, self.qkv.weight, bias)
        parts = joined.unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        query, key, value = (part.transpose(1, 2) for part in parts)
        return self.proj(attend(query, key, value).transpose(1, 2).flatten(2))

    def layer_forward(
        self: Any,
        hidden: torch.Tensor,
        mask: Any = None,
        head_mask: Any = None,
        image: Any = None,
        image_mask: Any = None,
        past: Any = None,
        maps: Any = False,
    ) -> Any:
        source = hidden if image is None else image
        heads = (self.num_attention_heads, -1)
        split = lambda x: x.unflatten(-1, heads).transpose(1, 2)
        key, value = split(self.key(source)), split(self.value(source))
        if past is not None and image is None:
            key = torch.cat([past[0], key], dim=2)
            value = torch.cat([past[1], value], dim=2)
        query = split(self.query(hidden))
        seen = None if image is not None or mask is None else mask.to(query.dtype)
        rate = self.dropout.p if self.training else 0.0
        context = attend(query, key, value, attn_mask=seen, dropout_p=rate)
        return context.transpose(1, 2).flatten(2), (key, value)

    tower.forward, layer.forward = tower_forward, layer_forward


def samples(sizes: dict[str, Any], rows: int, text: int, target: int) -> dict[str, Any]:
    """Return the batch of `ours_training.batch` in the original's form."""
    language = sizes["language_model"]
    fields = {
        "image": channels_first(
            shared_inputs.images(rows, *image_shape(sizes["vision"]))
        )
    }
    if language is None:
        words = sizes["qformer"]["vocab_size"]
        return fields | {
            "text_input": texts(shared_inputs.ids("text", rows, text, words))
        }
    words = language["vocab_size"]
    if language["kind"] == "opt":
        ids = shared_inputs.ids("text", rows, text, words, [language["bos_id"]])
        return fields | {"text_input": texts(ids)}
    return fields | {
        "text_input": texts(shared_inputs.ids("text", rows, text, words)),
        "text_output": texts(shared_inputs.ids("target", rows, target, words)),
    }


def record_draws(drawn: list[int]) -> None:
    """Record the samples of every `torch.multinomial`."""
    draw = torch.multinomial

    def recording(*args: Any, **kwargs: Any) -> torch.Tensor:
        result = draw(*args, **kwargs)
        drawn.extend(result.flatten().tolist())
        return result

    torch.multinomial = recording


class Generation(Peer):
    """`Blip2OPT.generate`."""

    def __init__(
        self,
        lavis: str,
        sizes: dict[str, Any],
        rows: int,
        prompt: Sequence[int],
        beams: int,
        tokens: int,
    ) -> None:
        """Build the model; arguments as ours. Its lengths count the start token."""
        self.model = build(lavis, sizes, 0.0).eval()
        images = shared_inputs.images(rows, *image_shape(sizes["vision"]))
        self.samples = {
            "image": channels_first(images),
            "prompt": " ".join(map(str, prompt)),
        }
        self.how = {
            "num_beams": beams,
            "max_length": tokens + 1,
            "min_length": tokens + 1,
        }

    def generate(self) -> float:
        """Generate from features; returns the seconds."""
        return harness.seconds(self._run)[0]

    def ids(self) -> list[list[int]]:
        """Return the generated ids without the start token."""
        return [[int(n) for n in text.split()][1:] for text in self._run()]

    def _run(self) -> list[str]:
        return self.model.generate(self.samples, **self.how)


class Reranking(Peer):
    """`compute_itm` over repeated features, as its `compute_sim_matrix` calls it."""

    def __init__(
        self, lavis: str, sizes: dict[str, Any], count: int, texts: int, text: int
    ) -> None:
        """Build the model; arguments as ours."""
        self.model = build(lavis, sizes, 0.0).eval()
        features = shared_inputs.images(count, *image_shape(sizes["vision"]))
        with torch.no_grad():
            self.features = self.model.ln_vision(torch.from_numpy(features))
        words = sizes["qformer"]["vocab_size"]
        self.ids = torch.from_numpy(shared_inputs.ids("text", texts, text, words))

    def rerank(self) -> float:
        """Score every image with every text; returns the seconds."""
        return harness.seconds(self._scores)[0]

    def scores(self) -> list[list[float]]:
        """Return the logits of a match."""
        return torch.stack(self._scores()).tolist()

    @torch.no_grad()
    def _scores(self) -> list[torch.Tensor]:
        return [
            self.model.compute_itm(
                image_inputs=features.repeat(len(self.ids), 1, 1),
                text_ids=self.ids,
                text_atts=torch.ones_like(self.ids),
            )
            for features in self.features
        ]


class Images(Peer):
    """The original's training transform in a torch DataLoader, on one core."""

    def __init__(self, lavis: str, tars: Sequence[str], count: int, size: int):
        """Read the photos' bytes."""
        module = load(lavis, "lavis.processors.blip_processors")
        transform = module.Blip2ImageTrainProcessor(image_size=size)
        self._photos = Photos(harness.photos(tars, count), transform)

    def versions(self) -> str:
        """Return the versions of the libraries that decode and resize."""
        import PIL
        import torchvision

        return harness.versions("torch", torchvision.__name__, PIL.__name__)

    def load(self, rows: int = 8) -> float:
        """Load all photos in batches; returns the seconds."""
        return harness.seconds(lambda: self._load(rows))[0]

    def _load(self, rows: int) -> None:
        for _ in torch.utils.data.DataLoader(self._photos, batch_size=rows):
            pass


class Photos(torch.utils.data.Dataset):
    """Encoded photos, decoded as in the original's datasets."""

    def __init__(self, files: Sequence[tuple[str, bytes]], transform: Any):
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        from PIL import Image

        image = Image.open(io.BytesIO(self.files[index][1])).convert("RGB")
        return self.transform(image)


if __name__ == "__main__":
    main()
