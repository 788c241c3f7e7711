"""Every benchmark of a CPU, one after the other (three quarters of an hour):

    python benchmarks/all.py --lavis PATH --lavis_python PYTHON --torch_python PYTHON
        --photos TARS [--photos TARS] [--write]

`--write` updates docs/performance.md. Without `--photos` there is no image pipeline;
`--rounds` and `--threads` are each script's own where they are not given. The machine
should have nothing else to do.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from benchmarks import harness

# Script, and which of the flags it takes beside those that all take.
SCRIPTS = {
    "stage1_step.py": (),
    "stage2_step.py": (),
    "generation.py": ("torch_python",),
    "reranking.py": (),
    "image_pipeline.py": ("photos",),
    "startup.py": (),
}


def main() -> int:
    """Run them; the exit code counts those that failed."""
    parser = harness.arguments(__doc__ or "")
    parser.add_argument("--photos", action="append", default=[], help="tars of JPEGs")
    parser.set_defaults(rounds=None, threads=None)
    options = parser.parse_args()
    start, failed = time.perf_counter(), 0
    for script, more in SCRIPTS.items():
        if "photos" in more and not options.photos:
            print(f"{script} is left out: it needs --photos\n", flush=True)
            continue
        command = [sys.executable, f"benchmarks/{script}", *flags(options, more)]
        failed += subprocess.run(command, cwd=harness.ROOT).returncode != 0
        minutes = (time.perf_counter() - start) / 60
        print(f"{script} ended after {minutes:.1f} minutes\n", flush=True)
    return failed


def flags(options: argparse.Namespace, more: tuple[str, ...]) -> list[str]:
    """The command line of one script."""
    found = [f"--{name}" for name in ("tiny", "write") if getattr(options, name)]
    for name in ("rounds", "threads"):
        value = getattr(options, name)
        found += [] if value is None else [f"--{name}", str(value)]
    if options.lavis:
        found += ["--lavis", options.lavis, "--lavis_python", options.lavis_python]
    if "torch_python" in more and options.torch_python:
        found += ["--torch_python", options.torch_python]
    if "photos" in more:
        found += [word for photos in options.photos for word in ("--photos", photos)]
    return found


if __name__ == "__main__":
    sys.exit(main())
