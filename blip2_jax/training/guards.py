"""What stops a run early, and how: signals, losses that are not finite."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType


class NonFiniteLoss(RuntimeError):
    """A loss became NaN or infinite; the message says when and on what data."""


class StopRequest:
    """Whether somebody asked the run to save and leave.

    Attributes:
      signal: the signal that arrived, or None.
    """

    signal: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """128 + the signal, as a shell reports it, so that `a && b` does not go on
        and a scheduler starts the job again."""
        return 128 + self.signal if self.signal else 0


@contextlib.contextmanager
def stop_on_signal(
    signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
) -> Iterator[StopRequest]:
    """Turn the first signal into a request; a second one of a kind acts at once."""
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in signals}

    def handle(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        signal.signal(number, before[request.signal])

    for number in signals:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_finite(
    step: int,
    metrics: Mapping[str, float],
    keys: Sequence[str],
    last_checkpoint: int | None,
) -> None:
    """Raise when a loss or the gradient of this step is NaN or infinite.

    Args:
      step: the number of the step, from 1.
      metrics: its metrics; `grad_norm` and those named `loss...` are looked at.
      keys: which samples the batch held.
      last_checkpoint: the newest step saved, if any.

    Raises:
      NonFiniteLoss: naming the losses, the step, the checkpoint and the samples.
    """
    wrong = [
        f"{name} = {value}"
        for name, value in metrics.items()
        if name.startswith(("loss", "grad_norm")) and not math.isfinite(value)
    ]
    if wrong:
        saved = "none" if last_checkpoint is None else str(last_checkpoint)
        raise NonFiniteLoss(
            f"step {step}: {', '.join(wrong)}; last good checkpoint: {saved}; "
            f"samples of the batch: {', '.join(keys)}"
        )
