"""An API key's form: scanners can match it, a checksum shows typing errors, it can't be guessed."""

from __future__ import annotations

import math
import re

import pytest

from payments_app.providers.contract import Mode
from payments_app.tenants.key_format import (
    ALPHABET,
    CHECKSUM_LENGTH,
    PREFIX_LENGTH,
    SECRET_LENGTH,
    checksum,
    new_key,
    prefix_of,
)
from payments_app.tenants.keys import IssuedKey

# Written out here as a secret scanner would have it: the form is public and must not change.
PUBLISHED = re.compile(r"mara_(live|test)_[0-9A-Za-z]{10}_[0-9A-Za-z]{38}")


@pytest.mark.parametrize("mode", list(Mode))
def test_a_new_key_has_the_published_form_and_names_its_mode(mode: Mode) -> None:
    prefix, key = new_key(mode)
    assert PUBLISHED.fullmatch(key)
    assert key.startswith(f"{prefix}_")
    assert prefix.startswith(f"mara_{mode.value}_")


def test_the_secret_has_190_bits_and_the_prefix_is_not_part_of_it() -> None:
    assert math.log2(len(ALPHABET)) * SECRET_LENGTH >= 190
    assert len(set(ALPHABET)) == 62
    prefix, key = new_key(Mode.LIVE)
    assert len(key) == len(prefix) + 1 + SECRET_LENGTH + CHECKSUM_LENGTH
    assert len(prefix) == len("mara_live_") + PREFIX_LENGTH


def test_no_two_keys_are_alike() -> None:
    keys = {new_key(Mode.LIVE) for _ in range(500)}
    assert len({prefix for prefix, _ in keys}) == len({key for _, key in keys}) == 500


def test_a_whole_key_gives_its_public_part() -> None:
    prefix, key = new_key(Mode.TEST)
    assert prefix_of(key) == prefix


def test_the_checksum_is_githubs_crc32_in_base_62() -> None:
    # CRC32("123456789") is 0xCBF43926, the check value of its catalogue.
    value = sum(
        ALPHABET.index(digit) * 62**place
        for place, digit in enumerate(reversed(checksum("123456789")))
    )
    assert value == 0xCBF43926
    assert len(checksum("")) == CHECKSUM_LENGTH


def test_every_single_typing_error_is_found() -> None:
    _, key = new_key(Mode.LIVE)
    for at in range(len(key)):
        other = "A" if key[at] != "A" else "B"
        assert prefix_of(key[:at] + other + key[at + 1 :]) is None


@pytest.mark.parametrize(
    "shape",
    ["{key}\n", " {key}", "{key} ", "{key}A", "Bearer {key}", "{upper}", "", "mara_live_", "\0"],
)
def test_what_only_resembles_a_key_is_none(shape: str) -> None:
    _, key = new_key(Mode.LIVE)
    assert prefix_of(shape.format(key=key, upper=key.upper())) is None


def test_digits_of_other_scripts_are_no_digits() -> None:
    unsigned = f"mara_live_{'٣' * PREFIX_LENGTH}_{'a' * SECRET_LENGTH}"
    assert prefix_of(unsigned + checksum(unsigned)) is None


def test_a_key_does_not_show_in_the_repr_of_what_was_issued() -> None:
    fields = dict.fromkeys(IssuedKey.__slots__)
    assert "very-secret" not in repr(IssuedKey(**{**fields, "key": "very-secret"}))  # type: ignore[arg-type]
