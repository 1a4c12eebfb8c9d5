"""Rules that must hold over all keys together. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Final

from chaos.cases import Finding, Verdict, owners, read_body
from chaos.evidence import Creation, Evidence, Movement
from chaos.history import keys_of

# The simulator and PostgreSQL use the machine's clock, but read it at different moments.
CLOCKS_APART_S: Final = 0.01
# After PostgreSQL is back, processes still discover broken connections.
DATABASE_SLACK_S: Final = 5.0
# Receivers refuse a timestamp more than five minutes off; an exchange takes some seconds of that.
STAMP_MAX_S: Final = 60.0
_UNAUTHORIZED: Final = 401
_SERVICE_UNAVAILABLE: Final = 503
_NOT_FOUND: Final = 404
_PROBLEM: Final = "application/problem+json"
_EXAMPLES_MAX: Final = 3

Said = Iterator[Finding]
Rule = Callable[[Evidence], Said]


def judge_all(evidence: Evidence) -> list[Finding]:
    """All broken rules that belong to no single key."""
    return [finding for rule in RULES for finding in rule(evidence)]


def _every_payment_has_its_key(evidence: Evidence) -> Said:
    used = keys_of(evidence.lines)
    held = {row.payment_id: (row.tenant, row.key) for row in evidence.keys}
    for row in evidence.payments:
        key = (row.tenant, row.chaos_key)
        if key not in used or held.get(row.id) != key:
            yield _found(Verdict.DUPLICATE, "payment_without_key", f"payment {row.id} of {key}")


def _no_money_moves_unknown(evidence: Evidence) -> Said:
    owner = owners(evidence)
    rows: list[Creation | Movement] = [*evidence.creations, *evidence.movements]
    orphans = {row.reference for row in rows if owner(row.reference, row.payment_id) is None}
    for reference in sorted(orphans):
        text = f"the provider has {reference}, which no row of ours knows"
        yield _found(Verdict.LOST, "charge_without_payment", text)


def _sums_are_equal(evidence: Evidence) -> Said:
    """Each tenant's sum of SUCCESSFUL payments is the sum that the provider moved for it."""
    owner = owners(evidence)
    tenant_of = {row.id: row.tenant for row in evidence.payments}
    ours: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    theirs: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    open_now = {row.id for row in evidence.payments if row.status == "PENDING"}
    for row in evidence.payments:
        if row.status == "SUCCESSFUL":
            ours[row.tenant, row.currency] += Decimal(row.amount_minor) / 100
    for movement in evidence.movements:
        found = owner(movement.reference, movement.payment_id)
        if found is not None and found not in open_now:
            theirs[tenant_of[found], movement.currency] += Decimal(movement.amount)
    for name in sorted({*ours, *theirs}):
        if ours[name] != theirs[name]:
            text = f"{name}: {ours[name]} told, {theirs[name]} moved"
            yield _found(Verdict.LIE, "sums_differ", text)


def _nothing_leaves_unwritten(evidence: Evidence) -> Said:
    """Before each submission was sent, a row of its own was committed.

    One claim may send twice: after a 401, under a new token.
    """
    written = defaultdict(list)
    for exchange in evidence.exchanges:
        if exchange.kind == "submit":
            written[exchange.reference].append(exchange.started_at)
    sent: Counter[str] = Counter()
    allowed: Counter[str] = Counter()
    for request in evidence.wire:
        reference = request.reference or ""
        if request.operation != "create":
            continue
        before = sum(at <= request.at + CLOCKS_APART_S for at in written[reference])
        sent[reference] += 1
        if sent[reference] > before + allowed[reference]:
            text = f"submission {sent[reference]} of {reference}: {before} rows were written before"
            yield _found(Verdict.LIE, "sent_before_written", text)
        allowed[reference] += request.status == _UNAUTHORIZED


def _one_reference_for_each_payment(evidence: Evidence) -> Said:
    wanted = {row.id: row.reference for row in evidence.payments}
    for exchange in evidence.exchanges:
        if wanted.get(exchange.payment_id) != exchange.reference:
            text = f"payment {exchange.payment_id} was sent as {exchange.reference}"
            yield _found(Verdict.DUPLICATE, "another_reference", text)


def _tenants_see_only_their_own(evidence: Evidence) -> Said:
    """Tenant isolation, by id and in lists."""
    owner = {row.id: row.tenant for row in evidence.payments}
    for line in evidence.lines:
        if line.act == "peek" and line.outcome in ("ok", "refused") and line.status != _NOT_FOUND:
            text = f"{line.tenant} asked for another's payment and got {line.status}"
            yield _found(Verdict.LIE, "wall", text)
        if line.act == "page" and line.outcome == "ok":
            foreign = [
                one["id"]
                for one in read_body(line).get("data", [])
                if owner.get(one["id"], line.tenant) != line.tenant
            ]
            if foreign:
                text = f"{line.tenant} was shown {foreign[0]}"
                yield _found(Verdict.LIE, "wall", text)


