"""What the directory of a run holds: whether it can be continued, begun or set aside.

A directory that has trained never starts anew by itself. `restart` moves the former run
to `RUN/earlier/N/` first, so that nothing of it is lost.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from blip2_jax.parallel import hosts
from blip2_jax.parallel.files import FileFormatError, read_json, write_atomically
from blip2_jax.training import train_config as configuration
from blip2_jax.training.checkpoints import LAST_CHECKPOINT, CheckpointError, mark_last
from blip2_jax.training.frozen import SOURCES
from blip2_jax.training.metrics_log import METRICS, last_logged_step
from blip2_jax.training.profiled_steps import FOLDER as PROFILE
from blip2_jax.training.run_history import SAMPLES, STARTS
from blip2_jax.training.run_lock import RunLock
from blip2_jax.training.train_config import ConfigError

EARLIER = "earlier"
# Names and patterns of what a run and its evaluations write; `config.json` is last, so
# that a stopped move can be repeated.
_CONTENTS = (
    "checkpoints",
    "damaged",
    LAST_CHECKPOINT,
    "best.json",
    METRICS,
    "metrics.broken",
    "negatives.jsonl",
    "negatives.broken",
    STARTS,
    "starts.broken",
    SAMPLES,
    "samples.broken",
    "tensorboard",
    "wandb",
    PROFILE,
    "evaluation_*",
    SOURCES,
    configuration.CONFIG,
)
_TRAINED = ("checkpoints", "damaged", LAST_CHECKPOINT, METRICS)
_ADVICE = (
    "restore what is missing from a backup, choose another --workdir, or give "
    f"--restart, which moves the former run to {EARLIER}/ and begins anew"
)


def check_directory(config: ConfigDict, directory: pathlib.Path) -> bool:
    """Return True if the directory holds this run, False if it holds none.

    Raises:
      ConfigError: it holds another run, or one without a configuration.
    """
    if _exists(directory / configuration.CONFIG):
        stored = configuration.read_config(directory)
        # Without scores there is nothing to compare; the metric may have been wrong.
        free = () if _exists(directory / "best.json") else ("evaluation.metric",)
        configuration.check_same_run(stored, config, free)
        return True
    remains = [name for name in _TRAINED if _exists(directory / name)]
    # A run that was killed before it wrote its configuration has only the latter.
    if remains and (remains != [LAST_CHECKPOINT] or _last_checkpoint(directory)):
        raise ConfigError(
            f"{directory} has {' and '.join(remains)} but no {configuration.CONFIG}: "
            f"{_ADVICE}"
        )
    return False


def check_untrained(directory: pathlib.Path) -> None:
    """Check that a run without checkpoints has never completed one.

    Such a run was killed before its first checkpoint and begins again.

    Raises:
      CheckpointError: its checkpoints have vanished or are damaged.
    """
    evidence = _evidence(directory)
    if hosts.broadcast_from_first(bool(evidence)):
        raise CheckpointError(
            f"{directory} has no usable checkpoint, but it has trained ({evidence}): "
            f"{_ADVICE}"
        )


def _evidence(directory: pathlib.Path) -> str:
    """Describe what shows that the run had a checkpoint; "" if nothing does."""
    damaged = directory / "damaged"
    if _exists(damaged) and (steps := sorted(path.name for path in damaged.iterdir())):
        return f"damaged/ holds {', '.join(steps)}"
    if _exists(directory / LAST_CHECKPOINT):
        step = _last_checkpoint(directory)
        return f"it had saved a checkpoint after step {step}" if step else ""
    # Runs of earlier versions do not have that file.
    every = configuration.read_config(directory).checkpoint.every
    step = last_logged_step(directory / METRICS)
    return f"{METRICS} reaches step {step}" if step >= every else ""


def _last_checkpoint(directory: pathlib.Path) -> int:
    """Return the step of the last complete checkpoint; 0 if there was none.

    Raises:
      FileFormatError: the file that tells it is damaged.
    """
    content = read_json(directory / LAST_CHECKPOINT)
    step = content.get("step") if isinstance(content, dict) else None
    if not isinstance(step, int):
        raise FileFormatError(f"{directory / LAST_CHECKPOINT} has no step")
    return step


def write_run(
    config: ConfigDict,
    directory: pathlib.Path,
    sources: dict[str, Any],
    lock: RunLock | None,
    restart: bool,
) -> None:
    """Create the directory of a run and write its description, `config.json` last.

    Args:
      config: configuration of the run.
      directory: directory of the run.
      sources: content of `sources.json`.
      lock: of the directory, acquired here if it did not exist; None: no lock.
      restart: set a former run aside.

    Raises:
      RunLocked: another process uses the directory.
      ConfigError: another process has begun a run there in the meantime.
    """
    hosts.barrier("every process is ready")
    if hosts.is_first():
        directory.mkdir(parents=True, exist_ok=True)
    if lock is not None:
        lock.acquire()
    if hosts.is_first():
        if restart:
            set_aside(directory)
        if check_directory(config, directory):
            raise ConfigError(
                f"another process has begun this run in {directory} in the meantime: "
                "give the same command again"
            )
        write_sources(directory, sources)
        mark_last(directory, 0)
        configuration.write_config(directory, config)
    hosts.barrier("the run is written")


def write_sources(directory: pathlib.Path, sources: dict[str, Any]) -> None:
    """Write `sources.json`: manifest of frozen weights and fingerprint of the data."""
    write_atomically(directory / SOURCES, json.dumps(sources, indent=1) + "\n")


def set_aside(directory: pathlib.Path) -> pathlib.Path | None:
    """Move the run in a directory to `earlier/N/`; return that path, None: no run."""
    present = [path for name in _CONTENTS for path in sorted(directory.glob(name))]
    if not present:
        return None
    earlier = directory / EARLIER
    earlier.mkdir(exist_ok=True)
    # A store has no empty directory.
    paths = earlier.iterdir() if earlier.exists() else ()
    numbers = [int(path.name) for path in paths if path.name.isdigit()]
    target = earlier / str(max(numbers, default=0) + 1)
    target.mkdir()
    for path in present:
        path.rename(target / path.name)
    return target


def _exists(path: pathlib.Path) -> bool:
    """Return True if a path exists; unlike `Path.exists`, raise all other errors."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
