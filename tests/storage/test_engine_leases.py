"""Only a worker with a valid lease may send. A callback only triggers a status check."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Final

import pytest
from flask import Flask
from sqlalchemy import select

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import EVERY_TENANT, database_now, transaction
from payments_app.kernel.http.messages import (
    HttpClient,
    HttpRequest,
    HttpResponse,
    LeaseLost,
    NoResponse,
)
from payments_app.kernel.http.transport import Lease
from payments_app.payments.callbacks import ReceivedCallback, record_callback
from payments_app.payments.claims import LEASE, Claim
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.model import Payment
from payments_app.providers.contract import Observation, PaymentOrder
from tests.builders import (
    ANSWERS,
    SCRIPTED,
    Move,
    ScriptedProvider,
    a_claim,
    advance,
    advance_payment,
    an_accepted_payment,
    due_in_s,
    exchanges_of,
    keyring,
    let_time_pass,
    make_due,
    payment_row,
    rails_of,
)

LEASE_S: Final = LEASE.total_seconds()


@pytest.fixture
def provider() -> ScriptedProvider:
    return ScriptedProvider(checks=[ANSWERS["pending"]])


@pytest.fixture
def gateway(app: Flask, provider: ScriptedProvider) -> PaymentGateway:
    return rails_of(app, provider)


def database_time() -> datetime:
    with transaction(EVERY_TENANT) as session:
        return session.scalars(select(database_now())).one()


def later(claim: Claim, *, seconds: float) -> Claim:
    """The claim as the worker's own clock shows it after it was frozen for `seconds`."""
    return replace(claim, lease=Lease(claim.lease.expires_at - seconds))


# --- leases -------------------------------------------------------------------------------------


