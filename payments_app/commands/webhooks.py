"""`flask webhooks`: where tenants are told, what they were told, and telling them again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import click

from payments_app.commands.durations import Duration
from payments_app.commands.group import GatewayGroup, actor
from payments_app.commands.parts import cipher, egress
from payments_app.commands.report import Lines, Report, fields, table
from payments_app.kernel.clock import utc_now
from payments_app.kernel.egress import Egress, EgressRules
from payments_app.kernel.wire import Answer
from payments_app.providers.contract import Mode
from payments_app.tenants.registry import find_tenant
from payments_app.webhooks import deliveries, endpoints, feed
from payments_app.webhooks.deliveries import Span
from payments_app.webhooks.endpoints import NewEndpoint, Owner, Wanted
from payments_app.webhooks.model import (
    DeliveryStatus,
    EndpointStatus,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookEvent,
)
from payments_app.webhooks.patterns import matches
from payments_app.webhooks.signature import is_secret, new_secret, signed_headers

webhooks = GatewayGroup("webhooks", help="Endpoints, deliveries and events of a tenant.")

LOOK_EVERY_S: Final = 0.5
PAGE: Final = 100
_tenant = click.argument("tenant", metavar="SLUG")
_endpoint = click.argument("endpoint_id", type=click.UUID, metavar="ENDPOINT")
_mode = click.option(
    "--mode",
    type=click.Choice([mode.value for mode in Mode]),
    default=Mode.LIVE.value,
    show_default=True,
    help="Of the payments that it is about.",
)
_events = click.option(
    "--event",
    "event_types",
    multiple=True,
    metavar="TYPE",
    help="Such as payment.successful or payment.*, given once for each; all if left out.",
)


class SigningSecret(click.ParamType[str]):
    """A secret that isn't repeated in an error."""

    name = "secret"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Take it as it is, if it is one."""
        if not is_secret(value):
            self.fail("it must be whsec_ and 24 to 64 bytes in base64", param, ctx)
        return str(value)


@webhooks.command("add", example="flask webhooks add acme https://shop.example/webhooks")
@_tenant
@click.argument("url")
@_mode
@_events
@click.option("--description", help="What it is for.")
def add(
    tenant: str, url: str, mode: str, event_types: tuple[str, ...], description: str | None
) -> Report:
    """Add an endpoint. Its secret is shown now and never again."""
    wanted = Wanted(url=url, description=description, event_types=event_types or None)
    new = endpoints.add_endpoint(
        _owner(tenant, mode), wanted, cipher=cipher(), rules=egress().rules, actor=actor()
    )
    return _with_secret(new)


@webhooks.command("list", example="flask webhooks list acme")
@_tenant
@_mode
def list_all(tenant: str, mode: str) -> Report:
    """List a tenant's endpoints, oldest first."""
    documents = [_document(one) for one in endpoints.list_endpoints(_owner(tenant, mode))]
    names = ("id", "status", "disabled_reason", "failing_since", "event_types", "url")
    headings = ("ID", "STATUS", "REASON", "FAILING SINCE", "EVENTS", "URL")
    rows = [
        [" ".join(one[name]) if name == "event_types" else one[name] for name in names]
        for one in documents
    ]
    empty = f"{tenant} has no webhook endpoints in {mode} mode yet."
    return Report({"data": documents}, table(headings, rows, empty=empty))


@webhooks.command("set", example="flask webhooks set acme 01a2… --status enabled")
@_tenant
@_endpoint
@_mode
@click.option("--url", help="Another address.")
@_events
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
    mode: str,
    url: str | None,
    event_types: tuple[str, ...],
    description: str | None,
    status: str | None,
) -> Report:
    """Change an endpoint; what isn't given stays."""
    wanted = Wanted(
        url=url,
        description=description,
        event_types=event_types or None,
        status=EndpointStatus(status) if status else None,
    )
    owner = _owner(tenant, mode)
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
                f"\nflask webhooks resend {tenant} {endpoint_id} --mode {mode} --since {since}"
            )
    return Report(document, text)


@webhooks.command("remove", example="flask webhooks remove acme 01a2…")
@_tenant
@_endpoint
@_mode
def remove(tenant: str, endpoint_id: UUID, mode: str) -> Report:
    """Remove an endpoint: nothing is sent to it any more."""
    endpoints.remove_endpoint(_owner(tenant, mode), endpoint_id, actor=actor())
    return Report({"id": endpoint_id, "removed": True}, f"Removed {endpoint_id}.")


@webhooks.command("rotate", example="flask webhooks rotate acme 01a2… --overlap 24h")
@_tenant
@_endpoint
@_mode
@click.option(
    "--overlap",
    type=Duration(),
    default="24h",
    show_default=True,
    help="How long the old secret signs beside the new one: up to 72h.",
)
def rotate(tenant: str, endpoint_id: UUID, mode: str, overlap: timedelta) -> Report:
    """Give an endpoint a new secret, which is shown now and never again."""
    return _with_secret(
        endpoints.rotate_secret(
            _owner(tenant, mode), endpoint_id, overlap=overlap, cipher=cipher(), actor=actor()
        )
    )


@webhooks.command("test", example="flask webhooks test acme 01a2…")
@_tenant
@_endpoint
@_mode
def test(tenant: str, endpoint_id: UUID, mode: str) -> Report:
    """Send an endpoint an event that means nothing; a worker sends it."""
    delivery = deliveries.send_test(_owner(tenant, mode), endpoint_id)
    document = _delivery_document(delivery)
    return Report(document, f"{fields(document)}\n\nSee how it goes: flask webhooks tail {tenant}")


