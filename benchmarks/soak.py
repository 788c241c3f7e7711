"""Kill a run many times and compare it with an undisturbed one.

    python -m benchmarks.soak --workdir DIR [--steps 2000 --kill_every 100]
        [--change batch_size=8 ...]

Trains stage 1 on the shapes world twice. One run is left alone; the other is ended by
`kill -9` every so many steps, and once its newest checkpoint is damaged in between.
Compares every parameter and all optimizer state of the two, bit for bit, and shows
whether the host's memory grew, which runs on Linux tell. The exit code says whether all
is well.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]

from blip2_jax.convert.tables.name_table import shorten  # noqa: E402
from blip2_jax.training.checkpoints import Checkpoints  # noqa: E402
from blip2_jax.training.metrics_log import read_metrics  # noqa: E402

TRAIN = ROOT / "launch" / "train.py"
PATIENCE_S = 1800  # without a step
KEPT = ("trainable", "optimizer")
FLAT = 1.05  # memory in the last third of the steps, by that in the first


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a soak.

    Attributes:
      kills: number of kills.
      damaged: the checkpoint that was damaged.
      differences: arrays of the last checkpoint, and losses, that are not the same.
      memory_gb: see `memory_early_and_late`; of the undisturbed run.
    """

    kills: int
    damaged: int
    differences: list[str]
    memory_gb: tuple[float, float]

    def is_well(self) -> bool:
        """Return whether nothing differs and memory does not grow."""
        early, late = self.memory_gb
        return not self.differences and late < FLAT * early


def main() -> None:
    """Run the soak and print the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--config", default="configs/shapes_stage1.py")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--kill_every", type=int, default=100)
    parser.add_argument("--change", action="append", default=[], help="key=value")
    options = parser.parse_args()
    start = time.perf_counter()
    outcome = soak(
        options.workdir,
        ROOT / options.config,
        options.steps,
        options.kill_every,
        options.change,
    )
    early, late = outcome.memory_gb
    print(
        f"{options.steps} steps, {outcome.kills} kills, checkpoint {outcome.damaged} "
        f"damaged, {time.perf_counter() - start:.0f} s\n"
        f"differ: {shorten(outcome.differences) or 'nothing, bit for bit'}\n"
        f"memory of the undisturbed run: {early:.3f} GB in the first third of the "
        f"steps, {late:.3f} GB in the last"
    )
    sys.exit(not outcome.is_well())


def soak(
    directory: pathlib.Path,
    config: Any,
    steps: int,
    kill_every: int,
    changes: Sequence[str] = (),
) -> Outcome:
    """Train undisturbed and with kills, and compare both runs.

    Args:
      directory: new; two runs are written there.
      config: a stage-1 configuration on generated data.
      steps: of each run.
      kill_every: steps between two kills; checkpoints are written more often.
      changes: further "key=value" of the configuration.
    """
    whole, killed = directory / "whole", directory / "killed"
    changes = (
        f"steps={steps}",
        f"checkpoint.every={max(kill_every // 4, 1)}",
        "log_every=1",
        *changes,
    )
    run(TRAIN, config, whole, *changes)
    points = range(kill_every, steps, kill_every)
    damaged = 0
    for point in points:
        run_and_kill(point, TRAIN, config, killed, *changes)
        if not damaged and point >= steps // 2:
            damaged = damage_newest(killed)
    run(TRAIN, config, killed, *changes)
    memory = memory_early_and_late(read_metrics(whole))
    return Outcome(len(points), damaged, differences(killed, whole, steps), memory)


def memory_early_and_late(lines: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the median memory in the first and the last third of a run, in GB.

    The median ignores the peaks of compilation and of saving.

    Raises:
      ValueError: there are fewer than three lines that tell it.
    """
    held = [line["host_memory_gb"] for line in lines if "host_memory_gb" in line]
    third = len(held) // 3
    if not third:
        raise ValueError(f"host_memory_gb is in {len(held)} log lines, 3 are needed")
    return statistics.median(held[:third]), statistics.median(held[-third:])


