"""Bare: what Flask and gunicorn cost without any work."""

from __future__ import annotations

from flask import Flask, Response

app = Flask(__name__)


@app.post("/payments")
def accept() -> Response:
    """Answer a constant."""
    return Response('{"status": "PENDING"}', 201, mimetype="application/json")
