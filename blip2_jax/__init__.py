"""BLIP-2 (Li et al., 2023) in JAX: train it, evaluate it, use it.

Dimension letters, the same in every annotation, comment and einsum:

  B batch     P patches   Q queries     T text tokens   S keys
  D width     H heads     K head width  V vocabulary    C contrastive width
  L layers    W beams     N new tokens

Public: `load`, `Blip2`, `presets`. They are imported when first asked for, so that
`import blip2_jax` costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Blip2", "__version__", "load", "presets"]


def __getattr__(name: str) -> Any:
    modules = {"Blip2": "blip2_jax.inference.model", "load": "blip2_jax.inference.load"}
    if name in modules:
        return getattr(importlib.import_module(modules[name]), name)
    if name == "presets":
        return importlib.import_module("blip2_jax.models.presets")
    raise AttributeError(f"module 'blip2_jax' has no attribute {name!r}")
