"""What the directory of a run tells: configuration, metrics, samples, evaluations.

Runs may be in progress, of earlier versions or damaged: what is missing or cannot be
read is left out, and a remark says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from blip2_jax.evaluation.compare import Entry, read_entries
from blip2_jax.parallel.files import FileFormatError, read_json
from blip2_jax.training.checkpoints import LAST_CHECKPOINT
from blip2_jax.training.frozen import SOURCES
from blip2_jax.training.metrics_log import METRICS, read_step_lines
from blip2_jax.training.run_history import SAMPLES, STARTS
from blip2_jax.training.train_config import CONFIG, best_metric

EVALUATION = "evaluation/"  # before the names of scores in the log
Points = list[tuple[float, float]]
_SPEEDS = ("images_per_second_per_chip", "mfu", "seconds_per_step", "data_wait_share")


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run as its directory tells it.

    Attributes:
      name: heads its columns and names its lines.
      path: its directory.
      config: plain configuration; {} if it cannot be read.
      series: by name of a metric, its points (step, value), by ascending steps.
      samples: by step, examples of the evaluation after that step.
      starts: of its processes: step, date, versions, devices.
      sources: origin of frozen weights, and the fingerprint of the data.
      entries: records of `blip2-jax evaluate` in the directory.
      remarks: what was left out.
    """

    name: str
    path: pathlib.Path
    config: dict[str, Any]
    series: dict[str, Points]
    samples: dict[int, list[dict[str, Any]]]
    starts: list[dict[str, Any]]
    sources: dict[str, Any]
    entries: list[Entry]
    remarks: list[str]

    @property
    def last_step(self) -> int:
        """Return the last step in the log; 0 if it is empty."""
        return int(max((line[-1][0] for line in self.series.values()), default=0))

    @property
    def progress(self) -> str:
        """Say how far the run is."""
        steps = self.config.get("steps")
        if not isinstance(steps, int):
            return f"step {self.last_step}"
        if self.last_step >= steps:
            return f"finished {steps} steps"
        return f"step {self.last_step} of {steps}: in progress or stopped"

    @property
    def selecting_metric(self) -> str:
        """Return the score that selects the best checkpoint; "" if it is not known."""
        return str(self._evaluation.get("metric", ""))

    @property
    def evaluation_sources(self) -> list[dict[str, Any]]:
        """Return the specs of the data of its evaluations."""
        sources = self._evaluation.get("sources")
        return list(sources) if isinstance(sources, list) else []

    @property
    def minimises(self) -> bool:
        """Return True if the best checkpoint has the lowest score."""
        return self._evaluation.get("mode") == "min"

    @property
    def _evaluation(self) -> Mapping[str, Any]:
        section = self.config.get("evaluation")
        return section if isinstance(section, dict) else {}


def read_runs(paths: Sequence[pathlib.Path]) -> list[RunRecord]:
    """Read runs; those with the same last part of their path are named by all of it.

    Raises:
      FileNotFoundError: a directory holds neither metrics nor a configuration.
    """
    last_parts = [path.name or str(path) for path in paths]
    names = [
        part if last_parts.count(part) == 1 else str(path)
        for part, path in zip(last_parts, paths, strict=True)
    ]
    return [_read_run(path, name) for path, name in zip(paths, names, strict=True)]


def _read_run(path: pathlib.Path, name: str) -> RunRecord:
    if not any((path / file).is_file() for file in (METRICS, CONFIG)):
        raise FileNotFoundError(
            f"{path} is no directory of a run: it has neither {METRICS} nor {CONFIG}"
        )
    remarks: list[str] = []
    lines = _read_lines(path / METRICS, remarks)
    samples = {
        line["step"]: [s for s in line["samples"] if isinstance(s, dict)]
        for line in _read_lines(path / SAMPLES, remarks, required=False)
        if isinstance(line.get("samples"), list)
    }
    return RunRecord(
        name,
        path,
        _read_config(path, remarks),
        make_series(lines),
        dict(sorted(samples.items())),
        _read_lines(path / STARTS, remarks, required=False),
        _read_object(path / SOURCES, remarks),
        _read_evaluations(path, remarks),
        remarks,
    )


def make_series(lines: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """Return the points of each metric, by ascending steps.

    Where a step was logged twice the later line counts. Values that are no finite
    numbers are left out, metrics without any other, and speeds of steps that waited for
    the compiler.
    """
    values: dict[str, dict[int, float]] = {}
    for line in lines:
        left_out = {"step", *(_SPEEDS if "compile_seconds" in line else ())}
        for name, value in line.items():
            if name in left_out or isinstance(value, bool):
                continue
            if isinstance(value, int | float) and math.isfinite(value):
                values.setdefault(name, {})[line["step"]] = float(value)
    return {name: sorted(by_step.items()) for name, by_step in values.items()}


def _read_lines(
    path: pathlib.Path, remarks: list[str], required: bool = True
) -> list[dict[str, Any]]:
    try:
        lines, broken = read_step_lines(path)
    except FileNotFoundError:
        if required:
            remarks.append(f"no {path.name} yet")
        return []
    except OSError as error:
        remarks.append(f"{path.name} cannot be read: {error}")
        return []
    if broken:
        remarks.append(f"{path.name}: {broken} lines cannot be read, and are left out")
    return lines


def _read_config(path: pathlib.Path, remarks: list[str]) -> dict[str, Any]:
    """Read the configuration, with the score that selects checkpoints filled in."""
    config = _read_object(path / CONFIG, remarks)
    evaluation = config.get("evaluation")
    if isinstance(evaluation, dict) and evaluation.get("every"):
        with contextlib.suppress(AttributeError):  # of a version without that key
            evaluation["metric"] = best_metric(ConfigDict(config))
    return config


def _read_object(path: pathlib.Path, remarks: list[str]) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, FileFormatError) as error:
        missing = isinstance(error, FileNotFoundError)
        remarks.append(f"no {path.name}" if missing else str(error))
        return {}
    if not isinstance(content, dict):
        remarks.append(f"{path.name} holds no object")
        return {}
    return content


def _read_evaluations(path: pathlib.Path, remarks: list[str]) -> list[Entry]:
    """Read the records of evaluations; their files beside them are no records."""
    entries = []
    for file in sorted(path.glob("evaluation_*.json")):
        if file.name.endswith(".predictions.json"):
            continue
        try:
            entries += read_entries([file])
        except (OSError, ValueError) as error:
            remarks.append(f"{file.name} is left out: {error}")
    return entries


def last_checkpoint(run: RunRecord) -> str:
    """Describe the last complete checkpoint; "" if the run tells of none."""
    try:
        content = read_json(run.path / LAST_CHECKPOINT)
    except (OSError, FileFormatError):
        return ""
    step = content.get("step") if isinstance(content, dict) else None
    return f"after step {step}" if step else "none yet"
