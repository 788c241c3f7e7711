"""From the command to the end of the first step: `python benchmarks/startup.py`.

Starts a configuration of the shapes world twice with one directory of compiled
programs, and stops it after its first step; says also what importing alone takes.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import time

import harness

HEAD = ("start", "s to the end of step 1", "of the first")
TITLE = "Start"
IMPORTS = {
    "an interpreter": "pass",
    "`import jax`": "import jax",
    "all that training imports": "import blip2_jax.training.loop",
}


def main() -> int:
    """Imports, then two starts."""
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
    for number, each in enumerate(taken):
        name = "with compiled programs" if number else "first"
        rows.append([name, f"{each:.1f}", f"{each / taken[0]:.0%}"])
    imports = ", ".join(f"{name} {seconds(IMPORTS[name]):.1f} s" for name in IMPORTS)
    body = harness.table(HEAD, rows) + f"\nOf this: {imports}."
    harness.report(options, TITLE, f"`{options.config}`.", body)
    return 0


def first_step(config: str, cache: pathlib.Path, directory: pathlib.Path) -> float:
    """Seconds from the start of the process to the line of its first step.

    Raises:
      RuntimeError: the run ended before.
    """
    start = time.perf_counter()
    process = python(
        "launch/train.py", f"--config={config}", f"--workdir={directory}",
        f"--config.compilation_cache={cache}",
    )  # fmt: skip
    log = directory / "metrics.jsonl"
    try:
        while not (log.exists() and log.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(f"{config} ended before its first step")
            time.sleep(0.02)
        return time.perf_counter() - start
    finally:
        process.kill()
        process.wait()


def seconds(code: str) -> float:
    """What an interpreter takes that runs so much."""
    return harness.seconds(lambda: python("-c", code).wait())[0]


def python(*arguments: str) -> subprocess.Popen:
    """This interpreter, in the repository, quiet."""
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=harness.ROOT, stderr=subprocess.DEVNULL,
        env=harness.environment(),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
