"""Webhook endpoints of tenants: add, change, disable, remove. Each change is audited."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session
from uuid_utils.compat import uuid7

from payments_app.audit.comparison import fingerprint, fingerprint_or_none, words_of
from payments_app.audit.record import record
from payments_app.kernel.database import transaction
from payments_app.kernel.errors import FieldsInvalid
from payments_app.kernel.http.egress import EgressRules, check_url
from payments_app.kernel.secrets import Cipher
from payments_app.webhooks.errors import EndpointNotFound, EndpointsTooMany, RotationRunning
from payments_app.webhooks.model import (
    DeliveryStatus,
    EndpointStatus,
    WebhookDelivery,
    WebhookEndpoint,
    about_secret,
)
from payments_app.webhooks.patterns import EVERYTHING, PATTERNS, PATTERNS_MAX
from payments_app.webhooks.signature import new_secret

# Per tenant in each mode.
ENDPOINTS_MAX: Final = 16
OVERLAP_DEFAULT: Final = timedelta(hours=24)
OVERLAP_MAX: Final = timedelta(hours=72)
DESCRIPTION_MAX: Final = 200
# Pending deliveries that a removal ends itself: it is an API request, and a statement has 15 s.
ENDED_AT_ONCE: Final = 5_000
# Control characters, which the API forbids in every text.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
BY_TENANT: Final = "by_tenant"
REMOVED: Final = "removed"
# Runs in a change's transaction with its result, to store the response under an idempotency key.
Keep = Callable[[Session, Any], None]


def keep_nothing(_session: Session, _result: Any) -> None:
    """For a caller without an Idempotency-Key."""


class Owner(NamedTuple):
    """The tenant and the mode of the endpoints."""

    tenant_id: UUID
    mode: str


@dataclass(frozen=True, slots=True)
class EndpointChanges:
    """The wanted values of an endpoint; None leaves a value unchanged, or takes its default."""

    url: str | None = None
    description: str | None = None
    event_types: Sequence[str] | None = None
    status: EndpointStatus | None = None

    def check(self) -> None:
        """Raises FieldsInvalid."""
        types = self.event_types
        if types is not None and (
            not 1 <= len(types) <= PATTERNS_MAX or not set(types) <= set(PATTERNS)
        ):
            wanted = f"1 to {PATTERNS_MAX} of {', '.join(PATTERNS)}"
            raise FieldsInvalid({"event_types": [f"must be {wanted}"]})
        words = self.description or ""
        if len(words) > DESCRIPTION_MAX or _CONTROL.search(words):
            wanted = f"one line of at most {DESCRIPTION_MAX} characters"
            raise FieldsInvalid({"description": [f"must be {wanted}"]})


@dataclass(frozen=True, slots=True)
class NewEndpoint:
    """An endpoint with its secret, which is returned only once."""

    endpoint: WebhookEndpoint
    secret: str


def add_endpoint(
    owner: Owner,
    wanted: EndpointChanges,
    *,
    cipher: Cipher,
    rules: EgressRules,
    actor: str,
    keep: Keep = keep_nothing,
) -> NewEndpoint:
    """Raises FieldsInvalid, AddressRefused, EndpointsTooMany."""
    if wanted.url is None:
        raise FieldsInvalid({"url": ["is missing"]})
    wanted.check()
    check_url(wanted.url, rules, owner=owner.tenant_id)
    secret, endpoint_id = new_secret(), uuid7()
    endpoint = WebhookEndpoint(
        id=endpoint_id,
        tenant_id=owner.tenant_id,
        mode=owner.mode,
        url=wanted.url,
        description=wanted.description or "",
        event_types=list(wanted.event_types or EVERYTHING),
        secret=cipher.encrypt(secret, about=about_secret(owner.tenant_id, endpoint_id)),
    )
    with transaction(owner.tenant_id) as session:
        # Concurrent calls run one after the other, so that each counts the endpoints of those
        # before.
        session.execute(select(func.pg_advisory_xact_lock(_lock_of(owner.tenant_id))))
        there = session.scalars(_own(owner)).all()
        if len(there) >= ENDPOINTS_MAX:
            raise EndpointsTooMany(f"A tenant has at most {ENDPOINTS_MAX} endpoints in each mode.")
        session.add(endpoint)
        session.flush()
        session.refresh(endpoint)
        own = {"mode": endpoint.mode, "fingerprint": fingerprint_or_none(endpoint.secret)}
        _note(session, endpoint, "added", actor=actor, detail={**_shown(endpoint), **own})
        new = NewEndpoint(endpoint, secret)
        keep(session, new)
    return new


def list_endpoints(owner: Owner) -> list[WebhookEndpoint]:
    """All endpoints, oldest first."""
    query = _own(owner).order_by(WebhookEndpoint.created_at, WebhookEndpoint.id)
    with transaction(owner.tenant_id) as session:
        return list(session.scalars(query))


def find_endpoint(owner: Owner, endpoint_id: UUID) -> WebhookEndpoint:
    """Raises EndpointNotFound, also for an endpoint of another tenant or mode."""
    with transaction(owner.tenant_id) as session:
        return own_endpoint(session, owner, endpoint_id)


def own_endpoint(
    session: Session, owner: Owner, endpoint_id: UUID, *, lock: bool = False
) -> WebhookEndpoint:
    """In the caller's transaction. Raises EndpointNotFound."""
    query = _own(owner).where(WebhookEndpoint.id == endpoint_id)
    found = session.scalars(query.with_for_update(key_share=True) if lock else query).first()
    if found is None:
        raise EndpointNotFound(f"There is no such webhook endpoint in {owner.mode} mode.")
    return found


