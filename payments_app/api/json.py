"""Reads and writes JSON, and refuses JSON that two readers could understand differently.

RFC 8259 does not define repeated names in an object, and Python's own reader also takes NaN and
lone surrogates. An amount must not depend on the reader.
"""

from __future__ import annotations

import json
from typing import Any, Final

import orjson
from flask import Response
from flask.json.provider import JSONProvider


class JsonInvalid(ValueError):
    """The text isn't JSON, or not the same JSON for every reader. The message says why."""


class StrictJson(JSONProvider):
    """The JSON provider of the Flask app."""

    def dumps(self, obj: Any, **options: Any) -> str:
        """JSON text, compact unless `indent` is given."""
        style = orjson.OPT_INDENT_2 if options.get("indent") else 0
        return orjson.dumps(obj, option=style).decode()

    def loads(self, s: str | bytes, **_options: Any) -> Any:
        """Raises JsonInvalid."""
        return read_json(s.encode() if isinstance(s, str) else s)


def read_json(raw: bytes) -> Any:
    """The value of a JSON text. Raises JsonInvalid."""
    try:
        value = orjson.loads(raw)
        # orjson silently takes the last of two members of one name. The text is known to be JSON
        # here, so this pass reads only the names.
        _NAMES.decode(raw.decode())
    except _Repeated as error:
        raise JsonInvalid(f"A name occurs twice in one object: {error.name}.") from None
    except RecursionError:
        raise JsonInvalid("It nests too deeply.") from None
    except orjson.JSONDecodeError as error:
        raise JsonInvalid(f"It is not JSON: {error}.") from None
    return value


def json_response(document: object, status: int = 200) -> Response:
    """A JSON response."""
    return Response(orjson.dumps(document), status, content_type="application/json")


class _Repeated(Exception):
    """This name is repeated in one object."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = orjson.dumps(name[:100]).decode()


def _each_once(members: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in members}) == len(members):
        return
    seen: set[str] = set()
    for name, _ in members:
        if name in seen:
            raise _Repeated(name)
        seen.add(name)


# Numbers are not parsed: `bool` is the cheapest function that takes any text.
_NAMES: Final = json.JSONDecoder(object_pairs_hook=_each_once, parse_int=bool, parse_float=bool)
