"""A secret at rest is ciphertext under the newest key; older keys still open what they closed."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet


class SecretUnreadable(Exception):
    """None of the SECRET_KEYS opens this ciphertext: the key that closed it is missing."""


class Cipher:
    """Encrypts under the first key, decrypts with any (Fernet: AES-128-CBC with HMAC-SHA256)."""

    def __init__(self, keys: Sequence[str]) -> None:
        """`keys`: Fernet keys, newest first. Raises ValueError for one that is malformed."""
        if not keys:
            raise ValueError("at least one key is needed")
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    def encrypt(self, plain: str) -> str:
        """Ciphertext as URL-safe base64 text."""
        return self._fernet.encrypt(plain.encode()).decode()

    def decrypt(self, ciphertext: str) -> str:
        """Raises SecretUnreadable."""
        try:
            return self._fernet.decrypt(ciphertext.encode()).decode()
        except InvalidToken:
            raise SecretUnreadable("no key of SECRET_KEYS opens this value") from None

    def rotate(self, ciphertext: str) -> str:
        """The same secret under the newest key. Raises SecretUnreadable."""
        try:
            return self._fernet.rotate(ciphertext.encode()).decode()
        except InvalidToken:
            raise SecretUnreadable("no key of SECRET_KEYS opens this value") from None
