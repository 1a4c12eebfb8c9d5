"""`flask webhooks`: a tenant's endpoints and deliveries, and resending."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import click

from payments_app.commands.durations import Duration
from payments_app.commands.group import GatewayGroup, actor
from payments_app.commands.parts import cipher, egress
from payments_app.commands.report import Report, fields, table
from payments_app.commands.webhook_options import (
    events_option,
    mode_option,
    owner_of,
    tenant_argument,
)
from payments_app.providers.contract import Mode
from payments_app.webhooks import deliveries, endpoints
from payments_app.webhooks.deliveries import ResendRange
from payments_app.webhooks.endpoints import EndpointChanges, NewEndpoint, Owner, SecretRotation
from payments_app.webhooks.model import (
    DeliveryStatus,
    EndpointStatus,
    WebhookDelivery,
    WebhookEndpoint,
)

webhooks = GatewayGroup("webhooks", help="Endpoints, deliveries and events of a tenant.")

_endpoint = click.argument("endpoint_id", type=click.UUID, metavar="ENDPOINT")


@webhooks.command("add", example="flask webhooks add acme https://shop.example/webhooks")
@tenant_argument
@click.argument("url")
@mode_option
@events_option
@click.option("--description", help="What it is for.")
def add(
    tenant: str, url: str, mode: str | None, event_types: tuple[str, ...], description: str | None
) -> Report:
    """Add an endpoint. Its secret is shown now and never again."""
    wanted = EndpointChanges(url=url, description=description, event_types=event_types or None)
    new = endpoints.add_endpoint(
        owner_of(tenant, mode), wanted, cipher=cipher(), rules=egress().rules, actor=actor()
    )
    return _with_secret(new)


@webhooks.command("list", example="flask webhooks list acme")
@tenant_argument
@mode_option
def list_all(tenant: str, mode: str | None) -> Report:
    """List a tenant's endpoints, oldest first."""
    owner = owner_of(tenant, mode)
    documents = [_document(one) for one in endpoints.list_endpoints(owner)]
    names = ("id", "status", "disabled_reason", "failing_since", "event_types", "url")
    headings = ("ID", "STATUS", "REASON", "FAILING SINCE", "EVENTS", "URL")
    rows = [
        [" ".join(one[name]) if name == "event_types" else one[name] for name in names]
        for one in documents
    ]
    empty = f"{tenant} has no webhook endpoints in {owner.mode} mode yet."
    if not documents:
        (other,) = {one.value for one in Mode} - {owner.mode}
        if there := endpoints.list_endpoints(Owner(owner.tenant_id, other)):
            empty += f" It has {len(there)} in {other} mode: --mode {other}"
    return Report({"data": documents}, table(headings, rows, empty=empty))


@webhooks.command("set", example="flask webhooks set acme 01a2… --status enabled")
@tenant_argument
@_endpoint
@mode_option
@click.option("--url", help="Another address.")
@events_option
@click.option("--description", help="What it is for.")
@click.option(
    "--status",
    type=click.Choice([one.value for one in EndpointStatus]),
    help="Whether it is sent any.",
)
def set_endpoint(  # noqa: PLR0913  one for each thing that can be set
    tenant: str,
    endpoint_id: UUID,
    *,
    mode: str | None,
    url: str | None,
    event_types: tuple[str, ...],
    description: str | None,
    status: str | None,
) -> Report:
    """Change an endpoint; what isn't given stays."""
    wanted = EndpointChanges(
        url=url,
        description=description,
        event_types=event_types or None,
        status=EndpointStatus(status) if status else None,
    )
    owner = owner_of(tenant, mode)
    before = endpoints.find_endpoint(owner, endpoint_id)
    endpoint = endpoints.change_endpoint(
        owner, endpoint_id, wanted, rules=egress().rules, actor=actor()
    )
    document = _document(endpoint)
    text = fields({**document, "event_types": " ".join(endpoint.event_types)})
    if before.disabled_at is not None and endpoint.status == EndpointStatus.ENABLED:
        document["missed"] = deliveries.missed(owner, endpoint_id, before.disabled_at)
        if document["missed"]:
            since = before.disabled_at.isoformat(timespec="seconds").replace("+00:00", "Z")
            text += (
                f"\n\nIt was not sent {document['missed']} events meanwhile. To send them:"
                f"\nflask webhooks resend {tenant} {endpoint_id} --mode {owner.mode} --since {since}"
            )
    return Report(document, text)


@webhooks.command("remove", example="flask webhooks remove acme 01a2…")
@tenant_argument
@_endpoint
@mode_option
def remove(tenant: str, endpoint_id: UUID, mode: str | None) -> Report:
    """Remove an endpoint: nothing is sent to it any more."""
    endpoints.remove_endpoint(owner_of(tenant, mode), endpoint_id, actor=actor())
    return Report({"id": endpoint_id, "removed": True}, f"Removed {endpoint_id}.")


