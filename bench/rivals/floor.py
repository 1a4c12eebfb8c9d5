"""The floor: three rows in one commit, one SET NX, one LPUSH, and nothing else.

It does not authenticate, validate or replay a response. No service that stores a payment, its key and
its event can do less.
"""

from __future__ import annotations

import json
import os
import threading
from typing import Any
from uuid import UUID, uuid4

import psycopg
from flask import Flask, Response, request
from redis import Redis

app = Flask(__name__)
redis = Redis.from_url(os.environ["REDIS_URL"])
_here = threading.local()

KEY = "INSERT INTO idempotency_keys (key, payment_id, body) VALUES (%s, %s, %s)"
PAYMENT = (
    "INSERT INTO payments (id, amount, currency, payer, status) VALUES (%s, %s, %s, %s, 'PENDING')"
)
EVENT = "INSERT INTO payment_events (payment_id, type) VALUES (%s, 'accepted')"
ONE_STATEMENT = (
    "WITH k AS (INSERT INTO idempotency_keys (key, payment_id, body) VALUES (%s, %s, %s)),"
    " p AS (INSERT INTO payments (id, amount, currency, payer, status)"
    " VALUES (%s, %s, %s, %s, 'PENDING'))"
    " INSERT INTO payment_events (payment_id, type) VALUES (%s, 'accepted')"
)


@app.post("/payments")
def accept() -> Response:
    """Insert by three statements in one pipelined transaction."""
    order, key = request.get_json(), request.headers["Idempotency-Key"]
    payment_id, answer = _begin(order, key)
    connection = _connection()
    with connection.pipeline(), connection.transaction():
        connection.execute(KEY, (key, payment_id, answer))
        connection.execute(
            PAYMENT, (payment_id, order["amount"], order["currency"], order["payer"])
        )
        connection.execute(EVENT, (payment_id,))
    return _end(payment_id, answer)


@app.post("/payments-in-one-statement")
def accept_in_one_statement() -> Response:
    """Insert the same rows by one WITH … INSERT, which is its own transaction."""
    order, key = request.get_json(), request.headers["Idempotency-Key"]
    payment_id, answer = _begin(order, key)
    row = (payment_id, order["amount"], order["currency"], order["payer"])
    _connection().execute(ONE_STATEMENT, (key, payment_id, answer, *row, payment_id))
    return _end(payment_id, answer)


def _begin(order: dict[str, Any], key: str) -> tuple[UUID, str]:
    if not redis.set(f"lock:{key}", "1", nx=True, ex=30):
        raise RuntimeError("the same key twice: this floor has no answer to that")
    payment_id = uuid4()
    return payment_id, json.dumps({"id": str(payment_id), "status": "PENDING", **order})


def _end(payment_id: UUID, answer: str) -> Response:
    redis.lpush("work", str(payment_id))
    return Response(answer, 201, mimetype="application/json")


def _connection() -> psycopg.Connection:
    """The thread's own connection."""
    found: psycopg.Connection | None = getattr(_here, "connection", None)
    if found is None:
        found = _here.connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    return found
