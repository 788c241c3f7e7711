"""BLIP-2 (Li et al., 2023) in JAX: train it, evaluate it, use it.

Dimension letters, the same in every annotation, comment and einsum:

  B batch     P patches   Q queries     T text tokens   S keys
  D width     H heads     K head width  V vocabulary    C contrastive width
  L layers    W beams     N new tokens  M cache slots   R results per row
  E language model width  G side of the patch grid

Lower-case letters and words are sizes that one function alone uses.

Public: `load`, `presets`, and the classes `Blip2`, `Blip2Retriever` (stage 1) and
`Blip2Generator` (stage 2). They are imported on first use, so that `import blip2_jax`
is fast.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "Blip2",
    "Blip2Generator",
    "Blip2Retriever",
    "__version__",
    "load",
    "presets",
]

_MODULES = {
    "Blip2": "blip2_jax.inference.model",
    "Blip2Generator": "blip2_jax.inference.generator",
    "Blip2Retriever": "blip2_jax.inference.retriever",
    "load": "blip2_jax.inference.load",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name == "presets":
        return importlib.import_module("blip2_jax.models.presets")
    raise AttributeError(f"module 'blip2_jax' has no attribute {name!r}")
