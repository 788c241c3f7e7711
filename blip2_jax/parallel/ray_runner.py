"""Shards on a Ray cluster, which restarts workers and replaces lost nodes.

Each worker is a Ray actor with one GPU or TPU chip, or one core. Ray restarts the
actors of a lost node elsewhere, as soon as there is room, and tries their shards again.
"""

from __future__ import annotations

import collections
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

from blip2_jax.parallel.messages import first_line
from blip2_jax.parallel.process_runner import MAX_ATTEMPTS, Job, Write, picklable


class _Worker:
    """An actor: opens the job once and writes shards."""

    def __init__(self, content: bytes, write: Write):
        self._content, self._write = content, write
        self._job: Job | None = None

    def write(self, shard: int) -> str | Exception:
        """Write a shard; returns what `run_on_ray` yields, or why nothing opens."""
        if self._job is None:
            try:
                job: Job = pickle.loads(self._content)
                job.open()
            except Exception as error:
                return picklable(error)
            self._job = job
        return self._write(self._job, shard)


def run_on_ray(
    job: Job, shards: Sequence[int], processes: int | None, write: Write
) -> Iterator[tuple[int, str]]:
    """Write shards on the Ray cluster of `RAY_ADDRESS`, or of this machine.

    Args:
      job: the job; it is opened in each worker. All nodes must see its files.
      shards: indices of shards.
      processes: number of workers; None: one for each GPU or TPU chip; without them
        one for each node, or for each core if the job uses no model.
      write: writes a shard.

    Yields:
      A shard, and what went wrong with it, "" if it is finished.

    Raises:
      ImportError: Ray is not installed.
      Exception: what `job.open` raised.
    """
    ray = _import_ray()
    if not ray.is_initialized():
        ray.init(logging_level="warning")
    count, resources = _workers(ray, processes, job.uses_model)
    actor_class = ray.remote(_Worker).options(
        max_restarts=-1,
        max_task_retries=MAX_ATTEMPTS - 1,
        scheduling_strategy="SPREAD",
        **resources,
    )
    content = ray.put(pickle.dumps(job))
    queue = collections.deque(shards)
    working: dict[Any, tuple[Any, int]] = {}  # actor and shard of each task

    def send_next(actor: Any) -> None:
        if queue:
            shard = queue.popleft()
            working[actor.write.remote(shard)] = actor, shard
        else:  # makes room for the actors of a lost node
            ray.kill(actor)

    try:
        for _ in range(min(count, len(shards))):
            send_next(actor_class.remote(content, write))
        while working:
            (task,), _ = ray.wait(list(working), num_returns=1)
            actor, shard = working.pop(task)
            try:
                outcome = ray.get(task)
            except ray.exceptions.RayError as error:
                reason = first_line(error) or repr(error)
                outcome = f"its worker died {MAX_ATTEMPTS} times: {reason}"
            if isinstance(outcome, Exception):
                raise outcome
            yield shard, outcome
            send_next(actor)
    finally:
        for actor, _ in working.values():
            ray.kill(actor)


def _import_ray() -> Any:
    """Import Ray.

    Raises:
      ImportError: it is not installed; the message says how to install it.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ImportError(
            f"--runner ray needs Ray ({error}): pip install 'blip2_jax[ray]'"
        ) from error
    return ray


def _workers(
    ray: Any, processes: int | None, uses_model: bool
) -> tuple[int, dict[str, Any]]:
    """Return the number of workers and what each occupies."""
    cluster = ray.cluster_resources()
    if uses_model and cluster.get("GPU"):
        return processes or int(cluster["GPU"]), {"num_gpus": 1}
    if uses_model and cluster.get("TPU"):
        return processes or int(cluster["TPU"]), {"resources": {"TPU": 1}}
    nodes = sum(node["Alive"] for node in ray.nodes())
    default = nodes if uses_model else int(cluster.get("CPU", 1))
    return processes or default, {"num_cpus": 1}
