"""Reads the API key of a request, and explains what is wrong with how it is sent.

The messages describe only what the caller sent. They never depend on which keys exist.
"""

from __future__ import annotations

import re
from typing import Final

from flask import request

from payments_app.api.problem_types import Unauthenticated
from payments_app.tenants.key_format import (
    CHECKSUM_LENGTH,
    KEY_PATTERN,
    PREFIX_LENGTH,
    SECRET_LENGTH,
    prefix_of,
)

HEADER: Final = "X-API-Key"
FORM: Final = (
    f"mara_test_ or mara_live_, {PREFIX_LENGTH} letters and digits, _, and"
    f" {SECRET_LENGTH + CHECKSUM_LENGTH} letters and digits"
)
# The same sentence for an unknown key, a revoked key, and a key with a wrong secret.
NOT_ACCEPTED: Final = (
    "The API key has the right form, but it is not accepted: it is unknown, revoked or expired."
    " Ask the operator for a new one."
)
_BEARER: Final = re.compile(r"Bearer\s+(\S+)", re.IGNORECASE)
_SCHEME: Final = re.compile(r"Bearer\b", re.IGNORECASE)


def presented_key() -> str:
    """This request's key, if its form is right. Raises Unauthenticated, which says what to do."""
    header = request.headers.get(HEADER, "").strip()
    authorization = request.headers.get("Authorization", "").strip()
    bearer = _BEARER.fullmatch(authorization)
    if header and bearer and header != bearer[1]:
        raise Unauthenticated(f"{HEADER} and Authorization hold different keys: send one.")
    if header:
        return _formed(header, HEADER)
    if bearer:
        return _formed(bearer[1], "Authorization")
    raise Unauthenticated(_absent(authorization))


def _absent(authorization: str) -> str:
    """Explain why no header holds a readable key, and how to send one."""
    if _SCHEME.match(authorization):
        return f"Authorization: Bearer must be followed by one API key. A key is {FORM}."
    if authorization:
        return (
            "Authorization is read only as Bearer and a key. Send the API key in the header"
            f" {HEADER}, or as Authorization: Bearer and the key."
        )
    if HEADER in request.headers:
        return f"The header {HEADER} is empty. Send the API key in it: {FORM}."
    return (
        f"The request has no API key. Send it in the header {HEADER}, or as Authorization: Bearer"
        " and the key."
    )


def _formed(key: str, header: str) -> str:
    if prefix_of(key) is not None:
        return key
    if KEY_PATTERN.fullmatch(key):
        # The checksum is over what the caller sent: see key_format.py.
        raise Unauthenticated(
            f"{header} holds a mistyped API key: its last {CHECKSUM_LENGTH} characters do not fit"
            " the rest. Copy the whole key again."
        )
    if _SCHEME.match(key):
        raise Unauthenticated(f"{header} must hold the API key alone, without the word Bearer.")
    raise Unauthenticated(f"{header} does not hold one of our API keys. A key is {FORM}.")
