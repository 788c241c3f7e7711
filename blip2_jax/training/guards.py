"""Reasons to stop a run early: signals and losses that are not finite."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType


class NonFiniteLoss(RuntimeError):
    """A loss or gradient is NaN or infinite; the message names the step and batch."""


class StopRequest:
    """Records that a signal asked the run to save and exit.

    Attributes:
      signal: the signal that arrived, or None.
    """

    signal: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """Return 128 + the signal number, or 0 if none arrived.

        A shell reports signals this way, so that `a && b` does not run b, and a
        scheduler restarts the job.
        """
        return 128 + self.signal if self.signal else 0


@contextlib.contextmanager
def stop_on_signal(
    signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
) -> Iterator[StopRequest]:
    """Turn the first signal into a request; a second one has its usual effect."""
    request = StopRequest()
    previous = {number: signal.getsignal(number) for number in signals}

    def handle(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        signal.signal(number, previous[request.signal])

    for number in signals:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def check_finite(
    step: int,
    metrics: Mapping[str, float],
    keys: Sequence[str],
    last_checkpoint: int | None,
) -> None:
    """Check that the losses and the gradient norm of a step are finite.

    Args:
      step: number of the step, from 1.
      metrics: metrics of the step; `grad_norm` and those named `loss...` are checked.
      keys: keys of the samples of the batch.
      last_checkpoint: step of the last checkpoint, or None.

    Raises:
      NonFiniteLoss: one is not; the message names it, the step, the last checkpoint and
        the samples.
    """
    not_finite = [
        f"{name} = {value}"
        for name, value in metrics.items()
        if name.startswith(("loss", "grad_norm")) and not math.isfinite(value)
    ]
    if not_finite:
        saved = "none" if last_checkpoint is None else str(last_checkpoint)
        raise NonFiniteLoss(
            f"step {step}: {', '.join(not_finite)}; last good checkpoint: {saved}; "
            f"samples of the batch: {', '.join(keys)}"
        )