@contextmanager
def a_listening_provider() -> Iterator[tuple[str, list[bytes]]]:
    """An address, and the requests that it received. It answers each with 202."""
    arrived: list[bytes] = []

    def serve() -> None:
        with listener:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    arrived.append(peer.recv(65536))
                    peer.sendall(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/", arrived
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def sending(url: str) -> Move:
    def move(order: PaymentOrder, http_client: HttpClient) -> Observation:
        match http_client.send(HttpRequest("POST", f"{url}{order.reference}", {})):
            case HttpResponse():
                return ANSWERS["accepted"]
            case NoResponse():
                return ANSWERS["unknown"]

    return move


def test_a_worker_that_lost_its_payment_sends_nothing(
    gateway: PaymentGateway, provider: ScriptedProvider
) -> None:
    with a_listening_provider() as (url, arrived):
        provider.submits = [sending(url)]
        row = payment_row(an_accepted_payment(gateway).payment_id)
        frozen = a_claim()
        let_time_pass(seconds=LEASE_S + 1)
        current = a_claim()
        advance_payment(later(frozen, seconds=LEASE_S + 1), gateway)
        assert (arrived, provider.submissions) == ([], [])
    assert payment_row(row.id).generation == current.generation
    assert payment_row(row.id).lease_until is not None
    (left, *_) = exchanges_of(row.id)
    assert (left.verdict, left.reason) == ("NOT_SENT", "lease_lost")


def test_a_worker_that_wakes_after_the_end_sends_nothing(
    gateway: PaymentGateway, provider: ScriptedProvider
) -> None:
    row = payment_row(an_accepted_payment(gateway).payment_id)
    frozen = a_claim()
    let_time_pass(seconds=LEASE_S + 1)
    provider.checks = [ANSWERS["declined"]]
    advance(gateway)
    advance_payment(later(frozen, seconds=LEASE_S + 1), gateway)
    assert provider.submissions == []
    assert payment_row(row.id).status == "FAILED"


@pytest.mark.usefixtures("unhurried")
def test_a_lease_that_ends_while_the_adapter_gets_ready_stops_the_first_byte(
    gateway: PaymentGateway, provider: ScriptedProvider
) -> None:
    with a_listening_provider() as (url, arrived):

        def too_late(order: PaymentOrder, _wire: HttpClient) -> Observation:
            over = gateway.http_client(Lease(boot_seconds() - 0.001))
            return sending(url)(order, over)

        provider.submits = [too_late]
        row = payment_row(an_accepted_payment(gateway).payment_id)
        assert advance(gateway) == 1
        assert arrived == []
        handed_back = payment_row(row.id)
        assert (handed_back.stage, handed_back.next_step) == ("accepted", "submit")
        assert exchanges_of(row.id)[0].reason == "lease_lost"
        provider.submits = [sending(url)]
        make_due(row.id)
        advance(gateway)
        assert len(arrived) == 1
        assert str(row.reference).encode() in arrived[0]
    assert payment_row(row.id).stage == "awaiting_payer"


def test_a_worker_with_little_time_left_takes_a_new_lease_before_it_sends(
    gateway: PaymentGateway, provider: ScriptedProvider
) -> None:
    renewed: list[tuple[datetime, datetime]] = []

    def look(order: PaymentOrder, http_client: HttpClient) -> Observation:
        due_at = payment_row(order.payment_id).next_action_at
        assert due_at is not None
        renewed.append((due_at - LEASE, database_time()))
        with pytest.raises(LeaseLost):
            gateway.http_client(claim.lease).send(HttpRequest("GET", "http://127.0.0.1:1/", {}))
        assert isinstance(
            http_client.send(HttpRequest("GET", "http://127.0.0.1:1/", {})), NoResponse
        )
        return ANSWERS["accepted"]

    provider.submits = [look]
    an_accepted_payment(gateway)
    claim = later(a_claim(), seconds=LEASE_S - 1)
    let_time_pass(seconds=LEASE_S - 1)
    begun = database_time()
    advance_payment(claim, gateway)
    ((renewed_at, seen_at),) = renewed
    assert begun <= renewed_at <= seen_at
    assert len(provider.submissions) == 1


# --- callbacks in the meantime ------------------------------------------------------------------


def hint(row: Payment, *, body: bytes = b"{}") -> None:
    record_callback(ReceivedCallback(SCRIPTED, row.reference, "PUT", body, None), keyring())


@pytest.mark.parametrize("renewed", [0, 1])
def test_a_callback_that_overtakes_the_answer_makes_the_question_due_at_once(
    gateway: PaymentGateway, provider: ScriptedProvider, renewed: int
) -> None:
    def overtaken(order: PaymentOrder, _wire: HttpClient) -> Observation:
        hint(payment_row(order.payment_id))
        return ANSWERS["accepted"]

    provider.submits = [overtaken]
    row = payment_row(an_accepted_payment(gateway).payment_id)
    claim = a_claim()
    if renewed:
        hint(row, body=b"even earlier")
        claim = later(claim, seconds=LEASE_S - 1)
    advance_payment(claim, gateway)
    assert due_in_s(row.id) <= 0
    provider.checks = [ANSWERS["paid"]]
    assert advance(gateway) == 1
    assert payment_row(row.id).status == "SUCCESSFUL"


def test_a_callback_during_the_lease_starts_no_second_worker(
    gateway: PaymentGateway, provider: ScriptedProvider
) -> None:
    row = payment_row(an_accepted_payment(gateway).payment_id)
    a_claim()
    hint(row)
    assert advance(gateway) == 0
    assert (provider.submissions, provider.questions) == ([], [])


def test_a_callback_does_not_hurry_what_was_handed_back(
    gateway: PaymentGateway, provider: ScriptedProvider
) -> None:
    def refused_connection(order: PaymentOrder, _wire: HttpClient) -> Observation:
        hint(payment_row(order.payment_id))
        return replace(ANSWERS["not_sent"], retry_after_s=60)

    provider.submits = [refused_connection]
    row = payment_row(an_accepted_payment(gateway).payment_id)
    advance(gateway)
    hint(row, body=b"another")
    assert due_in_s(row.id) > 50
    assert advance(gateway) == 0
