"""Settings of text generation and their defaults for captions and answers.

All lengths count *new tokens*, including the end-of-sequence token. The field
`convention` selects the library whose beam search is reproduced, token for token:

`transformers5`  transformers 5 (default). The length penalty and the stopping test use
                 the number of new tokens. After the last step, the best candidates
                 are the results.
`original`       transformers 4.33, which the original LAVIS code uses. The start token
                 (a placeholder for OPT, the decoder's start token for T5, [DEC] for
                 the Q-Former) counts as a token. The stopping test assumes one more
                 token and considers all candidates, including those that have just
                 finished. Beams that are open after the last step join the finished
                 ones.

The conventions also differ in the tokens that the repetition penalty counts from the
start; see `repetition_history` in `blip2_jax/inference/language_programs.py`.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterator
from typing import Any

import numpy as np

from blip2_jax.data.dataclass_options import is_integer, replace_options

CONVENTIONS = ("transformers5", "original")
_INTEGERS = (
    "num_beams",
    "max_new_tokens",
    "min_new_tokens",
    "num_return_sequences",
    "top_k",
)
_NUMBERS = ("length_penalty", "repetition_penalty", "temperature", "top_p")
SMALLEST = 1e-6  # of divisors; in float32 a smaller one may be 0
_AT_LEAST = f"at least {SMALLEST:g}"


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """Static settings of one compiled decoding program.

    Attributes:
      num_beams: number of beams; 1 selects greedy decoding or sampling.
      max_new_tokens: maximum number of new tokens.
      min_new_tokens: minimum number of tokens before the end-of-sequence token.
      length_penalty: beam scores are divided by `length ** length_penalty`.
      repetition_penalty: factor that penalises tokens which already occurred. It
        applies to log-probabilities in beam search and to logits otherwise.
      early_stopping: when beam search stops for a row. False: when no open beam can
        improve on the results at its current length; True: as soon as there are
        `num_beams` results; "never": when no open beam can improve on the results at
        any length.
      num_return_sequences: number of results per row, best first. With `sample`, the
        results are independent draws.
      sample: sample tokens instead of taking the most likely one.
      temperature: divisor of the logits before sampling.
      top_k: sample among the `top_k` most likely tokens; 0 keeps all. Applied after
        `temperature`.
      top_p: sample among the fewest tokens with this total probability; 1 keeps all.
        Applied after `top_k`.
      convention: how lengths are counted; see the module docstring.

    Raises:
      ValueError: a value is out of range, or two settings exclude each other.
    """

    num_beams: int = 1
    max_new_tokens: int = 30
    min_new_tokens: int = 0
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return_sequences: int = 1
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    convention: str = "transformers5"

    def __post_init__(self) -> None:
        """Check the values."""
        for name, expected in self._wrong_types():
            raise ValueError(f"{name}={getattr(self, name)!r}: expected {expected}")
        for name, is_wrong, expected in self._checks():
            if is_wrong:
                value = getattr(self, name)
                raise ValueError(f"{name}={value!r}: expected {expected}")

    def _wrong_types(self) -> Iterator[tuple[str, str]]:
        """Yield the fields of another type, or that are not finite, and the type."""
        if not isinstance(self.sample, bool | np.bool_):
            yield "sample", "True or False"
        for name in _INTEGERS:
            if not is_integer(getattr(self, name)):
                yield name, "a whole number"
        for name in _NUMBERS:
            value = getattr(self, name)
            if not isinstance(value, numbers.Real) or not math.isfinite(value):
                yield name, "a finite number"

    def _checks(self) -> tuple[tuple[str, bool, str], ...]:
        """List the checks as (field, value is wrong, expected value)."""
        max_results = self.num_return_sequences if self.sample else self.num_beams
        conventions = " or ".join(CONVENTIONS)
        return (
            ("num_beams", self.num_beams < 1, "at least 1"),
            ("max_new_tokens", self.max_new_tokens < 1, "at least 1"),
            (
                "min_new_tokens",
                not 0 <= self.min_new_tokens <= self.max_new_tokens,
                f"0 to max_new_tokens ({self.max_new_tokens})",
            ),
            ("repetition_penalty", self.repetition_penalty < SMALLEST, _AT_LEAST),
            (
                "early_stopping",
                self.early_stopping not in (False, True, "never"),
                "False, True or 'never'",
            ),
            (
                "num_return_sequences",
                not 1 <= self.num_return_sequences <= max_results,
                f"1 to num_beams ({self.num_beams}), or any number with sample=True",
            ),
            ("sample", self.sample and self.num_beams > 1, "False with num_beams > 1"),
            ("temperature", self.temperature < SMALLEST, _AT_LEAST),
            ("top_k", self.top_k < 0, "0 (all tokens) or more"),
            ("top_p", not 0 < self.top_p <= 1, "a number in (0, 1]"),
            ("convention", self.convention not in CONVENTIONS, conventions),
        )

    @property
    def start_tokens(self) -> int:
        """Number of tokens that the convention counts before the first new token."""
        return 1 if self.convention == "original" else 0

    def replace(self, **settings: Any) -> DecodingConfig:
        """Return a copy with some fields changed; `sample=True` sets one beam.

        Args:
          **settings: new values of fields.

        Raises:
          ValueError: a name is not a field, or a value is out of range.
        """
        if settings.get("sample"):
            settings = {"num_beams": 1, **settings}
        return replace_options(self, settings, "decoding")


CAPTION_DEFAULTS = DecodingConfig(num_beams=5)
ANSWER_DEFAULTS = DecodingConfig(num_beams=5, max_new_tokens=10, length_penalty=-1.0)
