"""A secret at rest has a key of its own, which rests beside it under the newest of SECRET_KEYS.

Older keys still open what they closed. Rotation closes the small keys anew and leaves the secrets
as they are (envelope encryption).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

# `e1.<the value's key, encrypted>.<the value, encrypted>`; a Fernet token has no dot.
_ENVELOPE: Final = "e1"


class SecretUnreadable(Exception):
    """None of the SECRET_KEYS opens this ciphertext: the key that closed it is missing."""


class Cipher:
    """Encrypts under the first key, decrypts with any (Fernet: AES-128-CBC with HMAC-SHA256)."""

    def __init__(self, keys: Sequence[str]) -> None:
        """`keys`: Fernet keys, newest first. Raises ValueError for one that is malformed."""
        if not keys:
            raise ValueError("at least one key is needed")
        self._newest = Fernet(keys[0])
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    def encrypt(self, plain: str) -> str:
        """Ciphertext as text of URL-safe base64 and dots."""
        own = Fernet.generate_key()
        return self._envelope(own, Fernet(own).encrypt(plain.encode()).decode())

    def decrypt(self, ciphertext: str) -> str:
        """Raises SecretUnreadable."""
        try:
            own, sealed = self._opened(ciphertext)
            return own.decrypt(sealed.encode()).decode()
        except (InvalidToken, ValueError):
            raise SecretUnreadable("no key of SECRET_KEYS opens this value") from None

    def is_current(self, ciphertext: str) -> bool:
        """Whether the newest key closed it, so that the older ones aren't needed for it."""
        form, _, rest = ciphertext.partition(".")
        if form != _ENVELOPE:
            return False
        try:
            self._newest.decrypt(rest.partition(".")[0].encode())
        except InvalidToken:
            return False
        return True

    def rotate(self, ciphertext: str) -> str:
        """The same secret under the newest key. Raises SecretUnreadable."""
        if self.is_current(ciphertext):
            return ciphertext
        form, _, rest = ciphertext.partition(".")
        if form != _ENVELOPE:
            return self.encrypt(self.decrypt(ciphertext))
        wrapped, _, sealed = rest.partition(".")
        try:
            return self._envelope(self._fernet.decrypt(wrapped.encode()), sealed)
        except InvalidToken:
            raise SecretUnreadable("no key of SECRET_KEYS opens this value") from None

    def _envelope(self, own: bytes, sealed: str) -> str:
        return f"{_ENVELOPE}.{self._fernet.encrypt(own).decode()}.{sealed}"

    def _opened(self, ciphertext: str) -> tuple[Fernet | MultiFernet, str]:
        form, _, rest = ciphertext.partition(".")
        if form != _ENVELOPE:
            # From before there were envelopes.
            return self._fernet, ciphertext
        wrapped, _, sealed = rest.partition(".")
        return Fernet(self._fernet.decrypt(wrapped.encode())), sealed
