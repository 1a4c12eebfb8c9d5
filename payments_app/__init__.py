"""create_app: builds the application and connects its parts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from flask import Flask
from flask_migrate import Migrate
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy.exc import SQLAlchemyError

from payments_app.api import register_api
from payments_app.commands import register_commands
from payments_app.kernel import metrics
from payments_app.kernel.database import db, init_database, snapshot
from payments_app.kernel.encryption import TenantKeyring
from payments_app.kernel.http.egress import Egress, EgressRules
from payments_app.kernel.http.transport import Transport
from payments_app.kernel.logs import configure_logs
from payments_app.kernel.postgres import DatabaseRoleUnsafe
from payments_app.kernel.secrets import Cipher
from payments_app.kernel.tracing import start_tracing
from payments_app.payments.gateway import PaymentGateway
from payments_app.payments.rate_limit import AccountPace
from payments_app.providers.registry import Registry
from payments_app.providers.tokens import TokenCache
from payments_app.settings import SettingInvalid, Settings
from payments_app.tenants.accounts import ProviderAccounts
from payments_app.tenants.data_keys import StoredDataKeys
from payments_app.worker.celery_app import init_celery

# Redis only saves time: beyond this, waiting for Redis costs more than working without it.
REDIS_TIMEOUT_S: Final = 0.5
MIGRATIONS: Final = Path(__file__).parent.parent / "migrations"
EXTENSION: Final = "maramoja"


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that create_app built, for code that has the app: `app.extensions["maramoja"]`."""

    settings: Settings
    cipher: Cipher
    redis: Redis
    registry: Registry
    accounts: ProviderAccounts
    transport: Transport
    keyring: TenantKeyring
    gateway: PaymentGateway
    egress: Egress


def create_app(settings: Settings | None = None, *, stopping: Callable[[], bool] = bool) -> Flask:
    """Build the application. `stopping` returns whether this process is about to end.

    Raises SettingInvalid, which ends the process with a line that names the setting.
    """
    settings = settings or Settings.from_env(os.environ)
    metrics.build_info.labels(_version()).set(1)
    configure_logs(level=settings.log_level, log_format=settings.log_format)
    start_tracing(settings.traces_exporter)
    app = Gateway("payments_app", static_folder=None)
    init_database(app, settings.database_url, allow_superuser=settings.database_allow_superuser)
    Migrate(app, db, directory=str(MIGRATIONS), compare_type=True)
    parts = _parts(settings, stopping)
    app.extensions[EXTENSION] = parts
    init_celery(app, settings.celery_broker_url)
    register_api(app, settings, redis=parts.redis)
    register_commands(app)
    return app


def refuse_unsafe_role(app: Flask) -> None:
    """End a serving process whose database role is exempt from row-level security.

    If the database is down, the process starts anyway: each later connection is checked too.
    """
    try:
        with app.app_context(), snapshot():
            pass
    except DatabaseRoleUnsafe as error:
        raise SystemExit(f"DATABASE_URL: {error.detail}") from None
    except SQLAlchemyError:
        pass


class Gateway(Flask):
    """Flask without the check, at each call in each request, whether a function is a coroutine."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """None of our functions is a coroutine."""
        return func


class _Once(Retry):
    """Never retries, but counts each Redis error, whichever caller continues without Redis."""

    def call_with_retry(self, *args: Any, **options: Any) -> Any:
        """See Retry."""
        try:
            return super().call_with_retry(*args, **options)
        except (RedisError, OSError):
            metrics.redis_errors.inc()
            raise


def _parts(settings: Settings, stopping: Callable[[], bool]) -> Parts:
    cipher = Cipher(settings.secret_keys)
    redis = Redis.from_url(
        settings.redis_url,
        socket_timeout=REDIS_TIMEOUT_S,
        socket_connect_timeout=REDIS_TIMEOUT_S,
        retry=_Once(NoBackoff(), 0),
    )
    registry = Registry.load(TokenCache(redis, cipher))
    _check_platform_accounts(settings, registry)
    accounts = ProviderAccounts(settings.platform_accounts, cipher)
    user_agent = f"Maramoja/{_version()}"
    transport = Transport(user_agent=user_agent)
    rules = EgressRules(allow_private=settings.webhook_allow_private_addresses)
    egress = Egress(rules, user_agent=user_agent)
    keyring = TenantKeyring(cipher, StoredDataKeys())
    gateway = PaymentGateway(
        registry=registry,
        accounts=accounts,
        transport=transport,
        pace=AccountPace(redis, ceiling=settings.status_checks_per_s_max),
        keyring=keyring,
        public_base_url=settings.public_base_url,
        stopping=stopping,
    )
    return Parts(settings, cipher, redis, registry, accounts, transport, keyring, gateway, egress)


def _check_platform_accounts(settings: Settings, registry: Registry) -> None:
    for account in settings.platform_accounts:
        try:
            registry.get(account.provider).terms(account)
        except ValueError as error:
            raise SettingInvalid("MTN_TARGET_ENVIRONMENT", f"is malformed: {error}") from None


def _version() -> str:
    try:
        return version("maramoja")
    except PackageNotFoundError:
        return "1"
