"""Where the numbers of a run go: `metrics.jsonl`, TensorBoard, wandb, the terminal."""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import rich.console
import rich.progress
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

Values = Mapping[str, float]


class MetricsLog:
    """Writes one line a call to every sink; only the first process of a run does.

    A run that continues from step n first drops what a killed run wrote after n, so
    that the file reads like that of a run that was never stopped.

    Args:
      run_dir: the run's directory; it exists.
      start_step: the step that the run continues from; 0 for a new run.
      wandb: keyword arguments of `wandb.init`, or None to leave it out.
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
        if start_step:  # TensorBoard forgets what it has from this step on
            start = SessionLog(status=SessionLog.START)
            self._tensorboard.add_event(
                Event(wall_time=time.time(), step=start_step + 1, session_log=start)
            )
        self._wandb = None
        if wandb is not None:
            import wandb as weights_and_biases  # an extra, not a requirement

            self._wandb = weights_and_biases.init(**wandb)

    def write(self, step: int, values: Values) -> None:
        """Append the values of a step; NaN and infinity are written as JSON null."""
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
        """Flush all sinks."""
        self._file.close()
        self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def drop_after(path: pathlib.Path, step: int) -> None:
    """Remove the lines of later steps, and a last line that was cut off."""
    if not path.exists():
        return
    kept = [
        line
        for line in path.read_text().splitlines(keepends=True)
        if line.endswith("\n") and json.loads(line)["step"] <= step
    ]
    temporary = path.with_suffix(".jsonl.tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)


def read_metrics(run_dir: str | pathlib.Path) -> list[dict[str, float]]:
    """Every line of a run's `metrics.jsonl`, oldest first."""
    path = pathlib.Path(run_dir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def _or_none(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


class Terminal:
    """Lines on stderr, and under them a progress bar where stderr is a terminal."""

    def __init__(self, total: int, start: int = 0) -> None:
        self._console = rich.console.Console(file=sys.stderr, highlight=False)
        self._bar = rich.progress.Progress(
            "{task.description}",
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total, completed=start)
        self._bar.start()

    def advance(self, step: int) -> None:
        """Move the bar to a step."""
        self._bar.update(self._task, completed=step)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()


def format_line(step: int, total: int, values: Values) -> str:
    """One readable line: `step 50/1000  loss 17.9  loss_itc 6.9  ...`."""
    shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
    return f"step {step}/{total}  {shown}"
