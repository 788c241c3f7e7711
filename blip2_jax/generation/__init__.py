"""Greedy decoding, sampling and beam search over static caches."""

from blip2_jax.generation.decode import decode
from blip2_jax.generation.decoder import Decoded, Decoder, visible_slots
from blip2_jax.generation.decoding_config import (
    ANSWER,
    CAPTION,
    NOCAPS,
    NUCLEUS,
    DecodingConfig,
    authors,
    original,
)

__all__ = [
    "ANSWER",
    "CAPTION",
    "NOCAPS",
    "NUCLEUS",
    "Decoded",
    "Decoder",
    "DecodingConfig",
    "authors",
    "decode",
    "original",
    "visible_slots",
]
