"""Run every CPU benchmark, one after the other (three quarters of an hour).

    python -m benchmarks.all --lavis PATH --lavis_python PYTHON --torch_python PYTHON
        --keras_python PYTHON --photos TARS [--photos TARS] [--write]

`--write` updates docs/performance.md. Without `--photos`, the image pipeline is
skipped; without `--rounds` and `--threads`, each benchmark uses its defaults. The
machine should be idle otherwise.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from benchmarks import harness

# Benchmarks, and the flags that each takes in addition to the common ones.
BENCHMARKS = {
    "stage1_step": (),
    "stage2_step": ("keras_python",),
    "generation": ("torch_python", "keras_python"),
    "reranking": (),
    "image_pipeline": ("torch_python", "photos"),
    "startup": (),
}


def main() -> int:
    """Run all benchmarks; the exit code is the number of failures."""
    parser = harness.arguments(__doc__ or "")
    parser.add_argument("--photos", action="append", default=[], help="tars of JPEGs")
    parser.set_defaults(rounds=None, threads=None)
    options = parser.parse_args()
    start, failed = time.perf_counter(), 0
    for name, more in BENCHMARKS.items():
        if "photos" in more and not options.photos:
            print(f"{name} is skipped: it needs --photos\n", flush=True)
            continue
        command = [sys.executable, "-m", f"benchmarks.{name}", *flags(options, more)]
        failed += subprocess.run(command, cwd=harness.ROOT).returncode != 0
        minutes = (time.perf_counter() - start) / 60
        print(f"{name} ended after {minutes:.1f} minutes\n", flush=True)
    return failed


def flags(options: argparse.Namespace, more: tuple[str, ...]) -> list[str]:
    """Return the command-line flags of one benchmark."""
    words = [f"--{name}" for name in ("tiny", "write") if getattr(options, name)]
    for name in ("rounds", "threads"):
        value = getattr(options, name)
        words += [] if value is None else [f"--{name}", str(value)]
    if options.lavis:
        words += ["--lavis", options.lavis, "--lavis_python", options.lavis_python]
    for name in ("torch_python", "keras_python"):
        value = getattr(options, name)
        words += [f"--{name}", value] if value and name in more else []
    if "photos" in more:
        words += [word for photos in options.photos for word in ("--photos", photos)]
    return words


if __name__ == "__main__":
    sys.exit(main())
