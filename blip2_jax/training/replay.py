"""Log of sampled hard negatives, and its use in place of sampling.

The random numbers do not depend on the mesh, but similarities differ in the last bits
between meshes, which may change a sampled index. A comparison of two meshes to rounding
error therefore needs the same negatives: `config.logging.negatives` writes them and
`config.replay` names a file to read them from.
"""

from __future__ import annotations

import pathlib

import numpy as np
from ml_collections import ConfigDict

from blip2_jax.losses.hard_negatives import Negatives
from blip2_jax.parallel import hosts
from blip2_jax.parallel.files import FileFormatError, read_json_lines
from blip2_jax.training.metrics_log import StepLog

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
