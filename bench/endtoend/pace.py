"""A live account: many open payments, and a provider that allows ten status checks a second."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bench.accept import known_payments
from bench.endtoend.site import Installation
from bench.load import ORDER
from bench.meters import ask
from bench.sites import site_of

ENVIRONMENT, CURRENCY = "mtnuganda", "UGX"
ALLOWED_PER_S = 10.0
SENT_MAX_S = 300.0
_NOT_SENT = "SELECT count(*) FROM payments WHERE submitted_at IS NULL"
_CLAIMS = "SELECT sum(generation) FROM payments"
_QUESTIONS = "SELECT count(*) FROM provider_exchanges WHERE kind = 'check'"


@dataclass(frozen=True)
class Paced:
    """While no payer approves. `busy`: share of one core that workers and PostgreSQL use together."""

    open: int
    seconds: float
    per_s: float
    claims_each: float
    busy: float


@dataclass(frozen=True)
class _Reading:
    """The counts so far."""

    at: float
    arrived: float
    claims: float
    questions: float
    cpu_s: float


def paced(site: Installation, *, payments: int, seconds: float) -> Paced:
    """Submit so many payments, which stay open, and count their status checks for so long."""
    tenant = site.tenant("live", path=None)
    site.give_account(tenant, ENVIRONMENT)
    site.simulator("POST", "settings", {"approval_delay_s": None, "callback_mode": "none"})
    order = ORDER | {"currency": CURRENCY}
    key = site.stack.issue_key(tenant.slug, mode="live")
    known_payments(site.stack.api_url, key, payments, order=order)
    _await_sent(site)
    first = _read(site)
    time.sleep(seconds)
    last = _read(site)
    elapsed = last.at - first.at
    asked = last.questions - first.questions
    return Paced(
        open=payments,
        seconds=elapsed,
        per_s=(last.arrived - first.arrived) / elapsed,
        claims_each=(last.claims - first.claims) / max(1.0, asked),
        busy=(last.cpu_s - first.cpu_s) / elapsed,
    )


def _read(site: Installation) -> _Reading:
    database, cpu_s = site_of(site.stack), site.cpu_s()
    summary = site.simulator("GET", "summary")
    return _Reading(
        at=time.monotonic(),
        arrived=float(str(summary["requests"])) - float(str(summary["submissions"])),
        claims=ask(database, _CLAIMS),
        questions=ask(database, _QUESTIONS),
        cpu_s=cpu_s["worker"] + cpu_s["postgres"],
    )


def _await_sent(site: Installation) -> None:
    deadline = time.monotonic() + SENT_MAX_S
    while ask(site_of(site.stack), _NOT_SENT):
        if time.monotonic() > deadline:
            raise TimeoutError("payments are not submitted: are the workers well?")
        time.sleep(0.2)
