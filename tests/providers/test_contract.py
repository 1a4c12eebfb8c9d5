"""The contract that every adapter keeps, tested against a stand-in over real HTTP.

The main rule: in any fault, an adapter's verdict never claims more than the provider's own ledger
shows; and checks and resends under one reference end in the true status, with money moved once.
"""

from __future__ import annotations

import logging
import re
import socket
import string
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from uuid import uuid4

import pytest
from cryptography.fernet import Fernet
from flask import Flask
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.http.messages import (
    HttpClient,
    HttpRequest,
    HttpResponse,
    LeaseLost,
    NoResponse,
)
from payments_app.kernel.http.transport import Lease, Transport
from payments_app.kernel.money import Money
from payments_app.kernel.secrets import Cipher
from payments_app.providers.contract import PaymentOrder, Provider, Verdict
from payments_app.providers.registry import Registry
from payments_app.providers.submission import (
    ABOUT_ONE_REQUEST,
    SubmissionClient,
    submit_through,
)
from payments_app.providers.tokens import TokenCache
from tests.providers.rig import PATIENCE_S, Rig, Trouble, rigs

RIGS = rigs()
ACCEPTED = (Verdict.PENDING, Verdict.DUPLICATE)

pytestmark = pytest.mark.usefixtures("app_context")


class ImpatientWire:
    """The real HTTP client, with a shorter timeout than the adapter sets.

    Only for the requests that are in trouble: a slow machine may take its time for the others.
    """

    def __init__(self, http_client: HttpClient, *, of_token: bool) -> None:
        self._wire, self._of_token = http_client, of_token

    def send(self, call: HttpRequest) -> HttpResponse | NoResponse:
        if (call.operation == "token") is self._of_token:
            call = replace(call, timeout_s=PATIENCE_S)
        return self._wire.send(call)


@pytest.fixture(scope="session")
def running_rigs() -> Iterator[Callable[[str], Rig]]:
    """Each rig; it is started when it is first used."""
    running: dict[str, Rig] = {}
    with ExitStack() as stack:

        def get(code: str) -> Rig:
            if code not in running:
                running[code] = stack.enter_context(RIGS[code]())
            return running[code]

        yield get