@webhooks.command("deliveries", example="flask webhooks deliveries acme 01a2… --status failed")
@_tenant
@_endpoint
@_mode
@click.option(
    "--status",
    type=click.Choice([one.value for one in DeliveryStatus]),
    help="Only those that are so.",
)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
def list_deliveries(
    tenant: str, endpoint_id: UUID, mode: str, status: str | None, limit: int
) -> Report:
    """List an endpoint's deliveries, newest first."""
    page = deliveries.list_deliveries(
        _owner(tenant, mode),
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
@_tenant
@_endpoint
@_mode
@click.option("--since", type=click.DateTime(["%Y-%m-%dT%H:%M:%S%z"]), help="From then on.")
@click.option("--until", type=click.DateTime(["%Y-%m-%dT%H:%M:%S%z"]), help="Up to then.")
@click.option("--failed", is_flag=True, help="Only what was given up.")
@click.option("--delivery", type=click.UUID, help="This delivery only.")
def resend(  # noqa: PLR0913  one for each way to say what
    tenant: str,
    endpoint_id: UUID,
    mode: str,
    since: datetime | None,
    until: datetime | None,
    delivery: UUID | None,
    *,
    failed: bool,
) -> Report:
    """Send events again: one delivery, a span of time, or all that failed.

    The same ids and bytes; what the endpoint asks for and was never sent is sent too.
    """
    owner = _owner(tenant, mode)
    if delivery is not None:
        if since or until or failed:
            raise click.UsageError("--delivery is one, and goes with none of the others")
        deliveries.resend_one(owner, delivery, actor=actor(), to=endpoint_id)
        return Report({"deliveries": 1}, "1 delivery is sent again.")
    if not (since or until or failed):
        raise click.UsageError("say what: --since, --until, --failed or --delivery")
    span = Span(since, until, failed_only=failed)
    count = deliveries.resend_span(owner, endpoint_id, span, actor=actor())
    return Report({"deliveries": count}, f"{count} deliveries are sent again.")


@webhooks.command("tail", example="flask webhooks tail acme")
@_tenant
@_mode
@_events
@click.option("--from-start", is_flag=True, help="From the first event on, not only new ones.")
@click.option("--once", is_flag=True, help="Stop where the feed ends at present.")
def tail(
    tenant: str, mode: str, event_types: tuple[str, ...], *, from_start: bool, once: bool
) -> Lines:
    """Print a tenant's events as they happen, one a line."""
    owner = _owner(tenant, mode)
    found = _follow(owner, from_start=from_start, once=once)
    wanted = event_types or ("*",)
    return Lines(_event_document(one) for one in found if matches(wanted, one.type))


@webhooks.command(
    "listen", example="flask webhooks listen acme --mode test --forward http://localhost:3000/hook"
)
@_tenant
@_mode
@_events
@click.option("--forward", metavar="URL", help="POST each there too, signed. Any address will do.")
@click.option(
    "--secret",
    type=SigningSecret(),
    help="Sign with this; with one that is printed first, if left out.",
)
@click.option("--from-start", is_flag=True, help="From the first event on, not only new ones.")
@click.option("--once", is_flag=True, help="Stop where the feed ends at present.")
def listen(  # noqa: PLR0913  one for each thing that can be said
    tenant: str,
    mode: str,
    event_types: tuple[str, ...],
    forward: str | None,
    secret: str | None,
    *,
    from_start: bool,
    once: bool,
) -> Lines:
    """Print a tenant's events as they come, and forward them to where you develop."""
    owner = _owner(tenant, mode)
    wanted = event_types or ("*",)
    found = (
        one for one in _follow(owner, from_start=from_start, once=once) if matches(wanted, one.type)
    )
    if forward is None:
        return Lines(_event_document(one) for one in found)
    return Lines(_forwarded(found, forward, secret or new_secret(), told=secret is not None))


def _forwarded(
    found: Iterator[WebhookEvent], url: str, secret: str, *, told: bool
) -> Iterator[Mapping[str, object]]:
    if not told:
        yield {"secret": secret, "forwarding_to": url}
    # The operator's own machine, and the operator says where to.
    egress_anywhere = Egress(EgressRules(allow_private=True), user_agent="Maramoja/listen")
    for event in found:
        stand_in = WebhookEndpoint(id=UUID(int=0))
        delivery = feed.delivery_of(event, stand_in)
        signed = signed_headers(
            [secret],
            message_id=feed.event_id(event),
            timestamp=int(utc_now().timestamp()),
            body=delivery.body,
        )
        came = egress_anywhere.post(
            url, {"Content-Type": "application/json", **signed}, delivery.body
        )
        outcome = came.status if isinstance(came, Answer) else came.why
        yield {**_event_document(event), "answered": outcome}


def _follow(owner: Owner, *, from_start: bool, once: bool) -> Iterator[WebhookEvent]:
    after = 0 if from_start else feed.last_position(owner)
    while True:
        page = feed.read_events(owner, after=after, limit=PAGE)
        yield from page.events
        after = page.last_position
        if page.events:
            continue
        if once:
            return
        time.sleep(LOOK_EVERY_S)


def _owner(tenant: str, mode: str) -> Owner:
    return Owner(find_tenant(tenant).id, mode)


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


def _event_document(event: WebhookEvent) -> dict[str, Any]:
    return {
        "position": event.position,
        "id": feed.event_id(event),
        "type": event.type,
        "timestamp": event.created_at,
        "data": feed.words_of(event),
    }
