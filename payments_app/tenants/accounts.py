"""Which account at a provider a tenant's payment uses. Credentials are stored encrypted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import and_, bindparam, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningInsert
from uuid_utils.compat import uuid7

from payments_app.audit.comparison import fingerprint
from payments_app.audit.record import record
from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.database import database_now, snapshot, transaction
from payments_app.kernel.secrets import Cipher, SecretUnreadable, about
from payments_app.providers.contract import Mode, Provider, ProviderAccount
from payments_app.tenants.account_form import SANDBOX, check_form
from payments_app.tenants.errors import (
    ProviderAccountInvalid,
    ProviderAccountMoved,
    ProviderAccountUnreadable,
    ProviderNotEnabled,
)
from payments_app.tenants.model import ProviderCredentials, Tenant

# How long a process may use an account that it read: after this a change applies everywhere.
STALE_MAX_S: Final = 5.0
# Accounts cached at once; beyond that they are read from the database more often.
REMEMBERED_MAX: Final = 4096
# A credential of this length may show its last characters: they tell two apart and reveal little.
_MASKED_LENGTH_MIN: Final = 16
_SHOWN: Final = 4

_ONE_ACCOUNT: Final = (
    ProviderCredentials.tenant_id,
    ProviderCredentials.provider,
    ProviderCredentials.mode,
)
# The columns that decide where credentials are sent, and for whom. After a change of any of them
# the credentials can't be decrypted. A new column with such an effect belongs here too.
BOUND_TO: Final = (
    ProviderCredentials.tenant_id,
    ProviderCredentials.provider,
    ProviderCredentials.mode,
    ProviderCredentials.base_url,
    ProviderCredentials.target_environment,
)
_OWN: Final = select(
    ProviderCredentials.id,
    ProviderCredentials.base_url,
    ProviderCredentials.target_environment,
    ProviderCredentials.credentials,
    ProviderCredentials.version,
).where(
    ProviderCredentials.tenant_id == bindparam("tenant_id"),
    ProviderCredentials.provider == bindparam("provider"),
    ProviderCredentials.mode == bindparam("mode"),
)


@dataclass(frozen=True, slots=True)
class NewAccount:
    """An account to be stored. `mode`: the mode of the API keys that may use it."""

    provider: str
    mode: Mode
    base_url: str
    target_environment: str
    credentials: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class AccountView:
    """A stored account, safe to show: each credential's name with its masked value."""

    id: UUID
    provider: str
    mode: Mode
    base_url: str
    target_environment: str
    credentials: Mapping[str, str]
    version: int
    updated_at: datetime


def about_account(
    tenant_id: UUID, provider: str, mode: str, base_url: str, target_environment: str
) -> str:
    """The context that an account's credentials are bound to: the values of BOUND_TO."""
    return about("provider_account", tenant_id, provider, mode, base_url, target_environment)


def set_account(
    tenant: Tenant,
    new: NewAccount,
    *,
    cipher: Cipher,
    actor: str,
    may_move: bool = False,
    before_change: Callable[[Session, UUID], None] | None = None,
) -> AccountView:
    """Store the tenant's account for that provider and mode; it replaces an existing one.

    Status checks of payments in flight use the credentials of the account that they were sent
    through. Credentials for another address or environment don't work there, so a change of these
    needs `may_move`. `before_change` may raise to prevent a change of the account with this id; the
    account's row is locked meanwhile, so that no payment is accepted through it.
    Raises ProviderAccountInvalid, ProviderAccountMoved.
    """
    check_form(new.mode, new.base_url, new.target_environment, new.credentials)
    change = _upsert(tenant, new, cipher, may_move=may_move)
    with transaction(tenant.id) as session:
        account_id = _locked(session, tenant, new)
        if account_id is not None and before_change is not None:
            before_change(session, account_id)
        row = session.scalar(change)
        if row is None:
            raise ProviderAccountMoved(
                "The account would move to another address or environment, and the payments in"
                " flight could no longer be asked for. Let them end, then say that it may move."
            )
        record(
            session,
            tenant_id=tenant.id,
            actor=actor,
            action="provider_account.set",
            subject_type="provider_account",
            subject_id=row.id,
            detail=_told(row, names=sorted(new.credentials)),
        )
    return _view(row, cipher)


def _locked(session: Session, tenant: Tenant, new: NewAccount) -> UUID | None:
    """The existing account's id. No payment is accepted through it until this transaction ends."""
    present = select(ProviderCredentials.id).where(
        ProviderCredentials.tenant_id == tenant.id,
        ProviderCredentials.provider == new.provider,
        ProviderCredentials.mode == new.mode.value,
    )
    return session.scalar(present.with_for_update(key_share=True))


