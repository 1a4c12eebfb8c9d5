"""Re-encrypts stored secrets with the newest of SECRET_KEYS, while the system runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.elements import SQLCoreOperations

from payments_app.audit.comparison import fingerprint
from payments_app.audit.record import record
from payments_app.kernel.database import EVERY_TENANT, Base, transaction
from payments_app.kernel.secrets import Cipher, SecretUnreadable, is_bound
from payments_app.tenants.accounts import BOUND_TO, about_account
from payments_app.tenants.model import ProviderCredentials, Tenant


class EncryptedColumn(NamedTuple):
    """A column of secrets, with its rows' ids and tenants. `kind`: for the audit trail.

    `bound_to`: the columns that each secret is bound to; `about` makes the context from their
    values. Both are empty for a secret that contains its owner's id itself.
    """

    kind: str
    table: type[Base]
    id: SQLCoreOperations[UUID]
    tenant_id: SQLCoreOperations[UUID]
    secret: SQLCoreOperations[str] | SQLCoreOperations[str | None]
    bound_to: tuple[SQLCoreOperations[Any], ...] = ()
    about: Callable[..., str] | None = None

    def place(self, values: Sequence[Any]) -> str | None:
        """The context of a secret whose row has these values of `bound_to`."""
        return self.about(*values) if self.about is not None else None


ENCRYPTED_COLUMNS: Final = (
    EncryptedColumn(
        "provider_account",
        ProviderCredentials,
        ProviderCredentials.id,
        ProviderCredentials.tenant_id,
        ProviderCredentials.credentials,
        BOUND_TO,
        about_account,
    ),
    # The data key encrypts the payers' numbers; only the data key itself is re-encrypted.
    EncryptedColumn("tenant", Tenant, Tenant.id, Tenant.id, Tenant.data_key),
)


# How many secrets of each column are tried, to tell a wrong key from a bad row. Newest first: ids
# begin with the time.
NEWEST: Final = 5


@dataclass(frozen=True, slots=True)
class Rotation:
    """`rewrapped`: re-encrypted; `current`: unchanged; `unreadable`: ids that no key decrypts."""

    rewrapped: int
    current: int
    unreadable: tuple[UUID, ...]


def rotate_secrets(cipher: Cipher, shelves: Sequence[EncryptedColumn], *, actor: str) -> Rotation:
    """Encrypt every secret of these columns with the newest key. Idempotent.

    Processes that have both keys can read a secret before and after. One row for each transaction,
    so that no other transaction waits long.
    """
    rewrapped, current, unreadable = 0, 0, []
    for shelf in shelves:
        for secret_id, tenant_id in _stored(shelf):
            try:
                changed = _rotate(shelf, secret_id, tenant_id, cipher, actor=actor)
            except SecretUnreadable:
                unreadable.append(secret_id)
                continue
            rewrapped += changed
            current += not changed
    return Rotation(rewrapped, current, tuple(unreadable))


@dataclass(slots=True)
class StoredSecrets:
    """Each secret as its kind and its id. `unreadable`: none of the keys decrypts it in its row.

    `unbound`: stored before secrets were bound, so it could be decrypted in another row too.
    """

    unreadable: list[tuple[str, UUID]] = field(default_factory=list)
    unbound: list[tuple[str, UUID]] = field(default_factory=list)


def look_at_secrets(cipher: Cipher, shelves: Sequence[EncryptedColumn]) -> StoredSecrets:
    """The stored secrets that are unreadable or unbound."""
    found = StoredSecrets()
    for shelf in shelves:
        wanted = select(shelf.id, shelf.secret, *shelf.bound_to).where(shelf.secret.is_not(None))
        with transaction(EVERY_TENANT) as session:
            stored = [(row[0], str(row[1]), row[2:]) for row in session.execute(wanted)]
        for secret_id, secret, values in stored:
            place = shelf.place(values)
            try:
                cipher.decrypt(secret, about=place)
            except SecretUnreadable:
                found.unreadable.append((shelf.kind, secret_id))
                continue
            if place is not None and not is_bound(secret):
                found.unbound.append((shelf.kind, secret_id))
    return found


def opens_newest_secrets(cipher: Cipher, shelves: Sequence[EncryptedColumn]) -> bool:
    """Whether these keys are this database's: they decrypt one of the newest secrets, if any exist.

    If only some can't be decrypted, that concerns their tenants (look_at_secrets). If none can be,
    the keys are wrong.
    """
    stored: list[tuple[str, str | None]] = []
    with transaction(EVERY_TENANT) as session:
        for shelf in shelves:
            newest = select(shelf.secret, *shelf.bound_to).where(shelf.secret.is_not(None))
            rows = session.execute(newest.order_by(shelf.id.desc()).limit(NEWEST))
            stored += [(str(row[0]), shelf.place(row[1:])) for row in rows]
    return not stored or any(_opens(cipher, secret, place) for secret, place in stored)


def _opens(cipher: Cipher, secret: str, place: str | None) -> bool:
    try:
        cipher.decrypt(secret, about=place)
    except SecretUnreadable:
        return False
    return True


def _stored(shelf: EncryptedColumn) -> list[tuple[UUID, UUID]]:
    secrets = select(shelf.id, shelf.tenant_id).where(shelf.secret.is_not(None)).order_by(shelf.id)
    with transaction(EVERY_TENANT) as session:
        return [(row[0], row[1]) for row in session.execute(secrets)]


def _rotate(
    shelf: EncryptedColumn, secret_id: UUID, tenant_id: UUID, cipher: Cipher, *, actor: str
) -> bool:
    there = (shelf.id == secret_id, shelf.secret.is_not(None))
    wanted = select(shelf.secret, *shelf.bound_to).where(*there).with_for_update(key_share=True)
    with transaction(tenant_id) as session:
        row = session.execute(wanted).one_or_none()
        # None: the secret was removed since it was listed.
        if row is None:
            return False
        before, after = row[0], cipher.rotate(row[0], about=shelf.place(row[1:]))
        if after == before:
            return False
        # No other column changes: tokens that were fetched with the same credentials stay valid.
        change = update(shelf.table).where(shelf.id == secret_id)
        column = cast("InstrumentedAttribute[str]", shelf.secret)
        session.execute(change.values({shelf.secret: after}))
        record(
            session,
            tenant_id=tenant_id,
            actor=actor,
            action=f"{shelf.kind}.rewrapped",
            subject_type=shelf.kind,
            subject_id=secret_id,
            detail={"column": column.key, "fingerprint": fingerprint(after)},
        )
        return True
