"""Tracing is off unless configured, and then nothing is loaded; on, it never delays a payment."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial

import pytest
import requests

from devstack.environment import hermetic_environment
from devstack.programs import ROOT
from devstack.servers import Servers
from devstack.stack import Stack
from devstack.supervisor import wait_until
from tests.journeys.gateway import PATIENCE_S, Gateway
from tests.traces.collector import collecting

SECRET = "hunter2-of-the-collector"
# redis-py imports the metrics part of the SDK wherever it is installed, and doesn't use it.
LOADED = """
import sys, threading, wsgi
costly = ("opentelemetry.exporter", "opentelemetry.sdk.trace", "google.protobuf", "payments_app.kernel.otel")
print(*(name for name in sys.modules if name.startswith(costly)))
print(*(thread.name for thread in threading.enumerate() if thread is not threading.main_thread()))
"""
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


def loaded(servers: Servers, **settings: str) -> str:
    """The modules that an API process has imported for tracing, and its threads."""
    addresses = servers.addresses("nothing", servers.redis)
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        cwd=ROOT,
        env=hermetic_environment(addresses, settings),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"OTEL_SERVICE_NAME": "pay", "OTEL_TRACES_SAMPLER": "always_on"},
        {**ENDPOINT, "OTEL_SDK_DISABLED": "true"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
    ],
    ids=["nothing set", "no exporter", "disabled", "none"],
)
def test_off_it_is_not_even_imported(servers: Servers, settings: dict[str, str]) -> None:
    assert loaded(servers, **settings) == ""


@pytest.mark.parametrize(
    "settings", [ENDPOINT, {"OTEL_TRACES_EXPORTER": "console"}, {"OTEL_TRACES_EXPORTER": "otlp"}]
)
def test_what_is_configured_is_loaded(servers: Servers, settings: dict[str, str]) -> None:
    found = loaded(servers, **settings)
    assert "payments_app.kernel.otel" in found
    assert "OtelBatchSpan" in found


def test_a_collector_that_is_away_costs_no_payment_and_its_secrets_are_in_no_log(
    stack_factory: partial[Stack],
) -> None:
    settings = {
        **ENDPOINT,
        # Malformed too: the SDK's own error message would contain all of it.
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{SECRET},{SECRET}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with stack_factory(workers=1, celery_workers=1, settings=settings) as stack:
        gateway = Gateway(stack)
        started = time.monotonic()
        paid = gateway.pay()
        assert time.monotonic() - started < 5.0
        gateway.await_end(paid)
        api, worker = stack.processes["api"], stack.processes["worker-1"]
        wait_until(
            lambda: "tracing.trouble" in api.log_text() and "tracing.trouble" in worker.log_text(),
            what="nobody says that the collector is away",
            limit_s=PATIENCE_S,
        )
        requests.get(gateway.url, headers={"X-API-Key": gateway.api_key}, timeout=30)
        started = time.monotonic()
        api.terminate()
        # The time for its own end, and FLUSH_MAX_MS.
        assert time.monotonic() - started < 10.0
        written = api.log_text() + worker.log_text()
    assert SECRET not in written
    assert "Traceback" not in written
    assert written.count("tracing.trouble") < 12


def test_what_a_process_has_not_sent_yet_it_sends_as_it_ends(stack_factory: partial[Stack]) -> None:
    with collecting() as collector:
        settings = {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.url}/v1/traces",
            "OTEL_SERVICE_NAME": "pay",
            "OTEL_BSP_SCHEDULE_DELAY": "600000",
        }
        with stack_factory(workers=1, celery_workers=1, settings=settings) as stack:
            gateway = Gateway(stack)
            gateway.await_end(gateway.pay())
            assert collector.spans == []
            stack.processes["api"].terminate()
            api = {span.name for span in collector.spans}
            stack.processes["worker-1"].terminate()
    assert "POST /api/v1/payments" in api
    assert {"payment submit", "mtn_momo submit"} <= {span.name for span in collector.spans}
    assert {span.service for span in collector.spans} == {"pay"}


RAISING = """
from payments_app.kernel import tracing
tracing.start_tracing("console")
with tracing.span("step", tracing.Kind.INTERNAL, parent=None):
    raise ValueError("no such payer: +256 and a shirt")
"""


def test_of_an_exception_a_span_tells_the_class_and_no_word() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RAISING], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert '"error.type": "ValueError"' in done.stdout
    assert "shirt" not in done.stdout
    assert "shirt" in done.stderr
