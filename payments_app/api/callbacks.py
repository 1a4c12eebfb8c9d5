"""Callbacks in: store, ring, answer. What they say is never believed."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from flask import Blueprint, Response, request

from payments_app.payments.callbacks import ReceivedCallback, note_callback

BODY_BYTES_MAX: Final = 16_384

blp = Blueprint("callbacks", __name__)


@blp.route("/callbacks/<provider>/<reference>", methods=["POST", "PUT"])
def receive(provider: str, reference: str) -> Response:
    """Take a callback. Whatever it is, the answer is the same: it tells a stranger nothing."""
    request.max_content_length = BODY_BYTES_MAX
    try:
        known_form = UUID(reference)
    except ValueError:
        return _taken()
    note_callback(
        ReceivedCallback(
            provider=provider,
            reference=known_form,
            method=request.method,
            body=request.get_data(cache=False),
            source=request.remote_addr,
        )
    )
    return _taken()


def _taken() -> Response:
    return Response(status=200)