def change_endpoint(
    owner: Owner,
    endpoint_id: UUID,
    wanted: EndpointChanges,
    *,
    rules: EgressRules,
    actor: str,
    keep: Keep = keep_nothing,
) -> WebhookEndpoint:
    """Raises EndpointNotFound, FieldsInvalid, AddressRefused.

    Enabled again, it continues with what is pending; missed events are resent on request.
    """
    wanted.check()
    find_endpoint(owner, endpoint_id)
    if wanted.url is not None:
        check_url(wanted.url, rules, owner=owner.tenant_id)
    with transaction(owner.tenant_id) as session:
        endpoint = own_endpoint(session, owner, endpoint_id, lock=True)
        before = _shown(endpoint)
        now = session.execute(select(func.clock_timestamp())).scalar_one()
        _apply(endpoint, wanted, now)
        after = _shown(endpoint)
        changed = _changed(before, after)
        if changed:
            endpoint.updated_at = now
            _note(session, endpoint, "changed", actor=actor, detail=changed)
        # Read the values that the database sets while the transaction is open.
        session.flush()
        session.refresh(endpoint)
        keep(session, endpoint)
        return endpoint


def remove_endpoint(
    owner: Owner, endpoint_id: UUID, *, actor: str, keep: Keep = keep_nothing
) -> None:
    """Send nothing to it any more, and delete its secrets. Raises EndpointNotFound.

    Pending deliveries end as failed: of a large backlog a part now, and the rest within the hour.
    """
    with transaction(owner.tenant_id) as session:
        endpoint = own_endpoint(session, owner, endpoint_id, lock=True)
        now = session.execute(select(func.clock_timestamp())).scalar_one()
        endpoint.deleted_at = now
        endpoint.disable(REMOVED, now)
        endpoint.secret = endpoint.previous_secret = endpoint.previous_secret_until = None
        pending = select(WebhookDelivery.id).where(
            WebhookDelivery.endpoint_id == endpoint_id,
            WebhookDelivery.status == DeliveryStatus.PENDING,
        )
        session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.id.in_(pending.limit(ENDED_AT_ONCE)))
            .values(status=DeliveryStatus.FAILED)
        )
        _note(session, endpoint, "removed", actor=actor, detail={"disabled_at": words_of(now)})
        keep(session, None)


@dataclass(frozen=True, slots=True)
class SecretRotation:
    """How a secret is replaced. `overlap`: how long the old one signs beside the new one.

    `discard_current`: while an earlier rotation is in its overlap, drop the secret that it issued,
    as no receiver has it; the one before it goes on signing.
    """

    overlap: timedelta = OVERLAP_DEFAULT
    discard_current: bool = False

    def check(self) -> None:
        """Raises FieldsInvalid."""
        if not timedelta() <= self.overlap <= OVERLAP_MAX:
            raise FieldsInvalid({"overlap_hours": ["must be from 0 to 72"]})