@webhooks.command("rotate", example="flask webhooks rotate acme 01a2… --overlap 24h")
@tenant_argument
@_endpoint
@mode_option
@click.option(
    "--overlap",
    type=Duration(),
    default="24h",
    show_default=True,
    help="How long the old secret signs beside the new one: up to 72h.",
)
@click.option(
    "--discard-current",
    is_flag=True,
    help="While an earlier rotation is in its overlap: drop the secret that it gave.",
)
def rotate(
    tenant: str, endpoint_id: UUID, mode: str | None, overlap: timedelta, *, discard_current: bool
) -> Report:
    """Give an endpoint a new secret, which is shown now and never again."""
    return _with_secret(
        endpoints.rotate_secret(
            owner_of(tenant, mode),
            endpoint_id,
            SecretRotation(overlap, discard_current),
            cipher=cipher(),
            actor=actor(),
        )
    )


@webhooks.command("test", example="flask webhooks test acme 01a2…")
@tenant_argument
@_endpoint
@mode_option
def test(tenant: str, endpoint_id: UUID, mode: str | None) -> Report:
    """Send an endpoint an event that means nothing; a worker sends it."""
    delivery = deliveries.send_test(owner_of(tenant, mode), endpoint_id)
    document = _delivery_document(delivery)
    return Report(document, f"{fields(document)}\n\nSee how it goes: flask webhooks tail {tenant}")


@webhooks.command("deliveries", example="flask webhooks deliveries acme 01a2… --status failed")
@tenant_argument
@_endpoint
@mode_option
@click.option(
    "--status",
    type=click.Choice([one.value for one in DeliveryStatus]),
    help="Only those that are so.",
)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
def list_deliveries(
    tenant: str, endpoint_id: UUID, mode: str | None, status: str | None, limit: int
) -> Report:
    """List an endpoint's deliveries, newest first."""
    page = deliveries.list_deliveries(
        owner_of(tenant, mode),
        endpoint_id,
        limit=limit,
        status=DeliveryStatus(status) if status else None,
    )
    documents = [_delivery_document(one) for one in page.deliveries]
    names = ("created_at", "event_type", "payment_id", "sequence", "status", "attempts", "id")
    rows = [[one[name] for name in names] for one in documents]
    headings = ("CREATED", "EVENT", "PAYMENT", "SEQUENCE", "STATUS", "ATTEMPTS", "ID")
    return Report({"data": documents}, table(headings, rows, empty="There are none."))


@webhooks.command("resend", example="flask webhooks resend acme 01a2… --since 2026-01-31T00:00:00Z")
@tenant_argument
@_endpoint
@mode_option
@click.option("--since", type=click.DateTime(["%Y-%m-%dT%H:%M:%S%z"]), help="From then on.")
@click.option("--until", type=click.DateTime(["%Y-%m-%dT%H:%M:%S%z"]), help="Up to then.")
@click.option("--failed", is_flag=True, help="Only what was given up.")
@click.option("--delivery", type=click.UUID, help="This delivery only.")
def resend(  # noqa: PLR0913  one for each way to say what
    tenant: str,
    endpoint_id: UUID,
    mode: str | None,
    since: datetime | None,
    until: datetime | None,
    delivery: UUID | None,
    *,
    failed: bool,
) -> Report:
    """Send events again: one delivery, a span of time, or all that failed.

    The same ids and bytes; what the endpoint asks for and was never sent is sent too.
    """
    owner = owner_of(tenant, mode)
    if delivery is not None:
        if since or until or failed:
            raise click.UsageError("--delivery is one, and goes with none of the others")
        deliveries.resend_one(owner, delivery, actor=actor(), to=endpoint_id)
        return Report({"deliveries": 1}, "1 delivery is sent again.")
    if not (since or until or failed):
        raise click.UsageError("say what: --since, --until, --failed or --delivery")
    span = ResendRange(since, until, failed_only=failed)
    count = deliveries.resend_range(owner, endpoint_id, span, actor=actor())
    return Report({"deliveries": count}, f"{count} deliveries are sent again.")


def _with_secret(new: NewEndpoint) -> Report:
    document = {**_document(new.endpoint), "secret": new.secret}
    shown = {name: document[name] for name in ("id", "url", "mode", "secret")}
    text = f"{fields(shown)}\n\nKeep the secret now: it can't be shown again."
    return Report(document, text)


def _document(endpoint: WebhookEndpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "url": endpoint.url,
        "description": endpoint.description,
        "event_types": list(endpoint.event_types),
        "mode": endpoint.mode,
        "status": endpoint.status,
        "disabled_reason": endpoint.disabled_reason,
        "failing_since": endpoint.failing_since,
        "created_at": endpoint.created_at,
    }


def _delivery_document(delivery: WebhookDelivery) -> dict[str, Any]:
    return {
        "id": delivery.id,
        "message_id": delivery.message_id,
        "event_type": delivery.event_type,
        "payment_id": delivery.payment_id,
        "sequence": delivery.sequence,
        "status": delivery.status,
        "attempts": delivery.attempts,
        "created_at": delivery.created_at,
        "delivered_at": delivery.delivered_at,
    }
