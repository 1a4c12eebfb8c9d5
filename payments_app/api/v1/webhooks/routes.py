"""The webhook routes: endpoints, their deliveries, and the event feed."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from flask import Response, current_app
from sqlalchemy.orm import Session

from payments_app.api.authentication import caller, needs
from payments_app.api.blueprint import ApiBlueprint, takes_no_body
from payments_app.api.idempotent import idempotent
from payments_app.api.json import json_response
from payments_app.api.once import change_once
from payments_app.api.v1.webhooks.documents import (
    DeliveryPageSchema,
    DeliverySchema,
    EndpointPageSchema,
    EndpointSchema,
    EndpointWithSecretSchema,
    FeedPageSchema,
    ResentSchema,
    WholeDeliverySchema,
    delivery_document,
    endpoint_document,
    endpoint_with_secret,
    feed_document,
    whole_delivery_document,
)
from payments_app.api.v1.webhooks.requests import (
    DeliveryQuerySchema,
    EndpointChangeSchema,
    FeedQuerySchema,
    NewEndpointSchema,
    RotationSchema,
    SpanSchema,
)
from payments_app.kernel import cursors
from payments_app.kernel.cursors import CursorInvalid
from payments_app.tenants.scopes import Scope
from payments_app.webhooks import deliveries, endpoints, feed
from payments_app.webhooks.deliveries import ResendRange
from payments_app.webhooks.endpoints import EndpointChanges, Keep, NewEndpoint, Owner
from payments_app.webhooks.model import (
    DeliveryStatus,
    EndpointStatus,
    WebhookDelivery,
    WebhookEndpoint,
)

blp = ApiBlueprint(
    "webhook_endpoints",
    __name__,
    url_prefix="/api/v1/webhook-endpoints",
    description="Where events are sent",
)
told = ApiBlueprint(
    "webhook_deliveries",
    __name__,
    url_prefix="/api/v1/webhook-deliveries",
    description="What was sent, and the result of each attempt",
)
events = ApiBlueprint(
    "events", __name__, url_prefix="/api/v1/events", description="All that happened, in order"
)

REPLAYED = {"Idempotent-Replayed": "Idempotent-Replayed"}


@blp.route("", methods=["POST"])
@blp.doc(operationId="create_webhook_endpoint")
@blp.arguments(NewEndpointSchema())
@blp.response(
    201,
    EndpointWithSecretSchema,
    description="Made; its secret is shown this once",
    headers={**REPLAYED, "Location": "Location"},
)
@blp.alt_response(400, "BAD_REQUEST")
@blp.alt_response(409, "CONFLICT")
@blp.alt_response(413, "REQUEST_ENTITY_TOO_LARGE")
@blp.alt_response(415, "UNSUPPORTED_MEDIA_TYPE")
@idempotent
@needs(Scope.WEBHOOKS_MANAGE)
def create_endpoint(wanted: EndpointChanges) -> Response:
    """Add a webhook endpoint.

    Of the key's tenant and mode, at most 16. From now on it is sent the events that it asks for.
    """
    change = partial(
        endpoints.add_endpoint,
        _owner(),
        wanted,
        cipher=_parts().cipher,
        rules=_parts().egress.rules,
        actor=_actor(),
    )

    def answer(_session: Session, new: NewEndpoint) -> Response:
        response = json_response(endpoint_with_secret(new), 201)
        response.headers["Location"] = _path(new.endpoint.id)
        return response

    return change_once(asdict(wanted), change, answer)


@blp.route("", methods=["GET"])
@blp.doc(operationId="list_webhook_endpoints")
@blp.response(200, EndpointPageSchema, description="All of them")
@needs(Scope.WEBHOOKS_MANAGE)
def list_endpoints() -> Response:
    """List the webhook endpoints.

    All of the key's tenant and mode, oldest first, on one page.
    """
    found = endpoints.list_endpoints(_owner())
    return json_response({"data": [endpoint_document(one) for one in found], "next_cursor": None})


@blp.route("/<uuid:endpoint_id>", methods=["GET"])
@blp.doc(operationId="show_webhook_endpoint")
@blp.response(200, EndpointSchema, description="The endpoint")
@blp.alt_response(404, "NOT_FOUND")
@needs(Scope.WEBHOOKS_MANAGE)
def show_endpoint(endpoint_id: UUID) -> Response:
    """Show one webhook endpoint.

    As it is now, without its secret.
    """
    return json_response(endpoint_document(endpoints.find_endpoint(_owner(), endpoint_id)))


@blp.route("/<uuid:endpoint_id>", methods=["PATCH"])
@blp.doc(operationId="change_webhook_endpoint")
@blp.arguments(EndpointChangeSchema(), example={"status": "enabled"})
@blp.response(200, EndpointSchema, description="As it is now", headers=REPLAYED)
@blp.alt_response(400, "BAD_REQUEST")
@blp.alt_response(404, "NOT_FOUND")
@blp.alt_response(413, "REQUEST_ENTITY_TOO_LARGE")
@blp.alt_response(415, "UNSUPPORTED_MEDIA_TYPE")
@blp.alt_response(409, "CONFLICT")
@idempotent
@needs(Scope.WEBHOOKS_MANAGE)
def change_endpoint(wanted: EndpointChanges, endpoint_id: UUID) -> Response:
    """Change a webhook endpoint.

    Enabled again, it goes on with what is pending, and `missed` says how many events it was not
    sent meanwhile: `resend` sends them.
    """

    def change(*, keep: Keep) -> None:
        before = endpoints.find_endpoint(_owner(), endpoint_id)
        endpoints.change_endpoint(
            _owner(),
            endpoint_id,
            wanted,
            rules=_parts().egress.rules,
            actor=_actor(),
            keep=lambda session, endpoint: keep(session, (endpoint, before.disabled_at)),
        )

    def answer(session: Session, changed: tuple[WebhookEndpoint, datetime | None]) -> Response:
        endpoint, disabled_at = changed
        document = endpoint_document(endpoint)
        if disabled_at is not None and endpoint.status == EndpointStatus.ENABLED:
            missed = deliveries.count_missed(session, _owner(), endpoint, disabled_at)
            document["missed"] = missed
        return json_response(document)

    return change_once(asdict(wanted), change, answer, path=_path(endpoint_id))


@blp.route("/<uuid:endpoint_id>", methods=["DELETE"])
@blp.doc(operationId="remove_webhook_endpoint")
@blp.response(204, description="Nothing is sent to it any more", headers=REPLAYED)
@blp.alt_response(404, "NOT_FOUND")
@blp.alt_response(400, "BAD_REQUEST")
@blp.alt_response(409, "CONFLICT")
@blp.alt_response(422, "UNPROCESSABLE_ENTITY")
@idempotent
@needs(Scope.WEBHOOKS_MANAGE)
def remove_endpoint(endpoint_id: UUID) -> Response:
    """Remove a webhook endpoint.

    Nothing is sent to it from now on, pending deliveries neither.
    """
    change = partial(endpoints.remove_endpoint, _owner(), endpoint_id, actor=_actor())
    return change_once({}, change, lambda *_: Response(status=204), path=_path(endpoint_id))


@blp.route("/<uuid:endpoint_id>/rotate-secret", methods=["POST"])
@blp.doc(operationId="rotate_webhook_secret")
@blp.arguments(RotationSchema(), example={"overlap_hours": 24})
@blp.response(
    200, EndpointWithSecretSchema, description="The new secret, shown this once", headers=REPLAYED
)
@blp.alt_response(400, "BAD_REQUEST")
@blp.alt_response(404, "NOT_FOUND")
@blp.alt_response(413, "REQUEST_ENTITY_TOO_LARGE")
@blp.alt_response(415, "UNSUPPORTED_MEDIA_TYPE")
@blp.alt_response(409, "CONFLICT")
@idempotent
@needs(Scope.WEBHOOKS_MANAGE)
def rotate_secret(rotation: endpoints.SecretRotation, endpoint_id: UUID) -> Response:
    """Give a webhook endpoint a new secret.

    For the overlap each delivery carries two signatures, one by each secret. Another rotation in
    that time is refused, as a secret that may be deployed would be dropped.
    """
    change = partial(
        endpoints.rotate_secret,
        _owner(),
        endpoint_id,
        rotation,
        cipher=_parts().cipher,
        actor=_actor(),
    )
    return change_once(
        {"overlap_hours": rotation.overlap, "discard_current": rotation.discard_current},
        change,
        lambda _session, new: json_response(endpoint_with_secret(new)),
        path=_path(endpoint_id),
    )


@blp.route("/<uuid:endpoint_id>/test", methods=["POST"])
@blp.doc(operationId="test_webhook_endpoint")
@blp.response(
    200, DeliverySchema, description="A delivery of `webhook.test`, on its way", headers=REPLAYED
)
@blp.alt_response(404, "NOT_FOUND")
@blp.alt_response(409, "CONFLICT")
@blp.alt_response(400, "BAD_REQUEST")
@blp.alt_response(415, "UNSUPPORTED_MEDIA_TYPE")
@blp.alt_response(422, "UNPROCESSABLE_ENTITY")
@takes_no_body
@idempotent
@needs(Scope.WEBHOOKS_MANAGE)
def send_test(endpoint_id: UUID) -> Response:
    """Send a test event.

    To this endpoint only, whatever it is told of otherwise. The delivery shows how it went.
    """
    change = partial(deliveries.send_test, _owner(), endpoint_id)
    return change_once({}, change, _delivery_answer, path=_path(endpoint_id))


@blp.route("/<uuid:endpoint_id>/resend", methods=["POST"])
@blp.doc(operationId="resend_webhooks")
@blp.arguments(SpanSchema(), example={"failed_only": True})
@blp.response(200, ResentSchema, description="On their way", headers=REPLAYED)
@blp.alt_response(400, "BAD_REQUEST")
@blp.alt_response(404, "NOT_FOUND")
@blp.alt_response(409, "CONFLICT")
@blp.alt_response(413, "REQUEST_ENTITY_TOO_LARGE")
@blp.alt_response(415, "UNSUPPORTED_MEDIA_TYPE")
@idempotent
@needs(Scope.WEBHOOKS_MANAGE)
def resend_range(span: ResendRange, endpoint_id: UUID) -> Response:
    """Send events again.

    Of a span of time, or all that were given up: one of the two must be said. What was sent before has
    the same id and bytes; what waits for its next attempt is sent now; what the endpoint was never
    sent, though it asks for it, is sent too.
    """
    change = partial(deliveries.resend_range, _owner(), endpoint_id, span, actor=_actor())
    return change_once(
        asdict(span),
        change,
        lambda _session, count: json_response({"deliveries": count}),
        path=_path(endpoint_id),
    )


@blp.route("/<uuid:endpoint_id>/deliveries", methods=["GET"])
@blp.doc(operationId="list_webhook_deliveries")
@blp.arguments(DeliveryQuerySchema(), location="query")
@blp.response(200, DeliveryPageSchema, description="A page")
@blp.alt_response(400, "BAD_REQUEST")
@blp.alt_response(404, "NOT_FOUND")
@needs(Scope.WEBHOOKS_MANAGE)
def list_deliveries(query: dict[str, Any], endpoint_id: UUID) -> Response:
    """List an endpoint's deliveries, newest first.

    Those that have ended are kept for 30 days.
    """
    page = deliveries.list_deliveries(
        _owner(),
        endpoint_id,
        limit=query["limit"],
        before=cursors.uuid(query["cursor"]),
        status=DeliveryStatus(query["status"]) if query["status"] else None,
    )
    shown = [delivery_document(one) for one in page.deliveries]
    return json_response({"data": shown, "next_cursor": page.next_cursor})


@told.route("/<uuid:delivery_id>", methods=["GET"])
@told.doc(operationId="show_webhook_delivery")
@told.response(200, WholeDeliverySchema, description="The delivery")
@told.alt_response(404, "NOT_FOUND")
@needs(Scope.WEBHOOKS_MANAGE)
def show_delivery(delivery_id: UUID) -> Response:
    """Show a delivery.

    What was sent, and what each attempt was answered.
    """
    found = deliveries.find_delivery(_owner(), delivery_id)
    return json_response(whole_delivery_document(found))


@told.route("/<uuid:delivery_id>/resend", methods=["POST"])
@told.doc(operationId="resend_webhook_delivery")
@told.response(200, DeliverySchema, description="On its way", headers=REPLAYED)
@told.alt_response(404, "NOT_FOUND")
@told.alt_response(409, "CONFLICT")
@told.alt_response(400, "BAD_REQUEST")
@told.alt_response(415, "UNSUPPORTED_MEDIA_TYPE")
@told.alt_response(422, "UNPROCESSABLE_ENTITY")
@takes_no_body
@idempotent
@needs(Scope.WEBHOOKS_MANAGE)
def resend_delivery(delivery_id: UUID) -> Response:
    """Send one delivery again.

    The same id and bytes, with a new timestamp and signature.
    """
    change = partial(deliveries.resend_one, _owner(), delivery_id, actor=_actor())
    path = f"/api/v1/webhook-deliveries/{delivery_id}"
    return change_once({}, change, _delivery_answer, path=path)


@events.route("", methods=["GET"])
@events.doc(operationId="list_all_events")
@events.arguments(FeedQuerySchema(), location="query")
@events.response(200, FeedPageSchema, description="A part of the feed")
@events.alt_response(400, "BAD_REQUEST")
@needs(Scope.PAYMENTS_READ)
def list_events(query: dict[str, Any]) -> Response:
    """Read all events of the key's tenant and mode, oldest first.

    Positions have no gaps: who reads on from `last_position` misses nothing, ever.
    """
    page = feed.read_events(_owner(), after=cursors.number(query["cursor"]), limit=query["limit"])
    if not page.events and page.last_position > feed.last_position(_owner()):
        # A client that reads on from there would miss the events up to it without noticing.
        raise CursorInvalid("The feed does not reach that position.")
    more = len(page.events) == query["limit"] and feed.last_position(_owner()) > page.last_position
    return json_response(
        {
            "data": [feed_document(event) for event in page.events],
            "next_cursor": str(page.last_position) if more else None,
            "last_position": page.last_position,
        }
    )


def _path(endpoint_id: UUID) -> str:
    return f"/api/v1/webhook-endpoints/{endpoint_id}"


def _delivery_answer(_session: Session, delivery: WebhookDelivery) -> Response:
    return json_response(delivery_document(delivery))


def _owner() -> Owner:
    return Owner(caller().tenant_id, caller().mode)


def _actor() -> str:
    return f"key:{caller().key_id}"


def _parts() -> Any:
    return current_app.extensions["maramoja"]
