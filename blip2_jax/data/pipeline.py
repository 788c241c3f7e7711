"""Training batches: an endless, restartable stream on grain.

Element k of the stream is step `start_step + k`, a pure function of the seed and
the step: workers, prefetch and the number of processes change nothing in it, so a
checkpoint needs one integer of it.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
from absl import flags

from blip2_jax.data.broken_samples import BrokenSampleStats
from blip2_jax.data.data_config import BatchFormat, DataConfig, data_config
from blip2_jax.data.length_buckets import LengthBuckets
from blip2_jax.data.rows import NoSubstitute, TrainingRows

Batch = dict[str, Any]

# Threads that load batches when there are no worker processes.
_THREADS = 2
_ENDLESS = 2**40


class _Batches:
    """The batch of a step, for one process of a run."""

    def __init__(self, rows: TrainingRows, lengths: LengthBuckets, own: Sequence[int]):
        self._rows, self._lengths, self._own = rows, lengths, own

    def __call__(self, step: int) -> Batch:
        start = step * self._lengths.batch_size
        try:
            width = self._lengths.at(step)
            rows = [self._rows.row(start + row) for row in self._own]
        except NoSubstitute as fault:  # the error is raised where faults are counted
            return {"_broken": list(fault.broken), "_unusable": True}
        batch = self._rows.arrays(rows, width)
        batch["_broken"] = list(itertools.chain(*(row.broken for row in rows)))
        return batch


def _prepare_worker(worker: int, workers: int) -> None:
    """A worker ends with its run, however that ends, and leaves Ctrl-C to it."""
    del worker, workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        run = multiprocessing.parent_process()
        if run is not None:
            run.join()
            os._exit(1)  # the main thread may wait for ever on a queue of the run

    threading.Thread(target=watch, daemon=True).start()


class TrainingBatches(Iterator[Batch]):
    """The stream; `close()` ends its workers. `faults` counts broken samples.

    Attributes:
      faults: what was broken so far, in this process's rows since the start.
      fingerprint: the sources, to be stored beside a run's checkpoints.
    """

    def __init__(
        self, rows: TrainingRows, batches: _Batches, config: DataConfig, start: int
    ):
        self.broken_stats = BrokenSampleStats(config.max_broken_share)
        self.fingerprint = rows.mixture.fingerprint()
        if not flags.FLAGS.is_parsed():  # grain's workers read flags
            flags.FLAGS.mark_as_parsed()
        steps = grain.MapDataset.range(start, start + _ENDLESS).map(batches)
        reading = grain.ReadOptions(
            num_threads=1 if config.workers else _THREADS,
            prefetch_buffer_size=max(config.prefetch, 1),
        )
        stream = steps.to_iter_dataset(reading)
        if config.workers:
            stream = stream.mp_prefetch(
                grain.multiprocessing.MultiprocessingOptions(
                    num_workers=config.workers, per_worker_buffer_size=1
                ),
                worker_init_fn=_prepare_worker,
            )
        self._stream = iter(stream)

    def __next__(self) -> Batch:
        batch = next(self._stream)
        broken = [tuple(item) for item in batch.pop("_broken")]
        self.broken_stats.add(len(batch.get("_key", ())), broken)
        if "_unusable" in batch:
            raise self.broken_stats.error()
        return batch

    def close(self) -> None:
        """End worker processes and threads."""
        self._stream.close()


def training_batches(
    options: DataConfig | Mapping[str, Any],
    task_format: BatchFormat,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    own_rows: Sequence[int] | None = None,
) -> TrainingBatches:
    """Batches from `start_step` on, for ever.

    Args:
      options: see `DataConfig`; ml_collections and plain dicts are checked.
      task_format: which arrays a batch holds (see `formats`).
      seed: of order, choices and augmentation.
      batch_size: rows of the global batch.
      own_rows: the rows of every global batch that this process reads; None: all.

    Returns:
      An iterator of dicts of arrays: `image` uint8 [B, R, R, 3] or `features`
      [B, P, D], the format's token arrays [B, T] (T as `lengths` says), `image_id`
      int32 [B] (equal for equal images), `position` int64 [B]; `_key` and `_text` are
      lists of str.

    Raises:
      ValueError, FileNotFoundError: the configuration cannot be used.
      TooManyBrokenSamples: while iterating, past `max_broken_share`.
    """
    config = options if isinstance(options, DataConfig) else data_config(options)
    rows = TrainingRows(config, task_format, seed)
    own = range(batch_size) if own_rows is None else own_rows
    lengths = LengthBuckets(rows, config.length_buckets, batch_size)
    batches = _Batches(rows, lengths, own)
    return TrainingBatches(rows, batches, config, start_step)