def rotate_secret(
    owner: Owner,
    endpoint_id: UUID,
    rotation: SecretRotation,
    *,
    cipher: Cipher,
    actor: str,
    keep: Keep = keep_nothing,
) -> NewEndpoint:
    """Issue a new secret. Raises EndpointNotFound, FieldsInvalid, RotationRunning.

    A secret that may be deployed goes on signing for its whole overlap, unless the overlap is 0.
    """
    rotation.check()
    secret = new_secret()
    with transaction(owner.tenant_id) as session:
        endpoint = own_endpoint(session, owner, endpoint_id, lock=True)
        now = session.execute(select(func.clock_timestamp())).scalar_one()
        _demote(endpoint, rotation, now)
        place = about_secret(endpoint.tenant_id, endpoint.id)
        endpoint.secret = cipher.encrypt(secret, about=place)
        endpoint.updated_at = now
        detail = {
            "overlap_hours": rotation.overlap / timedelta(hours=1),
            **({"discard_current": True} if rotation.discard_current else {}),
            "fingerprint": fingerprint_or_none(endpoint.secret),
            "previous_fingerprint": fingerprint_or_none(endpoint.previous_secret),
            "previous_until": words_of(endpoint.previous_secret_until),
        }
        _note(session, endpoint, "secret_rotated", actor=actor, detail=detail)
        new = NewEndpoint(endpoint, secret)
        keep(session, new)
    return new


def _demote(endpoint: WebhookEndpoint, rotation: SecretRotation, now: datetime) -> None:
    """Decide which secret signs beside the new one, and until when."""
    if not rotation.overlap:
        endpoint.previous_secret = endpoint.previous_secret_until = None
        return
    until = now + rotation.overlap
    stands_until = endpoint.previous_secret_until
    if stands_until is None or stands_until <= now:
        endpoint.previous_secret = endpoint.secret
        endpoint.previous_secret_until = until
    elif rotation.discard_current:
        endpoint.previous_secret_until = max(until, stands_until)
    else:
        raise RotationRunning(
            "The secret was rotated a while ago, and the one before it still signs.",
            until=stands_until.isoformat(timespec="microseconds"),
        )


def note_by_system(session: Session, endpoint: WebhookEndpoint, what: str, reason: str) -> None:
    """Write an audit entry for a change that the system made, not a person."""
    detail = {"reason": reason, **_since(endpoint)}
    _note(session, endpoint, what, actor="system:webhooks", detail=detail)


def _apply(endpoint: WebhookEndpoint, wanted: EndpointChanges, now: datetime) -> None:
    if wanted.url is not None:
        endpoint.url = wanted.url
    if wanted.description is not None:
        endpoint.description = wanted.description
    if wanted.event_types is not None:
        endpoint.event_types = list(wanted.event_types)
    if wanted.status is None or wanted.status == endpoint.status:
        return
    if wanted.status is EndpointStatus.DISABLED:
        endpoint.disable(BY_TENANT, now)
        return
    endpoint.enable()


def _own(owner: Owner) -> Select[WebhookEndpoint]:
    return select(WebhookEndpoint).where(
        WebhookEndpoint.tenant_id == owner.tenant_id,
        WebhookEndpoint.mode == owner.mode,
        WebhookEndpoint.deleted_at.is_(None),
    )


def shown_url(url: str) -> dict[str, str | None]:
    """How the audit trail shows a URL: with a fingerprint of its query, which may hold a secret."""
    shown, mark, query = url.partition("?")
    return {"url": shown, "query": fingerprint(query) if mark else None}


def _shown(endpoint: WebhookEndpoint) -> dict[str, Any]:
    """The fields that the audit trail may show: no secret."""
    return {
        **shown_url(endpoint.url),
        "event_types": list(endpoint.event_types),
        "description": endpoint.description,
        "status": str(endpoint.status or EndpointStatus.ENABLED),
        **_since(endpoint),
    }


def _since(endpoint: WebhookEndpoint) -> dict[str, str | None]:
    """The time since which nothing is sent to it, if it is disabled."""
    at = endpoint.disabled_at
    return {} if at is None else {"disabled_at": words_of(at)}


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a change's audit entry. A URL always comes with its query's fingerprint."""
    changed = {name: value for name, value in after.items() if before.get(name) != value}
    if {"url", "query"} & set(changed):
        changed |= {"url": after["url"], "query": after["query"]}
    return changed


def _note(
    session: Session,
    endpoint: WebhookEndpoint,
    what: str,
    *,
    actor: str,
    detail: Mapping[str, object],
) -> None:
    record(
        session,
        tenant_id=endpoint.tenant_id,
        actor=actor,
        action=f"webhook_endpoint.{what}",
        subject_type="webhook_endpoint",
        subject_id=endpoint.id,
        detail=detail,
    )


def _lock_of(tenant_id: UUID) -> int:
    """A number that identifies the tenant for PostgreSQL's advisory locks."""
    return int.from_bytes(tenant_id.bytes[-7:], "big")
