"""One submission is one request that may create something: a weak verdict about two proves nothing."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from payments_app.kernel.errors import GatewayError
from payments_app.kernel.http.messages import (
    HttpClient,
    HttpRequest,
    HttpResponse,
    LeaseLost,
    NoResponse,
)
from payments_app.providers.contract import (
    Failure,
    FailureCode,
    Observation,
    PaymentOrder,
    ProviderAccount,
    Verdict,
)
from payments_app.providers.submission import (
    ABOUT_ONE_REQUEST,
    SubmissionClient,
    submit_through,
)
from tests.pure.mtn_script import (
    TOKEN,
    UNAUTHORIZED,
    Reply,
    ScriptedWire,
    an_account,
    an_adapter,
    an_error,
    an_order,
)

TAKEN = HttpResponse(200, {}, b"")
LOST = NoResponse("timeout", sent=True)
NOT_BEGUN = NoResponse("connection_refused", sent=False)
A_REFUSAL = Failure(FailureCode.PROVIDER_NOT_ALLOWED, "NOT_ALLOWED")


@dataclass
class PartnersAdapter:
    """A careless adapter: sends these requests, ignores the answers, and returns `says`."""

    says: Observation | Exception
    calls: tuple[HttpRequest, ...]

    def submit(
        self, _order: PaymentOrder, _account: ProviderAccount, http_client: HttpClient
    ) -> Observation:
        for call in self.calls:
            http_client.send(call)
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


def a_call(method: str = "POST", *, creates_nothing: bool | None = None) -> HttpRequest:
    return HttpRequest(method, "https://rail.test/pay", {}, b"{}", creates_nothing=creates_nothing)


def the_whole(
    says: Verdict | Exception, *sent: tuple[HttpRequest, Reply], failure: Failure | None = None
) -> Observation:
    """The engine's result for an adapter that returns `says` after these requests."""
    calls, replies = [call for call, _ in sent], [reply for _, reply in sent]
    answer = Observation(says, "said", failure=failure) if isinstance(says, Verdict) else says
    partner = PartnersAdapter(answer, tuple(calls))
    return submit_through(
        SubmissionClient(ScriptedWire(replies)), partner, an_order(), an_account()
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("verdict", sorted(ABOUT_ONE_REQUEST))
@pytest.mark.parametrize("first", [TAKEN, LOST, UNAUTHORIZED], ids=["taken", "lost", "401"])
def test_a_weak_verdict_about_two_requests_is_unknown(verdict: Verdict, first: Reply) -> None:
    seen = the_whole(verdict, (a_call(), first), (a_call(), TAKEN), failure=A_REFUSAL)
    assert (seen.verdict, seen.failure, seen.requests_left) == (Verdict.UNKNOWN, None, 2)


@pytest.mark.parametrize("verdict", sorted(ABOUT_ONE_REQUEST))
def test_a_weak_verdict_about_a_request_whose_answer_was_lost_is_unknown(verdict: Verdict) -> None:
    seen = the_whole(verdict, (a_call(), LOST))
    assert (seen.verdict, seen.reason, seen.requests_left) == (Verdict.UNKNOWN, "answer_lost", 1)


@pytest.mark.parametrize("verdict", sorted(ABOUT_ONE_REQUEST))
@pytest.mark.parametrize(
    "before",
    [
        (a_call(creates_nothing=True), TAKEN),
        (a_call("GET"), TAKEN),
        (a_call("GET"), LOST),
        (a_call(), NOT_BEGUN),
    ],
    ids=["token", "question", "lost question", "not begun"],
)
def test_a_verdict_about_the_only_request_that_left_stands(
    verdict: Verdict, before: tuple[HttpRequest, Reply]
) -> None:
    seen = the_whole(verdict, before, (a_call(), TAKEN), failure=A_REFUSAL)
    assert (seen.verdict, seen.failure, seen.requests_left) == (verdict, A_REFUSAL, 1)


@pytest.mark.parametrize("verdict", sorted(set(Verdict) - ABOUT_ONE_REQUEST))
def test_what_the_provider_has_it_has_whatever_else_was_sent(verdict: Verdict) -> None:
    assert the_whole(verdict, (a_call(), LOST), (a_call(), TAKEN)).verdict is verdict


@pytest.mark.parametrize("error", [LeaseLost(), GatewayError("gone")], ids=["lease", "gateway"])
def test_an_error_after_a_request_left_is_no_proof_that_none_did(error: Exception) -> None:
    with pytest.raises(type(error)):
        the_whole(error)
    with pytest.raises(type(error)):
        the_whole(error, (a_call(), NOT_BEGUN))
    assert the_whole(error, (a_call(), TAKEN)).verdict is Verdict.UNKNOWN


def test_a_lease_that_ends_before_the_second_request_leaves_the_first_in_doubt() -> None:
    seen = the_whole(Verdict.REFUSED, (a_call(), TAKEN), (a_call(), LeaseLost()))
    assert (seen.verdict, seen.requests_left) == (Verdict.UNKNOWN, 1)


@pytest.mark.parametrize(
    "refusal",
    [
        HttpResponse(500, {}, an_error("NOT_ALLOWED")),
        HttpResponse(500, {}, an_error("PAYER_NOT_FOUND")),
        HttpResponse(400, {}, b""),
        HttpResponse(403, {}, b""),
    ],
    ids=["not allowed", "payer not found", "400", "403"],
)
def test_mtns_refusal_after_a_401_is_unknown(refusal: HttpResponse) -> None:
    http_client = ScriptedWire([TOKEN, UNAUTHORIZED, TOKEN, refusal])
    seen = submit_through(SubmissionClient(http_client), an_adapter(), an_order(), an_account())
    assert (seen.verdict, seen.requests_left) == (Verdict.UNKNOWN, 2)
    alone = submit_through(
        SubmissionClient(ScriptedWire([TOKEN, refusal])), an_adapter(), an_order(), an_account()
    )
    assert (alone.verdict, alone.requests_left) == (Verdict.REFUSED, 1)
