"""Writers of the metrics of a run: `metrics.jsonl`, TensorBoard and wandb."""

from __future__ import annotations

import json
import logging
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from blip2_jax.parallel.files import FileFormatError, parse_json, write_atomically
from blip2_jax.parallel.paths import as_path

METRICS = "metrics.jsonl"
Values = Mapping[str, float]
logger = logging.getLogger(__name__)


class MetricsLog:
    """Writes metrics to every sink. Only the first process of a run has one.

    A run that continues from step n first drops the lines after n that a killed run
    wrote, so that the file equals that of an uninterrupted run.

    Args:
      run_dir: directory of the run; must exist.
      start_step: the step that the run continues from; 0 for a new run.
      wandb: keyword arguments of `wandb.init`, or None to not use wandb.

    Attributes:
      report: lines for the user: what was repaired.
    """

    def __init__(
        self,
        run_dir: pathlib.Path,
        start_step: int = 0,
        wandb: dict[str, Any] | None = None,
    ) -> None:
        self._lines = StepLog(run_dir / METRICS, start_step)
        self.report = self._lines.report
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
        self._lines.write(step, {name: _or_none(v) for name, v in values.items()})
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
        self._lines.close()
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


class StepLog:
    """Appends JSON lines, each of a step, to a file of a run.

    A run that continues from step n first drops the lines after n.

    Args:
      path: the file.
      start_step: the step that the run continues from; 0 for a new run.

    Attributes:
      report: lines for the user: what was repaired.
    """

    def __init__(self, path: pathlib.Path, start_step: int) -> None:
        self.report = drop_after(path, start_step)
        self._file = path.open("a")

    def write(self, step: int, content: Mapping[str, Any]) -> None:
        """Append a line of a step."""
        line = json.dumps({"step": step, **content}, ensure_ascii=False)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def drop_after(path: pathlib.Path, step: int) -> list[str]:
    """Remove the lines of later steps and an incomplete last line.

    Lines that cannot be read are moved to a file with the suffix `.broken`.

    Returns:
      Lines for the user; [] if every line could be read.
    """
    if not path.exists():
        return []
    lines, broken = _read_lines(path)
    kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= step]
    if broken:
        with path.with_suffix(".broken").open("ab") as file:
            file.writelines(line + b"\n" for line in broken)
    write_atomically(path, "".join(kept))
    if not broken:
        return []
    return [
        f"{path.name}: {len(broken)} lines cannot be read; they were moved to "
        f"{path.with_suffix('.broken').name}"
    ]


def read_metrics(run_dir: str | pathlib.Path) -> list[dict[str, float]]:
    """Read the lines of `metrics.jsonl` of a run, oldest first.

    Lines that cannot be read are left out, and their number is logged.
    """
    path = as_path(run_dir) / METRICS
    lines, broken = read_step_lines(path)
    if broken:
        logger.warning("%s: %d lines cannot be read", path, broken)
    return lines


def read_step_lines(path: pathlib.Path) -> tuple[list[dict[str, Any]], int]:
    """Read the lines of a log that have a step, oldest first.

    Returns:
      The lines, and the number of those that cannot be read.

    Raises:
      FileNotFoundError: there is no such file.
    """
    lines, broken = _read_lines(path)
    return lines, len(broken)


def last_logged_step(path: pathlib.Path) -> int:
    """Return the last step in a log; 0 if there is none."""
    lines = _read_lines(path)[0] if path.exists() else []
    return max((int(line["step"]) for line in lines), default=0)


def _read_lines(path: pathlib.Path) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Read the lines of a log that have a step, and those that cannot be read.

    A last line without its end is left out: the process was killed while it wrote it.
    """
    lines, broken = [], []
    pieces = path.read_bytes().split(b"\n")  # the last one has no end: empty or torn
    for number, piece in enumerate(pieces, 1):
        try:
            content = parse_json(piece, path)
        except FileFormatError:
            content = None
        if isinstance(content, dict) and isinstance(content.get("step"), int):
            lines.append(content)
        elif piece.strip() and number < len(pieces):
            broken.append(piece)
    return lines, broken


def _or_none(value: float) -> float | None:
    return value if abs(value) < float("inf") else None
