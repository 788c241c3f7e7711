"""Hard negatives written down, and used again in place of new draws.

The draw is the same on any mesh, but the similarities that it weighs differ in their
last bits, which can tip it. Comparing two meshes to rounding needs the same negatives
(`config.logging.negatives` writes them, `config.replay` names the file).
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
from ml_collections import ConfigDict

from blip2_jax.losses.hard_negatives import Negatives
from blip2_jax.parallel import hosts
from blip2_jax.training.metrics_log import drop_after

FILE = "negatives.jsonl"


class NegativesLog:
    """One line a step: the sampled indices."""

    def __init__(self, path: pathlib.Path, start_step: int) -> None:
        drop_after(path, start_step)
        self._file = path.open("a")

    def write(self, step: int, negatives: Negatives) -> None:
        """Append the negatives of a step."""
        lists = {"image": negatives.image.tolist(), "text": negatives.text.tolist()}
        self._file.write(json.dumps({"step": step, **lists}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_log(
    config: ConfigDict, run_dir: pathlib.Path, start_step: int
) -> NegativesLog | None:
    """The run's log of negatives, if its configuration asks for one."""
    if not config.logging.negatives or not hosts.is_first():
        return None
    return NegativesLog(run_dir / FILE, start_step)


def read(path: str) -> dict[int, Negatives]:
    """Negatives by step from a log; empty where no file is named.

    Raises:
      FileNotFoundError: no such file.
    """
    if not path:
        return {}
    lines = map(json.loads, pathlib.Path(path).read_text().splitlines())
    return {
        line["step"]: Negatives(
            np.asarray(line["image"], np.int32), np.asarray(line["text"], np.int32)
        )
        for line in lines
    }