def start(
    script: Any,
    config: Any,
    run_dir: pathlib.Path,
    *changes: str,
    devices: int = 1,
    flags: Sequence[str] = (),
) -> subprocess.Popen:
    """Start training in its own process; its output goes to `RUN_DIR.log`.

    Runs in one directory share their compiled programs.

    Args:
      script: `launch/train.py`, or one like it.
      config: file of the configuration.
      run_dir: of the run.
      changes: "key=value" of the configuration.
      devices: virtual CPU devices.
      flags: further flags of the command.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(run_dir.parent / "compiled"),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
        f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, script, f"--config={config}", f"--workdir={run_dir}"]
    options = [f"--config.{change}" for change in changes]
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with log_of(run_dir).open("a") as log:
        return subprocess.Popen(
            [*map(str, command), *options, *flags], env=environment, stderr=log
        )


def run(script: Any, config: Any, run_dir: pathlib.Path, *args: Any, **kw: Any) -> None:
    """Train to the end; arguments as in `start`.

    Raises:
      RuntimeError: the command failed; the message has the end of its log.
    """
    process = start(script, config, run_dir, *args, **kw)
    if code := process.wait(PATIENCE_S):
        raise RuntimeError(f"code {code}: {log_of(run_dir).read_text()[-2000:]}")


def run_and_kill(
    at_step: int, script: Any, config: Any, run_dir: pathlib.Path, *args: Any, **kw: Any
) -> None:
    """Train, and `kill -9` the process after it has reported a step."""
    process = start(script, config, run_dir, *args, **kw)
    wait_for_step(at_step, run_dir, process)
    process.kill()
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError(f"{run_dir} ended before it was killed")


def wait_for_step(step: int, run_dir: pathlib.Path, process: subprocess.Popen) -> None:
    """Wait until a run has written a line of this step to its metrics.

    Raises:
      RuntimeError: the run ended, or takes too long.
    """
    deadline = time.monotonic() + PATIENCE_S
    while last_step(run_dir) < step:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(log_of(run_dir).read_text()[-2000:])
        time.sleep(0.01)


def log_of(run_dir: pathlib.Path) -> pathlib.Path:
    """Return the path of a run's log."""
    return run_dir.with_name(f"{run_dir.name}.log")


def last_step(run_dir: pathlib.Path) -> int:
    """Return the last step that a run has reported; 0 before the first."""
    path = run_dir / "metrics.jsonl"
    whole, _, _ = (path.read_text() if path.exists() else "").rpartition("\n")
    return json.loads(whole.splitlines()[-1])["step"] if whole else 0


def losses(run_dir: pathlib.Path) -> dict[int, float]:
    """Return the loss of every step."""
    lines = read_metrics(run_dir)
    return {int(line["step"]): line["loss"] for line in lines if "loss" in line}


def damage_newest(run_dir: pathlib.Path) -> int:
    """Flip one bit of the newest checkpoint's largest file; returns its step."""
    step = Checkpoints(run_dir, read_only=True).steps()[-1]
    files = (run_dir / "checkpoints" / str(step) / "trainable").rglob("*")
    largest = max(filter(pathlib.Path.is_file, files), key=lambda f: f.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    return step


def differences(left: pathlib.Path, right: pathlib.Path, step: int) -> list[str]:
    """List the losses up to a step and the arrays that differ between two runs."""
    ours, theirs = losses(left), losses(right)
    names = [
        f"loss {number}"
        for number in range(1, step + 1)
        if number not in ours or ours[number] != theirs.get(number)
    ]
    first, second = (
        flat(Checkpoints(run_dir, read_only=True).read(step, KEPT).trees)
        for run_dir in (left, right)
    )
    return names + [
        name
        for name in first.keys() | second.keys()
        if name not in first
        or name not in second
        or not np.array_equal(first[name], second[name])
    ]


def flat(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Return the arrays of nested dicts and lists by path."""
    if not isinstance(tree, dict | list):
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    result: dict[str, np.ndarray] = {}
    for name, value in items:
        result |= flat(value, f"{prefix}/{name}")
    return result


if __name__ == "__main__":
    main()
