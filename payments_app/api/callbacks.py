"""Receives provider callbacks: store, notify the worker, answer. Their content is never trusted."""

from __future__ import annotations

import re
import sys
from typing import Final
from uuid import UUID

import structlog
from flask import Blueprint, Response, current_app, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import TooManyRequests

from payments_app.api import rate_limits
from payments_app.kernel.networks import is_within
from payments_app.payments.callbacks import (
    CallbackOutcome,
    ReceivedCallback,
    count_callback,
    record_callback,
)

log = structlog.get_logger(__name__)

# How much of a body is stored; real callbacks have a few hundred bytes.
BODY_BYTES_MAX: Final = 16_384
_PROVIDER: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")

blp = Blueprint("callbacks", __name__)


@blp.route("/callbacks/<provider>/<reference>", methods=["POST", "PUT"])
def receive(provider: str, reference: str) -> Response:
    """Accept a callback. The response is always the same, so that it tells an attacker nothing."""
    try:
        rate_limits.count_callback(current_app, request.remote_addr)
    except TooManyRequests:
        count_callback(CallbackOutcome.LIMITED)
        raise
    networks = current_app.extensions["maramoja"].settings.callback_networks
    if networks and not is_within(request.remote_addr, networks):
        log.warning("callback.foreign", source=request.remote_addr)
        count_callback(CallbackOutcome.FOREIGN)
        return Response(status=200)
    # A long callback is a hint too: only its beginning is read.
    request.max_content_length = sys.maxsize
    try:
        body = request.stream.read(BODY_BYTES_MAX)
    except ParseException:
        # Malformed chunks: no provider sends them, so this is not even a hint.
        count_callback(CallbackOutcome.MALFORMED)
        return Response(status=200)
    known_form = _as_reference(reference)
    if known_form is not None and _PROVIDER.fullmatch(provider):
        record_callback(
            ReceivedCallback(
                provider=provider,
                reference=known_form,
                method=request.method,
                body=body,
                source=request.remote_addr,
            ),
            current_app.extensions["maramoja"].keyring,
        )
    else:
        count_callback(CallbackOutcome.MALFORMED)
    return Response(status=200)


def _as_reference(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
