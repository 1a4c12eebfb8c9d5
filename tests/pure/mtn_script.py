"""A scripted HTTP client for MTN MoMo: replies in order, and the requests that were sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from cryptography.fernet import Fernet
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from payments_app.kernel.http.messages import HttpRequest, HttpResponse, LeaseLost, NoResponse
from payments_app.kernel.money import Money
from payments_app.kernel.msisdn import Msisdn
from payments_app.kernel.secrets import Cipher
from payments_app.providers.contract import (
    Mode,
    Observation,
    PaymentOrder,
    ProviderAccount,
)
from payments_app.providers.mtn_momo import MtnMomo
from payments_app.providers.tokens import TokenCache

REFERENCE = UUID("6f1c2a34-9a3b-4c1d-8e2f-000000000001")
PAYMENT_ID = UUID("0199c0de-0000-7000-8000-000000000002")
TOKEN_BODY = b'{"access_token":"t0ken","token_type":"access_token","expires_in":3600}'
TOKEN = HttpResponse(200, {}, TOKEN_BODY)
HTML = b"<html><head><title>Error</title></head><body>The page can't be shown</body></html>"
FIREWALL = b"<html><body>Request Rejected. Your support ID is: 1234</body></html>"
FORBIDDEN = b"<html><head><title>403 Forbidden</title></head></html>"
DUPLICATE = (
    b'{"code":"RESOURCE_ALREADY_EXIST",'
    b'"message":"Duplicated reference id. Creation of resource failed."}'
)
NOT_FOUND = b'{"code":"RESOURCE_NOT_FOUND","message":"Requested resource was not found."}'
AZURE_401 = b'{"statusCode":401,"message":"Access denied due to invalid subscription key."}'
AZURE_404 = b'{"statusCode":404,"message":"Resource not found"}'
OUT_OF_QUOTA = (
    b'{"statusCode":403,"message":"Out of call volume quota.'
    b' Quota will be replenished in 00:00:05."}'
)
UNAUTHORIZED = HttpResponse(401, {}, AZURE_401)

Reply = HttpResponse | NoResponse | LeaseLost


@dataclass
class ScriptedWire:
    """A scripted HTTP client: returns the replies in order and records the requests."""

    replies: Sequence[Reply]
    calls: list[HttpRequest] = field(default_factory=list)

    def send(self, call: HttpRequest) -> HttpResponse | NoResponse:
        self.calls.append(call)
        reply = self.replies[len(self.calls) - 1]
        if isinstance(reply, LeaseLost):
            raise reply
        return reply


def an_adapter() -> MtnMomo:
    """An adapter whose Redis is unavailable, so that its tokens are its own."""
    away = Redis(port=1, retry=Retry(NoBackoff(), 0), socket_connect_timeout=0.1)
    return MtnMomo(TokenCache(away, Cipher([Fernet.generate_key().decode()])))


def an_account(
    target_environment: str = "sandbox", base_url: str = "https://mtn.test"
) -> ProviderAccount:
    return ProviderAccount(
        id=None,
        provider="mtn_momo",
        mode=Mode.TEST,
        base_url=base_url,
        target_environment=target_environment,
        credentials={
            "collection_subscription_key": "sub-key",
            "collection_api_user": "user=",
            "collection_api_key": "key",
        },
    )


def an_order(money: Money | None = None, **options: str) -> PaymentOrder:
    return PaymentOrder(
        reference=REFERENCE,
        payment_id=PAYMENT_ID,
        money=money or Money(1000, "UGX"),
        payer=Msisdn("256772123456"),
        **options,
    )


def submitted(*replies: Reply) -> Observation:
    """The adapter's observation for these replies to a submission, after a token."""
    return an_adapter().submit(an_order(), an_account(), ScriptedWire([TOKEN, *replies]))


def checked(*replies: Reply) -> Observation:
    """The adapter's observation for these replies to a status check, after a token."""
    return an_adapter().check(an_order(), an_account(), ScriptedWire([TOKEN, *replies]))


def an_azure(status: int, message: str) -> bytes:
    """An error of Azure API Management, which is in front of MTN."""
    return json.dumps({"statusCode": status, "message": message}).encode()


def an_error(code: str) -> bytes:
    return json.dumps({"code": code, "message": "…"}).encode()


def a_status(status: str, **members: object) -> bytes:
    body = {"amount": "1000", "currency": "UGX", "externalId": "x", "status": status, **members}
    return json.dumps(body).encode()
