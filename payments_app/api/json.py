"""JSON in and out by orjson: strict (no NaN, no lone surrogates) and fast."""

from __future__ import annotations

from typing import Any

import orjson
from flask import Response
from flask.json.provider import JSONProvider


class StrictJson(JSONProvider):
    """What Flask and webargs read and write JSON with."""

    def dumps(self, obj: Any, **_options: Any) -> str:
        """Compact JSON text."""
        return orjson.dumps(obj).decode()

    def loads(self, s: str | bytes, **_options: Any) -> Any:
        """Raises ValueError for anything that RFC 8259 doesn't allow."""
        return orjson.loads(s)


def json_response(document: object, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(document), status, content_type="application/json")
