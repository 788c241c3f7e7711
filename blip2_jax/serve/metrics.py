"""Counters of the HTTP server, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from blip2_jax.serve.batching import BatchReport

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server; `text` is what /metrics answers."""

    def __init__(self) -> None:
        """Make counters that start at zero."""
        self._registry = CollectorRegistry()
        common = {"namespace": "blip2_jax", "registry": self._registry}
        self._requests = Counter(
            "requests",
            "HTTP requests by path and status.",
            ("path", "status"),
            **common,
        )
        self._latency = Histogram(
            "request_seconds",
            "Time from the request to the end of its answer.",
            ("path",),
            buckets=_SECONDS,
            **common,
        )
        self._batches = Histogram(
            "batch_size", "Requests of a batch.", ("kind",), buckets=_SIZES, **common
        )
        self._model = Histogram(
            "batch_seconds", "Time of a batch.", ("kind",), buckets=_SECONDS, **common
        )
        self._waits = Histogram(
            "queue_seconds", "Time in the queue.", buckets=_SECONDS, **common
        )
        self._common = common

    def add_gauge(self, name: str, text: str, function: Callable[[], float]) -> None:
        """Add a value that is read when the metrics are."""
        Gauge(name, text, **self._common).set_function(function)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count an answered request.

        Args:
          path: of the endpoint; "" for one that does not exist.
          status: of the answer; 499 if the client left.
          seconds: from the request to the end of its answer.
        """
        self._requests.labels(path, str(status)).inc()
        self._latency.labels(path).observe(seconds)

    def count_batch(self, report: BatchReport) -> None:
        """Count a batch of an engine."""
        self._batches.labels(report.kind).observe(report.size)
        self._model.labels(report.kind).observe(report.seconds)
        for wait in report.waits:
            self._waits.observe(wait)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
