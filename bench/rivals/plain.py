"""Plain: Flask, Flask-SQLAlchemy, marshmallow, SETNX and Celery's .delay(), as tutorials have it.

It loses payments when it dies between its commit and .delay(), and charges again once Redis is
emptied. It is here for its speed.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from celery import Celery
from flask import Flask, Response, abort, request
from flask_sqlalchemy import SQLAlchemy
from marshmallow import Schema, fields, validate
from redis import Redis
from sqlalchemy import ForeignKey, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The tables."""


class Tenant(Base):
    """Who calls."""

    __tablename__ = "tenants"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    api_key: Mapped[str]


class Payment(Base):
    """What is asked for."""

    __tablename__ = "payments"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    amount: Mapped[int]
    currency: Mapped[str]
    payer: Mapped[str]
    status: Mapped[str] = mapped_column(default="PENDING")
    created_at: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC))


class IdempotencyKey(Base):
    """The answer to give again."""

    __tablename__ = "idempotency_keys"
    key: Mapped[UUID] = mapped_column(primary_key=True)
    payment_id: Mapped[UUID] = mapped_column(ForeignKey("payments.id"))
    body: Mapped[str]


class PaymentEvent(Base):
    """A line of the story."""

    __tablename__ = "payment_events"
    id: Mapped[int] = mapped_column(primary_key=True)
    payment_id: Mapped[UUID] = mapped_column(ForeignKey("payments.id"))
    type: Mapped[str]


class PaymentSchema(Schema):
    """In and out."""

    id = fields.UUID(dump_only=True)
    amount = fields.Integer(required=True, validate=validate.Range(min=1))
    currency = fields.String(required=True, validate=validate.Length(equal=3))
    payer = fields.String(required=True, validate=validate.Regexp(r"^[1-9][0-9]{7,14}$"))
    status = fields.String(dump_only=True)
    created_at = fields.DateTime(dump_only=True)


app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"].replace(
    "postgresql://", "postgresql+psycopg://"
)
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": 16}
db = SQLAlchemy(app, metadata=Base.metadata)
redis = Redis.from_url(os.environ["REDIS_URL"])
celery = Celery("plain", broker=os.environ["REDIS_URL"])
celery.conf.task_ignore_result = True
payment_schema = PaymentSchema()


@celery.task(ignore_result=True)  # type: ignore[untyped-decorator]
def process_payment(_payment_id: str) -> None:
    """What a worker would do."""


@app.post("/payments")
def accept() -> Response:
    """Check, look, store, hand off."""
    api_key = request.headers.get("X-API-Key")
    if db.session.execute(select(Tenant).filter_by(api_key=api_key)).scalar_one_or_none() is None:
        abort(401)
    order: dict[str, Any] = payment_schema.load(request.get_json())
    key = UUID(request.headers["Idempotency-Key"])
    if not redis.setnx(f"idempotency:{key}", "1"):
        stored = db.session.get(IdempotencyKey, key) or abort(409)
        return Response(stored.body, 201, mimetype="application/json")
    payment = Payment(**order)
    db.session.add(payment)
    db.session.flush()
    body = json.dumps(payment_schema.dump(payment))
    db.session.add(IdempotencyKey(key=key, payment_id=payment.id, body=body))
    db.session.add(PaymentEvent(payment_id=payment.id, type="accepted"))
    db.session.commit()
    process_payment.delay(str(payment.id))
    return Response(body, 201, mimetype="application/json")
