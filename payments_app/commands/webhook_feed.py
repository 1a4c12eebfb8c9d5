"""`flask webhooks tail` and `listen`: follow a tenant's events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final
from uuid import UUID

import click

from payments_app.commands.report import Lines
from payments_app.commands.webhook_options import (
    events_option,
    mode_option,
    owner_of,
    tenant_argument,
)
from payments_app.commands.webhooks import webhooks
from payments_app.kernel.clock import utc_now
from payments_app.kernel.http.destination import destination
from payments_app.kernel.http.egress import Egress, EgressRules
from payments_app.kernel.http.messages import HttpResponse
from payments_app.providers.contract import Mode
from payments_app.webhooks import feed
from payments_app.webhooks.endpoints import Owner
from payments_app.webhooks.model import PaymentEvent, WebhookEndpoint
from payments_app.webhooks.patterns import matches
from payments_app.webhooks.signature import is_secret, new_secret, signed_headers

__all__ = ["webhooks"]

LOOK_EVERY_S: Final = 0.5
PAGE: Final = 100
# The command runs on the operator's own machine, and the operator chooses the target.
_ANYWHERE: Final = EgressRules(allow_private=True)


class SigningSecret(click.ParamType[str]):
    """A secret that error messages don't repeat."""

    name = "secret"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Return it unchanged, if its form is right."""
        if not is_secret(value):
            self.fail("it must be whsec_ and 24 to 64 bytes in base64", param, ctx)
        return str(value)


@webhooks.command("tail", example="flask webhooks tail acme")
@tenant_argument
@mode_option
@events_option
@click.option("--from-start", is_flag=True, help="From the first event on, not only new ones.")
@click.option("--once", is_flag=True, help="Stop where the feed ends at present.")
def tail(
    tenant: str, mode: str | None, event_types: tuple[str, ...], *, from_start: bool, once: bool
) -> Lines:
    """Print a tenant's events as they happen, one a line."""
    owner = owner_of(tenant, mode)
    _say_where(tenant, owner.mode, once=once)
    found = _follow(owner, from_start=from_start, once=once)
    wanted = event_types or ("*",)
    return Lines(_event_document(one) for one in found if matches(wanted, one.type))


@webhooks.command(
    "listen", example="flask webhooks listen acme --mode test --forward http://localhost:3000/hook"
)
@tenant_argument
@mode_option
@events_option
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
    mode: str | None,
    event_types: tuple[str, ...],
    forward: str | None,
    secret: str | None,
    *,
    from_start: bool,
    once: bool,
) -> Lines:
    """Print a tenant's events as they come, and forward them to where you develop."""
    owner = owner_of(tenant, mode)
    if forward is not None:
        destination(forward, _ANYWHERE)
    _say_where(tenant, owner.mode, once=once)
    wanted = event_types or ("*",)
    found = (
        one for one in _follow(owner, from_start=from_start, once=once) if matches(wanted, one.type)
    )
    if forward is None:
        return Lines(_event_document(one) for one in found)
    return Lines(_forwarded(found, forward, secret or new_secret(), told=secret is not None))


def _say_where(tenant: str, mode: str, *, once: bool) -> None:
    """Print the mode, as an operator who expects the other one would wait for ever. On stderr."""
    (other,) = {one.value for one in Mode} - {mode}
    until = "" if once else ", until Ctrl-C"
    click.echo(
        f"{tenant}'s {mode} events{until}; the {other} ones come with --mode {other}", err=True
    )


def _forwarded(
    found: Iterator[PaymentEvent], url: str, secret: str, *, told: bool
) -> Iterator[Mapping[str, object]]:
    if not told:
        yield {"secret": secret, "forwarding_to": url}
    egress_anywhere = Egress(_ANYWHERE, user_agent="Maramoja/listen")
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
        outcome = came.status if isinstance(came, HttpResponse) else came.why
        yield {**_event_document(event), "answered": outcome}


def _follow(owner: Owner, *, from_start: bool, once: bool) -> Iterator[PaymentEvent]:
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


def _event_document(event: PaymentEvent) -> dict[str, Any]:
    return {
        "position": event.position,
        "id": feed.event_id(event),
        "type": event.type,
        "timestamp": event.created_at,
        "data": feed.words_of(event),
    }
