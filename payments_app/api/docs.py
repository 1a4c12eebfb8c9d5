"""The API's documentation as pages that need no network: Swagger UI from a package."""

from __future__ import annotations

from typing import Final

from flask import Blueprint, Response, send_from_directory
from swagger_ui_bundle import swagger_ui_path

blp = Blueprint("docs", __name__)

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
  validatorUrl: null
});
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
    return _served(send_from_directory(swagger_ui_path, name))


def _served(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = POLICY
    return response
