"""How much of an evaluation set was scored, so that no score of a part looks whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from blip2_jax.data.broken_samples import TooManyBrokenSamples
from blip2_jax.data.evaluation_data import EvaluationSet


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Numbers of scored examples and of those left out.

    Attributes:
      unit: what is counted, in the plural: "images".
      scored: number of scored examples.
      left_out: number of examples that are not scored, by reason.
    """

    unit: str
    scored: int
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of all examples."""
        return self.scored + sum(self.left_out.values())

    def notice(self) -> str:
        """Say what is not scored; "" if all examples are."""
        reasons = [f"{n} {reason}" for reason, n in self.left_out.items() if n]
        if not reasons:
            return ""
        return (
            f"scored: {self.scored} of {self.total} {self.unit}; left out: "
            f"{', '.join(reasons)}"
        )

    def record(self) -> dict[str, Any]:
        """Return the entry of an evaluation's record."""
        left_out = {reason: n for reason, n in self.left_out.items() if n}
        counts = {"all": self.total, "scored": self.scored, "left_out": left_out}
        return {"unit": self.unit, **counts}

    def check(self, max_share: float) -> None:
        """Check that not too many examples are left out.

        Args:
          max_share: largest share of all examples.

        Raises:
          TooManyBrokenSamples: more are left out.
        """
        if self.total - self.scored > max_share * self.total:
            raise TooManyBrokenSamples(
                f"{self.notice()}; the limit is a share of {max_share:g} "
                "(max_broken_share)"
            )


def images_without_captions(data: EvaluationSet) -> dict[str, int]:
    """Count the images without a caption; those with questions alone do not count."""
    captioned = {record.image_id for record in data.records if record.captions}
    without = {
        record.image_id
        for record in data.records
        if not record.questions and record.image_id not in captioned
    }
    return {"without captions": len(without)}


def join_notices(*notices: str) -> str:
    """Join the lines of notices that are not empty."""
    return "\n".join(notice for notice in notices if notice)
