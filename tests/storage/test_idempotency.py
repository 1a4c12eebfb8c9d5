"""The idempotency key alone: what it refers to, its claim, and what is left once it expires."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from flask import Flask
from sqlalchemy import func, select
from sqlalchemy.exc import DataError, IntegrityError

from payments_app.kernel import idempotency, stored_answers
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.kernel.encryption import DataKey
from payments_app.kernel.idempotency import (
    Attempt,
    Earlier,
    IdempotencyKey,
    KeyReused,
    StoredAnswer,
    fingerprint,
)
from payments_app.kernel.one_statement import WITH_TENANT, execute_autocommit
from payments_app.payments import accept
from payments_app.tenants.caller import Caller
from tests.builders import (
    ScriptedProvider,
    a_caller,
    a_tenant,
    an_accepted_payment,
    an_asker,
    rails_of,
)

KEY: Final = UUID("01a209ad-4164-7047-9850-453984927403")
ANSWER: Final = StoredAnswer(201, {"Location": "/here"}, b'{"first":  "answer"}')
FIELDS: Final = {"method": "POST", "amount": "1000", "currency": "UGX", "payer": "256772123456"}


def digest(plain: bytes) -> bytes:
    return DataKey(b"k" * 32).digest(plain, about="request")


@pytest.fixture
def caller() -> Caller:
    return a_caller()


@pytest.fixture
def attempt(caller: Caller) -> Attempt:
    tenant_id = caller.tenant_id
    return Attempt(tenant_id=tenant_id, mode="live", key=uuid4(), fields=FIELDS, digest=digest)


@pytest.fixture
def payment_id(app: Flask, caller: Caller) -> UUID:
    """A payment for a key to refer to."""
    gateway = rails_of(app, ScriptedProvider())
    return an_accepted_payment(gateway, context=an_asker(caller=caller)).payment_id


def claim(
    attempt: Attempt,
    payment_id: UUID,
    *,
    answer: StoredAnswer = ANSWER,
    keep_for: timedelta = timedelta(hours=1),
    also: str = "1",
) -> Earlier | None:
    """Claim the key as `accept.py` does, without inserting a payment."""
    values = idempotency.claim_values(
        attempt, resource_id=payment_id, answer=answer, keep_for=keep_for
    )
    claimed = f"{WITH_TENANT}, claimed AS ({idempotency.claim_from('tenant_scope')})"
    statement = f"{claimed} SELECT count(*) / {also} AS made FROM claimed"  # noqa: S608  our own
    (made,) = execute_autocommit(attempt.tenant_id, statement, values)
    return None if made else find(attempt)


def find(attempt: Attempt) -> Earlier | None:
    row = accept.find_earlier(attempt)
    return None if row is None else idempotency.earlier_of(attempt, row.key)


def drop(attempt: Attempt) -> None:
    with transaction(EVERY_TENANT) as session:
        stored_answers.drop_answers(session, [(attempt.tenant_id, attempt.mode, attempt.key)])


def test_the_first_claim_takes_the_key_and_every_later_one_finds_the_first(
    attempt: Attempt, payment_id: UUID
) -> None:
    assert find(attempt) is None
    assert claim(attempt, payment_id) is None
    for _ in range(2):
        assert claim(attempt, uuid4()) == Earlier(payment_id, ANSWER, is_past_expiry=False)
    assert find(attempt) == Earlier(payment_id, ANSWER, is_past_expiry=False)


@pytest.mark.parametrize("body", [b"", b"\x00\xff", b"{}\n", '{"ä": "\u2028"}'.encode()])
def test_an_answer_is_kept_byte_for_byte(attempt: Attempt, payment_id: UUID, body: bytes) -> None:
    answer = StoredAnswer(207, {"X-Odd": "ä, b"}, body)
    claim(attempt, payment_id, answer=answer)
    found = find(attempt)
    assert found is not None
    assert found.answer == answer


def test_a_claim_that_does_not_commit_leaves_the_key_free(
    attempt: Attempt, payment_id: UUID
) -> None:
    with pytest.raises(DataError):
        claim(attempt, payment_id, also="0")
    assert claim(attempt, payment_id) is None


def test_a_key_without_a_payment_does_not_commit(attempt: Attempt, payment_id: UUID) -> None:
    with pytest.raises(IntegrityError):
        claim(attempt, uuid4())
    assert claim(attempt, payment_id) is None


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"amount": "1001"}, ["amount"]),
        ({"currency": "KES", "payer": "254712345678"}, ["currency", "payer"]),
        ({"external_id": "order-1"}, ["external_id"]),
        ({"method": "PUT"}, ["method"]),
        ({"amount": ""}, ["amount"]),
    ],
)
@pytest.mark.parametrize("call", [find, lambda attempt: claim(attempt, uuid4())])
def test_another_request_under_the_key_is_told_what_differs_and_never_how(
    attempt: Attempt,
    payment_id: UUID,
    other: dict[str, str],
    named: list[str],
    call: Callable[[Attempt], object],
) -> None:
    claim(attempt, payment_id)
    with pytest.raises(KeyReused) as refused:
        call(replace(attempt, fields={**FIELDS, **other}))
    assert refused.value.extra == {"fields": named}
    for value in [*FIELDS.values(), *filter(None, other.values())]:
        assert value not in f"{refused.value} {refused.value.detail} {refused.value.extra}"


def test_a_field_that_is_left_out_is_another_request(attempt: Attempt, payment_id: UUID) -> None:
    claim(attempt, payment_id)
    fewer = {name: value for name, value in FIELDS.items() if name != "payer"}
    with pytest.raises(KeyReused) as refused:
        find(replace(attempt, fields=fewer))
    assert refused.value.extra == {"fields": ["payer"]}


@pytest.mark.parametrize("apart", ["tenant_id", "mode", "key"])
def test_another_tenants_modes_or_orders_key_is_unrelated(
    attempt: Attempt, payment_id: UUID, apart: str
) -> None:
    claim(attempt, payment_id)
    others: dict[str, Any] = {"tenant_id": a_tenant().id, "mode": "test", "key": uuid4()}
    other = replace(attempt, fields={"another": "request"}, **{apart: others[apart]})
    assert find(other) is None
    assert claim(other, payment_id) is None


def test_expiry_is_told_by_the_databases_clock(attempt: Attempt, payment_id: UUID) -> None:
    claim(attempt, payment_id, keep_for=timedelta(seconds=-1))
    found = find(attempt)
    assert found == Earlier(payment_id, ANSWER, is_past_expiry=True)


def test_a_dropped_answer_leaves_a_stone_that_still_knows_the_request(
    attempt: Attempt, payment_id: UUID
) -> None:
    claim(attempt, payment_id)
    drop(attempt)
    drop(attempt)
    assert find(attempt) == Earlier(payment_id, None, is_past_expiry=False)
    assert claim(attempt, uuid4()) == Earlier(payment_id, None, is_past_expiry=False)
    with pytest.raises(KeyReused) as refused:
        find(replace(attempt, fields={**FIELDS, "amount": "1"}))
    assert refused.value.extra == {"fields": []}
    with transaction(EVERY_TENANT) as session:
        row = session.scalars(select(IdempotencyKey)).one()
    assert (row.body, row.headers, row.field_digests) == (None, None, None)


def test_a_key_of_an_earlier_version_is_judged_by_that_version(
    attempt: Attempt, payment_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A retired algorithm: only its entry in this table is left.
    monkeypatch.setitem(
        idempotency._DIGESTS, 0, lambda attempt, _: attempt.fields["amount"].encode().ljust(32)
    )
    with transaction(EVERY_TENANT) as session:
        session.add(
            IdempotencyKey(
                tenant_id=attempt.tenant_id,
                mode=attempt.mode,
                key=attempt.key,
                fingerprint=fingerprint(attempt, 0),
                fingerprint_version=0,
                resource_id=payment_id,
                status=ANSWER.status,
                headers=dict(ANSWER.headers),
                body=ANSWER.body,
                expires_at=func.clock_timestamp() + timedelta(hours=1),
            )
        )
    assert claim(attempt, uuid4()) == Earlier(payment_id, ANSWER, is_past_expiry=False)
    with pytest.raises(KeyReused):
        find(replace(attempt, fields={**FIELDS, "amount": "1001"}))


def test_the_fingerprint_of_version_1_is_what_it_always_was() -> None:
    known = "43398e9208a8d064b3ab601610c52be8a4787a276124d10cbf70e67845473a80"
    attempt = Attempt(tenant_id=uuid4(), mode="live", key=KEY, fields=FIELDS, digest=digest)
    shuffled = Attempt(
        tenant_id=uuid4(),
        mode="test",
        key=KEY,
        fields=dict(reversed(FIELDS.items())),
        digest=digest,
    )
    assert fingerprint(attempt, 1).hex() == known
    assert fingerprint(shuffled, 1) == fingerprint(attempt, 1)


def test_equal_requests_under_two_keys_do_not_show_as_equal(
    attempt: Attempt, payment_id: UUID
) -> None:
    other = replace(attempt, key=uuid4())
    claim(attempt, payment_id)
    claim(other, payment_id)
    with transaction(EVERY_TENANT) as session:
        one, two = session.scalars(select(IdempotencyKey)).all()
    assert one.fingerprint != two.fingerprint
    assert one.field_digests is not None
    assert two.field_digests is not None
    assert not set(one.field_digests.values()) & set(two.field_digests.values())
    assert FIELDS["payer"] not in str(one.field_digests)
