"""A number is read in its usual spellings, kept as E.164 digits, and never shown whole."""

from __future__ import annotations

import logging
import pickle
from typing import Final

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments_app.kernel.msisdn import Msisdn

E164: Final = phonenumbers.PhoneNumberFormat.E164
MOBILE: Final = (
    phonenumbers.PhoneNumberType.MOBILE,
    phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE,
)
UGANDAN: Final = "256772123456"
# One number per country of MTN's or Airtel's mobile money: digits → (country, national number).
NUMBERS: Final = {
    UGANDAN: ("UG", "772123456"),
    "250788123456": ("RW", "788123456"),
    "233241234567": ("GH", "241234567"),
    "237650123456": ("CM", "650123456"),
    "260961234567": ("ZM", "961234567"),
    "254712345678": ("KE", "712345678"),
    "255754123456": ("TZ", "754123456"),
    "2348031234567": ("NG", "8031234567"),
    "27831234567": ("ZA", "831234567"),
    "26876123456": ("SZ", "76123456"),
    "231770123456": ("LR", "770123456"),
    "224621234567": ("GN", "621234567"),
    "245955123456": ("GW", "955123456"),
    "211921234567": ("SS", "921234567"),
    # Congo's national numbers keep their leading zero.
    "242066123456": ("CG", "066123456"),
    # Benin's and Côte d'Ivoire's have ten digits since 2024 and 2021, zero included.
    "2290197123456": ("BJ", "0197123456"),
    "2250707123456": ("CI", "0707123456"),
}


@pytest.mark.parametrize("digits", NUMBERS)
def test_a_number_is_known_by_its_country_and_its_national_part(digits: str) -> None:
    number = Msisdn.parse(digits)
    assert number.digits == digits
    assert (number.country, number.national) == NUMBERS[digits]


@given(
    code=st.sampled_from(sorted(phonenumbers.COUNTRY_CODE_TO_REGION_CODE)),
    national=st.from_regex(r"[0-9]{5,13}", fullmatch=True),
)
def test_any_country_s_digits_are_read_as_the_library_reads_them(code: int, national: str) -> None:
    assert_as_the_library(f"{code}{national}"[:15])


@given(digits=st.from_regex(r"0?[0-9]{8,14}", fullmatch=True))
def test_any_digits_are_read_as_the_library_reads_them(digits: str) -> None:
    assert_as_the_library(digits)


@pytest.mark.parametrize("digits", ["027821234567", "+027821234567", "04520123456", "0436905257"])
def test_a_number_with_a_zero_before_it_is_no_country_s(digits: str) -> None:
    with pytest.raises(ValueError, match="country code"):
        Msisdn.parse(digits)


@pytest.mark.parametrize("code", sorted(phonenumbers.COUNTRY_CODE_TO_REGION_CODE))
def test_each_plan_s_own_examples_are_read_as_the_library_reads_them(code: int) -> None:
    kinds = phonenumbers.PhoneNumberType.values()
    for region in phonenumbers.COUNTRY_CODE_TO_REGION_CODE[code]:
        for example in (phonenumbers.example_number_for_type(region, kind) for kind in kinds):
            if example is not None:
                assert_as_the_library(phonenumbers.format_number(example, E164)[1:])


def assert_as_the_library(digits: str) -> None:
    # 00 before a number means +.
    international = digits.removeprefix("00")
    try:
        number = phonenumbers.parse(f"+{international}")
    except phonenumbers.NumberParseException:
        expected = ""
    else:
        is_mobile = phonenumbers.number_type(number) in MOBILE and len(international) > 7
        expected = phonenumbers.format_number(number, E164)[1:] if is_mobile else ""
    try:
        read = Msisdn.parse(digits).digits
    except ValueError:
        read = ""
    assert read == expected


@pytest.mark.parametrize(
    "text",
    ["256772123456", "+256772123456", "00256772123456", " +256 772 123-456 ", "256-772-123456"],
)
def test_one_number_in_any_spelling_is_one_number(text: str) -> None:
    assert Msisdn.parse(text) == Msisdn(UGANDAN)


@pytest.mark.parametrize(
    "text",
    [
        *("", "+", "00", "256", "0772123456", "772123456", "256772", "256772123456789012"),
        *(
            "256 772 12E 456",
            "25677212345x",
            "tel:256772123456",
            "+256(0)772123456",
            "٢٥٦٧٧٢١٢٣٤٥٦",
        ),
        # Former numbering plans: Benin's and Côte d'Ivoire's eight digits; Congo without its zero.
        *("22997123456", "22507123456", "24266123456"),
        *("999772123456", "256112123456"),
    ],
)
def test_what_is_no_number_of_any_plan_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the sentence is the API's matter
        Msisdn.parse(text)


def test_a_landline_is_no_mobile_number() -> None:
    with pytest.raises(ValueError, match="not a mobile number"):
        Msisdn.parse("256312123456")


@pytest.mark.parametrize("text", ["25677212345", "0772123456", "256312123456", "2567721234567890"])
def test_a_refusal_does_not_repeat_the_number(text: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        Msisdn.parse(text)
    assert text[3:] not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("digits", NUMBERS)
def test_a_number_never_prints_itself_whole(digits: str, caplog: pytest.LogCaptureFixture) -> None:
    number = Msisdn.parse(digits)
    logging.getLogger("test").warning("%s %r", number, number)
    shown = [str(number), repr(number), f"{number}", f"{[number]}", f"{number.masked}"]
    for text in [*shown, caplog.text]:
        assert digits[:-3] not in text
        assert digits[-3:] in text
    assert len(number.masked) == len(digits)


@given(st.text(max_size=20) | st.from_regex(r"\+?(00)?[0-9 -]{6,18}", fullmatch=True))
def test_whatever_is_read_is_digits_that_read_back_the_same(text: str) -> None:
    try:
        number = Msisdn.parse(text)
    except ValueError:
        return
    assert number.digits.isascii()
    assert number.digits.isdigit()
    assert 8 <= len(number.digits) <= 15
    assert Msisdn.parse(number.digits) == number
    assert number.digits.endswith(number.national)


def test_a_number_is_a_value() -> None:
    one, same = Msisdn.parse(UGANDAN), Msisdn.parse(f"+{UGANDAN}")
    assert one == same
    assert len({one, same}) == 1
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301  our own bytes
