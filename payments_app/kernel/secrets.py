"""Envelope encryption: each secret has its own key, encrypted with the newest of SECRET_KEYS.

Older keys still decrypt what they encrypted. Rotation encrypts the secrets' keys again and leaves
the secrets as they are. A secret with `about` is bound to its row: in another row, or after a
change of the columns that it is bound to, it can't be decrypted.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

# `e1.<the value's key, encrypted>.<the value, encrypted>`; a Fernet token has no dot.
_ENVELOPE: Final = "e1"
# The same, with `about` as additional authenticated data (AES-256-GCM).
_BOUND: Final = "e2"
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12


def about(kind: str, *fields: object) -> str:
    """The context that a secret is bound to, as text. Different fields never give the same text."""
    return json.dumps([kind, *map(str, fields)], ensure_ascii=True, separators=(",", ":"))


class SecretUnreadable(Exception):
    """None of SECRET_KEYS decrypts this ciphertext here: a key is missing, or `about` differs."""


class Cipher:
    """Encrypts under the first key, decrypts with any (Fernet: AES-128-CBC with HMAC-SHA256)."""

    def __init__(self, keys: Sequence[str]) -> None:
        """`keys`: Fernet keys, newest first. Raises ValueError for one that is malformed."""
        if not keys:
            raise ValueError("at least one key is needed")
        self._newest = Fernet(keys[0])
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    def encrypt(self, plain: str, *, about: str | None = None) -> str:
        """URL-safe base64 and dots. With `about`, the ciphertext can't be decrypted without it."""
        if about is None:
            own = Fernet.generate_key()
            return self._envelope(_ENVELOPE, own, Fernet(own).encrypt(plain.encode()).decode())
        own, nonce = os.urandom(_KEY_BYTES), os.urandom(_NONCE_BYTES)
        sealed = nonce + AESGCM(own).encrypt(nonce, plain.encode(), about.encode())
        return self._envelope(_BOUND, own, base64.urlsafe_b64encode(sealed).decode())

    def decrypt(self, ciphertext: str, *, about: str | None = None) -> str:
        """Raises SecretUnreadable. An old ciphertext without `about` is decrypted without it."""
        form, wrapped, sealed = _parts(ciphertext)
        try:
            if form == _BOUND:
                own = self._fernet.decrypt(wrapped.encode())
                return _opened(own, sealed, about or "").decode()
            if form == _ENVELOPE:
                own = self._fernet.decrypt(wrapped.encode())
                return Fernet(own).decrypt(sealed.encode()).decode()
            # An old ciphertext without an envelope.
            return self._fernet.decrypt(ciphertext.encode()).decode()
        except (InvalidToken, InvalidTag, ValueError):
            raise SecretUnreadable("no key of SECRET_KEYS opens this value here") from None

    def is_current(self, ciphertext: str, *, about: str | None = None) -> bool:
        """Whether the newest key encrypted it, so that it doesn't need the older keys.

        With `about`, also whether it is bound.
        """
        form, wrapped, _ = _parts(ciphertext)
        if not form or (about is not None and form != _BOUND):
            return False
        try:
            self._newest.decrypt(wrapped.encode())
        except InvalidToken:
            return False
        return True

    def rotate(self, ciphertext: str, *, about: str | None = None) -> str:
        """The secret under the newest key; bound if `about` is given. Raises SecretUnreadable."""
        plain = self.decrypt(ciphertext, about=about)
        if self.is_current(ciphertext, about=about):
            return ciphertext
        form, wrapped, sealed = _parts(ciphertext)
        if form == _BOUND or (form == _ENVELOPE and about is None):
            return self._envelope(form, self._fernet.decrypt(wrapped.encode()), sealed)
        return self.encrypt(plain, about=about)

    def _envelope(self, form: str, own: bytes, sealed: str) -> str:
        return f"{form}.{self._fernet.encrypt(own).decode()}.{sealed}"


def is_bound(ciphertext: str) -> bool:
    """Whether it is bound to its row: see `about`."""
    return _parts(ciphertext)[0] == _BOUND


def _parts(ciphertext: str) -> tuple[str, str, str]:
    """Its form ("" without an envelope), its own encrypted key, and the encrypted value."""
    form, _, rest = ciphertext.partition(".")
    if form not in (_ENVELOPE, _BOUND):
        return "", "", ""
    wrapped, _, sealed = rest.partition(".")
    return form, wrapped, sealed


def _opened(own: bytes, sealed: str, about: str) -> bytes:
    """Raises InvalidTag, ValueError."""
    try:
        value = base64.urlsafe_b64decode(sealed.encode())
    except binascii.Error as error:
        raise ValueError("no base64") from error
    return AESGCM(own).decrypt(value[:_NONCE_BYTES], value[_NONCE_BYTES:], about.encode())
