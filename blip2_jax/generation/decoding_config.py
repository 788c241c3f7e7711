"""How to decode: one frozen dataclass, and the settings of published evaluations.

Lengths are counted in *new tokens*, the end-of-sequence token included. Two
libraries count differently around beam search; which one to equal, id for id, is
the field `convention`:

`transformers5`  transformers 5: the length in the length penalty and in the stopping
                 test is the number of new tokens, and at the last step the best
                 candidates are the results. Default.
`original`       transformers 4.33, as the BLIP-2 authors' code uses it: the start
                 token (a placeholder for OPT, the decoder's start token for T5,
                 [DEC] for the Q-Former) counts as a token. The stopping test looks
                 one token further and at all candidates, finished ones included;
                 beams still open at the last step join the finished ones.

The two differ in the repetition penalty's history too: `start_history` in
`programs.py` builds it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from blip2_jax.data.dataclass_options import replace_options

CONVENTIONS = ("transformers5", "original")


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """Static settings of one compiled decoding program.

    Attributes:
      num_beams: 1 is greedy (or sampling), more is beam search.
      max_new_tokens: the most tokens a result has, end of sequence included.
      min_new_tokens: the end of sequence may not come before so many tokens.
      length_penalty: beam scores are sum of log-probabilities / length ** this.
      repetition_penalty: scores of tokens that were there already are divided by
        this (multiplied where negative); log-probabilities for beams, logits else.
      early_stopping: False: a row stops when no open beam can do better at its
        present length; True: as soon as `num_beams` results are there; "never":
        when no open beam can do better at any length.
      num_return_sequences: results per row, best first; with `sample` independent
        draws.
      sample: draw tokens instead of taking the best one; needs a key.
      temperature, top_k, top_p: shape what is sampled from, in this order; top_k 0
        and top_p 1 keep everything.
      convention: how lengths count, see above.

    Raises:
      ValueError: settings that exclude each other or are out of range.
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
        for name, wrong, expected in self._rules():
            if wrong:
                given = getattr(self, name)
                raise ValueError(f"{name}={given!r}: expected {expected}")

    def _rules(self) -> tuple[tuple[str, bool, str], ...]:
        most = self.num_beams if not self.sample else self.num_return_sequences
        return (
            ("num_beams", self.num_beams < 1, "at least 1"),
            ("max_new_tokens", self.max_new_tokens < 1, "at least 1"),
            (
                "min_new_tokens",
                not 0 <= self.min_new_tokens <= self.max_new_tokens,
                f"0 to max_new_tokens ({self.max_new_tokens})",
            ),
            ("repetition_penalty", self.repetition_penalty <= 0, "a number above 0"),
            (
                "early_stopping",
                self.early_stopping not in (False, True, "never"),
                "False, True or 'never'",
            ),
            (
                "num_return_sequences",
                not 1 <= self.num_return_sequences <= most,
                f"1 to num_beams ({self.num_beams}), or any number with sample=True",
            ),
            ("sample", self.sample and self.num_beams > 1, "False with num_beams > 1"),
            ("temperature", self.temperature <= 0, "a number above 0"),
            ("top_k", self.top_k < 0, "0 (all tokens) or more"),
            ("top_p", not 0 < self.top_p <= 1, "a number in (0, 1]"),
            (
                "convention",
                self.convention not in CONVENTIONS,
                " or ".join(CONVENTIONS),
            ),
        )

    @property
    def start_tokens(self) -> int:
        """How many tokens the convention counts before the first new one."""
        return 1 if self.convention == "original" else 0


def original(
    max_length: int, min_length: int = 1, *, new_tokens: bool = False, **settings
) -> DecodingConfig:
    """The authors' own numbers as a `DecodingConfig` of convention `original`.

    Args:
      max_length: their `max_length`: the start token counts, so that 30 gives 29
        new tokens for OPT and the Q-Former.
      min_length: their `min_length`; the start token counts here always.
      new_tokens: True where they pass `max_length` on as `max_new_tokens`: T5, and
        question answering with any language model.
      **settings: further fields of `DecodingConfig`.
    """
    return DecodingConfig(
        max_new_tokens=max_length if new_tokens else max_length - 1,
        min_new_tokens=max(min_length - 1, 0),
        convention="original",
        **settings,
    )


def authors(what: str, family: str) -> DecodingConfig:
    """How the authors' code decodes, as its methods and evaluation files have it.

    Args:
      what: "generate" or "answer", their methods' own defaults; "coco" or "nocaps",
        what their caption evaluations pass (a repetition penalty of 1.15, and on COCO
        a length penalty of 0, which their files do not show).
      family: "opt", "t5" or "qformer".

    Raises:
      ValueError: no such setting, or one that the family does not have.
    """
    new = family == "t5"
    table = {
        ("generate", "qformer"): original(30, 10, num_beams=3),
        ("generate", "opt"): original(30, num_beams=5),
        ("generate", "t5"): original(30, new_tokens=True, num_beams=5),
        ("answer", "opt"): _authors_answer(0.0),
        ("answer", "t5"): _authors_answer(-1.0),
    }
    for each in ("opt", "t5"):
        table["coco", each] = original(
            30,
            8,
            new_tokens=new,
            num_beams=5,
            repetition_penalty=1.15,
            length_penalty=0.0,
        )
        table["nocaps", each] = original(
            80, 10, new_tokens=new, num_beams=5, repetition_penalty=1.15
        )
    if (what, family) not in table:
        known = ", ".join(name for name, kind in table if kind == family)
        raise ValueError(
            f"the authors' code has no decoding {what!r} for {family!r}; "
            f"there are {known or 'none'}"
        )
    return table[what, family]


def _authors_answer(length_penalty: float) -> DecodingConfig:
    return original(10, new_tokens=True, num_beams=5, length_penalty=length_penalty)


def change(config: DecodingConfig, settings: Mapping[str, Any]) -> DecodingConfig:
    """The configuration with some fields changed; sampling turns beams off.

    Raises:
      ValueError: a name that is no field, or a value out of range.
    """
    if settings.get("sample"):
        settings = {"num_beams": 1, **settings}
    return replace_options(config, settings, "decoding")


# Li et al. 2023, appendix, and the evaluation files of the authors' code.
CAPTION = DecodingConfig(num_beams=5, max_new_tokens=30, min_new_tokens=8)
NOCAPS = DecodingConfig(num_beams=5, max_new_tokens=80, min_new_tokens=10)
ANSWER = DecodingConfig(num_beams=5, max_new_tokens=10, length_penalty=-1.0)
NUCLEUS = DecodingConfig(sample=True, top_p=0.9)
