"""Encryption with a data key: bound to its place by `about`; digests depend on the key."""

from __future__ import annotations

import base64
from uuid import uuid4

import pytest
from cryptography.fernet import Fernet

from payments_app.kernel.encryption import DataKey, DataKeyUnreadable, TenantKeyring, unwrap, wrap
from payments_app.kernel.secrets import Cipher

KEY = b"k" * 32


class Drawer:
    """Data keys in a dictionary: TenantKeyring does not care where they are stored."""

    def __init__(self) -> None:
        self.kept: dict[object, str] = {}

    def find(self, tenant_id: object) -> str | None:
        return self.kept.get(tenant_id)

    def keep(self, tenant_id: object, wrapped: str) -> None:
        self.kept.setdefault(tenant_id, wrapped)


def test_what_is_sealed_opens_again_and_never_looks_the_same_twice() -> None:
    data_key = DataKey(KEY)
    sealed = data_key.encrypt(b"256772123456", about="payer 1")
    assert DataKey(KEY).decrypt(sealed, about="payer 1") == b"256772123456"
    assert b"256772123456" not in sealed
    assert data_key.encrypt(b"256772123456", about="payer 1") != sealed


@pytest.mark.parametrize(
    ("key", "about", "change"),
    [
        (b"o" * 32, "payer 1", lambda sealed: sealed),
        (KEY, "payer 2", lambda sealed: sealed),
        (KEY, "payer 1", lambda sealed: sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (KEY, "payer 1", lambda sealed: bytes([sealed[0] ^ 1]) + sealed[1:]),
        (KEY, "payer 1", lambda sealed: sealed[:10]),
        (KEY, "payer 1", lambda _sealed: b""),
    ],
)
def test_another_key_another_place_or_one_other_bit_opens_nothing(
    key: bytes, about: str, change: object
) -> None:
    sealed = DataKey(KEY).encrypt(b"secret", about="payer 1")
    assert callable(change)
    with pytest.raises(DataKeyUnreadable):
        DataKey(key).decrypt(change(sealed), about=about)


def test_a_digest_needs_the_key_and_the_purpose() -> None:
    digest = DataKey(KEY).digest(b"256772123456", about="payer")
    assert digest == DataKey(KEY).digest(b"256772123456", about="payer")
    assert len(digest) == 32
    others = {
        DataKey(b"o" * 32).digest(b"256772123456", about="payer"),
        DataKey(KEY).digest(b"256772123456", about="request"),
        DataKey(KEY).digest(b"r256772123456", about="paye"),
        DataKey(KEY).digest(b"256772123457", about="payer"),
    }
    assert digest not in others
    assert len(others) == 4


def test_a_tenant_has_one_data_key_whoever_made_it_first() -> None:
    drawer, cipher, tenant = Drawer(), Cipher([Fernet.generate_key().decode()]), uuid4()
    one, two = TenantKeyring(cipher, drawer), TenantKeyring(cipher, drawer)
    sealed = one.key_for(tenant).encrypt(b"x", about="y")
    assert two.key_for(tenant).decrypt(sealed, about="y") == b"x"
    with pytest.raises(DataKeyUnreadable):
        one.key_for(uuid4()).decrypt(sealed, about="y")


def test_a_data_key_serves_its_own_tenant_only_and_needs_the_key_that_wrapped_it() -> None:
    cipher, tenant = Cipher([Fernet.generate_key().decode()]), uuid4()
    wrapped = wrap(cipher, tenant, KEY)
    assert base64.b64encode(KEY).decode() not in wrapped
    assert unwrap(cipher, tenant, wrapped) == KEY
    with pytest.raises(DataKeyUnreadable):
        unwrap(cipher, uuid4(), wrapped)
    with pytest.raises(DataKeyUnreadable):
        unwrap(Cipher([Fernet.generate_key().decode()]), tenant, wrapped)
