"""Numbers for Prometheus, in a registry of the application's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ..operations import Answer, Operation

#: Seconds: most answers are there at once, polls are held for up to half a minute.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What is counted per request, and the desk's numbers as they are when somebody asks."""

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "lossbook_requests", "HTTP requests answered", ("route", "method", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "lossbook_request_seconds", "seconds until the answer", ("route",), registry=self.registry, buckets=_BUCKETS
        )
        self._bytes = Counter("lossbook_request_bytes", "bytes of requests' bodies", ("route",), registry=self.registry)
        self._operations = Counter(
            "lossbook_operations", "operations that ended", ("kind", "outcome"), registry=self.registry
        )
        self._operation_seconds = Histogram(
            "lossbook_operation_seconds",
            "seconds that an operation ran",
            ("kind",),
            registry=self.registry,
            buckets=_BUCKETS,
        )
        self._running = Gauge("lossbook_requests_running", "HTTP requests in work", registry=self.registry)
        self.registry.register(_Desk(status))

    def begun(self) -> None:
        """A request has come."""
        self._running.inc()

    def answered(self, route: str, method: str, status: int, seconds: float, size: int) -> None:
        """A request was answered, or its client is gone (status 499)."""
        self._running.dec()
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if size:
            self._bytes.labels(route).inc(size)

    def ran(self, operation: Operation, answer: Answer, seconds: float) -> None:
        """An operation has ended; an observer of the desk."""
        self._operations.labels(operation.kind, "done" if answer.error is None else answer.category or "server").inc()
        self._operation_seconds.labels(operation.kind).observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self.registry)


class _Desk(Collector):
    """The numbers of the desk's status, each a gauge `lossbook_desk_NAME`."""

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._status = status

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Nothing beforehand: which numbers there are, the desk says when it is asked."""
        return iter(())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """A gauge for each number, also those one level down."""
        for name, value in _numbers("lossbook_desk", self._status()):
            yield GaugeMetricFamily(name, name.removeprefix("lossbook_desk_").replace("_", " "), value=value)


def _numbers(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        full = f"{prefix}_{name}"
        if isinstance(value, bool | int | float):
            yield full, float(value)
        elif isinstance(value, Mapping) and all(str(key).isidentifier() for key in value):
            yield from _numbers(full, value)