def list_accounts(tenant: Tenant, cipher: Cipher) -> list[AccountView]:
    """The tenant's own accounts, credentials masked."""
    own = (
        select(ProviderCredentials)
        .where(ProviderCredentials.tenant_id == tenant.id)
        .order_by(ProviderCredentials.provider, ProviderCredentials.mode)
    )
    with transaction(tenant.id) as session:
        rows = list(session.scalars(own))
    return [_view(row, cipher) for row in rows]


def check_account(new: NewAccount, provider: Provider) -> None:
    """Raises ProviderAccountInvalid if the adapter can't work with such an account."""
    missing = sorted(set(provider.credential_names) - set(new.credentials))
    unknown = sorted(set(new.credentials) - set(provider.credential_names))
    if missing or unknown:
        wrong = [f"lacks {name}" for name in missing] + [f"has no use for {n}" for n in unknown]
        raise ProviderAccountInvalid(f"An account at {new.provider} {', '.join(wrong)}.")
    try:
        provider.terms(_account(None, new.provider, new))
    except ValueError as error:
        raise ProviderAccountInvalid(str(error)) from None


def merchant_of(new: NewAccount, provider: Provider) -> str:
    """The account's identity at the provider. Raises KeyError unless `check_account` passes."""
    return provider.merchant(_account(None, new.provider, new))


def masked(value: str) -> str:
    """The masked value. The number of stars is constant, so it doesn't reveal a secret's length."""
    return "********" + (value[-_SHOWN:] if len(value) >= _MASKED_LENGTH_MIN else "")


class ProviderAccounts:
    """Finds the account for a payment.

    It is the tenant's own account for the key's mode, else the platform's. A TEST key never reaches
    a real account, and a LIVE key no sandbox: its play money would be reported as paid.

    Each process caches reads for STALE_MAX_S: after that a changed account applies. If the current
    account is needed, use `anew`, or compare `version` with the row as payments/accept.py does.
    """

    def __init__(
        self,
        platform: tuple[ProviderAccount, ...],
        cipher: Cipher,
        *,
        seconds: Callable[[], float] = boot_seconds,
    ) -> None:
        self._platform = platform
        self._cipher = cipher
        self._seconds = seconds
        self._remembered: dict[tuple[UUID, str, Mode], tuple[float, ProviderAccount | None]] = {}
        self._forgotten_at = 0.0

    def find(self, *, tenant_id: UUID, provider: str, mode: Mode) -> ProviderAccount:
        """The account for a new payment. Raises ProviderNotEnabled, ProviderAccountUnreadable."""
        own = self._own(tenant_id, provider, mode)
        account = _reachable(own or self._platform_account(provider, mode), mode)
        # For new payments only. Payments that were accepted before continue: see open().
        if mode is Mode.LIVE and account.mode is Mode.TEST:
            raise ProviderNotEnabled(
                "A live API key is for real money, and the account at this provider is a sandbox."
            )
        return account

    def open(
        self,
        *,
        tenant_id: UUID,
        provider: str,
        mode: Mode,
        account_id: UUID | None,
        anew: bool = False,
    ) -> ProviderAccount:
        """The account that a payment was accepted for; `account_id` None is the platform's.

        Never another account: it would not know the payment. The cached account may be older than
        the payment. So the row is read again before the account counts as missing, and with `anew`.
        Raises ProviderNotEnabled, ProviderAccountUnreadable.
        """
        if account_id is None:
            return _reachable(self._platform_account(provider, mode), mode)
        own = None if anew else self._own(tenant_id, provider, mode)
        if own is None or own.id != account_id:
            own = self._own_anew(tenant_id, provider, mode)
        return _reachable(own if own and own.id == account_id else None, mode)

    def platform(self, provider: str | None = None) -> tuple[ProviderAccount, ...]:
        """The platform's accounts, or those at `provider`."""
        return tuple(a for a in self._platform if provider in (None, a.provider))

    def forget(self) -> None:
        """Clear this process's cache. A read that is under way now counts as outdated."""
        self._forgotten_at = self._seconds()
        self._remembered.clear()

    def _platform_account(self, provider: str, mode: Mode) -> ProviderAccount | None:
        fitting = [
            account
            for account in self.platform(provider)
            if mode is Mode.LIVE or account.mode is Mode.TEST
        ]
        return min(fitting, key=lambda account: account.mode is not mode, default=None)

    def _own(self, tenant_id: UUID, provider: str, mode: Mode) -> ProviderAccount | None:
        key = (tenant_id, provider, mode)
        now = self._seconds()
        remembered = self._remembered.get(key)
        if remembered is not None and self._forgotten_at <= remembered[0] > now - STALE_MAX_S:
            return remembered[1]
        return self._own_anew(tenant_id, provider, mode)

    def _own_anew(self, tenant_id: UUID, provider: str, mode: Mode) -> ProviderAccount | None:
        now = self._seconds()
        account = self._read_own(tenant_id, provider, mode)
        if len(self._remembered) >= REMEMBERED_MAX:
            self._remembered.clear()
        self._remembered[tenant_id, provider, mode] = (now, account)
        return account

    def _read_own(self, tenant_id: UUID, provider: str, mode: Mode) -> ProviderAccount | None:
        wanted = {"tenant_id": tenant_id, "provider": provider, "mode": mode.value}
        with snapshot(tenant_id) as connection:
            row = connection.execute(_OWN, wanted).one_or_none()
        if row is None:
            return None
        address = row.base_url, row.target_environment
        place = about_account(tenant_id, provider, mode.value, *address)
        stored = NewAccount(
            provider=provider,
            mode=mode,
            base_url=row.base_url,
            target_environment=row.target_environment,
            credentials=_opened(row.credentials, self._cipher, place),
        )
        return _account(row.id, f"{row.id}:{row.version}", stored)


