"""The training loop: fetch, step, report, evaluate, save, until done or stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from blip2_jax.losses.objectives import ITM_PRIOR_ENTROPY
from blip2_jax.nn import fused_attention
from blip2_jax.nn.trees import matches, merge
from blip2_jax.parallel import hosts, sharding
from blip2_jax.perf.flops import mfu_numerator
from blip2_jax.perf.meters import Meter
from blip2_jax.training import replay
from blip2_jax.training.guards import (
    NonFiniteLoss,
    StopRequest,
    check_finite,
    stop_on_signal,
)
from blip2_jax.training.metrics_log import MetricsLog, Terminal, format_line
from blip2_jax.training.setup import EvaluatorFactory, TrainingRun, set_up
from blip2_jax.training.tasks import model_config
from blip2_jax.training.train_config import ConfigError, best_metric, to_plain

CONSTANTS = {"stage1": {"itm_prior_entropy": ITM_PRIOR_ENTROPY}}


def train(
    config: ConfigDict,
    directory: str | pathlib.Path,
    make_evaluator: EvaluatorFactory | None = None,
) -> int:
    """Train until `config.steps`, or until a signal asks to save and leave.

    Args:
      config: see `config.default_config`.
      directory: of the run; one that holds the same run is continued.
      make_evaluator: builds the evaluator that `config.evaluation` describes, e.g.
        `blip2_jax.evaluation.evaluators.make_evaluator`. A configuration without
        evaluation needs none.

    Returns:
      The exit code: 0, or 128 + the signal that stopped the run.

    Raises:
      ValueError, OSError, CheckpointError: see `set_up`.
      NonFiniteLoss, TooManyBrokenSamples: the run cannot go on.
    """
    with fused_attention.chosen(config.model.attention):
        directory = pathlib.Path(directory).absolute()
        return _train(set_up(config, directory, make_evaluator))


def _train(run: TrainingRun) -> int:
    """`train`, once all is set up."""
    loop = Loop(run)
    # Between processes, jax itself listens for SIGTERM, so that all stop at one step.
    signals = (signal.SIGINT,) + ((signal.SIGTERM,) if jax.process_count() == 1 else ())
    together = True
    try:
        with stop_on_signal(signals) as stop:
            loop.run_steps(stop)
    except BaseException as error:
        # What only one process meets, the others do not know of: no waiting for them.
        together = jax.process_count() == 1 or isinstance(error, NonFiniteLoss)
        raise
    finally:
        loop.close(together)
    return stop.exit_code


def flops_per_image(config: ConfigDict) -> int | None:
    """The fixed numerator of MFU; None for tasks that the paper does not have.

    Of texts of the full length, also where `data.length_buckets` pads to less: skipped
    work shows as speed.
    """
    if config.task not in ("stage1", "stage2"):
        return None
    length = config.data.max_text_length
    return mfu_numerator(
        model_config(config.model),
        length,
        length,
        question=length if config.model.get("question_in_qformer", False) else 0,
        trained_vision=not matches(config.frozen, "visual_encoder/blocks"),
    )


@dataclasses.dataclass(frozen=True)
class _Launched:
    """A step that has been sent to the devices and may still be running."""

    step: int
    metrics: Mapping[str, Any]
    keys: list[str]


class Loop:
    """One process's view of a run in progress."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run
        self.config = run.config
        self.last_saved: int | None = run.start or None
        self.meter = Meter(run.config.batch_size, flops_per_image(run.config))
        self.log, self.terminal = None, None
        if hosts.is_first():
            wandb = {
                "project": run.config.logging.wandb_project,
                "config": to_plain(run.config),
                "dir": str(run.directory),
            }
            self.log = MetricsLog(
                run.directory, run.start, wandb if run.config.logging.wandb else None
            )
            self.terminal = Terminal(run.config.steps, run.start)
        self.negatives = replay.open_log(run.config, run.directory, run.start)
        self._compiled: set[tuple[Any, ...]] = set()
        for line in run.report:
            self.say(line)

    def run_steps(self, stop: StopRequest) -> None:
        """From the run's start to its end; each step's metrics are read one late."""
        before: _Launched | None = None
        for step in range(self.run.start + 1, self.config.steps + 1):
            launched = self.launch(step)
            if before is not None:
                self.finish(before)
            before = launched
            stopping = self.asked_to_stop(step, stop)
            if stopping or self.is_due(step):
                self.finish(launched)
                before = None
                with self.meter.paused():
                    self.pause(step, stopping)
            if stopping:
                self.say(f"stopped after step {step}; the same command continues")
                return
        self.say(f"done: {self.config.steps} steps in {self.run.directory}")

    def launch(self, step: int) -> _Launched:
        """Fetch a batch, place it and start the step on it."""
        with self.meter.waiting():
            rows = next(self.run.batches)
        with jax.transfer_guard("disallow"):
            batch = sharding.make_global_batch(rows, self.run.mesh)
            negatives = self.run.negatives.get(step)
            if negatives is not None:
                whole = sharding.replicated(self.run.mesh)
                negatives = jax.tree.map(
                    lambda x: sharding.shard_tree(x, whole), negatives
                )
            with self._compiling(batch):
                self.run.state, metrics = self.run.train_step(
                    self.run.state, self.run.frozen, batch, negatives
                )
        keys = rows.get("_key") or [str(position) for position in rows["position"]]
        return _Launched(step, metrics, keys)

    def _compiling(
        self, batch: Mapping[str, jax.Array]
    ) -> contextlib.AbstractContextManager[None]:
        """Meters the first step of every shape (length bucket), which compiles."""
        shapes = tuple(sorted((name, rows.shape) for name, rows in batch.items()))
        if shapes in self._compiled:
            return contextlib.nullcontext()
        self._compiled.add(shapes)
        return self.meter.compiling()

    def finish(self, launched: _Launched) -> None:
        """Wait for a step; check and report its numbers."""
        metrics = jax.device_get(dict(launched.metrics))
        scalars = {
            name: float(value)
            for name, value in metrics.items()
            if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0
        }
        self.meter.count_step()
        check_finite(launched.step, scalars, launched.keys, self.last_saved)
        if self.negatives is not None and "negatives" in metrics:
            self.negatives.write(launched.step, metrics["negatives"])
        if self.terminal is not None:
            self.terminal.advance(launched.step)
        if launched.step % self.config.log_every == 0 or launched.step == 1:
            scalars.pop("finite", None)
            broken = hosts.sum_over_hosts(self.run.batches.broken_stats.counts.total())
            self.write(
                launched.step,
                scalars
                | CONSTANTS.get(self.run.task.name, {})
                | self.meter.read()
                | {"broken_samples": float(broken)},
            )

    def is_due(self, step: int) -> bool:
        """Whether to evaluate or save after this step."""
        every = self.config.evaluation.every
        return (
            step == self.config.steps
            or step % self.config.checkpoint.every == 0
            or bool(every and step % every == 0)
        )

    def asked_to_stop(self, step: int, stop: StopRequest) -> bool:
        """Whether a signal arrived; the same answer in every process."""
        if jax.process_count() == 1:
            return stop.signal is not None
        if stop.signal is not None:  # Ctrl-C of one process becomes SIGTERM for all
            stop.signal = None
            os.kill(os.getpid(), signal.SIGTERM)
        if multihost_utils.reached_preemption_sync_point(step):
            stop.signal = signal.SIGTERM
        return stop.signal is not None

    def pause(self, step: int, stopping: bool) -> None:
        """Evaluate where it is due, then save where it is due or has become best."""
        every, metric = self.config.evaluation.every, None
        if every and (step % every == 0 or step == self.config.steps) and not stopping:
            metric = self.evaluate(step)
        best = self.run.checkpoints.best()
        sign = 1.0 if self.config.evaluation.mode == "max" else -1.0
        is_best = metric is not None and (
            best is None or sign * metric > sign * best[1]
        )
        regular = step % self.config.checkpoint.every == 0
        # Which checkpoints are complete is a matter of time: one process looks.
        if (
            regular
            or hosts.broadcast_from_first(is_best)
            or stopping
            or step == self.config.steps
        ):
            self.save(step, metric)

    def evaluate(self, step: int) -> float:
        """Evaluate, write the numbers down; returns the one that decides on best.

        Raises:
          ConfigError: there is no such number.
        """
        assert self.run.evaluator is not None
        metric = best_metric(self.config)
        values = self.run.evaluator(merge(self.run.state.trainable, self.run.frozen))
        if metric not in values:
            raise ConfigError(
                f"config.evaluation.metric is {metric!r}; there are {', '.join(values)}"
            )
        named = {f"evaluation/{name}": value for name, value in values.items()}
        self.write(step, named)
        return hosts.broadcast_from_first(values[metric])

    def save(self, step: int, metric: float | None) -> None:
        """Start a checkpoint."""
        meta = {
            "step": step,
            "seed": self.config.seed,
            "position": step * self.config.batch_size,
        }
        self.run.checkpoints.save(step, self.run.trees(), meta, metric)
        self.last_saved = step

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers to every sink; on the first process only."""
        if self.log is not None:
            self.log.write(step, values)
        self.say(format_line(step, self.config.steps, values))

    def say(self, text: str) -> None:
        """A line for the user; on the first process only."""
        if self.terminal is not None:
            self.terminal.say(text)

    def close(self, together: bool = True) -> None:
        """End workers, flush logs, and finish what is being saved.

        Args:
          together: all processes are here; else what is being saved is given up.
        """
        self.run.batches.close()
        if together:
            self.run.checkpoints.close()
        for sink in (self.log, self.terminal, self.negatives):
            if sink is not None:
                sink.close()
