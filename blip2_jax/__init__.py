"""BLIP-2 (Li et al., 2023) in JAX: train it, evaluate it, use it.

Dimension letters, the same in every annotation, comment and einsum:

  B batch     P patches   Q queries     T text tokens   S keys
  D width     H heads     K head width  V vocabulary    C contrastive width
  L layers    W beams     N new tokens
"""

__version__ = "0.1.0"
