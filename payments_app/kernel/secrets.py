"""A secret at rest has a key of its own, which rests beside it under the newest of SECRET_KEYS.

Older keys still open what they closed. Rotation closes the small keys anew and leaves the secrets
as they are (envelope encryption). A secret that says what it is about opens in its own place only:
whoever copies it into another row, or changes what stands beside it, has nothing that opens.
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
# The same, with what the value is about as additional data (AES-256-GCM).
_BOUND: Final = "e2"
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12


def about(kind: str, *fields: object) -> str:
    """What a secret is about, in words that no other fields make."""
    return json.dumps([kind, *map(str, fields)], ensure_ascii=True, separators=(",", ":"))


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

    def encrypt(self, plain: str, *, about: str | None = None) -> str:
        """Ciphertext as text of URL-safe base64 and dots; with `about` it opens for nothing else."""
        if about is None:
            own = Fernet.generate_key()
            return self._envelope(_ENVELOPE, own, Fernet(own).encrypt(plain.encode()).decode())
        own, nonce = os.urandom(_KEY_BYTES), os.urandom(_NONCE_BYTES)
        sealed = nonce + AESGCM(own).encrypt(nonce, plain.encode(), about.encode())
        return self._envelope(_BOUND, own, base64.urlsafe_b64encode(sealed).decode())

    def decrypt(self, ciphertext: str, *, about: str | None = None) -> str:
        """Raises SecretUnreadable. One from before there was `about` opens without it."""
        form, wrapped, sealed = _parts(ciphertext)
        try:
            if form == _BOUND:
                own = self._fernet.decrypt(wrapped.encode())
                return _opened(own, sealed, about or "").decode()
            if form == _ENVELOPE:
                own = self._fernet.decrypt(wrapped.encode())
                return Fernet(own).decrypt(sealed.encode()).decode()
            # From before there were envelopes.
            return self._fernet.decrypt(ciphertext.encode()).decode()
        except (InvalidToken, InvalidTag, ValueError):
            raise SecretUnreadable("no key of SECRET_KEYS opens this value here") from None

    def is_current(self, ciphertext: str, *, about: str | None = None) -> bool:
        """Whether the newest key closed it, so that the older ones aren't needed for it.

        And, with `about`, whether it is bound at all.
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
        """The same secret under the newest key, bound from now on. Raises SecretUnreadable."""
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
    """Whether it opens in its own place only."""
    return _parts(ciphertext)[0] == _BOUND


def _parts(ciphertext: str) -> tuple[str, str, str]:
    """Its form, "" for one without an envelope; its own key, wrapped; the value."""
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