def _every_error_is_explained(evidence: Evidence) -> Said:
    """Every answer of 400 or more is a problem document with a code."""
    bare = [
        line
        for line in evidence.lines
        if line.status is not None
        and line.status >= 400  # noqa: PLR2004
        and (line.code is None or not line.headers.get("Content-Type", "").startswith(_PROBLEM))
    ]
    for line in bare[:_EXAMPLES_MAX]:
        text = f"{line.act} was answered {line.status} without a problem's code"
        yield _found(Verdict.LIE, "unexplained_error", text)


def _redis_is_not_needed(evidence: Evidence) -> Said:
    """Without Redis, a request may be refused with 503 only while the database is unavailable."""
    if evidence.redis:
        return
    for line in evidence.lines:
        excused = any(
            window.began_at - DATABASE_SLACK_S < line.at < window.ended_at + DATABASE_SLACK_S
            for window in evidence.database_away
        )
        if line.status == _SERVICE_UNAVAILABLE and not excused:
            text = f"{line.act} was answered 503 at {line.at:.1f}, while the database was there"
            yield _found(Verdict.LIE, "redis_needed", text)


def _every_event_is_told(evidence: Evidence) -> Said:
    """G7: each event was delivered to its tenant's endpoint, and answered with 200."""
    if evidence.told is None:
        return
    taken = {(one.tenant, one.payment_id, one.sequence) for one in evidence.told if one.taken}
    tenant_of = {row.id: row.tenant for row in evidence.payments}
    untold = [
        event
        for event in evidence.events
        if (tenant_of.get(event.payment_id), event.payment_id, event.sequence) not in taken
    ]
    for event in untold[:_EXAMPLES_MAX]:
        text = f"{len(untold)} events, such as {event.sequence} of payment {event.payment_id}"
        yield _found(Verdict.LOST, "event_not_told", text)


def _one_message_has_one_body(evidence: Evidence) -> Said:
    """G7: a webhook id has the same bytes at every attempt."""
    bodies: dict[str, set[str]] = defaultdict(set)
    for one in evidence.told or ():
        bodies[one.message_id].add(one.digest)
    for message_id in sorted(name for name, found in bodies.items() if len(found) > 1):
        yield _found(Verdict.LIE, "two_bodies", f"{message_id} came with two bodies")


def _news_are_the_tenants_own(evidence: Evidence) -> Said:
    """Webhooks have the tenant's signature and the true time, and concern its payments."""
    tenant_of = {row.id: row.tenant for row in evidence.payments}
    for one in evidence.told or ():
        if not one.genuine:
            yield _found(Verdict.LIE, "forged_news", f"{one.message_id} to {one.tenant}")
        if abs(one.stamped_s) > STAMP_MAX_S:
            text = f"{one.message_id} is stamped {one.stamped_s:.0f} s aside"
            yield _found(Verdict.LIE, "stale_news", text)
        if tenant_of.get(one.payment_id or "", one.tenant) != one.tenant:
            yield _found(Verdict.LIE, "wall", f"{one.tenant} was told of {one.payment_id}")


def _news_come_in_order(evidence: Evidence) -> Said:
    """An event was first accepted after all earlier events of its payment."""
    first: dict[str, list[int]] = defaultdict(list)
    for one in sorted(evidence.told or (), key=lambda one: one.at):
        if one.taken and one.payment_id and one.sequence is not None:
            seen = first[one.payment_id]
            if one.sequence not in seen:
                seen.append(one.sequence)
    for payment_id, seen in first.items():
        if seen != sorted(seen):
            yield _found(Verdict.LIE, "news_out_of_order", f"payment {payment_id}: {seen}")


RULES: Final[Sequence[Rule]] = (
    _every_payment_has_its_key,
    _no_money_moves_unknown,
    _sums_are_equal,
    _nothing_leaves_unwritten,
    _one_reference_for_each_payment,
    _tenants_see_only_their_own,
    _every_error_is_explained,
    _redis_is_not_needed,
    _every_event_is_told,
    _one_message_has_one_body,
    _news_are_the_tenants_own,
    _news_come_in_order,
)


def _found(verdict: Verdict, rule: str, text: str) -> Finding:
    return Finding(verdict, rule, text)
