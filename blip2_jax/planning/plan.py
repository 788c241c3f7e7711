"""One configuration on one topology: everything that is known before it is paid for."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict

from blip2_jax.nn import fused_attention
from blip2_jax.perf.dot_count import jaxpr_dots
from blip2_jax.planning.activations import kept_activations
from blip2_jax.planning.collectives import Collective, by_kind, collectives
from blip2_jax.planning.estimate import ASSUMPTIONS, Estimate, device_flops, estimate
from blip2_jax.planning.memory import (
    Memory,
    Refusal,
    argument_memory,
    compiled_memory,
    refusal,
)
from blip2_jax.planning.program import training_program
from blip2_jax.planning.topology import Topology
from blip2_jax.training.loop import flops_per_image

LARGEST = 8  # collectives that are named one by one


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was found out.

    Attributes:
      topology, devices, mesh, batch_size, remat, steps: what was planned.
      capacity: bytes of a device; None where it is not known (a CPU).
      memory: of a device; arguments and activations where the step did not compile.
      refusal: why it did not; None: it compiled.
      flops: matrix products of a whole step, recomputation included.
      numerator: FLOPs an image that MFU is measured by; None: there is none.
      collectives: of the compiled step.
      estimate: None without published rates, or when it does not fit.
    """

    topology: str
    devices: int
    mesh: dict[str, int]
    batch_size: int
    remat: str
    steps: int
    capacity: float | None
    memory: Memory
    refusal: Refusal | None
    flops: int
    numerator: int | None
    collectives: tuple[Collective, ...]
    estimate: Estimate | None

    @property
    def fits(self) -> bool | None:
        """Whether a device can hold the step; None where nothing says how much."""
        if self.refusal is not None:
            return False
        return None if self.capacity is None else self.memory.total <= self.capacity

    def to_plain(self) -> dict[str, Any]:
        """All numbers, as JSON can hold them."""
        plain = dataclasses.asdict(self)
        plain["fits"] = self.fits
        plain["memory"]["total"] = self.memory.total
        plain["flops_per_image"] = self.flops / self.batch_size
        plain["collectives_by_kind"] = {
            kind: {"count": count, "bytes": size, "sent_bytes": sent}
            for kind, (count, size, sent) in by_kind(self.collectives).items()
        }
        if self.estimate is not None:
            plain["estimate"] |= {
                "roofline": self.estimate.roofline,
                "step": self.estimate.step,
                "images_per_second_per_chip": self.estimate.rate,
                "mfu": self.estimate.mfu,
                "days": self.estimate.days(self.steps),
                "assumptions": ASSUMPTIONS,
            }
        return plain


def make_plan(
    config: ConfigDict,
    topology: Topology,
    utilisation: float = 0.4,
    *,
    only_arguments: bool = False,
) -> Plan:
    """Compile the step of a configuration for a topology and read the result.

    Args:
      config: of the run; nothing that it names is opened.
      topology: see `open_topology`.
      utilisation: share of the peak that matrix products are taken to reach.
      only_arguments: refuse what cannot fit by its arguments without compiling it.

    Raises:
      ValueError: the configuration, its mesh or its batch cannot be.
    """
    program = training_program(config, topology.devices)
    platform = topology.devices[0].platform
    with fused_attention.chosen(program.config.model.attention, platform):
        traced, kept = program.trace(), kept_activations(program)
    dots = jaxpr_dots(traced.jaxpr)
    arguments = dataclasses.replace(argument_memory(program), activations=kept)
    capacity = None if topology.chip is None else topology.chip.memory
    numerator = flops_per_image(program.config)
    plan = Plan(
        topology=topology.name,
        devices=len(topology.devices),
        mesh=dict(program.mesh.shape),
        batch_size=program.config.batch_size,
        remat=program.config.model.remat,
        steps=program.config.steps,
        capacity=capacity,
        memory=arguments,
        refusal=None,
        flops=sum(dot.flops for dot in dots),
        numerator=numerator,
        collectives=(),
        estimate=None,
    )
    if only_arguments and capacity is not None and arguments.total > capacity:
        message = "the arguments of the step alone are larger than a device's memory"
        return dataclasses.replace(
            plan, refusal=Refusal(arguments.total, capacity, message)
        )
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        refused = refusal(error, arguments, capacity or 0)
        if refused is None:
            raise
        return dataclasses.replace(plan, refusal=refused)
    memory = compiled_memory(arguments, compiled)
    found = tuple(collectives(compiled.as_text(), plan.devices))
    guess = estimate(
        topology,
        device_flops(dots, plan.mesh),
        memory,
        found,
        batch_per_chip=plan.batch_size / plan.devices,
        numerator=numerator,
        utilisation=utilisation,
    )
    return dataclasses.replace(plan, memory=memory, collectives=found, estimate=guess)
