"""Scanning of many tars at once; each index is written as soon as it is made.

Local tars are scanned by processes, because parsing headers takes the interpreter's
lock; those on a store by threads, which wait for its answers. The processes are no pool
of `multiprocessing`, which would run the user's script again in each of them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import pathlib
import queue
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

from blip2_jax.data.sources import tar_scan_process
from blip2_jax.data.sources.tar_scan_process import scan_to_file
from blip2_jax.parallel.paths import is_remote
from blip2_jax.parallel.progress import track_progress
from blip2_jax.parallel.worker_places import available_cores

Task = tuple[pathlib.Path, pathlib.Path]  # a tar, and the file for its index
_Scan = Callable[[pathlib.Path, pathlib.Path], str]

_MIN_PER_PROCESS = 16  # tars; a process takes half a second to start
_THREADS = 32
_MAX_SHOWN = 3
_ROOT = pathlib.Path(__file__).parents[3]  # holds the package


def scan_tars(tasks: Sequence[Task]) -> None:
    """Scan tars and write their indices. Errors are raised when all are scanned.

    Args:
      tasks: the tars, and the file for the index of each.

    Raises:
      ValueError: tars are damaged or compressed; the message names the first ones.
    """
    if not tasks:
        return
    with contextlib.ExitStack() as stack:
        scans = queue.SimpleQueue[_Scan]()
        for scan in _scans(tasks, stack):
            scans.put(scan)

        def run(task: Task) -> str:
            scan = scans.get()
            try:
                return scan(*task)
            finally:
                scans.put(scan)

        pool = concurrent.futures.ThreadPoolExecutor(scans.qsize())
        stack.callback(pool.shutdown, cancel_futures=True)
        futures = [pool.submit(run, task) for task in tasks]
        progress = track_progress(futures, "indexing", "tars")
        problems = [problem for future in progress if (problem := future.result())]
    if problems:
        more = len(problems) - _MAX_SHOWN
        shown = "\n".join(problems[:_MAX_SHOWN])
        raise ValueError(shown + (f"\nand {more} more tars" if more > 0 else ""))


def _scans(tasks: Sequence[Task], stack: contextlib.ExitStack) -> list[_Scan]:
    """Return as many functions that scan a tar as shall run at once."""
    if is_remote(tasks[0][0]):
        return [scan_to_file] * min(_THREADS, len(tasks))
    processes = min(len(available_cores()), len(tasks) // _MIN_PER_PROCESS)
    if processes < 2:
        return [scan_to_file]
    return [stack.enter_context(_scanning_process()) for _ in range(processes)]


@contextlib.contextmanager
def _scanning_process() -> Iterator[_Scan]:
    """Start a process that scans the tars that it reads from its standard input."""
    search = os.pathsep.join(
        [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    process = subprocess.Popen(
        [sys.executable, "-m", tar_scan_process.__name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": search},
        start_new_session=True,  # Ctrl-C ends it through its standard input
    )
    assert process.stdin is not None and process.stdout is not None
    source, answers = process.stdin, process.stdout

    def scan(path: pathlib.Path, index: pathlib.Path) -> str:
        source.write(json.dumps([str(path), str(index)]) + "\n")
        source.flush()
        if not (answer := answers.readline()):
            raise RuntimeError(f"a process that indexes tars ended at {path}")
        return json.loads(answer)

    with process:
        yield scan
