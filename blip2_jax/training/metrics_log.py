"""Writers of the metrics of a run: `metrics.jsonl`, TensorBoard and wandb."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

Values = Mapping[str, float]


class MetricsLog:
    """Writes metrics to every sink. Only the first process of a run has one.

    A run that continues from step n first drops the lines after n that a killed run
    wrote, so that the file equals that of an uninterrupted run.

    Args:
      run_dir: directory of the run; must exist.
      start_step: the step that the run continues from; 0 for a new run.
      wandb: keyword arguments of `wandb.init`, or None to not use wandb.
    """

    def __init__(
        self,
        run_dir: pathlib.Path,
        start_step: int = 0,
        wandb: dict[str, Any] | None = None,
    ) -> None:
        path = run_dir / "metrics.jsonl"
        drop_after(path, start_step)
        self._file = path.open("a")
        self._tensorboard = EventFileWriter(str(run_dir / "tensorboard"))
        if start_step:  # makes TensorBoard drop the events of this step and later
            start = SessionLog(status=SessionLog.START)
            self._tensorboard.add_event(
                Event(wall_time=time.time(), step=start_step + 1, session_log=start)
            )
        self._wandb = None
        if wandb is not None:
            import wandb as weights_and_biases  # optional dependency

            self._wandb = weights_and_biases.init(**wandb)

    def write(self, step: int, values: Values) -> None:
        """Append the values of a step. NaN and infinity become null in JSON."""
        finite = {name: _or_none(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        scalars = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
        ]
        self._tensorboard.add_event(
            Event(wall_time=time.time(), step=step, summary=Summary(value=scalars))
        )
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def close(self) -> None:
        """Flush and close all sinks."""
        self._file.close()
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def drop_after(path: pathlib.Path, step: int) -> None:
    """Remove the lines of later steps and an incomplete last line."""
    if not path.exists():
        return
    lines = [
        line
        for line in path.read_text().splitlines(keepends=True)
        if line.endswith("\n") and json.loads(line)["step"] <= step
    ]
    temporary = path.with_suffix(".jsonl.tmp")
    temporary.write_text("".join(lines))
    temporary.replace(path)


def read_metrics(run_dir: str | pathlib.Path) -> list[dict[str, float]]:
    """Read the lines of `metrics.jsonl` of a run, oldest first."""
    path = pathlib.Path(run_dir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def _or_none(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
