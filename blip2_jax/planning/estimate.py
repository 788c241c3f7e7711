"""Step time estimated from the published rates of the hardware.

`ASSUMPTIONS` are printed with the numbers. The times are not bounds: a program may move
temporaries more than once or keep them out of HBM, and its collectives may use all axes
of the torus at once.
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
    "matmuls only, at the dense bf16 peak of one chip",
    "HBM: arguments read once, peak temporaries written and read once; writes of "
    "parameters and optimizer state are not counted",
    "links: rings over one axis of the torus, collectives one after another",
    "step time is the maximum of the three",
)
# Only the stacked blocks of the towers are sharded along `tensor`; the rest is
# computed redundantly along it.
_DIVIDED = re.compile("visual_encoder|language_model")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimated times of one step on one chip.

    Attributes:
      products: seconds of the matmuls at peak.
      memory: seconds of the HBM traffic.
      links: seconds of the traffic between chips.
      utilisation: assumed fraction of the peak that matmuls reach.
      batch_per_chip: images per step and chip.
      numerator: FLOPs per image in the numerator of MFU, or None.
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
        """Seconds per step with matmuls at peak."""
        return max(self.products, self.memory, self.links)

    @property
    def step(self) -> float:
        """Seconds per step with matmuls at `utilisation`."""
        return max(self.products / self.utilisation, self.memory, self.links)

    @property
    def rate(self) -> float:
        """Images per second and chip."""
        return self.batch_per_chip / self.step

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation, or None without a numerator."""
        if self.numerator is None:
            return None
        return self.rate * self.numerator / self.peak

    def days(self, steps: int) -> float:
        """Compute the days that `steps` steps take."""
        return steps * self.step / 86400


def device_flops(dots: Iterable[Dot], mesh: dict[str, int]) -> float:
    """Compute the matmul FLOPs of one device from those of the whole step."""
    rows = mesh["data"] * mesh["fsdp"]
    return sum(
        dot.flops / (rows * (mesh["tensor"] if _DIVIDED.search(dot.scope) else 1))
        for dot in dots
    )


def estimate(
    topology: Topology,
    flops: float,
    memory: Memory,
    operations: Iterable[Collective],
    *,
    batch_per_chip: float,
    numerator: int | None,
    utilisation: float,
) -> Estimate | None:
    """Estimate the step time; None for hardware without published rates.

    Args:
      topology: hardware with its rates.
      flops: matmul FLOPs of one device (`device_flops`).
      memory: memory of one device.
      operations: collectives of the compiled step.
      batch_per_chip: images per step and chip.
      numerator: see `Estimate`.
      utilisation: see `Estimate`.
    """
    chip, peak = topology.chip, topology.peak
    if chip is None or peak is None:
        return None
    sent = sum(collective.sent_bytes for collective in operations)
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
