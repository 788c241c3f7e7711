"""Ranges of the numbers in a configuration, and checks of its patterns."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict


class Range(NamedTuple):
    """The finite numbers from `low` to `high`.

    Attributes:
      rule: what a number must do, for messages: "be 1 or more".
      low: the smallest number.
      high: the largest number.
      excluded: an end that does not belong to the range.
    """

    rule: str
    low: float
    high: float = math.inf
    excluded: float | None = None

    def contains(self, value: float) -> bool:
        """Return True if a number is in the range; False for NaN and infinity."""
        in_range = self.low <= value <= self.high
        return in_range and value not in (self.excluded, math.inf)


_POSITIVE = Range("be above 0", 0, excluded=0)
_NOT_NEGATIVE = Range("not be negative", 0)
_COUNT = Range("be 1 or more", 1)
_INT32_COUNT = Range(f"be 1 or more and below {2**31}", 1, 2**31 - 1)
_SHARE = Range("be in 0 .. 1", 0, 1)
_NOT_ZERO_SHARE = Range("be above 0 and at most 1", 0, 1, excluded=0)
_BELOW_ONE = Range("be at least 0 and below 1", 0, 1, excluded=1)

# By key of the configuration.
RANGES = {
    "seed": Range("fit into 64 bits", -(2**63), 2**63 - 1),
    "steps": _INT32_COUNT,  # as on devices
    "batch_size": _INT32_COUNT,
    "log_every": _COUNT,
    "lora.rank": _NOT_NEGATIVE,
    "lora.alpha": _POSITIVE,
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.warmup_steps": _NOT_NEGATIVE,
    "optimizer.warmup_start_learning_rate": _NOT_NEGATIVE,
    "optimizer.final_learning_rate": _NOT_NEGATIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.b1": _BELOW_ONE,
    "optimizer.b2": _BELOW_ONE,
    "optimizer.eps": _POSITIVE,
    "optimizer.clip": _NOT_NEGATIVE,
    "optimizer.layer_decay": _NOT_ZERO_SHARE,
    "optimizer.accumulate": _COUNT,
    "data.max_text_length": Range("be 3 or more: start, a word, end", 3),
    "data.max_target_length": _NOT_NEGATIVE,
    "data.workers": _NOT_NEGATIVE,
    "data.prefetch": _NOT_NEGATIVE,
    "data.max_broken_share": _SHARE,
    "data.question_share": _SHARE,
    "data.context_share": _SHARE,
    "data.image.size": _COUNT,
    "data.image.min_scale": _NOT_ZERO_SHARE,
    "data.image.flip": _SHARE,
    "data.image.monochrome": _SHARE,
    "checkpoint.every": _COUNT,
    "checkpoint.keep": _COUNT,
    "evaluation.every": _NOT_NEGATIVE,
    "evaluation.batch_size": _COUNT,
    "evaluation.max_examples": _NOT_NEGATIVE,
    "evaluation.max_new_tokens": _COUNT,
    "evaluation.num_beams": _COUNT,
    "evaluation.rerank": _NOT_NEGATIVE,
}
_OPTIONS = ("model.overrides.", "objective.")
# By the last part of a key that begins with one of these.
_OPTION_RANGES = {
    "dropout": _BELOW_ONE,
    "label_smoothing": _BELOW_ONE,
    "initial_std": _POSITIVE,
    "layer_norm_eps": _POSITIVE,
    "ln_vision_eps": _POSITIVE,
    **dict.fromkeys(("rope_theta", "rope_factor", "logits_divisor"), _POSITIVE),
    "negative_hardness": _NOT_NEGATIVE,
    "image_tokens": _NOT_NEGATIVE,
    "num_registers": _NOT_NEGATIVE,
    **dict.fromkeys(("itc_weight", "itm_weight", "itg_weight"), _NOT_NEGATIVE),
    **dict.fromkeys(
        (
            *("width", "depth", "heads", "kv_heads", "mlp_dim", "head_width"),
            *("embed_width", "rope_original_positions"),
            *("image_size", "patch_size", "num_tokens", "decoder_depth"),
            *("num_queries", "cross_attention_every", "projection_dim", "vocab_size"),
            *("max_positions", "relative_buckets", "relative_max_distance"),
            *("num_shards", "itm_every", "itg_every"),
        ),
        _COUNT,
    ),
}


def wrong_values(config: ConfigDict) -> Iterator[str]:
    """Yield a message for every number outside its range and every wrong pattern."""
    # A key that an experiment left out has a valid default.
    values = dict(_leaves(config, ""))
    for key, allowed in RANGES.items():
        if key in values:
            yield from _outside(key, values[key], allowed)
    for key, value in values.items():
        if key.startswith(_OPTIONS) and value is not None:
            allowed_option = _OPTION_RANGES.get(key.rpartition(".")[2])
            if allowed_option is not None:
                yield from _outside(key, value, allowed_option)
    for key in ("frozen", "carried", "lora.targets"):
        for pattern in values.get(key, ()):
            yield from _wrong_pattern(key, pattern)
    for pair in config.optimizer.rate_factors:
        yield from _wrong_rate_factor(pair)


def _outside(key: str, value: Any, allowed: Range) -> Iterator[str]:
    """Yield a message if a value is not a number in a range."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        yield f"config.{key} is {value!r}, not a number; it must {allowed.rule}"
    elif not allowed.contains(value):
        yield f"config.{key} is {value}; it must {allowed.rule}"


def _wrong_pattern(key: str, pattern: Any) -> Iterator[str]:
    """Yield a message if a pattern is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        yield f"config.{key} has {pattern!r}, which is no regular expression: {error}"


def _wrong_rate_factor(pair: Any) -> Iterator[str]:
    """Yield a message if an entry of `rate_factors` is no pattern with a factor."""
    key = "optimizer.rate_factors"
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        yield f"config.{key} has {pair!r}; it must be a pair (pattern, factor)"
    else:
        yield from _wrong_pattern(key, pair[0])
        yield from _outside(key, pair[1], _NOT_NEGATIVE)


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values of nested mappings."""
    if isinstance(value, Mapping | ConfigDict):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), value
