"""One key's events from all sources in one timeline, as short as still explains them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chaos.cases import Case, Finding, read_body
from chaos.history import Line

LINES_MAX = 60


def shortest(findings: Sequence[Finding], cases: Sequence[Case]) -> Case | None:
    """Of the keys with the worst verdict, the one with the shortest timeline."""
    bad = [finding for finding in findings if finding.key is not None]
    if not bad:
        return None
    worst = {finding.key for finding in bad if finding.verdict == bad[0].verdict}
    return min((case for case in cases if case.key in worst), key=lambda case: len(tell(case)))


def tell(case: Case) -> list[str]:
    """The timeline, oldest first, in seconds since its first line."""
    told = sorted([*_of_clients(case), *_of_gateway(case), *_of_provider(case)])
    start = told[0][0] if told else 0.0
    lines = [f"{at - start:8.3f} s  {who:<9} {what}" for at, who, what in told]
    return lines if len(lines) <= LINES_MAX else [*lines[:LINES_MAX], "…"]


Told = Iterator[tuple[float, str, str]]


def _of_clients(case: Case) -> Told:
    seen = ""
    for line in case.lines:
        if line.act == "look":
            status = str(read_body(line).get("status")) if line.outcome == "ok" else ""
            # Only queries that returned a new status.
            if line.outcome == "asked" or status in ("", seen):
                continue
            seen = status
        yield line.at, "client", _said(line)


def _said(line: Line) -> str:
    if line.outcome == "asked":
        return f"{line.client} call {line.call}: {line.act}"
    got = line.error or f"{line.status} {line.code or ''}".strip()
    body = read_body(line)
    about = f" payment {body.get('id')} {body.get('status')}" if line.outcome == "ok" else ""
    return f"{line.client} call {line.call}: {line.act} → {got} ({line.outcome}){about}"


def _of_gateway(case: Case) -> Told:
    for exchange in case.exchanges:
        what = f"{exchange.kind} of claim {exchange.generation}"
        yield exchange.started_at, "gateway", f"{what} begins"
        if exchange.finished_at is not None:
            verdict = f"{exchange.verdict} ({exchange.reason})"
            yield exchange.finished_at, "gateway", f"{what}: {verdict}"
    for event in case.events:
        yield event.at, "gateway", f"{event.sequence}. {event.type}: {event.status}, {event.stage}"
    for row in case.payments:
        stands = f"payment {row.id} stands at {row.status}, {row.stage}"
        yield case.taken_at, "gateway", stands


def _of_provider(case: Case) -> Told:
    for request in case.wire:
        fault = f", fault {request.fault}" if request.fault else ""
        yield request.at, "provider", f"{request.operation} → {request.status}{fault}"
    for creation in case.creations:
        yield creation.at, "provider", f"has payment {creation.reference}"
        if creation.ended_at is not None:
            yield creation.ended_at, "provider", f"ends it: {creation.status}"
    for movement in case.movements:
        yield movement.at, "provider", f"moves {movement.amount} {movement.currency}"
