"""What is personal rests sealed: under a data key for each tenant, and a key for each payment.

AES-256-GCM with random nonces (NIST SP 800-38D), which holds for 2^32 values under one key. What
a value is about is sealed with it, so that it opens in its own place only.
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
# Data keys remembered at once; more only means more reads.
REMEMBERED_MAX: Final = 4096


class VaultClosed(GatewayError):
    """What is sealed can't be opened: the key is missing from SECRET_KEYS, or the bytes are wrong."""

    code = "data_key_unreadable"


class Box:
    """One key: it seals, it opens, and it makes digests that nobody makes without it."""

    def __init__(self, key: bytes) -> None:
        """`key`: 32 random bytes."""
        self._key = key
        self._sealer = AESGCM(_derived(key, b"seal"))

    @cached_property
    def _mac(self) -> bytes:
        # A payment's own box makes no digests.
        return _derived(self._key, b"digest")

    def seal(self, plain: bytes, *, about: str) -> bytes:
        """The nonce, then the ciphertext with its tag: 28 bytes more than `plain`."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._sealer.encrypt(nonce, plain, about.encode())

    def open(self, sealed: bytes, *, about: str) -> bytes:
        """Raises VaultClosed unless this key sealed these bytes about the same."""
        try:
            return self._sealer.decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about.encode()
            )
        except (InvalidTag, ValueError):
            raise VaultClosed("A sealed value doesn't open under the key that it names.") from None

    def digest(self, plain: bytes, *, about: str) -> bytes:
        """HMAC-SHA256: 32 bytes that tell equal from different, and nothing else."""
        return hmac.digest(self._mac, _named(about) + plain, "sha256")


class DataKeys(Protocol):
    """Where the tenants' data keys rest, wrapped."""

    def find(self, tenant_id: UUID) -> str | None:
        """The tenant's, if it has one."""
        ...

    def keep(self, tenant_id: UUID, wrapped: str) -> None:
        """Keep this one, unless it has one by now."""
        ...


class Vault:
    """Each tenant's box. A tenant gets its data key with its first payment."""

    def __init__(self, cipher: Cipher, data_keys: DataKeys) -> None:
        self._cipher = cipher
        self._data_keys = data_keys
        self._boxes: dict[UUID, Box] = {}

    def box_of(self, tenant_id: UUID) -> Box:
        """Raises VaultClosed when none of SECRET_KEYS opens the tenant's data key."""
        box = self._boxes.get(tenant_id)
        if box is None:
            if len(self._boxes) >= REMEMBERED_MAX:
                self._boxes.clear()
            box = self._boxes[tenant_id] = Box(self._data_key(tenant_id))
        return box

    def _data_key(self, tenant_id: UUID) -> bytes:
        wrapped = self._data_keys.find(tenant_id)
        if wrapped is None:
            # Of two who make one at once, the first to be kept is the tenant's.
            self._data_keys.keep(tenant_id, wrap(self._cipher, tenant_id, os.urandom(KEY_BYTES)))
            wrapped = self._data_keys.find(tenant_id)
        return unwrap(self._cipher, tenant_id, wrapped or "")


def wrap(cipher: Cipher, tenant_id: UUID, data_key: bytes) -> str:
    """The data key as it rests: it names its tenant, so that no row can borrow another's."""
    return cipher.encrypt(f"{tenant_id}:{base64.b64encode(data_key).decode()}")


def unwrap(cipher: Cipher, tenant_id: UUID, wrapped: str) -> bytes:
    """Raises VaultClosed."""
    try:
        owner, _, data_key = cipher.decrypt(wrapped).partition(":")
    except SecretUnreadable:
        owner, data_key = "", ""
    if owner != str(tenant_id):
        raise VaultClosed("None of SECRET_KEYS opens this tenant's data key. Put the old key back.")
    return base64.b64decode(data_key)


@lru_cache(maxsize=64)
def _named(about: str) -> bytes:
    return hashlib.sha256(about.encode()).digest()


def _derived(key: bytes, purpose: bytes) -> bytes:
    return HKDFExpand(algorithm=SHA256(), length=KEY_BYTES, info=purpose).derive(key)
