"""The training loop: fetch a batch, step, log, evaluate, save."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from blip2_jax.losses.objectives import ITM_PRIOR_ENTROPY
from blip2_jax.models.sizes import FeaturesConfig
from blip2_jax.nn import fused_attention
from blip2_jax.nn.trees import matches
from blip2_jax.parallel import hosts, sharding
from blip2_jax.parallel.paths import as_path
from blip2_jax.parallel.store_retries import retry_count
from blip2_jax.perf.compile_cache import compiling_message
from blip2_jax.perf.flops import mfu_numerator
from blip2_jax.perf.meters import Meter
from blip2_jax.training import replay
from blip2_jax.training.guards import (
    NonFiniteLoss,
    StopRequest,
    check_finite,
    stop_on_signal,
)
from blip2_jax.training.metrics_log import MetricsLog
from blip2_jax.training.profiled_steps import ProfiledSteps, parse_profile
from blip2_jax.training.run_history import RunHistory
from blip2_jax.training.run_lock import RunLock
from blip2_jax.training.setup import EvaluatorFactory, TrainingRun, set_up
from blip2_jax.training.source_counts import SourceCount, as_metrics, count_sources
from blip2_jax.training.stored_run import StoredRun, stored_run
from blip2_jax.training.tasks import model_config
from blip2_jax.training.terminal import Terminal, shorten_path
from blip2_jax.training.train_config import ConfigError, best_metric, to_plain

# Constants written beside the metrics of a task.
CONSTANTS = {"stage1": {"itm_prior_entropy": ITM_PRIOR_ENTROPY}}


def train(
    config: ConfigDict,
    directory: str | pathlib.Path,
    make_evaluator: EvaluatorFactory | None = None,
    *,
    restart: bool = False,
) -> int:
    """Train for `config.steps` steps, or until a signal asks the run to stop.

    Args:
      config: see `train_config.default_config`.
      directory: directory of the run, also on a store (see `stored_run`). If it holds
        the same run, that is continued.
      make_evaluator: builds the evaluator that `config.evaluation` describes, e.g.
        `blip2_jax.evaluation.evaluators.make_evaluator`. A configuration without
        evaluation needs none.
      restart: move a run that the directory holds to `earlier/` and begin anew.

    Returns:
      The exit code: 0, or 128 + the number of the signal that stopped the run.

    Raises:
      ValueError, OSError, CheckpointError, RunLocked: see `set_up`.
      NonFiniteLoss: a loss or gradient is NaN or infinite.
      TooManyBrokenSamples: too many samples are broken.
      StoreError: an object store was away for too long.
    """
    with fused_attention.chosen(config.model.attention):
        if str(directory).startswith("hf:"):
            raise ConfigError(
                f"{str(directory)!r}: a run cannot be kept on the hub; name a local "
                "directory, gs:// or s3://, and push the model with convert --push"
            )
        directory = as_path(directory).absolute()
        with RunLock(directory) as lock, stored_run(directory, restart, lock) as store:
            local = directory if store is None else store.directory
            run = set_up(config, local, make_evaluator, lock=lock, restart=restart)
            if store is not None:
                store.begin()
            return Loop(run, store, lock).run()


def flops_per_image(config: ConfigDict, reads_features: bool = False) -> int | None:
    """Return the FLOPs per image that MFU is computed from; None if undefined.

    The number is that of the original algorithm at the full text length, so that
    skipped work (e.g. by `data.length_buckets`) counts as speed. It is defined for
    the tasks of the paper only.

    Args:
      config: of the run.
      reads_features: the step reads features in place of images, so that the image
        encoder does not count.
    """
    if config.task not in ("stage1", "stage2"):
        return None
    length, sizes = config.data.max_text_length, model_config(config.model)
    if reads_features:
        vision = FeaturesConfig(sizes.vision.num_tokens, sizes.vision.width)
        sizes = dataclasses.replace(sizes, vision=vision)
    return mfu_numerator(
        sizes,
        length,
        length,
        question=length if config.model.get("question_in_qformer", False) else 0,
        trained_vision=not matches(config.frozen, "visual_encoder/blocks"),
    )


@dataclasses.dataclass(frozen=True)
class _PendingStep:
    """A step that was dispatched to the devices and may still be running."""

    step: int
    metrics: Mapping[str, Any]
    keys: list[str]
    broken: list[int]  # samples of each source in this process's rows so far


class Loop:
    """A run in progress, as seen by one process.

    Args:
      run: the run, ready for its next step.
      store: where the run's directory is kept; None if it is local.
      lock: of the run's directory; None: see `set_up`.
    """

    def __init__(
        self,
        run: TrainingRun,
        store: StoredRun | None = None,
        lock: RunLock | None = None,
    ) -> None:
        self.training_run = run
        self.store, self.lock = store, lock
        self.config = run.config
        self.last_saved: int | None = run.start or None
        self.meter = Meter(
            run.config.batch_size, flops_per_image(run.config, run.reads_features)
        )
        self.log, self.terminal, self.history = None, None, None
        if hosts.is_first():
            self.log = MetricsLog(run.directory, run.start, _wandb_options(run))
            self.terminal = Terminal(run.config.steps, run.start)
            self.history = RunHistory(run.directory, run.start)
        self.negatives_log = replay.open_log(run.config, run.directory, run.start)
        self.profile = ProfiledSteps(
            parse_profile(run.config.profile, run.config.steps), run.directory
        )
        self._compiled_shapes: set[tuple[Any, ...]] = set()
        logs = (self.log, self.history, self.negatives_log)
        repairs = [line for log in logs if log is not None for line in log.report]
        for line in (*run.report, *repairs):
            self.write_line(line)

    def run(self) -> int:
        """Run all steps, then close the run; returns the exit code."""
        # With several processes, jax itself listens for SIGTERM, so that all processes
        # stop after the same step.
        one_process = jax.process_count() == 1
        signals = (signal.SIGINT, *((signal.SIGTERM,) if one_process else ()))
        all_processes = True
        try:
            with stop_on_signal(signals) as stop:
                self.run_steps(stop)
        except BaseException as error:
            # The other processes do not know of an error of this one: do not wait for
            # them. They all see a loss that is not finite.
            all_processes = one_process or isinstance(error, NonFiniteLoss)
            raise
        finally:
            self.close(all_processes)
        return stop.exit_code

    def run_steps(self, stop: StopRequest) -> None:
        """Run the remaining steps.

        The metrics of a step are read after the next one was dispatched, so that the
        devices never wait for the host.
        """
        run = self.training_run
        pending: _PendingStep | None = None
        for step in range(run.start + 1, self.config.steps + 1):
            for kept in (self.store, self.lock):
                if kept is not None:
                    kept.check()
            with self.profile.begin(step):
                launched = self.launch_step(step)
            if pending is not None:
                self.finish_step(pending)
            pending = launched
            stopping = self.stop_requested(step, stop)
            profiled = self.profile.is_last(step)
            if stopping or profiled or self.is_due(step):
                self.finish_step(launched)
                pending = None
            if stopping or profiled:
                self.write_profile()
            if stopping or self.is_due(step):
                with self.meter.paused():
                    self.evaluate_and_save(step, stopping)
            if stopping:
                self.write_line(
                    f"stopped after step {step}; the same command continues the run"
                )
                return
        path = shorten_path(self.store.remote if self.store else run.directory)
        self.write_line(f"finished {self.config.steps} steps; the run is in {path}")

    def write_profile(self) -> None:
        """Write the profile, if one was begun."""
        with self.meter.paused():
            if self.profile.end():
                folder = shorten_path(self.profile.folder)
                self.write_line(f"profile written to {folder} (xprof {folder})")

    def launch_step(self, step: int) -> _PendingStep:
        """Fetch a batch, place it on the devices and dispatch the step."""
        run = self.training_run
        with self.meter.waiting():
            rows = next(run.batches)
        with jax.transfer_guard("disallow"):
            batch = sharding.make_global_batch(rows, run.mesh)
            negatives = run.negatives.get(step)
            if negatives is not None:
                layout = sharding.replicated(run.mesh)
                negatives = jax.tree.map(
                    lambda x: sharding.shard_tree(x, layout), negatives
                )
            with self._meter_compilation(batch):
                run.state, metrics = run.train_step(
                    run.state, run.frozen, batch, negatives
                )
        keys = rows.get("_key") or [str(position) for position in rows["position"]]
        broken = list(run.batches.broken_by_source)
        return _PendingStep(step, metrics, keys, broken)

    def _meter_compilation(
        self, batch: Mapping[str, jax.Array]
    ) -> contextlib.AbstractContextManager[None]:
        """Meter the first step of every batch shape (length bucket) as compilation."""
        shapes = tuple(sorted((name, rows.shape) for name, rows in batch.items()))
        if shapes in self._compiled_shapes:
            return contextlib.nullcontext()
        if not self._compiled_shapes:
            self.write_line(compiling_message("first step"))
        self._compiled_shapes.add(shapes)
        return self.meter.compiling()

    def finish_step(self, pending: _PendingStep) -> None:
        """Wait for a step, check its metrics and log them if due."""
        metrics = jax.device_get(dict(pending.metrics))
        scalars = {
            name: float(value)
            for name, value in metrics.items()
            if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0
        }
        self.meter.count_step()
        check_finite(pending.step, scalars, pending.keys, self.last_saved)
        if self.negatives_log is not None and "negatives" in metrics:
            self.negatives_log.write_negatives(pending.step, metrics["negatives"])
        if self.terminal is not None:
            self.terminal.advance(pending.step, scalars.get("loss"))
        if pending.step % self.config.log_every == 0 or pending.step in (
            1,
            self.config.steps,
        ):
            scalars.pop("finite", None)
            self.write_metrics(pending, scalars)

    def write_metrics(
        self, pending: _PendingStep, scalars: Mapping[str, float]
    ) -> None:
        """Log the metrics of a step together with rates, memory and counts of data."""
        sources = self.source_counts(pending.step, pending.broken)
        values = {
            **scalars,
            **CONSTANTS.get(self.training_run.task.name, {}),
            **self.meter.read(),
            "broken_samples": float(sum(count.broken for count in sources)),
            **as_metrics(sources),
        }
        if retries := hosts.sum_over_hosts(retry_count()):
            values["store_retries"] = float(retries)
        if self.log is not None and self.terminal is not None:
            self.log.write(pending.step, values)
            self.terminal.write_metrics(pending.step, values)

    def source_counts(self, step: int, broken: Sequence[int]) -> list[SourceCount]:
        """Count the rows and broken samples of each source up to a step.

        Args:
          step: the step.
          broken: broken samples in this process's rows since the process started.
        """
        run = self.training_run
        return count_sources(
            run.batches.source_names,
            run.batches.rows_by_source(step),
            run.broken_before,
            hosts.sum_each_over_hosts(broken),
        )

    def is_due(self, step: int) -> bool:
        """Return True if the run evaluates or saves after this step."""
        every = self.config.evaluation.every
        return (
            step == self.config.steps
            or step % self.config.checkpoint.every == 0
            or bool(every and step % every == 0)
        )

    def stop_requested(self, step: int, stop: StopRequest) -> bool:
        """Return True if a signal arrived; every process returns the same answer."""
        if jax.process_count() == 1:
            return stop.signal is not None
        if stop.signal is not None:  # Ctrl-C in one process becomes SIGTERM for all
            stop.signal = None
            os.kill(os.getpid(), signal.SIGTERM)
        if multihost_utils.reached_preemption_sync_point(step):
            stop.signal = signal.SIGTERM
        return stop.signal is not None

    def evaluate_and_save(self, step: int, stopping: bool) -> None:
        """Evaluate if due. Save if due, if the run ends or if the score is the best.

        A run that is stopped is not evaluated, but for its last step: no later command
        would evaluate that one.

        Raises:
          ConfigError: see `evaluate`; the step is saved.
        """
        every, score = self.config.evaluation.every, None
        last = step == self.config.steps
        if every and (last or (step % every == 0 and not stopping)):
            try:
                score = self.evaluate(step)
            except ConfigError:
                self.save(step, None)
                self.training_run.checkpoints.wait()
                raise
        # Checkpoints complete at different times in different processes, so that the
        # first one decides.
        is_best = hosts.broadcast_from_first(self._is_best(score))
        regular = step % self.config.checkpoint.every == 0
        if regular or is_best or stopping or last:
            self.save(step, score)

    def _is_best(self, score: float | None) -> bool:
        """Return True if the score is better than that of every checkpoint."""
        if score is None:
            return False
        best = self.training_run.checkpoints.best()
        sign = 1.0 if self.config.evaluation.mode == "max" else -1.0
        return best is None or sign * score > sign * best[1]

    def evaluate(self, step: int) -> float:
        """Evaluate, log the scores and return the one that selects the best checkpoint.

        Raises:
          ConfigError: `config.evaluation.metric` is not among the scores.
        """
        run = self.training_run
        assert run.evaluator is not None
        name = best_metric(self.config)
        hide_bar = self.terminal.hide_bar() if self.terminal else None
        with hide_bar or contextlib.nullcontext():
            scores, samples = run.evaluator(run.parameters())
        if name not in scores:
            raise ConfigError(
                f"config.evaluation.metric is {name!r}; the scores are "
                f"{', '.join(scores)}"
            )
        if self.log is not None and self.terminal is not None:
            self.log.write(step, {f"evaluation/{k}": v for k, v in scores.items()})
            if self.history is not None:
                self.history.write_samples(step, samples)
            best = " (best so far)" if self._is_best(scores[name]) else ""
            self.terminal.write_block(
                f"evaluation after step {step}: {name} {scores[name]:.4g}{best}", scores
            )
        return hosts.broadcast_from_first(scores[name])

    def save(self, step: int, score: float | None) -> None:
        """Start to save a checkpoint."""
        run = self.training_run
        counts = self.source_counts(step, run.batches.broken_by_source)
        meta = {
            "step": step,
            "seed": self.config.seed,
            "position": step * self.config.batch_size,
            "broken_samples": {count.name: count.broken for count in counts},
        }
        run.checkpoints.save(step, run.trees(), meta, score)
        self.last_saved = step
        if self.store is not None:
            self.store.saved(step)

    def write_line(self, text: str) -> None:
        """Print a line for the user; does nothing in all but the first process."""
        if self.terminal is not None:
            self.terminal.write_line(text)

    def close(self, all_processes: bool = True) -> None:
        """Stop the data workers, finish pending saves and close the logs.

        Args:
          all_processes: every process closes its loop now. Otherwise pending saves are
            abandoned, because they wait for all processes.
        """
        self.profile.end()
        self.training_run.batches.close()
        if all_processes:
            self.training_run.checkpoints.close()
        for sink in (self.log, self.terminal, self.history, self.negatives_log):
            if sink is not None:
                sink.close()


def _wandb_options(run: TrainingRun) -> dict[str, Any] | None:
    """Return the arguments of `wandb.init`; None if the run does not use wandb."""
    if not run.config.logging.wandb:
        return None
    return {
        "project": run.config.logging.wandb_project,
        "config": to_plain(run.config),
        "dir": str(run.directory),
    }
