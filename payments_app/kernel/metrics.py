"""All Prometheus metrics, by name. docs/metrics.md says what each one means.

Label values come from closed sets: never a tenant, a key, a number or unauthenticated input. A
counter of a transaction's effects is incremented after that transaction has committed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_NAMESPACE: Final = "maramoja"
# Set by gunicorn.conf.py: several processes share one port, and the files of all are summed up.
_SHARED: Final = "PROMETHEUS_MULTIPROC_DIR"
_REGISTRY: Final = CollectorRegistry()
_counter = partial(Counter, namespace=_NAMESPACE, registry=_REGISTRY)
_histogram = partial(Histogram, namespace=_NAMESPACE, registry=_REGISTRY)
# `live…`: the value of a process that has ended is left out.
_sum_gauge = partial(Gauge, namespace=_NAMESPACE, registry=_REGISTRY, multiprocess_mode="livesum")
_SHORT: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WAITS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 2, 5)
# A payer has minutes to confirm; an outage takes hours.
_LONG: Final = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 21_600, 86_400)
disable_created_metrics()  # type: ignore[no-untyped-call]

http_requests = _counter("http_requests", "Requests answered.", ("method", "route", "status"))
http_request_seconds = _histogram(
    "http_request_seconds", "From a request's arrival to its answer.", ("route",), buckets=_SHORT
)
accept_seconds = _histogram(
    "accept_seconds", "How long POST /payments took.", ("outcome",), buckets=_SHORT
)
idempotency = _counter("idempotency", "Orders by what their key came to.", ("outcome",))
key_lock_wait_seconds = _histogram(
    "key_lock_wait_seconds", "For another request with the same Idempotency-Key.", buckets=_WAITS
)
payments_accepted = _counter("payments_accepted", "New payments.", ("provider", "mode"))
payments_final = _counter(
    "payments_final",
    "Payments that have ended.",
    ("provider", "mode", "status", "failure_code"),
)
time_to_final_seconds = _histogram(
    "time_to_final_seconds",
    "From acceptance to the end.",
    ("provider", "status"),
    buckets=_LONG,
)
provider_exchange_seconds = _histogram(
    "provider_exchange_seconds",
    "How long a provider took.",
    ("provider", "operation"),
    buckets=_SHORT,
)
provider_answers = _counter(
    "provider_answers", "What providers answered.", ("provider", "operation", "verdict")
)
# Each worker shows the last rate that it read for any account at the provider.
status_checks_per_s = Gauge(
    "status_checks_per_s",
    "How often an account may be asked for a status.",
    ("provider",),
    namespace=_NAMESPACE,
    registry=_REGISTRY,
    multiprocess_mode="livemin",
)
callbacks = _counter("callbacks", "Callbacks by what was made of them.", ("outcome",))
webhook_posts = _counter("webhook_posts", "Webhooks posted, by what came of it.", ("outcome",))
webhook_post_seconds = _histogram(
    "webhook_post_seconds", "How long a receiver took.", buckets=_SHORT
)
webhooks_recorded_one_by_one = _counter(
    "webhooks_recorded_one_by_one", "Results that could not be written together with others."
)
fenced_writes = _counter("fenced_writes", "Results of workers that had lost their lease.")
payments_recorded_one_by_one = _counter(
    "payments_recorded_one_by_one", "Batches of results that could not be written together."
)
doorbells_lost = _counter("doorbells_lost", "Rings that reached no broker.", ("job",))
database_pool_in_use = _sum_gauge("database_pool_in_use", "Connections that are lent out.")
database_pool_size = _sum_gauge("database_pool_size", "Connections that there may be.")
database_pool_timeouts = _counter(
    "database_pool_timeouts", "Waits for a connection that were given up."
)
database_deadlocks = _counter("database_deadlocks", "Transactions that a deadlock ended.")
redis_errors = _counter("redis_errors", "Commands to Redis that failed.")
build_info = Gauge(
    "build_info",
    "1, with the version that runs.",
    ("version",),
    namespace=_NAMESPACE,
    registry=_REGISTRY,
    multiprocess_mode="livemax",
)


@dataclass(frozen=True, slots=True)
class Reading:
    """A gauge that was read just now: a number for each value of `label`, or one under ""."""

    name: str
    help: str
    values: Mapping[str, float]
    label: str = ""


def exposition(*readings: Reading) -> bytes:
    """The metrics of this process, or of all that share its port, in Prometheus' text format."""
    asked = CollectorRegistry()
    asked.register(_Readings(readings))
    shared = os.environ.get(_SHARED)
    if not shared:
        return generate_latest(_REGISTRY) + generate_latest(asked)
    _Files(asked, path=shared)  # type: ignore[no-untyped-call]
    # Wait while gunicorn's master merges the counts of ended processes, and read none half-merged.
    with (Path(shared) / "moving").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        return generate_latest(asked)


class _Files(MultiProcessCollector):
    def collect(self) -> Iterable[Metric]:
        """All files but empty ones, which were just created and on which the library fails."""
        files = [str(path) for path in Path(self._path).glob("*.db") if _has_size(path)]
        found: Iterable[Metric] = self.merge(files)  # type: ignore[no-untyped-call]
        return found


def _has_size(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


class _Readings(Collector):
    def __init__(self, readings: tuple[Reading, ...]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for reading in self._readings:
            labels = [reading.label] if reading.label else []
            family = GaugeMetricFamily(f"{_NAMESPACE}_{reading.name}", reading.help, labels=labels)
            for value, number in reading.values.items():
                family.add_metric([value] if reading.label else [], number)
            yield family
