"""Greedy decoding, sampling and beam search over static KV caches."""

from blip2_jax.generation.decode import decode
from blip2_jax.generation.decoder import Decoded, Decoder, visible_slots
from blip2_jax.generation.decoding_config import (
    ANSWER_DEFAULTS,
    CAPTION_DEFAULTS,
    DecodingConfig,
)
from blip2_jax.generation.lavis_defaults import from_lavis_lengths, lavis_defaults

__all__ = [
    "ANSWER_DEFAULTS",
    "CAPTION_DEFAULTS",
    "Decoded",
    "Decoder",
    "DecodingConfig",
    "decode",
    "from_lavis_lengths",
    "lavis_defaults",
    "visible_slots",
]
