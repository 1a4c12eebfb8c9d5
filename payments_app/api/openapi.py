"""openapi.json: the parts that all operations share, built from the tables that the code uses."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from apispec import BasePlugin
from flask import Flask, Response
from flask_smorest import Api
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Rule

from payments_app.api.problem_schema import ProblemSchema
from payments_app.api.problem_types import all_problems
from payments_app.api.problems import MEDIA_TYPE, http_problem, problem_document
from payments_app.api.v1.fields import describe
from payments_app.api.v1.webhooks.messages import MESSAGES, webhooks

DESCRIPTION: Final = """\
Collect mobile money: one request asks one payer for one amount, and **a payment is charged once**.

**Keys.** Every request to `/api/` carries an API key, in `X-API-Key` or as a Bearer token. A key
belongs to one tenant and one mode: `test` keys never reach an account that moves real money, and
`test` and `live` payments don't see each other.

**Once.** Send an `Idempotency-Key` with `POST /api/v1/payments`: a UUID that you keep with your
order. Every other request that changes something takes one too, and is then done once. After a timeout, a lost connection, a 409 `idempotency_key_in_progress`, a 429 or any 5xx,
send the same request with the same key until you have an answer. It is answered with the first
answer's bytes, and it never charges twice. A request that was refused with 400, 401, 403, 413,
415, 422 or 429 has spent no key.

**Status.** `status` is PENDING until the provider has said how the payment ended, then SUCCESSFUL
or FAILED for good. Nobody is told a guess.

**Errors** are problem documents (RFC 9457) with a stable `code`; `/problems/{code}` describes each.

