"""BLIP-2 (Li et al., 2023) in JAX: train it, evaluate it, use it.

Dimension letters have the same meaning in every annotation, comment and einsum:

  B batch               D width                   L layers
  P image tokens        E embedding width of a    W beams
  Q queries               language model          N new tokens, targets included
  T text tokens         F feed-forward width      M slots of the KV cache
  S sequence positions  H heads                   R image side in pixels
    (keys of attention) K head width              V vocabulary
  C contrastive width

A dimension with a lower-case name is local, as in "height width 3". `einsum` subscripts
use the same letters in lower case.

Public: `load`, `example_image`, `presets`, and the classes `Blip2`, `Blip2Retriever`
(stage 1) and `Blip2Generator` (stage 2). `load_captioner` and `load_clip` open the two
models of CapFilt, a `BlipCaptioner` and a `ClipScorer`. `ImageIndex` searches images by
text. They are imported on first use, so that `import blip2_jax` is fast.
"""

import importlib
import os
from typing import Any

# transformers reports at its import that PyTorch is not installed; not needed here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.1.0"
__all__ = [
    "Blip2",
    "Blip2Generator",
    "Blip2Retriever",
    "BlipCaptioner",
    "ClipScorer",
    "ImageIndex",
    "__version__",
    "example_image",
    "load",
    "load_captioner",
    "load_clip",
    "presets",
]

_MODULES = {
    "Blip2": "blip2_jax.inference.model",
    "Blip2Generator": "blip2_jax.inference.generator",
    "Blip2Retriever": "blip2_jax.inference.retriever",
    "BlipCaptioner": "blip2_jax.inference.blip_captioner",
    "ClipScorer": "blip2_jax.inference.clip_scorer",
    "ImageIndex": "blip2_jax.inference.image_index",
    "example_image": "blip2_jax.inference.example_images",
    "load": "blip2_jax.inference.load",
    "load_captioner": "blip2_jax.inference.load_capfilt",
    "load_clip": "blip2_jax.inference.load_capfilt",
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name == "presets":
        return importlib.import_module("blip2_jax.models.presets")
    raise AttributeError(f"module 'blip2_jax' has no attribute {name!r}")
