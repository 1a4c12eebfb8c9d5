"""Blueprints that read requests strictly: no unknown or repeated names, no truncated JSON.

flask-smorest and webargs call the schemas. Only how a body and a query are read is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote_to_bytes

import marshmallow as ma
from flask import Request, Response
from flask_smorest import Blueprint
from gunicorn.http.errors import ParseException
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import RequestEntityTooLarge

from payments_app.api.json import JsonInvalid, read_json
from payments_app.api.problem_types import BodyMalformed
from payments_app.kernel.errors import FieldsInvalid

View = TypeVar("View", bound=Callable[..., Response])


def takes_no_body(view: View) -> View:
    """Mark a POST that needs no body, and so no Content-Type either."""
    view.__dict__["takes_no_body"] = True
    return view


def whole_body(req: Request) -> bytes:
    """The complete body. Raises BodyMalformed, RequestEntityTooLarge.

    Without an error, werkzeug cuts a body without a Content-Length at the limit, and gunicorn
    returns the part that arrived of a body that ended early.
    """
    told, most = req.content_length, req.max_content_length
    if told is not None:
        if most is not None and told > most:
            raise RequestEntityTooLarge
        try:
            # The server never reads beyond Content-Length.
            body = req.input_stream.read(told)
        except OSError:
            body = b""
        # A client that disconnected gets this answer too: nobody reads it, and it is not our error.
        if len(body) != told:
            raise BodyMalformed("The body ended before its Content-Length, or came too slowly.")
        return body
    try:
        body = req.get_data(cache=False)
    except ParseException:
        raise BodyMalformed("The body's chunks are not well formed (RFC 9112, 7.1).") from None
    if most is not None and len(body) >= most:
        raise RequestEntityTooLarge
    return body


def _not_utf_8(query: bytes) -> Iterator[str]:
    """Names of parameters that werkzeug would leave undecoded, and so look up as "%FF"."""
    for pair in query.split(b"&"):
        try:
            unquote_to_bytes(pair).decode()
        except UnicodeDecodeError:
            yield unquote_to_bytes(pair.partition(b"=")[0]).decode(errors="replace")


def _read_body(req: Request) -> Mapping[str, Any]:
    """The body as one JSON object. Raises BodyMalformed."""
    try:
        body = read_json(whole_body(req))
    except JsonInvalid as error:
        raise BodyMalformed(f"The body can't be read. {error}") from None
    if not isinstance(body, dict):
        raise BodyMalformed("The body is JSON, but not an object.")
    return body


def _read_query(req: Request) -> Mapping[str, Any]:
    """The query's parameters. Raises FieldsInvalid for one that is repeated or not in UTF-8."""
    bent = {name: ["isn't UTF-8"] for name in _not_utf_8(req.query_string)}
    if bent:
        raise FieldsInvalid(bent)
    repeated = [name for name, values in req.args.lists() if len(values) > 1]
    if repeated:
        raise FieldsInvalid({name: ["is given more than once"] for name in repeated})
    return req.args.to_dict()


class StrictParser(FlaskParser):
    """webargs' parser with our readers, and our error for invalid fields."""

    # The schemas say what becomes of unknown names: they are refused.
    DEFAULT_UNKNOWN_BY_LOCATION: dict[str, str | None] = {}  # noqa: RUF012  webargs has it so

    def load_json(self, req: Request, schema: ma.Schema) -> Mapping[str, Any]:  # noqa: ARG002  webargs'
        """The body as one JSON object. Raises BodyMalformed, RequestEntityTooLarge."""
        return _read_body(req)

    def load_querystring(self, req: Request, schema: ma.Schema) -> Mapping[str, Any]:  # noqa: ARG002
        """The query's parameters. Raises FieldsInvalid."""
        return _read_query(req)

    def handle_error(
        self,
        error: ma.ValidationError,
        req: Request,  # noqa: ARG002
        schema: ma.Schema,  # noqa: ARG002
        *,
        error_status_code: int | None,  # noqa: ARG002
        error_headers: Mapping[str, str] | None,  # noqa: ARG002
    ) -> NoReturn:
        """Raise FieldsInvalid. webargs has put the messages under the name of their location."""
        (messages,) = error.messages_dict.values()
        raise FieldsInvalid(dict(messages)) from None


class ApiBlueprint(Blueprint):  # type: ignore[misc]  # flask-smorest has no types
    """A flask-smorest blueprint whose routes are read strictly. `public`: they need no key."""

    ARGUMENTS_PARSER = StrictParser()

    def __init__(self, *args: Any, public: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.public = public
