"""Plan of one configuration on one topology."""

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

LARGEST = 8  # number of collectives that the report lists


@dataclasses.dataclass(frozen=True)
class Plan:
    """Requirements of a training step.

    Attributes:
      topology: name of the topology.
      devices: number of devices.
      mesh: size of every mesh axis.
      batch_size: rows of the global batch.
      remat: rematerialisation policy.
      steps: steps of the run.
      capacity: bytes of a device, or None if unknown (CPU).
      memory: memory of a device; only arguments and activations if compilation failed.
      refusal: the compiler's report if the step does not fit, else None.
      flops: matmul FLOPs of a step over all devices, recomputation included.
      numerator: FLOPs per image in the numerator of MFU, or None.
      collectives: collectives of the compiled step.
      estimate: estimated times; None without published rates or if it does not fit.
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
        """True if the step fits on a device, None if the capacity is unknown."""
        if self.refusal is not None:
            return False
        return None if self.capacity is None else self.memory.total <= self.capacity

    def to_plain(self) -> dict[str, Any]:
        """Convert the plan to values that JSON can hold."""
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
    """Compile the training step of a configuration for a topology and analyse it.

    Args:
      config: configuration of the run; the files that it names are not opened.
      topology: result of `open_topology`.
      utilisation: assumed fraction of the peak that matmuls reach.
      only_arguments: do not compile a step whose arguments alone do not fit.

    Raises:
      ValueError: invalid configuration, mesh or batch size.
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
        message = "the arguments of the step alone exceed the memory of a device"
        return dataclasses.replace(
            plan, refusal=Refusal(arguments.total, capacity, message)
        )
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        out_of_memory = refusal(error, arguments, capacity or 0)
        if out_of_memory is None:
            raise
        return dataclasses.replace(plan, refusal=out_of_memory)
    memory = compiled_memory(arguments, compiled)
    operations = tuple(collectives(compiled.as_text(), plan.devices))
    times = estimate(
        topology,
        device_flops(dots, plan.mesh),
        memory,
        operations,
        batch_per_chip=plan.batch_size / plan.devices,
        numerator=numerator,
        utilisation=utilisation,
    )
    return dataclasses.replace(
        plan, memory=memory, collectives=operations, estimate=times
    )
