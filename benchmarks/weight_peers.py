"""Peers that load our weights from a file: current transformers and KerasHub."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import harness

KERAS = "KerasHub"
# Name in the tables: flag with the interpreter, module.
PEERS = {
    "transformers": ("torch_python", "transformers_peer"),
    KERAS: ("keras_python", "keras_peer"),
}


def given(options: Any, names: Sequence[str] = tuple(PEERS)) -> list[str]:
    """Return those of the peers whose interpreters the command line names."""
    return [name for name in names if getattr(options, PEERS[name][0])]


def start(
    names: Sequence[str],
    options: Any,
    kind: str,
    settings: Mapping[str, Any],
    ours: harness.Worker,
    stack: contextlib.ExitStack,
) -> list[harness.Worker]:
    """Start peers with the weights of our worker.

    Args:
      names: keys of `PEERS`.
      options: parsed command line.
      kind: kind of contestant.
      settings: its arguments; the peers get the path of the weights too.
      ours: worker that exports its weights.
      stack: ends the peers and removes the file.
    """
    if not names:
        return []
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    file = str(pathlib.Path(folder) / "weights.safetensors")
    ours.ask("export", file=file)
    with_weights = dict(settings) | {"weights": file}
    workers = []
    for name in names:
        flag, module = PEERS[name]
        python, threads = getattr(options, flag), options.threads
        worker = harness.Worker(name, python, module, kind, with_weights, threads)
        workers.append(stack.enter_context(worker))
    return workers
