"""An HTTP client for tests: one tenant calls the API."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from flask import Flask
from sqlalchemy import func, select, update
from werkzeug.serving import make_server
from werkzeug.test import TestResponse

from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.model import Payment
from payments_app.providers.contract import Mode
from payments_app.tenants.caller import KNOWN_FOR_S
from payments_app.tenants.keys import IssuedKey
from payments_app.tenants.model import Tenant
from payments_app.tenants.registry import TenantSettings, configure_tenant
from tests.builders import PAYER, a_tenant, advance, an_issued_key, make_due

PAYMENTS = "/api/v1/payments"
# An id that no row has. Fixed: all test processes must collect the same names.
NOBODYS = "01a209ad-4164-7047-9850-453984927403"
MakeApp = Callable[..., Flask]


def an_order(**changes: Any) -> dict[str, Any]:
    """The body of a valid request."""
    return {"amount": 1000, "currency": "EUR", "payer": PAYER, **changes}


@dataclass
class HttpCaller:
    """Sends requests with its tenant's key. A call's `headers` override; None removes a header."""

    app: Flask
    tenant: Tenant
    key: IssuedKey
    headers: dict[str, str] = field(default_factory=dict)

    def send(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str | None] | None = None,
        **options: Any,
    ) -> TestResponse:
        given = {"X-API-Key": self.key.key, **self.headers, **(headers or {})}
        kept = {name: value for name, value in given.items() if value is not None}
        return self.app.test_client().open(path, method=method, headers=kept, **options)

    def get(self, path: str = PAYMENTS, **options: Any) -> TestResponse:
        return self.send("GET", path, **options)

    def post(
        self,
        body: object,
        *,
        key: UUID | str | None = None,
        headers: dict[str, str | None] | None = None,
        content_type: str | None = "application/json",
    ) -> TestResponse:
        """POST /payments; a body that is not bytes is sent as JSON."""
        given: dict[str, str | None] = {"Content-Type": content_type, **(headers or {})}
        if key is not None:
            given["Idempotency-Key"] = str(key)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send("POST", PAYMENTS, headers=given, data=data)

    def pay(self, **changes: Any) -> dict[str, Any]:
        """The body of the 201 of a new payment."""
        answer = self.post(an_order(**changes))
        assert answer.status_code == 201, answer.text
        document: dict[str, Any] = answer.get_json()
        return document

    def show(self, payment: dict[str, Any]) -> dict[str, Any]:
        answer = self.get(f"{PAYMENTS}/{payment['id']}")
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.get_json()
        return document

    def listed(self, query: str = "") -> list[str]:
        """The ids on the first page of the list."""
        answer = self.get(f"{PAYMENTS}?{query}")
        assert answer.status_code == 200, answer.text
        return [payment["id"] for payment in answer.get_json()["data"]]

    def configure(self, **settings: Any) -> None:
        wanted: TenantSettings = settings
        with self.app.app_context():
            configure_tenant(self.tenant, actor="cli:test", **wanted)
        await_known()

    def another_key(self, mode: Mode) -> HttpCaller:
        with self.app.app_context():
            return HttpCaller(self.app, self.tenant, an_issued_key(tenant=self.tenant, mode=mode))


def new_caller(app: Flask, *, mode: Mode = Mode.TEST) -> HttpCaller:
    """A fresh tenant with an API key."""
    with app.app_context():
        tenant = a_tenant()
        return HttpCaller(app, tenant, an_issued_key(tenant=tenant, mode=mode))


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """Serve the app over HTTP, from a thread of this process."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def count_payments(caller: HttpCaller) -> int:
    """The number of the tenant's payments, of both modes."""
    with caller.app.app_context(), transaction(EVERY_TENANT) as session:
        own = Payment.tenant_id == caller.tenant.id
        return session.scalar(select(func.count()).select_from(Payment).where(own)) or 0


@dataclass
class Engine:
    """Processes single payments of an app; it leaves all others alone."""

    app: Flask
    gateway: PaymentGateway

    def step(self, payment: dict[str, Any]) -> None:
        """Take the payment's next action: submit, then check."""
        payment_id = UUID(payment["id"])
        with self.app.app_context():
            _postpone_all_but(payment_id)
            make_due(payment_id)
            advance(self.gateway)

    def finish(self, payment: dict[str, Any]) -> None:
        self.step(payment)
        self.step(payment)


def _postpone_all_but(payment_id: UUID) -> None:
    with transaction(EVERY_TENANT) as session:
        session.execute(
            update(Payment)
            .where(Payment.status == "PENDING", Payment.id != payment_id)
            .values(next_action_at=func.clock_timestamp() + timedelta(days=1))
        )


def await_known() -> None:
    """Wait until what the process has cached about keys and tenants has expired."""
    time.sleep(KNOWN_FOR_S)


def fields_of(answer: TestResponse) -> list[str]:
    """The fields that a validation error names."""
    assert answer.status_code == 422, answer.text
    document = answer.get_json()
    assert document["code"] == "validation_failed", document
    return [error["field"] for error in document["errors"]]


def code_of(answer: TestResponse) -> str:
    code: str = answer.get_json()["code"]
    return code


def assert_spends_no_key(caller: HttpCaller, send: Callable[[UUID], TestResponse]) -> TestResponse:
    """Send a request that must be refused under a fresh key, and assert that the key is unused."""
    key = uuid4()
    before = count_payments(caller)
    refused = send(key)
    assert count_payments(caller) == before
    accepted = caller.post(an_order(), key=key)
    assert accepted.status_code == 201, accepted.text
    assert "Idempotent-Replayed" not in accepted.headers
    return refused