@pytest.fixture(params=sorted(RIGS))
def code(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def rig(code: str, running_rigs: Callable[[str], Rig]) -> Rig:
    rig = running_rigs(code)
    rig.calm()
    return rig


def an_adapter(code: str) -> Provider:
    """A new adapter, which has no token yet."""
    away = Redis(port=1, retry=Retry(NoBackoff(), 0), socket_connect_timeout=0.1)
    tokens = TokenCache(away, Cipher([Fernet.generate_key().decode()]))
    return Registry.load(tokens).get(code)


@pytest.fixture
def provider(code: str) -> Provider:
    return an_adapter(code)


@pytest.fixture
def transport() -> Transport:
    return Transport(user_agent="Maramoja/test")


@pytest.fixture
def http_client(transport: Transport) -> HttpClient:
    return transport.unleased()


def wire_into(trouble: Trouble, http_client: HttpClient) -> HttpClient:
    if not trouble.outlasts_us:
        return http_client
    return ImpatientWire(http_client, of_token=trouble.of_token)


def each_trouble(table: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("code", "name"),
        [(code, name) for code, rig in sorted(RIGS.items()) for name in getattr(rig, table)],
    )


def test_every_adapter_has_a_rig() -> None:
    away = Redis(port=1)
    codes = Registry.load(TokenCache(away, Cipher([Fernet.generate_key().decode()]))).codes()
    assert sorted(RIGS) == codes


# --- the straight way --------------------------------------------------------------------------


def test_a_payment_is_accepted_waits_and_is_paid(
    rig: Rig, provider: Provider, http_client: HttpClient
) -> None:
    order, account = rig.order(), rig.account()
    assert provider.prepare(account, http_client) is None
    assert provider.submit(order, account, http_client).verdict is Verdict.PENDING
    assert provider.check(order, account, http_client).verdict is Verdict.PENDING
    rig.pay(order.reference)
    paid = provider.check(order, account, http_client)
    assert (paid.verdict, paid.amount) == (Verdict.SUCCESSFUL, order.money)
    assert paid.provider_transaction_id
    assert rig.movements(order.reference) == 1


def test_a_payment_that_fails_says_why(
    rig: Rig, provider: Provider, http_client: HttpClient
) -> None:
    order, account = rig.order(), rig.account()
    provider.submit(order, account, http_client)
    rig.fail(order.reference)
    failed = provider.check(order, account, http_client)
    assert failed.verdict is Verdict.FAILED
    assert failed.failure is not None
    assert failed.failure.provider_code
    assert failed.body
    assert rig.movements(order.reference) == 0


def test_a_reference_that_the_provider_never_saw_is_not_found(
    rig: Rig, provider: Provider, http_client: HttpClient
) -> None:
    assert provider.check(rig.order(), rig.account(), http_client).verdict is Verdict.NOT_FOUND


# --- one reference, one payment ------------------------------------------------------------------


def test_sent_twice_is_charged_once(rig: Rig, provider: Provider, http_client: HttpClient) -> None:
    if not provider.capabilities.idempotent_submit:
        pytest.skip("this provider doesn't promise it, and the engine doesn't rely on it")
    order, account = rig.order(), rig.account()
    assert provider.submit(order, account, http_client).verdict is Verdict.PENDING
    assert provider.submit(order, account, http_client).verdict is Verdict.DUPLICATE
    rig.pay(order.reference)
    assert provider.submit(order, account, http_client).verdict is Verdict.DUPLICATE
    assert (rig.payments(order.reference), rig.movements(order.reference)) == (1, 1)


def test_a_resend_after_failure_moves_nothing(
    rig: Rig, provider: Provider, http_client: HttpClient
) -> None:
    if not provider.capabilities.idempotent_submit:
        pytest.skip("this provider doesn't promise it, and the engine doesn't rely on it")
    order, account = rig.order(), rig.account()
    provider.submit(order, account, http_client)
    rig.fail(order.reference)
    assert provider.submit(order, account, http_client).verdict is Verdict.DUPLICATE
    assert provider.check(order, account, http_client).verdict is Verdict.FAILED
    assert rig.movements(order.reference) == 0


def test_sent_eight_times_at_once_is_charged_once(
    rig: Rig, provider: Provider, http_client: HttpClient
) -> None:
    if not provider.capabilities.idempotent_submit:
        pytest.skip("this provider doesn't promise it, and the engine doesn't rely on it")
    order, account = rig.order(), rig.account()

    def submit(_: int) -> Verdict:
        with Flask(__name__).app_context():
            return provider.submit(order, account, http_client).verdict

    with ThreadPoolExecutor(8) as pool:
        verdicts = sorted(pool.map(submit, range(8)))
    assert verdicts == [Verdict.DUPLICATE] * 7 + [Verdict.PENDING]
    rig.pay(order.reference)
    assert rig.movements(order.reference) == 1


def test_the_first_of_two_amounts_under_one_reference_stands(
    rig: Rig, provider: Provider, http_client: HttpClient
) -> None:
    order, account = rig.order(), rig.account()
    provider.submit(order, account, http_client)
    more = replace(order, money=Money(order.money.minor * 2, order.money.currency))
    assert provider.submit(more, account, http_client).verdict is Verdict.DUPLICATE
    rig.pay(order.reference)
    assert provider.check(more, account, http_client).amount == order.money


# --- trouble -------------------------------------------------------------------------------------


@each_trouble("SUBMISSION_TROUBLES")
def test_a_submission_in_trouble_is_told_as_it_is_and_ends_in_one_charge(
    code: str, name: str, rig: Rig, http_client: HttpClient
) -> None:
    trouble, order, account = RIGS[code].SUBMISSION_TROUBLES[name], rig.order(), rig.account()
    rig.cause(trouble)
    seen = an_adapter(code).submit(order, account, wire_into(trouble, http_client))
    assert seen.verdict is (trouble.verdict or Verdict.PENDING)
    if seen.verdict is Verdict.REFUSED or (seen.verdict, seen.http_status) == (
        Verdict.NOT_SENT,
        None,
    ):
        # A request that was answered "throttled" was sent: the engine counts it.
        assert rig.payments(order.reference) == 0
    if seen.verdict in ACCEPTED:
        assert rig.payments(order.reference) == 1
    rig.calm()
    assert an_adapter(code).submit(order, account, http_client).verdict in ACCEPTED
    time.sleep(trouble.lasts_s)
    rig.pay(order.reference)
    paid = an_adapter(code).check(order, account, http_client)
    assert (paid.verdict, paid.amount) == (Verdict.SUCCESSFUL, order.money)
    assert (rig.payments(order.reference), rig.movements(order.reference)) == (1, 1)


class AnsweredOtherwise:
    """The real HTTP client, except for the answer to the first request that may create something.

    That request arrives and has its effect. `before_second` is called before the second one.
    """

    def __init__(
        self,
        http_client: HttpClient,
        first: HttpResponse | NoResponse,
        before_second: Callable[[], None],
    ) -> None:
        self._wire, self._first, self._before_second = http_client, first, before_second
        self.left = 0

    def send(self, call: HttpRequest) -> HttpResponse | NoResponse:
        if call.method in ("GET", "HEAD", "OPTIONS") or call.creates_nothing:
            return self._wire.send(call)
        self.left += 1
        if self.left == 2:
            self._before_second()
        came = self._wire.send(call)
        return self._first if self.left == 1 else came


FIRST_ANSWERS = {
    **{
        f"{status} {body[:9].decode()}".strip(): HttpResponse(status, {"retry-after": "1"}, body)
        for status in (200, 202, 302, 401, 404, 407, 408, 409, 419, 429, 500, 502, 503, 504)
        for body in (b"", b"{}", b"<html></html>")
    },
    **{why: NoResponse(why, sent=True) for why in ("timeout", "connection_lost", "broken_answer")},
}


@pytest.mark.parametrize("first", FIRST_ANSWERS)
def test_whatever_becomes_of_a_second_request_the_submission_is_no_refusal(
    code: str, first: str, rig: Rig, http_client: HttpClient
) -> None:
    """The provider accepted the first request; its answer was this one, or was lost."""
    troubles = [one for one in RIGS[code].SUBMISSION_TROUBLES.values() if not one.outlasts_us]
    for trouble in (None, *troubles):
        rig.calm()
        order, account, adapter = rig.order(), rig.account(), an_adapter(code)
        cause = partial(rig.cause, trouble) if trouble else rig.calm
        otherwise = AnsweredOtherwise(http_client, FIRST_ANSWERS[first], cause)
        seen = submit_through(SubmissionClient(otherwise), adapter, order, account)
        assert rig.payments(order.reference) == 1
        # A request that created a payment counts, whatever the adapter says about it.
        assert seen.requests_left
        if otherwise.left > 1 or isinstance(FIRST_ANSWERS[first], NoResponse):
            assert seen.verdict not in ABOUT_ONE_REQUEST, trouble
        if otherwise.left == 1:
            return


@each_trouble("CHECK_TROUBLES")
@pytest.mark.parametrize("truth", [Verdict.PENDING, Verdict.SUCCESSFUL, Verdict.FAILED])
def test_a_question_in_trouble_never_ends_a_payment_otherwise_than_it_ended(
    code: str, name: str, truth: Verdict, rig: Rig, http_client: HttpClient
) -> None:
    trouble, order, account = RIGS[code].CHECK_TROUBLES[name], rig.order(), rig.account()
    an_adapter(code).submit(order, account, http_client)
    if truth is Verdict.SUCCESSFUL:
        rig.pay(order.reference)
    if truth is Verdict.FAILED:
        rig.fail(order.reference)
    rig.cause(trouble)
    seen = an_adapter(code).check(order, account, wire_into(trouble, http_client))
    assert seen.verdict is (trouble.verdict or truth)
    if trouble.changes_amount and seen.verdict is Verdict.SUCCESSFUL:
        assert seen.amount is not None
        assert seen.amount != order.money
    rig.calm()
    # The abandoned request still runs at the stand-in, and would meet the next test's fault.
    time.sleep(trouble.lasts_s)
    after = an_adapter(code).check(order, account, http_client)
    assert after.verdict is truth
    assert rig.movements(order.reference) == (truth is Verdict.SUCCESSFUL)


def test_a_provider_that_is_away_got_nothing(
    rig: Rig, provider: Provider, http_client: HttpClient
) -> None:
    with socket.socket() as deaf:
        # It is bound and does not listen, so nobody else can either.
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        account = replace(rig.account(), base_url=f"http://127.0.0.1:{port}")
        order = rig.order()
        not_ready = provider.prepare(account, http_client)
        assert not_ready is not None
        assert not_ready.verdict is Verdict.NOT_SENT
        assert provider.submit(order, account, http_client).verdict is Verdict.NOT_SENT
        assert provider.check(order, account, http_client).verdict is Verdict.UNKNOWN
        assert provider.probe(account, http_client).verdict is not Verdict.PENDING


# --- credentials ---------------------------------------------------------------------------------


def test_wrong_credentials_send_nothing_and_the_probe_says_so(
    rig: Rig, provider: Provider, http_client: HttpClient
) -> None:
    order, account = rig.order(), rig.wrong_account()
    assert provider.submit(order, account, http_client).verdict is Verdict.NOT_SENT
    assert provider.check(order, account, http_client).verdict is Verdict.UNKNOWN
    assert rig.submissions(order.reference) == 0
    probed = provider.probe(account, http_client)
    assert probed.verdict is Verdict.REFUSED
    assert probed.failure is not None


def test_the_probe_shows_that_the_credentials_work(
    rig: Rig, provider: Provider, http_client: HttpClient
) -> None:
    assert set(provider.credential_names) == set(rig.account().credentials)
    assert provider.probe(rig.account(), http_client).verdict is Verdict.PENDING


# --- the lease -----------------------------------------------------------------------------------


def test_when_the_lease_is_over_nothing_leaves(
    rig: Rig, provider: Provider, transport: Transport
) -> None:
    order, account = rig.order(), rig.account()
    provider.prepare(account, transport.unleased())
    with pytest.raises(LeaseLost):
        provider.submit(order, account, transport.http_client(Lease(boot_seconds() - 1)))
    assert rig.submissions(order.reference) == 0


def test_a_lease_that_ends_while_the_token_is_waited_for_sends_nothing(
    rig: Rig, provider: Provider, transport: Transport
) -> None:
    order, account = rig.order(), rig.account()
    rig.delay_tokens(0.4)
    with pytest.raises(LeaseLost):
        provider.submit(order, account, transport.http_client(Lease(boot_seconds() + 0.2)))
    assert rig.submissions(order.reference) == 0
    # The token was issued all the same, and serves the next request.
    lease = Lease(boot_seconds() + 5)
    assert provider.submit(order, account, transport.http_client(lease)).verdict is Verdict.PENDING


# --- terms and secrets ---------------------------------------------------------------------------


def test_the_terms_fit_what_the_provider_takes(
    rig: Rig, provider: Provider, http_client: HttpClient
) -> None:
    order, account = rig.order(), rig.account()
    terms = provider.terms(account)
    assert order.money.currency in terms.currencies
    assert terms.country in (None, order.payer.country)
    taken = "".join(c for c in string.printable if re.fullmatch(terms.text_pattern, c))
    message = (taken * terms.text_length_max)[: terms.text_length_max]
    order = replace(order, payer_message=message, payee_note=message)
    assert provider.submit(order, account, http_client).verdict is Verdict.PENDING


def test_an_unknown_environment_has_no_terms(rig: Rig, provider: Provider) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        provider.terms(replace(rig.account(), target_environment="nowhere"))


def test_the_capabilities_make_sense(provider: Provider) -> None:
    capabilities = provider.capabilities
    assert capabilities.payer_window_s > 0
    assert capabilities.resend_after_s >= 0
    assert capabilities.visible_after_s >= 0


def test_no_secret_and_no_number_is_shown_or_logged(
    rig: Rig, provider: Provider, http_client: HttpClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    order, account = rig.order(), rig.account()
    submitted = provider.submit(order, account, http_client)
    rig.pay(order.reference)
    paid = provider.check(order, account, http_client)
    probed = provider.probe(account, http_client)
    shown = f"{order} {account} {submitted} {paid} {probed} {caplog.text}"
    for secret in (*account.credentials.values(), order.payer.digits):
        assert secret not in shown


def test_an_order_is_told_by_its_reference_alone(
    rig: Rig, provider: Provider, http_client: HttpClient
) -> None:
    """Two payments that differ only in the reference are two payments."""
    order, account = rig.order(), rig.account()
    twin: PaymentOrder = replace(order, reference=uuid4())
    assert provider.submit(order, account, http_client).verdict is Verdict.PENDING
    assert provider.submit(twin, account, http_client).verdict is Verdict.PENDING
