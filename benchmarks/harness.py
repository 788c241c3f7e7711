"""Workers that take turns, medians and the page of results, for all benchmarks.

Every contestant runs in its own process, in the interpreter that has its libraries, and
answers requests of one JSON line each. The parent process alternates between them, so
that other load on the machine affects all alike, and the peak memory of a process is
that of its contestant. Contestants time themselves. Needs only numpy, because the
peers' processes import this module too.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import re
import resource
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
END = "<!-- end -->"  # in a section of the page, after the measurements
GB = 1e9
LOAD_BEFORE = os.getloadavg()[0]
# glibc uses large pages and keeps freed memory for the next step, for every contestant.
# Only the first arena keeps memory, so that there is only one.
MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}


def arguments(about: str, rounds: int = 5) -> argparse.ArgumentParser:
    """Make a parser with the flags of all benchmarks.

    Args:
      about: docstring of the benchmark.
      rounds: default of `--rounds`.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--lavis", default="", help="checkout of the original; empty: only ours")
    add(
        "--lavis_python",
        default=sys.executable,
        help="interpreter with its dependencies",
    )
    add("--torch_python", default="", help="interpreter with torch and transformers 5")
    add("--keras_python", default="", help="interpreter with keras-hub and jax")
    add("--rounds", type=int, default=rounds, help="number of timed turns")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--tiny", action="store_true", help="tiny sizes, to test the benchmark")
    add("--write", action="store_true", help=f"update {PAGE.relative_to(ROOT)}")
    return parser


