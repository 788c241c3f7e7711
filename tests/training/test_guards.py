"""Stop requests by signals, and checks for non-finite losses."""

import os
import signal

import pytest

from blip2_jax.training.guards import NonFiniteLoss, check_finite, stop_on_signal


@pytest.fixture
def interrupts():
    """Install the default handler of Ctrl-C, which background jobs lack."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_signal_asks_and_the_second_acts(interrupts):
    with stop_on_signal() as stop:
        assert stop.signal is None and stop.exit_code == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal is signal.SIGINT and stop.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_previous_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_only_losses_and_gradients_must_be_finite():
    check_finite(1, {"loss": 1.0, "grad_norm": 2.0, "mfu": float("nan")}, [], None)
    with pytest.raises(NonFiniteLoss) as raised:
        check_finite(7, {"loss": 1.0, "loss_itm": float("inf")}, ["a", "b"], 5)
    assert str(raised.value) == (
        "step 7: loss_itm = inf; last good checkpoint: 5; samples of the batch: a, b"
    )
    with pytest.raises(NonFiniteLoss, match=r"grad_norm = nan; last good .*: none"):
        check_finite(1, {"loss": 1.0, "grad_norm": float("nan")}, [], None)