def mode_of(target_environment: str) -> Mode:
    """The mode of the API keys that an account in this environment is for."""
    return Mode.TEST if target_environment == SANDBOX else Mode.LIVE


def _account(account_id: UUID | None, version: str, stored: NewAccount) -> ProviderAccount:
    """The account. Its mode follows from the environment (sandbox or not), not from the row."""
    return ProviderAccount(
        id=account_id,
        provider=stored.provider,
        mode=mode_of(stored.target_environment),
        base_url=stored.base_url,
        target_environment=stored.target_environment,
        credentials=stored.credentials,
        version=version,
    )


def _reachable(account: ProviderAccount | None, mode: Mode) -> ProviderAccount:
    """The final check for TEST keys, for every account that is found."""
    if account is None or (mode is Mode.TEST and account.mode is not Mode.TEST):
        raise ProviderNotEnabled("No account at this provider is set up for this API key.")
    return account


def _opened(ciphertext: str, cipher: Cipher, place: str) -> dict[str, str]:
    try:
        credentials: dict[str, str] = json.loads(cipher.decrypt(ciphertext, about=place))
    except SecretUnreadable:
        raise ProviderAccountUnreadable(
            "The account's credentials can't be read: a key is missing from SECRET_KEYS, or they were"
            " stored for another account or address."
        ) from None
    return credentials


def _upsert(
    tenant: Tenant, new: NewAccount, cipher: Cipher, *, may_move: bool
) -> ReturningInsert[ProviderCredentials]:
    """Insert or update in one statement; it returns no row for a move that isn't allowed."""
    base_url = new.base_url.rstrip("/")
    place = about_account(tenant.id, new.provider, new.mode.value, base_url, new.target_environment)
    values = {
        "base_url": base_url,
        "target_environment": new.target_environment,
        "credentials": cipher.encrypt(json.dumps(dict(new.credentials)), about=place),
    }
    fresh = insert(ProviderCredentials).values(
        id=uuid7(), tenant_id=tenant.id, provider=new.provider, mode=new.mode.value, **values
    )
    stays = and_(
        ProviderCredentials.base_url == values["base_url"],
        ProviderCredentials.target_environment == values["target_environment"],
    )
    change = fresh.on_conflict_do_update(
        index_elements=_ONE_ACCOUNT,
        set_={**values, "version": ProviderCredentials.version + 1, "updated_at": database_now()},
        where=None if may_move else stays,
    )
    return change.returning(ProviderCredentials)


def _told(row: ProviderCredentials, *, names: list[str]) -> dict[str, object]:
    """The audit entry's detail for a change: the credentials' names, never their values."""
    return {
        "provider": row.provider,
        "mode": row.mode,
        "base_url": row.base_url,
        "target_environment": row.target_environment,
        "credentials": names,
        "fingerprint": fingerprint(row.credentials),
        "version": row.version,
    }


def _view(row: ProviderCredentials, cipher: Cipher) -> AccountView:
    place = about_account(
        row.tenant_id, row.provider, row.mode, row.base_url, row.target_environment
    )
    try:
        shown = {n: masked(value) for n, value in _opened(row.credentials, cipher, place).items()}
    except ProviderAccountUnreadable:
        # List the account anyway, so that the operator sees it and can repair it.
        shown = {"unreadable": "*"}
    return AccountView(
        id=row.id,
        provider=row.provider,
        mode=Mode(row.mode),
        base_url=row.base_url,
        target_environment=row.target_environment,
        credentials=shown,
        version=row.version,
        updated_at=row.updated_at,
    )
