"""The batching engine: what is joined, refused, dropped and finished."""

import dataclasses
import threading

import pytest

from blip2_jax.serve.batching import (
    DeadlineExceeded,
    Engine,
    EngineClosed,
    QueueFull,
)

WAIT = 10.0  # seconds; no test should take so long


class Recorder:
    """A model that records its batches, and can be held until it is released."""

    def __init__(self):
        self.batches = []
        self.started, self.released = threading.Event(), threading.Event()


@dataclasses.dataclass(frozen=True)
class Echo:
    """Returns its value; requests of one kind are joined."""

    value: str
    kind: str = ""

    def join_key(self, model):
        if self.kind == "wrong":
            raise ValueError("wrong kind")
        return self.kind

    def run(self, model, requests):
        values = [request.value for request in requests]
        model.batches.append("".join(values))
        if "!" in values:
            raise ValueError(f"cannot run {values}")
        return [value.upper() for value in values]


class Hold(Echo):
    """Occupies the worker until the model is released."""

    def run(self, model, requests):
        model.started.set()
        assert model.released.wait(WAIT)
        return super().run(model, requests)


@pytest.fixture
def model():
    model = Recorder()
    yield model
    model.released.set()


def held_engine(model, **options):
    """Start an engine whose worker is occupied, so that requests pile up."""
    engine = Engine(model, max_wait=0.0, **options)
    held = engine.submit(Hold("0"))
    assert model.started.wait(WAIT)
    return engine, held


def test_what_waits_is_joined_by_kind_in_order_of_arrival(model):
    reports = []
    engine, held = held_engine(model, max_batch=3, observer=reports.append)
    words = ["ax", "by", "cx", "dx", "ex", "fy"]
    futures = [engine.submit(Echo(word[0], kind=word[1])) for word in words]
    assert (engine.waiting, engine.running) == (6, 1)
    model.released.set()
    assert [future.result(WAIT) for future in [held, *futures]] == [*"0ABCDEF"]
    engine.close()
    assert model.batches == ["0", "acd", "bf", "e"]
    assert [(r.kind, r.size, r.failed) for r in reports] == [
        ("Hold", 1, 0), ("Echo", 3, 0), ("Echo", 2, 0), ("Echo", 1, 0),
    ]  # fmt: skip
    assert all(len(report.waits) == report.size for report in reports)


def test_an_idle_worker_waits_for_a_full_batch_and_no_longer(model):
    with Engine(model, max_batch=2, max_wait=3600.0) as engine:
        futures = [engine.submit(Echo(value)) for value in "ab"]
        assert [future.result(WAIT) for future in futures] == ["A", "B"]
    assert model.batches == ["ab"]


def test_a_request_alone_runs_after_a_short_time(model):
    with Engine(model, max_batch=2, max_wait=0.01) as engine:
        assert engine.submit(Echo("a")).result(WAIT) == "A"


def test_a_full_queue_refuses_and_forgets_what_was_cancelled(model):
    engine, _ = held_engine(model, max_queue=2)
    first, second = engine.submit(Echo("a")), engine.submit(Echo("b"))
    with pytest.raises(QueueFull, match="2 requests wait"):
        engine.submit(Echo("c"))
    assert first.cancel()
    third = engine.submit(Echo("d"))
    model.released.set()
    assert (second.result(WAIT), third.result(WAIT)) == ("B", "D")
    engine.close()
    assert model.batches == ["0", "bd"]


def test_a_request_that_waits_too_long_is_dropped(model):
    engine, held = held_engine(model)
    late = engine.submit(Echo("a"), timeout=0.0)
    in_time = engine.submit(Echo("b"), timeout=WAIT)
    model.released.set()
    with pytest.raises(DeadlineExceeded, match="in the queue"):
        late.result(WAIT)
    assert (held.result(WAIT), in_time.result(WAIT)) == ("0", "B")
    engine.close()
    assert model.batches == ["0", "b"]


def test_a_wrong_request_fails_alone(model):
    engine, _ = held_engine(model)
    futures = [engine.submit(Echo(value)) for value in "a!b"]
    model.released.set()
    with pytest.raises(ValueError, match="cannot run"):
        futures[1].result(WAIT)
    assert (futures[0].result(WAIT), futures[2].result(WAIT)) == ("A", "B")
    with pytest.raises(ValueError, match="wrong kind"):
        engine.submit(Echo("a", kind="wrong"))
    assert engine.submit(Echo("c")).result(WAIT) == "C"  # it goes on
    engine.close()
    assert model.batches == ["0", "a!b", "a", "!", "b", "c"]


def test_closing_finishes_what_was_accepted_and_refuses_the_rest(model):
    engine, held = held_engine(model)
    waiting = engine.submit(Echo("a"))
    assert not engine.close(timeout=0.0)
    with pytest.raises(EngineClosed):
        engine.submit(Echo("b"))
    model.released.set()
    assert engine.close()
    assert (held.result(0), waiting.result(0)) == ("0", "A")


def test_closing_without_finishing_cancels_what_waits(model):
    engine, held = held_engine(model)
    waiting = engine.submit(Echo("a"))
    assert not engine.close(finish=False, timeout=0.0)
    model.released.set()
    assert engine.close() and waiting.cancelled()
    assert held.result(0) == "0"


def test_no_request_is_lost_or_mixed_up_between_threads(model):
    results = {}

    def ask(thread):
        futures = {
            (thread, i): engine.submit(Echo(f"<{thread}.{i}>")) for i in range(50)
        }
        results.update({key: future.result(WAIT) for key, future in futures.items()})

    with Engine(model, max_batch=7, max_queue=1000) as engine:
        threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    assert results == {(n, i): f"<{n}.{i}>" for n in range(8) for i in range(50)}
    assert max(batch.count("<") for batch in model.batches) <= 7


@pytest.mark.parametrize("limit", ["max_batch", "max_queue"])
def test_limits_are_at_least_one(model, limit):
    with pytest.raises(ValueError, match="at least 1"):
        Engine(model, **{limit: 0})
