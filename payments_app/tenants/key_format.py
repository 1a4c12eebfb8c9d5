"""The format of an API key: public prefix, secret, checksum. Pure.

`mara_live_<prefix>_<secret><checksum>`: the part before the secret is public and finds the row.
By the fixed start and the checksum (CRC32 in base 62, over all before it) a secret scanner
recognizes a key, and we refuse a malformed one without a database query.
"""

from __future__ import annotations

import re
import secrets
import string
import zlib
from typing import Final

from payments_app.providers.contract import Mode

ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
# 62**10 prefixes: two equal ones are unlikely, and the database would refuse the second.
PREFIX_LENGTH: Final = 10
# log2(62**32) = 190 bits: it can't be guessed, so a fast hash is enough to store it.
SECRET_LENGTH: Final = 32
# 62**6 > 2**32: every CRC32 fits.
CHECKSUM_LENGTH: Final = 6
KEY_PATTERN: Final = re.compile(
    rf"(mara_(?:live|test)_[0-9A-Za-z]{{{PREFIX_LENGTH}}})"
    rf"_[0-9A-Za-z]{{{SECRET_LENGTH + CHECKSUM_LENGTH}}}"
)
PREFIX_PATTERN: Final = re.compile(rf"mara_(?:live|test)_[0-9A-Za-z]{{{PREFIX_LENGTH}}}")


def new_key(mode: Mode) -> tuple[str, str]:
    """A random prefix, and a whole key that starts with it."""
    prefix = f"mara_{mode.value}_{_random_text(PREFIX_LENGTH)}"
    unsigned = f"{prefix}_{_random_text(SECRET_LENGTH)}"
    return prefix, unsigned + checksum(unsigned)


def prefix_of(presented: str) -> str | None:
    """The public part, if `presented` has a key's format and a correct checksum, else None."""
    found = KEY_PATTERN.fullmatch(presented)
    if found is None or checksum(presented[:-CHECKSUM_LENGTH]) != presented[-CHECKSUM_LENGTH:]:
        return None
    return found[1]


def checksum(unsigned: str) -> str:
    """CRC32 in base 62, padded. It detects typing errors; it is no security check."""
    rest = zlib.crc32(unsigned.encode())
    digits = ""
    for _ in range(CHECKSUM_LENGTH):
        rest, digit = divmod(rest, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits


def _random_text(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))
