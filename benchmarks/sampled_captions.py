"""Time ten sampled captions an image: `python -m benchmarks.sampled_captions`.

BLIP-large's captioner with random weights, fp32, nucleus sampling as in CapFilt, 16 new
tokens each (none may end earlier), from pixels to texts. The peer is `generate` of
transformers' `BlipForConditionalGeneration` with `num_return_sequences` on the same
weights; torch and transformers must be installed. The two take turns in one process.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import blip2_jax
from benchmarks import harness
from blip2_jax.inference.blip_captioner import PROMPT
from blip2_jax.models.vision.vit import normalize_images

LENGTH = 20  # tokens, with the four of [DEC] and the prompt
WORDS = 30522


def main() -> int:
    """Time both and print a table."""
    parser = harness.arguments(__doc__ or "", rounds=3)
    parser.add_argument("--images", type=int, default=4, help="images of a batch")
    parser.add_argument("--captions", type=int, default=10, help="captions of an image")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        theirs = write_model(pathlib.Path(folder), options.tiny)
        ours = blip2_jax.load_captioner(folder, batch_size=options.images)
    contestants = {
        "blip2_jax": lambda images: ours.caption(
            images, options.captions, min_length=LENGTH
        ),
        "transformers": peer(theirs, ours.tokenizer, options.captions),
    }
    size = ours.model.config.vision.image_size
    shape = (options.images, size, size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    times = take_turns(contestants, images, options.rounds)
    base = times["blip2_jax"]
    rows = [
        [name, f"{taken:.2f}", f"{options.images / taken:.2f}", f"{taken / base:.2f}"]
        for name, taken in times.items()
    ]
    print(harness.table(["", "s", "images/s", "ratio to ours"], rows))
    return 0


def write_model(folder: pathlib.Path, tiny: bool) -> Any:
    """Write a random captioner with a tokenizer, and return transformers' model."""
    import torch
    import transformers

    large: dict[str, Any] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    }
    vision, text = large, {"num_attention_heads": 12}
    if tiny:
        vision = large | {"num_hidden_layers": 1, "image_size": 32}
        text["num_hidden_layers"] = 1
    config = transformers.BlipConfig(vision_config=vision, text_config=text)
    torch.manual_seed(0)
    model = transformers.BlipForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    words = [special.get(index, f"w{index}") for index in range(WORDS)]
    words[104:107] = PROMPT.split()
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = {"tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return model


def peer(model: Any, tokenizer: Any, captions: int) -> Callable[[np.ndarray], Any]:
    """Return a function that samples captions with transformers."""
    import torch

    ids = [tokenizer.cls_id, *tokenizer.encode_words(PROMPT), tokenizer.sep_id]

    def caption(images: Any) -> list[str]:
        pixels = np.array(normalize_images(images, "clip")).transpose(0, 3, 1, 2)
        output = model.generate(
            torch.tensor(pixels),
            torch.tensor([ids] * len(images)),
            do_sample=True,
            top_k=50,
            top_p=0.9,
            repetition_penalty=1.1,
            max_length=LENGTH,
            min_length=LENGTH,
            num_return_sequences=captions,
        )
        return [tokenizer.decode(row) for row in output.numpy()]

    return caption


def take_turns(
    contestants: dict[str, Callable[[np.ndarray], Any]],
    images: np.ndarray,
    rounds: int,
) -> dict[str, float]:
    """Return the median seconds of every contestant, after a turn to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, caption in contestants.items():
            start = time.perf_counter()
            caption(images)
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


if __name__ == "__main__":
    sys.exit(main())
