"""How a key is written: public prefix, secret, checksum. Pure.

`mara_live_<prefix>_<secret><checksum>`: what stands before the secret is public and finds the
row; the fixed start and the checksum (CRC32 in base 62, over all before it) let a secret
scanner tell a key from noise, and let us refuse noise without asking the database.
"""

from __future__ import annotations

import re
import secrets
import string
import zlib
from typing import Final

from payments_app.providers.contract import Mode

ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
# 62**10 prefixes: two alike are not to be expected, and the database would refuse the second.
PREFIX_LENGTH: Final = 10
# log2(62**32) = 190 bits: not to be guessed, so a fast hash is enough to keep it.
SECRET_LENGTH: Final = 32
# 62**6 > 2**32: every CRC32 fits.
CHECKSUM_LENGTH: Final = 6
KEY_PATTERN: Final = re.compile(
    rf"(mara_(?:live|test)_[0-9A-Za-z]{{{PREFIX_LENGTH}}})"
    rf"_[0-9A-Za-z]{{{SECRET_LENGTH + CHECKSUM_LENGTH}}}"
)
PREFIX_PATTERN: Final = re.compile(rf"mara_(?:live|test)_[0-9A-Za-z]{{{PREFIX_LENGTH}}}")


def new_key(mode: Mode) -> tuple[str, str]:
    """A random prefix and the whole key that starts with it."""
    prefix = f"mara_{mode.value}_{_random_text(PREFIX_LENGTH)}"
    unsigned = f"{prefix}_{_random_text(SECRET_LENGTH)}"
    return prefix, unsigned + checksum(unsigned)


def prefix_of(presented: str) -> str | None:
    """The public part of what has a key's form and a right checksum, else None."""
    found = KEY_PATTERN.fullmatch(presented)
    if found is None or checksum(presented[:-CHECKSUM_LENGTH]) != presented[-CHECKSUM_LENGTH:]:
        return None
    return found[1]


def checksum(unsigned: str) -> str:
    """CRC32 in base 62, padded. It finds typing errors; it proves nothing."""
    rest = zlib.crc32(unsigned.encode())
    digits = ""
    for _ in range(CHECKSUM_LENGTH):
        rest, digit = divmod(rest, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits


def _random_text(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))
