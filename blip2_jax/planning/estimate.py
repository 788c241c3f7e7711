"""How long a step takes: estimates from published rates, products at peak or a share.

`ASSUMPTIONS` are printed with the numbers. None of the times is a bound: a program may
move its temporaries more often than once or keep them from HBM, and its exchanges may
use all axes of the torus at once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from blip2_jax.perf.dot_count import Dot
from blip2_jax.planning.collectives import Collective
from blip2_jax.planning.memory import Memory
from blip2_jax.planning.topology import Topology

ASSUMPTIONS = (
    "matrix products alone, at the dense bf16 peak of one chip",
    "HBM: arguments read once, temporaries of the peak written and read once; that "
    "parameters and optimizer are written as well is left out",
    "links: rings over one axis of the torus, one collective after the other",
    "the step takes as long as the slowest of the three",
)
# Stacked blocks divide over `tensor` too; along it the rest is computed again.
_DIVIDED = re.compile("visual_encoder|language_model")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step on one chip, and what follows.

    Attributes:
      products: at the peak.
      memory, links: moving bytes in HBM, between chips.
      utilisation: share of the peak that products are taken to reach.
      batch_per_chip: images a step.
      numerator: FLOPs an image that MFU is measured by; None: there is none.
      peak: FLOP/s of a chip.
    """

    products: float
    memory: float
    links: float
    utilisation: float
    batch_per_chip: float
    numerator: int | None
    peak: float

    @property
    def roofline(self) -> float:
        """Seconds of the slowest of the three, products at the peak: no bound."""
        return max(self.products, self.memory, self.links)

    @property
    def step(self) -> float:
        """Seconds, products at `utilisation`."""
        return max(self.products / self.utilisation, self.memory, self.links)

    @property
    def rate(self) -> float:
        """Images/s/chip at `step`."""
        return self.batch_per_chip / self.step

    @property
    def mfu(self) -> float | None:
        """By the fixed numerator, at `step`."""
        if self.numerator is None:
            return None
        return self.rate * self.numerator / self.peak

    def days(self, steps: int) -> float:
        """So many steps at `step`."""
        return steps * self.step / 86400


def device_flops(found: Iterable[Dot], mesh: dict[str, int]) -> float:
    """FLOPs of one device: its share of the whole step's products."""
    rows = mesh["data"] * mesh["fsdp"]
    return sum(
        dot.flops / (rows * (mesh["tensor"] if _DIVIDED.search(dot.scope) else 1))
        for dot in found
    )


def estimate(
    topology: Topology,
    flops: float,
    memory: Memory,
    found: Iterable[Collective],
    *,
    batch_per_chip: float,
    numerator: int | None,
    utilisation: float,
) -> Estimate | None:
    """The estimate; None for hardware without published rates.

    Args:
      topology: gives the rates.
      flops: of one device (`device_flops`).
      memory: of one device.
      found: collectives of the compiled step.
      batch_per_chip, numerator, utilisation: see `Estimate`.
    """
    chip, peak = topology.chip, topology.peak
    if chip is None or peak is None:
        return None
    sent = sum(collective.sent_bytes for collective in found)
    moved = memory.total + memory.temporaries
    return Estimate(
        products=flops / peak,
        memory=moved / chip.memory_bandwidth,
        links=sent / (chip.link_bandwidth / chip.torus_axes),
        utilisation=utilisation,
        batch_per_chip=batch_per_chip,
        numerator=numerator,
        peak=peak,
    )
