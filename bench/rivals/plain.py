"""Plain: Flask, Flask-SQLAlchemy, marshmallow, SETNX and Celery's .delay(), as in tutorials.

It loses payments if it dies between its commit and .delay(), charges again after Redis is
emptied, and loses webhooks. It is compared for its speed only.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import threading
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import requests
from celery import Celery, Task
from flask import Flask, Response, abort, request
from flask_sqlalchemy import SQLAlchemy
from marshmallow import Schema, fields, validate
from redis import Redis
from sqlalchemy import ForeignKey, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The tables."""


class Tenant(Base):
    """The caller."""

    __tablename__ = "tenants"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    api_key: Mapped[str]


class Payment(Base):
    """A requested payment."""

    __tablename__ = "payments"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    amount: Mapped[int]
    currency: Mapped[str]
    payer: Mapped[str]
    status: Mapped[str] = mapped_column(default="PENDING")
    created_at: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC))


class IdempotencyKey(Base):
    """The response to replay."""

    __tablename__ = "idempotency_keys"
    key: Mapped[UUID] = mapped_column(primary_key=True)
    payment_id: Mapped[UUID] = mapped_column(ForeignKey("payments.id"))
    body: Mapped[str]


class PaymentEvent(Base):
    """An event of a payment."""

    __tablename__ = "payment_events"
    id: Mapped[int] = mapped_column(primary_key=True)
    payment_id: Mapped[UUID] = mapped_column(ForeignKey("payments.id"))
    type: Mapped[str]


class PaymentSchema(Schema):
    """The request and the response."""

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


SIGNING_KEY = b"whsec-of-the-plain-service"
# How long a provider or a receiver may take, and how often a task is retried.
ANSWER_MAX_S = 15
TRIES_MAX = 10
_here = threading.local()


@celery.task(bind=True, ignore_result=True, max_retries=TRIES_MAX)  # type: ignore[untyped-decorator]
def process_payment(self: Task, payment_id: str) -> None:
    """Submit the payment to the provider."""
    with app.app_context():
        payment = db.session.get_one(Payment, UUID(payment_id))
        send_webhook(payment, "payment.accepted")
        headers = {**_provider_headers(), "X-Reference-Id": payment_id}
        body = {
            "amount": str(payment.amount),
            "currency": payment.currency,
            "externalId": payment_id,
            "payer": {"partyIdType": "MSISDN", "partyId": payment.payer},
        }
        try:
            answer = _session().post(_pay_url(), json=body, headers=headers, timeout=ANSWER_MAX_S)
            answer.raise_for_status()
        except requests.RequestException as error:
            raise self.retry(exc=error, countdown=1) from error
        change(payment, "payment.pending")
    check_payment.delay(payment_id)


@celery.task(bind=True, ignore_result=True, max_retries=TRIES_MAX)  # type: ignore[untyped-decorator]
def check_payment(self: Task, payment_id: str) -> None:
    """Ask the provider for the status until it is final."""
    with app.app_context():
        payment = db.session.get_one(Payment, UUID(payment_id))
        try:
            answer = _session().get(
                f"{_pay_url()}/{payment_id}", headers=_provider_headers(), timeout=ANSWER_MAX_S
            )
            answer.raise_for_status()
        except requests.RequestException as error:
            raise self.retry(exc=error, countdown=1) from error
        status = answer.json()["status"]
        if status == "PENDING":
            raise self.retry(countdown=1)
        change(payment, f"payment.{status.lower()}", status)


def change(payment: Payment, event: str, status: str = "PENDING") -> None:
    """Store the change, then send its webhook."""
    payment.status = status
    db.session.add(PaymentEvent(payment_id=payment.id, type=event))
    db.session.commit()
    send_webhook(payment, event)


def send_webhook(payment: Payment, event: str) -> None:
    """POST a signed webhook, once."""
    data = {"payment_id": str(payment.id), "status": payment.status, "amount": payment.amount}
    body = json.dumps({"id": str(uuid4()), "type": event, "data": data}).encode()
    headers = {
        "Content-Type": "application/json",
        "X-Signature": hmac.new(SIGNING_KEY, body, hashlib.sha256).hexdigest(),
    }
    url = os.environ["PLAIN_WEBHOOK_URL"]
    _session().post(url, data=body, headers=headers, timeout=ANSWER_MAX_S)


def _session() -> requests.Session:
    """The thread's own session, so that connections stay open."""
    found: requests.Session | None = getattr(_here, "session", None)
    if found is None:
        found = _here.session = requests.Session()
    return found


def _pay_url() -> str:
    return f"{os.environ['MTN_BASE_URL']}/collection/v1_0/requesttopay"


def _provider_headers() -> dict[str, str]:
    """Headers with a token that each thread fetches once."""
    key = os.environ["MTN_COLLECTION_SUBSCRIPTION_KEY"]
    token: str | None = getattr(_here, "token", None)
    if token is None:
        user = (os.environ["MTN_COLLECTION_API_USER"], os.environ["MTN_COLLECTION_API_KEY"])
        answer = _session().post(
            f"{os.environ['MTN_BASE_URL']}/collection/token/",
            auth=user,
            headers={"Ocp-Apim-Subscription-Key": key, "Content-Type": "application/json"},
            timeout=ANSWER_MAX_S,
        )
        token = _here.token = str(answer.json()["access_token"])
    return {
        "Authorization": f"Bearer {token}",
        "Ocp-Apim-Subscription-Key": key,
        "X-Target-Environment": os.environ["MTN_TARGET_ENVIRONMENT"],
    }


@app.post("/payments")
def accept() -> Response:
    """Validate, check the key, store, and enqueue the task."""
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
