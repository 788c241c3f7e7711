"""What a run remembers beside its metrics: its starts, and examples of its evaluations.

`starts.jsonl` has a line for each process that trained, with the step it began after,
versions and devices. `samples.jsonl` has a line for each evaluation, with the same
few examples every time.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from blip2_jax.perf.environment import environment
from blip2_jax.training.metrics_log import StepLog

STARTS = "starts.jsonl"
SAMPLES = "samples.jsonl"


class RunHistory:
    """Writes both files. Only the first process of a run has one.

    Args:
      run_dir: directory of the run.
      start_step: the step that the run continues from; 0 for a new run.

    Attributes:
      report: lines for the user: what was repaired.
    """

    def __init__(self, run_dir: pathlib.Path, start_step: int) -> None:
        starts = StepLog(run_dir / STARTS, start_step)
        starts.write(start_step, environment())
        starts.close()
        self._samples = StepLog(run_dir / SAMPLES, start_step)
        self.report = [*starts.report, *self._samples.report]

    def write_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Append the examples of an evaluation, if it has any."""
        if samples:
            self._samples.write(step, {"samples": list(samples)})

    def close(self) -> None:
        """Close the files."""
        self._samples.close()
