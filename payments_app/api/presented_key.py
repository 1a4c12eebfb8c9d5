"""Which key a request holds, and what is wrong with how it is sent.

What is told here is what the caller sent. Nothing of it depends on which keys there are.
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
# Of a key that is unknown, of one that is revoked, and of one with another secret: one sentence.
NOT_ACCEPTED: Final = (
    "The API key has the right form, but it is not accepted: it is unknown, revoked or expired."
    " Ask the operator for a new one."
)
_BEARER: Final = re.compile(r"Bearer\s+(\S+)", re.IGNORECASE)
_SCHEME: Final = re.compile(r"Bearer\b", re.IGNORECASE)


def presented_key() -> str:
    """The key of this request, in the form of one. Raises Unauthenticated, and says what to do."""
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
    """No header holds a key that could be read: why, and how to send one."""
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
