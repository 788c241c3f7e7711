"""Time from the command to the end of step 1: `python -m benchmarks.startup`.

Starts a configuration of the shapes world twice with one compilation cache and stops it
after the first step. Also measures the time of compilation and of the imports.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks import harness

HEAD = ("start", "s to the end of step 1", "of the first", "of it compiling, s")
TITLE = "Start"
IMPORTS = {
    "an interpreter": "pass",
    "`import jax`": "import jax",
    "all that training imports": (
        "import blip2_jax.training.loop, blip2_jax.evaluation.evaluators"
    ),
}


def main() -> int:
    """Time the imports and two starts."""
    parser = harness.arguments(__doc__ or "", rounds=1)
    parser.add_argument("--config", default="configs/shapes_stage1.py")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cache = pathlib.Path(folder) / "compiled"
        taken = [
            first_step(options.config, cache, pathlib.Path(folder) / f"run{number}")
            for number in range(1 + options.rounds)
        ]
    for number, (each, compiling) in enumerate(taken):
        name = "with compiled programs" if number else "first"
        part = f"{each / taken[0][0]:.0%}"
        rows.append([name, f"{each:.1f}", part, f"{compiling:.1f}"])
    imports = ", ".join(f"{name} {seconds(IMPORTS[name]):.1f} s" for name in IMPORTS)
    body = harness.table(HEAD, rows) + f"\nOf this: {imports}."
    harness.report(options, TITLE, f"`{options.config}`.", body)
    return 0


def first_step(
    config: str, cache: pathlib.Path, directory: pathlib.Path
) -> tuple[float, float]:
    """Start a run and end it after its first step.

    Args:
      config: path of the configuration.
      cache: compilation cache.
      directory: directory of the run.

    Returns:
      Seconds from the start of the process to the metrics of the first step, and the
      part of them that compilation or the compilation cache took.

    Raises:
      RuntimeError: the run ended before its first step.
    """
    start = time.perf_counter()
    process = python(
        "launch/train.py",
        f"--config={config}",
        f"--workdir={directory}",
        f"--compile_cache={cache}",
    )
    log = directory / "metrics.jsonl"
    try:
        while not (log.exists() and log.read_text().endswith("\n")):
            if process.poll() is not None:
                raise RuntimeError(f"{config} ended before its first step")
            time.sleep(0.02)
        taken = time.perf_counter() - start
        return taken, json.loads(log.read_text().splitlines()[0])["compile_seconds"]
    finally:
        process.kill()
        process.wait()


def seconds(code: str) -> float:
    """Return the seconds of an interpreter that runs some code."""
    return harness.seconds(lambda: python("-c", code).wait())[0]


def python(*arguments: str) -> subprocess.Popen:
    """Start this interpreter in the repository, without output of errors."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=harness.ROOT,
        stderr=subprocess.DEVNULL,
        env=harness.environment(),
    )


if __name__ == "__main__":
    sys.exit(main())