class Worker:
    """A contestant in its own process."""

    def __init__(
        self,
        name: str,
        python: str,
        module: str,
        kind: str,
        settings: Mapping[str, Any],
        threads: int,
        device: str = "cpu",
    ) -> None:
        """Start the process.

        Args:
          name: name in the tables.
          python: interpreter with the contestant's libraries.
          module: module of this package that calls `serve`.
          kind: kind of contestant; a key of the mapping that the module serves.
          settings: arguments of the contestant.
          threads: number of cores that it may use.
          device: JAX platform of the process.
        """
        self.name = name
        command = [python, "-m", f"benchmarks.{module}", kind]
        self._process = subprocess.Popen(
            [*command, json.dumps(dict(settings) | {"threads": threads})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(device) | {"OMP_NUM_THREADS": str(threads)},
        )

    def ask(self, method: str, **arguments: Any) -> Any:
        """Call a method of the contestant and return its result.

        Raises:
          RuntimeError: the process has ended; its message is on stderr.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps([method, arguments]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended in {method!r}; see its message")
        return json.loads(line)

    def peak(self) -> float:
        """Return the peak memory of the process in GB."""
        return self.ask("peak")

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def environment(device: str = "cpu") -> dict[str, str]:
    """Return the environment of a contestant: this checkout first, no warnings.

    Args:
      device: JAX platform, "cpu" or "cuda". Without CUDA, "cuda" is an error, as in
        torch.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return (
        os.environ
        | MEMORY
        | {
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONWARNINGS": "ignore",
            "TRANSFORMERS_VERBOSITY": "error",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_PLATFORMS": device,
        }
    )


def pair(
    options: argparse.Namespace,
    kind: str,
    settings: Mapping[str, Any],
    theirs: Mapping[str, Any] | None = None,
) -> list[Worker]:
    """Start our worker and, if `--lavis` is given, the original with more settings."""
    ours = Worker("ours", sys.executable, "ours", kind, settings, options.threads)
    return [ours, *original(options, kind, settings, theirs)]


def original(
    options: argparse.Namespace,
    kind: str,
    settings: Mapping[str, Any],
    theirs: Mapping[str, Any] | None = None,
) -> list[Worker]:
    """Start the original with more settings, if `--lavis` names a checkout."""
    if not options.lavis:
        return []
    checkout = {"lavis": str(pathlib.Path(options.lavis).resolve())}
    return [
        Worker(
            "original",
            options.lavis_python,
            "lavis_peer",
            kind,
            dict(settings) | checkout | dict(theirs or {}),
            options.threads,
        )
    ]


def serve(kinds: Mapping[str, Callable[..., Any]]) -> None:
    """Serve a contestant: `MODULE KIND SETTINGS`, then requests until stdin ends."""
    kind, settings = sys.argv[1], json.loads(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to stdout, which carries the replies
    use_threads(settings.pop("threads"))
    contestant = kinds[kind](**settings)
    for line in sys.stdin:
        method, arguments = json.loads(line)
        run = peak if method == "peak" else getattr(contestant, method)
        replies.write(json.dumps(run(**arguments)) + "\n")
        replies.flush()


def use_threads(count: int) -> None:
    """Confine this process to so many of its cores; libraries size their pools by it.

    Raises:
      ValueError: there are fewer.
    """
    cores = sorted(os.sched_getaffinity(0))
    if count > len(cores):
        raise ValueError(
            f"--threads={count}, but this process may use {len(cores)} cores"
        )
    os.sched_setaffinity(0, cores[:count])


def peak() -> float:
    """Return the peak memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB


def device_peak(allocated: int) -> float:
    """Return the GB allocated on a device, or the peak of the process if it is 0."""
    return allocated / GB if allocated else peak()


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that `work()` takes, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def take_turns(
    workers: Sequence[Worker], method: str, rounds: int, **arguments: Any
) -> dict[str, float]:
    """Call a method of every worker in turn; returns the median seconds of each.

    The first call is not timed. A turn is two calls, and only the second counts: while
    the others ran, the host of a virtual machine reclaimed memory that the process had
    freed, and getting it back cost our first call about a second of system time.
    """
    times: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for turn in range(rounds + 1):
        for worker in workers:
            first, taken = (worker.ask(method, **arguments) for _ in range(2))
            if turn:
                times[worker.name].append(taken)
            else:  # long, where it compiles
                print(f"{worker.name}: first {first:.1f} s", file=sys.stderr)
    return {name: statistics.median(taken) for name, taken in times.items()}


def photos(tars: Sequence[str], count: int) -> list[tuple[str, bytes]]:
    """Read the names and bytes of the first JPEGs of tar files."""
    files: list[tuple[str, bytes]] = []
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                if len(files) < count and member.name.endswith(".jpg"):
                    file = tar.extractfile(member)
                    assert file is not None
                    files.append((member.name, file.read()))
    return files


def machine() -> str:
    """Describe processor, cores and memory in one line."""
    text = pathlib.Path("/proc/cpuinfo").read_text()
    names = re.findall(r"model name\s*: (.*)", text) or [platform.machine()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    cores = len(os.sched_getaffinity(0))
    size = f"{cores} cores of {names[0]}, {memory:.0f} GB"
    return f"{size}, load before {LOAD_BEFORE:.1f}"


def versions(*modules: str) -> str:
    """List the versions of imported libraries."""
    return ", ".join(f"{name} {sys.modules[name].__version__}" for name in modules)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format a Markdown table: text in the first column, numbers in the others."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def report(
    options: argparse.Namespace, title: str, about: str, body: str, page: Any = PAGE
) -> None:
    """Print a section of the page; with `--write`, put it into the page.

    Args:
      options: parsed command line of `arguments`.
      title: heading; the measurements of a section with this heading are replaced.
      about: versions and sizes.
      body: tables.
      page: Markdown file.
    """
    module = f"benchmarks.{pathlib.Path(sys.argv[0]).stem}"
    words = [word for word in sys.argv[1:] if word != "--write"]
    command = " ".join(["python", "-m", module, *words])
    for flag in ("lavis", "lavis_python", "torch_python", "keras_python", "photos"):
        command = re.sub(rf"(--{flag}[= ])\S*/([^/ ]+)", r"\1.../\2", command)
    today = datetime.date.today().isoformat()
    head = f"## {title}\n\n    {command}\n\n{today}, {machine()}; {about}"
    section = f"{head}\n\n{body.strip()}\n"
    print(section, flush=True)
    if options.write:
        page.write_text(put_section(page.read_text(), title, section))


def put_section(text: str, title: str, section: str) -> str:
    """Replace the section `## title` of a page, or append it.

    The text after the section's line `<!-- end -->` was written by hand and stays.

    Raises:
      ValueError: the section has no such line.
    """
    parts = re.split(r"(?m)^(?=## )", text)
    indices = [i for i, part in enumerate(parts) if part.startswith(f"## {title}\n")]
    measured = f"{section.strip()}\n\n{END}"
    if indices:
        _, *prose = re.split(rf"(?m)^{END}$", parts[indices[0]], maxsplit=1)
        if not prose:
            raise ValueError(
                f"section {title!r} lacks the line {END} after its measurements"
            )
        parts[indices[0]] = measured + prose[0]
    else:
        parts.append(measured)
    return "\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"