**Limits.** Each key may send 100 requests a minute unless the operator has set another limit; the
`RateLimit-*` headers count along.
"""
CONFIGURATION: Final[dict[str, Any]] = {
    "API_TITLE": "Maramoja",
    "API_VERSION": "v1",
    "OPENAPI_VERSION": "3.1.0",
    "OPENAPI_URL_PREFIX": "/",
    "OPENAPI_JSON_PATH": "openapi.json",
    "API_SPEC_OPTIONS": {
        "info": {"description": DESCRIPTION},
        "servers": [{"url": "/", "description": "The host that this page comes from"}],
        "components": {
            "securitySchemes": {
                "ApiKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-API-Key",
                    "description": "The key as `flask keys issue` showed it.",
                },
                "Bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The same key as `Authorization: Bearer …`.",
                },
            }
        },
        "security": [{"ApiKey": []}, {"Bearer": []}],
        "webhooks": webhooks(),
        "tags": [{"name": "webhooks", "description": "What is sent to your endpoints"}],
    },
}
_UUID: Final = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
# Without examples: /docs would send each as it is, the same value every time.
PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "X-Request-Id": {
        "description": "Your own id for this request, for logs: up to 128 letters, digits and"
        " `. _ : -`, such as checkout-7f3a. Anything else is replaced; without one, we make one.",
        "schema": _TEXT,
    },
    "X-Tenant-Id": {
        "description": "The id or slug of the key's tenant, as a safeguard: any other is a 403.",
        "schema": _TEXT,
    },
    "traceparent": {
        "description": "W3C trace context; the trace's id shows in our logs and goes with the webhooks.",
        "schema": _TEXT,
    },
    "Idempotency-Key": {
        "description": "A UUID of your own, bare or in double quotes, kept with the order and sent at each"
        " retry; not the nil or the max UUID. Without it a request is always a new one, unless the"
        " tenant requires keys. A header whose name is nearly this one is a 400.",
        "schema": {
            "type": "string",
            "pattern": f'^({_UUID}|"{_UUID}")$',
            "not": {"pattern": '^"?([0-]+|[fF-]+)"?$'},
        },
    },
}
HEADERS: Final[dict[str, dict[str, Any]]] = {
    "X-Request-Id": {
        "description": "The id that was sent, or the one that we made.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    },
    "RateLimit-Limit": {
        "description": "How many requests the key may send in a window.",
        "schema": _COUNT,
    },
    "RateLimit-Remaining": {
        "description": "How many of them are left in this window.",
        "schema": _COUNT,
    },
    "RateLimit-Reset": {
        "description": "Seconds until the next window begins.",
        "schema": _COUNT,
    },
    "RateLimit-Policy": {
        "description": "The limits of the key and of its tenant: requests and window in seconds"
        " (draft-ietf-httpapi-ratelimit-headers).",
        "schema": {"type": "string", "pattern": '^"[a-z]+";q=[0-9]+;w=[0-9]+'},
    },
    "RateLimit": {
        "description": "What is left of each, and in how many seconds it begins anew.",
        "schema": {"type": "string", "pattern": '^"[a-z]+";r=[0-9]+;t=[0-9]+'},
    },
    "Retry-After": {
        "description": "Seconds to wait before the same request is sent again.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "Link": {
        "description": "Where the problem is described.",
        "required": True,
        "schema": {"type": "string", "pattern": '^</problems/[a-z0-9_]+>; rel="describedby"$'},
    },
    "WWW-Authenticate": {
        "description": "How to authenticate.",
        "required": True,
        "schema": {"type": "string", "pattern": "^Bearer realm="},
    },
    "Location": {
        "description": "The address of the payment, or of what else was made or changed.",
        "schema": {"type": "string", "pattern": "^/api/v1/[a-z-]+/[0-9a-f-]{36}$"},
    },
    "Idempotent-Replayed": {
        "description": "Present when this is an earlier request's answer, given again.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Payment-Status": {
        "description": "With a replayed answer: the payment's status now.",
        "schema": {"type": "string", "enum": ["PENDING", "SUCCESSFUL", "FAILED"]},
    },
}
COUNTED: Final = (
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
    "RateLimit-Policy",
    "RateLimit",
)
_SPECIAL: Final = {
    401: ("WWW-Authenticate",),
    404: COUNTED,
    409: (*COUNTED, "Retry-After", "Location"),
    429: (*COUNTED, "Retry-After"),
    500: COUNTED,
    503: ("Retry-After",),
}


_ANYWHERE: Final = (HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE)
_WITH_A_KEY: Final = (
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.TOO_MANY_REQUESTS,
    *_ANYWHERE,
)


class SharedDocumentation(BasePlugin):
    """Documents what all routes share: headers, and the problems that each may answer with."""

    def __init__(self, app: Flask) -> None:
        self._app = app

    def operation_helper(
        self,
        path: str | None = None,  # noqa: ARG002  apispec's
        operations: dict[str, Any] | None = None,
        *,
        rule: Rule | None = None,
        **_options: Any,
    ) -> None:
        """Complete the operations of one rule. See apispec.BasePlugin."""
        if rule is None or operations is None:
            return
        view = self._app.view_functions[rule.endpoint]
        blueprint = self._app.blueprints[rule.endpoint.rpartition(".")[0]]
        is_public = getattr(blueprint, "public", False)
        is_idempotent = getattr(view, "idempotent", False)
        for operation in operations.values():
            _complete(operation, is_public=is_public, is_idempotent=is_idempotent)


def _complete(operation: dict[str, Any], *, is_public: bool, is_idempotent: bool) -> None:
    operation["summary"] = operation["summary"].removesuffix(".")
    parameters = ["X-Request-Id", "traceparent"]
    headers: tuple[str, ...] = ("X-Request-Id",)
    if is_idempotent:
        parameters.insert(0, "Idempotency-Key")
    if is_public:
        operation["security"] = []
    else:
        parameters.insert(0, "X-Tenant-Id")
        headers += COUNTED
    operation["parameters"] = [*operation.get("parameters", []), *parameters]
    responses = operation["responses"]
    for answer in responses.values():
        if isinstance(answer, dict):
            answer.setdefault("headers", {}).update({name: name for name in headers})
    for status in _ANYWHERE if is_public else _WITH_A_KEY:
        responses.setdefault(status, status.name)
    operation["responses"] = dict(sorted(responses.items()))


class ProblemApi(Api):  # type: ignore[misc]  # flask-smorest has no types
    """flask-smorest with our problem documents as its errors, in responses and documentation."""

    ERROR_SCHEMA = ProblemSchema
    # Each operation lists the statuses that it can answer with; "default" would hide the others.
    DEFAULT_ERROR_RESPONSE_NAME = None

    def __init__(self, app: Flask) -> None:
        app.config.update(CONFIGURATION)
        super().__init__(app, spec_kwargs={"extra_plugins": [SharedDocumentation(app)]})
        components = self.spec.components
        # flask-smorest's, for lists with numbered pages: ours have cursors.
        components.schemas.pop("PaginationMetadata", None)
        # flask-smorest's, for all statuses. Only those of our problems may be referred to.
        components.responses_lazy.clear()
        for status in sorted({problem.status for problem in all_problems()}):
            # Under its own name, so that client generators make one class for each status.
            components.schema(_name(status), _narrowed(status))
            components.response(status.name, _response(status), lazy=True)
        self.ma_plugin.converter.add_attribute_function(describe)
        for name, parameter in PARAMETERS.items():
            components.parameter(name, "header", parameter, lazy=True)
        for name, header in HEADERS.items():
            components.header(name, header)
        for name, message in MESSAGES.items():
            components.schema(name, schema=message)

    def handle_http_exception(self, error: HTTPException) -> Response:
        """Replaces flask-smorest's handler, which drops Allow and Retry-After."""
        return http_problem(error)


def _name(status: int) -> str:
    return f"Problem{int(status)}"


def _narrowed(status: int) -> dict[str, Any]:
    codes = [problem.code for problem in all_problems() if problem.status == status]
    narrowed = {
        "type": "object",
        "properties": {
            "status": {"type": "integer", "enum": [int(status)]},
            # No `enum`: a generated client would fail at the first new code.
            "code": {"type": "string", "examples": codes},
        },
    }
    return {
        "description": f"A problem with status {int(status)}.",
        "allOf": [{"$ref": "#/components/schemas/Problem"}, narrowed],
    }


def _response(status: int) -> dict[str, Any]:
    problems = [problem for problem in all_problems() if problem.status == status]
    headers = ("X-Request-Id", "Link", *_SPECIAL.get(status, COUNTED))
    lines = [f"- `{problem.code}`: {problem.title}. {problem.advice}" for problem in problems]
    return {
        "description": "\n".join(lines),
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
        "content": {
            MEDIA_TYPE: {
                "schema": {"$ref": f"#/components/schemas/{_name(status)}"},
                "examples": {
                    problem.code: {
                        "summary": problem.title,
                        "value": problem_document(problem, problem.advice, request_id="checkout-7"),
                    }
                    for problem in problems
                },
            }
        },
    }
