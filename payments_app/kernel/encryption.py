"""Personal data is stored encrypted: with a data key for each tenant, and a key for each payment.

AES-256-GCM with random nonces (NIST SP 800-38D), which is safe for 2^32 values of one key. A
value's context (`about`) is additional authenticated data: it decrypts in its own row only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from functools import cached_property, lru_cache
from typing import Final, Protocol
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from payments_app.kernel.errors import GatewayError
from payments_app.kernel.secrets import Cipher, SecretUnreadable

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
# Data keys cached at once; beyond that they are read from the database more often.
REMEMBERED_MAX: Final = 4096


class DataKeyUnreadable(GatewayError):
    """A value can't be decrypted: the key is missing from SECRET_KEYS, or the bytes are wrong."""

    code = "data_key_unreadable"


class DataKey:
    """One key: it encrypts, decrypts, and makes digests that need the key."""

    def __init__(self, key: bytes) -> None:
        """`key`: 32 random bytes."""
        self._key = key
        self._aead = AESGCM(_derived(key, b"seal"))

    @cached_property
    def _mac(self) -> bytes:
        # Derived on first use: a payment's own key makes no digests.
        return _derived(self._key, b"digest")

    def encrypt(self, plain: bytes, *, about: str) -> bytes:
        """The nonce, then the ciphertext with its tag: 28 bytes more than `plain`."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, about.encode())

    def decrypt(self, ciphertext: bytes, *, about: str) -> bytes:
        """Raises DataKeyUnreadable unless this key encrypted these bytes with the same `about`."""
        try:
            return self._aead.decrypt(
                ciphertext[:_NONCE_BYTES], ciphertext[_NONCE_BYTES:], about.encode()
            )
        except (InvalidTag, ValueError):
            raise DataKeyUnreadable(
                "A stored value can't be decrypted with the key that it names."
            ) from None

    def digest(self, plain: bytes, *, about: str) -> bytes:
        """HMAC-SHA256: 32 bytes that show only whether two values are equal."""
        return hmac.digest(self._mac, _named(about) + plain, "sha256")


class DataKeys(Protocol):
    """Storage of the tenants' data keys, each encrypted (wrapped)."""

    def find(self, tenant_id: UUID) -> str | None:
        """The tenant's wrapped data key, if it has one."""
        ...

    def keep(self, tenant_id: UUID, wrapped: str) -> None:
        """Store this data key, unless the tenant has one by now."""
        ...


class TenantKeyring:
    """Each tenant's data key. It is created with the tenant's first payment."""

    def __init__(self, cipher: Cipher, data_keys: DataKeys) -> None:
        self._cipher = cipher
        self._data_keys = data_keys
        self._keys: dict[UUID, DataKey] = {}

    def key_for(self, tenant_id: UUID) -> DataKey:
        """Raises DataKeyUnreadable when none of SECRET_KEYS decrypts the tenant's data key."""
        key = self._keys.get(tenant_id)
        if key is None:
            if len(self._keys) >= REMEMBERED_MAX:
                self._keys.clear()
            key = self._keys[tenant_id] = DataKey(self._data_key(tenant_id))
        return key

    def _data_key(self, tenant_id: UUID) -> bytes:
        wrapped = self._data_keys.find(tenant_id)
        if wrapped is None:
            # If two processes create one at once, the first that is stored is the tenant's.
            self._data_keys.keep(tenant_id, wrap(self._cipher, tenant_id, os.urandom(KEY_BYTES)))
            wrapped = self._data_keys.find(tenant_id)
        return unwrap(self._cipher, tenant_id, wrapped or "")


def wrap(cipher: Cipher, tenant_id: UUID, data_key: bytes) -> str:
    """The data key as stored: encrypted with its tenant's id, so no other tenant can use it."""
    return cipher.encrypt(f"{tenant_id}:{base64.b64encode(data_key).decode()}")


def unwrap(cipher: Cipher, tenant_id: UUID, wrapped: str) -> bytes:
    """Raises DataKeyUnreadable."""
    try:
        owner, _, data_key = cipher.decrypt(wrapped).partition(":")
    except SecretUnreadable:
        owner, data_key = "", ""
    if owner != str(tenant_id):
        raise DataKeyUnreadable(
            "None of SECRET_KEYS decrypts this tenant's data key. Put the old key back."
        )
    return base64.b64decode(data_key)


@lru_cache(maxsize=64)
def _named(about: str) -> bytes:
    return hashlib.sha256(about.encode()).digest()


def _derived(key: bytes, purpose: bytes) -> bytes:
    return HKDFExpand(algorithm=SHA256(), length=KEY_BYTES, info=purpose).derive(key)
