"""The API's documentation pages, which need no network: Swagger UI from a package."""

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

# Only the package's static files: its blueprint would put an inline script into the page.
SWAGGER_UI: Final = files("flask_swagger_ui") / "dist"
# Swagger UI sets styles from script and has images as data: URLs; it loads from this host only.
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
# With Swagger UI's own options: interceptors, and a plugin that wraps an action.
START: Final = """var KEY = "Idempotency-Key";
var DOCUMENT = "/openapi.json";

// What is tried here is as safe as what a program sends: the key is there, and is the one shown.
SwaggerUIBundle({
  url: DOCUMENT,
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  plugins: [renewKeys],
  requestInterceptor: function (request) {
    // Somebody has emptied the field.
    var changes = /^(POST|PATCH|DELETE)$/.test(request.method || "");
    if (changes && !request.headers[KEY]) {
      request.headers[KEY] = newKey();
    }
    return request;
  },
  responseInterceptor: function (response) {
    if (new URL(response.url, location.href).pathname === DOCUMENT) {
      response.text = withKeys(response.text);
    }
    return response;
  }
});

// Each operation's field holds a key of its own from the beginning.
function withKeys(text) {
  var spec = JSON.parse(text);
  var reference = "#/components/parameters/" + KEY;
  Object.values(spec.paths).forEach(function (path) {
    Object.values(path).forEach(function (operation) {
      (operation.parameters || []).forEach(function (parameter, at, all) {
        if (parameter.$ref === reference) {
          all[at] = Object.assign({ example: newKey() }, spec.components.parameters[KEY]);
        }
      });
    });
  });
  return JSON.stringify(spec);
}

// What was done has spent its key, and the next click gets another. After a timeout, a 5xx or any
// other refusal the same key stands there still: sent again, it never charges twice.
function renewKeys() {
  function renewAfter(original, system) {
    return function (path, method, response) {
      var place = ["paths", path, method, "parameters"];
      var parameters = system.specSelectors.specResolvedSubtree(place);
      var field = parameters && parameters.find(function (one) { return one.get("name") === KEY; });
      if (field && response.status >= 200 && response.status < 300) {
        system.specActions.changeParamByIdentity([path, method], field, newKey());
      }
      return original(path, method, response);
    };
  }
  return { statePlugins: { spec: { wrapActions: { setResponse: renewAfter } } } };
}

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
    """The API documentation, with forms to try each operation."""
    return _served(Response(PAGE, content_type="text/html; charset=utf-8"))


@blp.route("/docs/start.js")
def start() -> Response:
    """The script that starts the page, in its own file: the policy forbids inline scripts."""
    return _served(Response(START, content_type="text/javascript"))


@blp.route("/docs/assets/<name>")
def asset(name: str) -> Response:
    """Swagger UI's own files."""
    return _served(send_from_directory(str(SWAGGER_UI), name))


class ProblemTypeSchema(ma.Schema):
    """The document at the address in a problem's `type`."""

    class Meta:
        """Unknown fields are an error."""

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
