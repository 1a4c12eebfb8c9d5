"""Every failure code has a meaning, says who must act, and whether a retry makes sense."""

from __future__ import annotations

import pytest

from payments_app.providers.contract import FailureCode
from payments_app.providers.failures import FAILURES, Actor


def test_no_code_is_without_its_meaning() -> None:
    assert set(FAILURES) == set(FailureCode)


@pytest.mark.parametrize("code", FailureCode)
def test_a_meaning_is_one_sentence_for_a_person(code: FailureCode) -> None:
    description = FAILURES[code].description
    assert description[0].isupper()
    assert description.endswith(".")


def test_what_only_a_setting_can_mend_is_not_worth_a_new_payment() -> None:
    for code, meaning in FAILURES.items():
        if meaning.actor is Actor.OPERATOR:
            assert not meaning.new_payment_may_help, code
