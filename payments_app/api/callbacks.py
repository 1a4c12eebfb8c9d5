"""Callbacks in: store, ring, answer. What they say is never believed."""

from __future__ import annotations

import re
import sys
from typing import Final
from uuid import UUID

import structlog
from flask import Blueprint, Response, current_app, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import TooManyRequests

from payments_app.api import limits
from payments_app.kernel.networks import is_within
from payments_app.payments.callbacks import (
    Came,
    ReceivedCallback,
    count_callback,
    note_callback,
)

log = structlog.get_logger(__name__)

# What is kept of one; a provider's own are a few hundred bytes.
BODY_BYTES_MAX: Final = 16_384
_PROVIDER: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")

blp = Blueprint("callbacks", __name__)


@blp.route("/callbacks/<provider>/<reference>", methods=["POST", "PUT"])
def receive(provider: str, reference: str) -> Response:
    """Take a callback. Whatever it is, the answer is the same: it tells a stranger nothing."""
    try:
        limits.count_callback(current_app, request.remote_addr)
    except TooManyRequests:
        count_callback(Came.LIMITED)
        raise
    networks = current_app.extensions["maramoja"].settings.callback_networks
    if networks and not is_within(request.remote_addr, networks):
        log.warning("callback.foreign", source=request.remote_addr)
        count_callback(Came.FOREIGN)
        return Response(status=200)
    # A long one is a hint too: its beginning is read, and that is all.
    request.max_content_length = sys.maxsize
    try:
        body = request.stream.read(BODY_BYTES_MAX)
    except ParseException:
        # Broken chunks: nothing that a provider sends, and no hint.
        count_callback(Came.MALFORMED)
        return Response(status=200)
    known_form = _as_reference(reference)
    if known_form is not None and _PROVIDER.fullmatch(provider):
        note_callback(
            ReceivedCallback(
                provider=provider,
                reference=known_form,
                method=request.method,
                body=body,
                source=request.remote_addr,
            ),
            current_app.extensions["maramoja"].vault,
        )
    else:
        count_callback(Came.MALFORMED)
    return Response(status=200)


def _as_reference(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
