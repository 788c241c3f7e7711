"""Log of sampled hard negatives, and its use in place of sampling.

The random numbers do not depend on the mesh, but similarities differ in the last bits
between meshes, which may change a sampled index. A comparison of two meshes to rounding
error therefore needs the same negatives: `config.logging.negatives` writes them and
`config.replay` names a file to read them from.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from blip2_jax.losses.hard_negatives import Negatives
from blip2_jax.parallel import hosts
from blip2_jax.parallel.files import FileFormatError, read_json_lines
from blip2_jax.training.metrics_log import StepLog
from blip2_jax.training.train_config import ConfigError

FILE = "negatives.jsonl"


class NegativesLog(StepLog):
    """Writes the sampled negatives, one line per step."""

    def write_negatives(self, step: int, negatives: Negatives) -> None:
        """Append the negatives of a step."""
        lists = {"image": negatives.image.tolist(), "text": negatives.text.tolist()}
        self.write(step, lists)


def open_log(
    config: ConfigDict, run_dir: pathlib.Path, start_step: int
) -> NegativesLog | None:
    """Open the log of negatives of a run; None if it has none."""
    if not config.logging.negatives or not hosts.is_first():
        return None
    return NegativesLog(run_dir / FILE, start_step)


def read(path: str) -> dict[int, Negatives]:
    """Read negatives by step; an empty dict if `path` is empty.

    Raises:
      FileNotFoundError: the file does not exist.
      FileFormatError: a line is broken; without it, that step would sample.
    """
    if not path:
        return {}
    negatives = {}
    for number, line in enumerate(read_json_lines(path), 1):
        try:
            negatives[line["step"]] = Negatives(
                np.asarray(line["image"], np.int32), np.asarray(line["text"], np.int32)
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(
                f"{path}, line {number} holds no negatives: {error!r}"
            ) from None
    return negatives


def check_replay(
    config: ConfigDict, negatives: Mapping[int, Negatives], start: int
) -> None:
    """Check that every step from `start` on finds its negatives in `config.replay`.

    Args:
      config: of the run.
      negatives: from `read`.
      start: number of steps taken so far.

    Raises:
      ConfigError: the task has no negatives, a step is missing or has another number
        of rows. It would sample or ignore them.
    """
    path, rows = config.replay, config.batch_size
    if not path:
        return
    if config.task != "stage1":
        raise ConfigError(
            f"config.replay is {path!r}, but the task is {config.task!r}; only stage1 "
            "has hard negatives"
        )
    for step in range(start + 1, config.steps + 1):
        if step not in negatives:
            raise ConfigError(
                f"config.replay={path} has no negatives of step {step}; this run "
                f"needs those of steps {start + 1} to {config.steps}"
            )
        for kind in ("image", "text"):
            listed = getattr(negatives[step], kind)
            if listed.shape != (rows,):
                raise ConfigError(
                    f"config.replay={path} has {listed.size} {kind} negatives of step "
                    f"{step}; config.batch_size is {rows}"
                )
