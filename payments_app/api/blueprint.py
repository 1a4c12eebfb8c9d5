"""Blueprints that read requests strictly: no unknown or repeated names, no truncated JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial, wraps
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import unquote_to_bytes

from flask import Request, Response, request
from flask_smorest import Blueprint
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import RequestEntityTooLarge

from payments_app.api.json import JsonInvalid, read_json
from payments_app.api.openapi import COUNTED
from payments_app.api.problem_types import BodyMalformed
from payments_app.api.request_schema import RequestSchema
from payments_app.kernel.errors import FieldsInvalid

View = TypeVar("View", bound=Callable[..., Response])
_ANYWHERE: Final = (HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE)
_WITH_A_KEY: Final = (
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.TOO_MANY_REQUESTS,
    *_ANYWHERE,
)


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


_READERS: Final = {"json": _read_body, "query": _read_query}


def _documented(view: Any, by: Callable[[Any], Any]) -> Any:
    """The view itself, with the documentation that flask-smorest's decorator `by` adds to it.

    Its wrappers would serialize a second time what our views have serialized.
    """
    view.__dict__["_apidoc"] = by(view).__dict__["_apidoc"]
    return view


class ApiBlueprint(Blueprint):  # type: ignore[misc]  # flask-smorest has no types
    """A flask-smorest blueprint that reads strictly and documents what all its routes share."""

    def __init__(self, *args: Any, public: bool = False, **options: Any) -> None:
        """`public`: its routes need no key."""
        super().__init__(*args, **options)
        self._public = public
        self._prepare_doc_cbks.append(self._add_what_is_shared)

    def arguments(
        self, schema: RequestSchema, *, location: str = "json", **options: Any
    ) -> Callable[[View], View]:
        """Call the view with the body or query as `schema` reads it, and document the schema.

        Raises FieldsInvalid, and what the readers above raise.
        """
        read, by = _READERS[location], super().arguments(schema, location=location, **options)

        def decorator(view: View) -> View:
            @wraps(view)
            def wrapper(**route: Any) -> Response:
                return view(schema.read(read(request)), **route)

            documented: View = _documented(wrapper, by)
            return documented

        return decorator

    def response(self, *args: Any, **options: Any) -> Callable[[View], View]:
        """Document the usual response. The view builds it."""
        return partial(_documented, by=super().response(*args, **options))

    def alt_response(self, *args: Any, **options: Any) -> Callable[[View], View]:
        """Document another response."""
        return partial(_documented, by=super().alt_response(*args, **options))

    @staticmethod
    def doc(**options: Any) -> Callable[[View], View]:
        """Document what flask-smorest can't see."""
        return partial(_documented, by=Blueprint.doc(**options))

    @staticmethod
    def header_parameter(name: str) -> Callable[[View], View]:
        """Document that an operation reads this header, one of openapi.PARAMETERS."""

        def decorator(view: View) -> View:
            documented: dict[str, Any] = view.__dict__.setdefault("_apidoc", {})
            documented.setdefault("header_parameters", []).append(name)
            return view

        return decorator

    def _add_what_is_shared(
        self, doc: dict[str, Any], info: dict[str, Any], **_context: Any
    ) -> dict[str, Any]:
        info["docstring"]["summary"] = info["docstring"]["summary"].removesuffix(".")
        parameters = [*info.get("header_parameters", []), "X-Request-Id", "traceparent"]
        headers: tuple[str, ...] = ("X-Request-Id",)
        if self._public:
            doc["security"] = []
        else:
            parameters.insert(0, "X-Tenant-Id")
            headers += COUNTED
        doc["parameters"] = [*doc.get("parameters", []), *parameters]
        for answer in doc["responses"].values():
            if isinstance(answer, dict):
                answer.setdefault("headers", {}).update({name: name for name in headers})
        for status in _ANYWHERE if self._public else _WITH_A_KEY:
            doc["responses"].setdefault(status, status.name)
        doc["responses"] = dict(sorted(doc["responses"].items()))
        return doc
