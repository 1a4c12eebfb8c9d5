"""The API's documentation as pages that need no network: Swagger UI from a package."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

import marshmallow as ma
from flask import Blueprint, Response, send_from_directory

from payments_app.api.blueprint import ApiBlueprint
from payments_app.api.json import json_response
from payments_app.api.problem_types import ProblemUnknown, all_problems

blp = Blueprint("docs", __name__)
problems = ApiBlueprint(
    "problems",
    __name__,
    url_prefix="/problems",
    description="What each `code` of an error means",
    public=True,
)

# Only the files that the package brings: its blueprint would put a script into the page.
SWAGGER_UI: Final = files("flask_swagger_ui") / "dist"
# Swagger UI sets styles from script and shows its images as data; nothing leaves this host.
POLICY: Final = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " frame-ancestors 'none'"
)
PAGE: Final = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>Maramoja API</title>
  <link rel="stylesheet" href="/docs/assets/swagger-ui.css">
  <link rel="icon" href="/docs/assets/favicon-32x32.png">
</head>
<body>
  <div id="swagger-ui"></div>
  <script src="/docs/assets/swagger-ui-bundle.js"></script>
  <script src="/docs/start.js"></script>
</body>
</html>
"""
START: Final = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  // What is tried here is as safe as what a program sends: each click a key of its own.
  requestInterceptor: function (request) {
    var changes = /^(POST|PATCH|DELETE)$/.test(request.method || "");
    if (changes && !request.headers["Idempotency-Key"]) {
      request.headers["Idempotency-Key"] = newKey();
    }
    return request;
  }
});

// crypto.randomUUID is there on https and on this machine only.
function newKey() {
  var bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 15) | 64;
  bytes[8] = (bytes[8] & 63) | 128;
  var text = Array.from(bytes, function (byte) {
    return byte.toString(16).padStart(2, "0");
  }).join("");
  return text.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
"""


@blp.route("/docs")
def page() -> Response:
    """The API, to read and to try."""
    return _served(Response(PAGE, content_type="text/html; charset=utf-8"))


@blp.route("/docs/start.js")
def start() -> Response:
    """Starts the page: an own file, because the policy allows no script inside it."""
    return _served(Response(START, content_type="text/javascript"))


@blp.route("/docs/assets/<name>")
def asset(name: str) -> Response:
    """Swagger UI's own files."""
    return _served(send_from_directory(str(SWAGGER_UI), name))


class ProblemTypeSchema(ma.Schema):
    """What a problem's `type` leads to."""

    class Meta:
        """Nothing but this."""

        unknown = ma.RAISE

    code = ma.fields.String(
        required=True, metadata={"description": "As in errors.", "example": "rate_limited"}
    )
    status = ma.fields.Integer(
        required=True, metadata={"description": "The HTTP status it comes with.", "example": 429}
    )
    title = ma.fields.String(
        required=True, metadata={"description": "What it is.", "example": "Too many requests"}
    )
    advice = ma.fields.String(
        required=True,
        metadata={
            "description": "What the caller can do.",
            "example": "Wait for Retry-After, then send the same request with the same key.",
        },
    )


@problems.route(
    "/<code>",
    parameters=[
        {
            "in": "path",
            "name": "code",
            "description": "The `code` of an error.",
            "schema": {"type": "string", "enum": [problem.code for problem in all_problems()]},
            "example": "rate_limited",
        }
    ],
)
@problems.doc(operationId="describe_problem")
@problems.response(200, ProblemTypeSchema, description="The kind of problem")
@problems.alt_response(404, "NOT_FOUND")
def describe_problem(code: str) -> Response:
    """Say what an error's code means.

    Every error document's `type` is an address of this kind.
    """
    for problem in all_problems():
        if problem.code == code:
            return json_response(
                {
                    "code": problem.code,
                    "status": int(problem.status),
                    "title": problem.title,
                    "advice": problem.advice,
                }
            )
    raise ProblemUnknown("No problem has this code.")


def _served(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = POLICY
    return response
