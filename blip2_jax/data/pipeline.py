"""Training batches: an endless, restartable stream on grain.

Element k of the stream is the batch of step `start_step + k`. It is a pure function of
the seed and the step, independent of workers, prefetch and the number of processes, so
that a checkpoint stores only the step.
"""

from __future__ import annotations

import functools
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
from blip2_jax.data.mixture import short_names
from blip2_jax.data.rows import NoSubstitute, TrainingRows
from blip2_jax.data.shared_memory import avoid_small_shared_memory, explain_worker_error
from blip2_jax.parallel.store_retries import add_retries, take_retry_count

Batch = dict[str, Any]

_THREADS = 2  # that load batches without worker processes
_ENDLESS = 2**40
_TEXT_BYTES = 1024  # of a row, about


class _StepBatch:
    """The function from a step to the batch of one process."""

    def __init__(
        self,
        rows: TrainingRows,
        buckets: LengthBuckets,
        own_rows: Sequence[int],
        in_worker: bool = False,
    ):
        self._rows, self._buckets, self._own_rows = rows, buckets, own_rows
        self._in_worker = in_worker

    def num_bytes(self, step: int) -> int:
        """Estimate the bytes of a batch from those of the first row's image."""
        try:
            row = self._rows.row(step * self._buckets.batch_size)
        except NoSubstitute:  # the stream raises it
            return 0
        image_bytes = 0 if row.image is None else row.image.nbytes
        return len(self._own_rows) * (image_bytes + _TEXT_BYTES)

    def __call__(self, step: int) -> Batch:
        start = step * self._buckets.batch_size
        try:
            width = self._buckets.at(step)
            rows = [self._rows.row(start + row) for row in self._own_rows]
        except NoSubstitute as error:  # `TrainingBatches` counts and raises
            return {"_broken": list(error.broken), "_unusable": True}
        batch = self._rows.arrays(rows, width)
        batch["_broken"] = list(itertools.chain(*(row.broken for row in rows)))
        if self._in_worker:  # else they are counted in this process
            batch["_store_retries"] = take_retry_count()
        return batch


def _prepare_worker(worker: int, workers: int) -> None:
    """Make a worker exit with its parent process and ignore Ctrl-C."""
    del worker, workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)  # the main thread may block on a queue of the dead parent

    threading.Thread(target=watch, daemon=True).start()


class TrainingBatches(Iterator[Batch]):
    """The stream of training batches; `close()` ends its workers.

    Attributes:
      broken_stats: counts of broken samples in this process's rows since the start.
      sources: the sources of the mixture.
      image_key: key of the images: "image", "features", or None without images.
      broken_by_source: their number in each source of the mixture.
      source_names: short names of the sources.
    """

    def __init__(
        self,
        rows: TrainingRows,
        step_batch: _StepBatch,
        config: DataConfig,
        start: int,
        batch_size: int,
    ):
        """Start loading; use `training_batches` to make a stream."""
        self.broken_stats = BrokenSampleStats(config.max_broken_share)
        self._mixture = rows.mixture
        self.sources, self.image_key = rows.mixture.sources, rows.image_key
        self._batch_size = batch_size
        self.source_names = short_names(rows.mixture.sources)
        self.broken_by_source = [0] * len(self.source_names)
        if not flags.FLAGS.is_parsed():  # grain's workers read flags
            flags.FLAGS.mark_as_parsed()
        steps = grain.MapDataset.range(start, start + _ENDLESS).map(step_batch)
        options = grain.ReadOptions(
            num_threads=1 if config.workers else _THREADS,
            prefetch_buffer_size=max(config.prefetch, 1),
        )
        stream = steps.to_iter_dataset(options)
        if config.workers:
            stream = stream.mp_prefetch(
                grain.multiprocessing.MultiprocessingOptions(
                    num_workers=config.workers, per_worker_buffer_size=1
                ),
                worker_init_fn=_prepare_worker,
            )
            size = step_batch.num_bytes(start)
            stream = avoid_small_shared_memory(stream, config.workers, size)
        self._stream = iter(stream)

    @functools.cached_property
    def fingerprint(self) -> list[dict[str, object]]:
        """The fingerprint of the sources, which a run stores; reads some files."""
        return self._mixture.fingerprint()

    def __next__(self) -> Batch:
        """Return the next batch and count its broken samples.

        Raises:
          TooManyBrokenSamples: their share exceeds `max_broken_share`.
        """
        try:
            batch = next(self._stream)
        except (RuntimeError, OSError) as error:
            if (explained := explain_worker_error(error)) is error:
                raise
            raise explained from error
        add_retries(batch.pop("_store_retries", 0))
        broken = batch.pop("_broken")
        for source, _, _ in broken:
            self.broken_by_source[source] += 1
        places = [(cause, place) for _, cause, place in broken]
        self.broken_stats.add(len(batch.get("_key", ())), places)
        if "_unusable" in batch:
            raise self.broken_stats.error()
        return batch

    def rows_by_source(self, steps: int) -> tuple[int, ...]:
        """Return the number of rows of each source in the first steps of the run."""
        return self._mixture.rows_before(steps * self._batch_size)

    def close(self) -> None:
        """Stop worker processes and threads."""
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
    """Make the endless stream of training batches from `start_step` on.

    Args:
      options: a `DataConfig`, or a plain or ml_collections dict of its fields.
      task_format: arrays of a batch (see `examples`).
      seed: seed of order, choices and augmentation.
      batch_size: rows of the global batch.
      start_step: step of the first batch.
      own_rows: indices of the rows of every global batch that this process reads;
        None: all.

    Returns:
      An iterator of dicts of arrays: `image` uint8 [B, R, R, 3] or `features`
      [B, P, D], the format's token arrays [B, T] (T as of `length_buckets`), `image_id`
      int32 [B] (equal for equal images), `position` int64 [B]; `_key` and `_text` are
      lists of str. The iterator raises TooManyBrokenSamples.

    Raises:
      ValueError: the configuration is invalid.
      FileNotFoundError: a file of the configuration does not exist.
    """
    config = options if isinstance(options, DataConfig) else data_config(options)
    rows = TrainingRows(config, task_format, seed)
    own_rows = range(batch_size) if own_rows is None else own_rows
    buckets = LengthBuckets(rows, config.length_buckets, batch_size)
    step_batch = _StepBatch(rows, buckets, own_rows, config.workers > 0)
    return TrainingBatches(rows, step_batch, config, start_step, batch_size)
