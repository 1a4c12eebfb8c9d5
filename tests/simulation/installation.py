"""What all runs of one process share: a migrated database with the virtual clock, and an app."""

from __future__ import annotations

import gc
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final
from unittest.mock import patch

import psycopg
import structlog
from cryptography.fernet import Fernet
from flask import Flask
from sqlalchemy import event

from payments_app.kernel import jobs
from payments_app.kernel.database import db, init_database
from payments_app.kernel.encryption import TenantKeyring
from payments_app.kernel.secrets import Cipher
from payments_app.payments import backoff
from payments_app.providers.contract import Mode
from payments_app.tenants.caller import Caller
from payments_app.tenants.data_keys import StoredDataKeys
from payments_app.tenants.keys import NewKey, issue_key
from payments_app.tenants.registry import create_tenant
from tests.simulation import clock, hooks
from tests.simulation.cast import Cast
from tests.simulation.clock import SEARCH_PATH, VirtualClock
from tests.simulation.referee import Referee

# Delete in the order of references; triggers that forbid it are off.
_FORGET: Final = """
SET session_replication_role = replica;
DELETE FROM idempotency_keys; DELETE FROM callbacks; DELETE FROM events;
DELETE FROM provider_exchanges; DELETE FROM payments
"""
# Deleted rows still cost time in a scan; VACUUM after this many runs.
RUNS_BETWEEN_CLEANINGS: Final = 100
_VACUUM: Final = "VACUUM payments, events, provider_exchanges, idempotency_keys, callbacks"
# Autovacuum would come at any time: its lock on a table looks as if an actor waited for another,
# and its statistics change the plans, so that a seed would not go the same way each time.
_NO_AUTOVACUUM: Final = "; ".join(
    f"ALTER TABLE {table} SET (autovacuum_enabled = off, toast.autovacuum_enabled = off)"
    for table in ("payments", "events", "provider_exchanges", "idempotency_keys", "callbacks")
)


@dataclass
class Doorbell:
    """Replaces Celery in kernel.jobs: it counts notifications, and a worker may see them or not."""

    rings: int = 0

    def send_task(self, name: str, **_options: Any) -> None:
        self.rings += name == jobs.Job.PROCESS_DUE

    def notify_soon(self, job: jobs.Job, _traceparent: str | None) -> None:
        """Count at once, without kernel.jobs' notifier thread. No webhook is sent here."""
        self.rings += job is jobs.Job.PROCESS_DUE


@dataclass
class Installation:
    """The database, the app and the parts that a process uses for all its runs."""

    app: Flask
    administrator: psycopg.Connection
    clock: VirtualClock
    cast: Cast
    referee: Referee
    callers: list[Caller]
    cipher: Cipher
    keyring: TenantKeyring
    doorbell: Doorbell
    # The engine's jitter. It has a source of its own: other threads also use Python's global one.
    jitter: random.Random
    runs: int = 0

    def restart(self) -> None:
        """Undo the last run: empty the tables, set the clock to its beginning."""
        self.administrator.execute(_FORGET)
        if self.runs % RUNS_BETWEEN_CLEANINGS == 0:
            self.administrator.execute(_VACUUM)
            gc.collect()
        self.runs += 1
        self.doorbell.rings = 0
        self.clock.restart()
        self.referee.begin()


@contextmanager
def installed(application_url: str, administrator_url: str) -> Iterator[Installation]:
    """An installation on a database that it does not share."""
    with _quietly(), psycopg.connect(administrator_url, autocommit=True) as administrator:
        clock.install(administrator)
        administrator.execute(_NO_AUTOVACUUM.encode())
        time = VirtualClock(administrator)
        app = Flask("simulation")
        init_database(app, application_url.replace("postgresql:", "postgresql+psycopg:", 1))
        with app.app_context():
            event.listen(db.engine, "connect", _without_timeouts)
        cast, doorbell = Cast(app, administrator), Doorbell()
        jitter = random.Random()  # noqa: S311  a seed that repeats is the point
        cipher = Cipher([Fernet.generate_key().decode()])
        keyring = TenantKeyring(cipher, StoredDataKeys())
        app.extensions["maramoja"] = SimpleNamespace(keyring=keyring)
        with (
            app.app_context(),
            _wired(cast, time, doorbell),
            patch.object(backoff, "random", jitter),
        ):
            callers = [_caller(slug) for slug in ("amber", "birch", "cedar")]
            # Before the first run: else the first run would have steps that later runs don't have.
            for caller in callers:
                keyring.key_for(caller.tenant_id)
            yield Installation(
                app=app,
                administrator=administrator,
                clock=time,
                cast=cast,
                referee=Referee(administrator, time),
                callers=callers,
                cipher=cipher,
                keyring=keyring,
                doorbell=doorbell,
                jitter=jitter,
            )
            db.engine.dispose()


def _without_timeouts(raw: Any, *_entry: Any) -> None:
    """Locks and statements time out by the virtual clock here: on a slow machine PostgreSQL's own
    timeouts would change the run. The search path finds the virtual clock before PostgreSQL's own.
    """
    raw.execute(
        "SET lock_timeout = 0; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0;"
        f" SET search_path = {SEARCH_PATH}"
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Switch the engine's log off: it is not read here, and writing it takes time.

    No logger is cached meanwhile: one that is first used here would stay silent afterwards.
    """
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


@contextmanager
def _wired(cast: Cast, time: VirtualClock, doorbell: Doorbell) -> Iterator[None]:
    with (
        clock.ruling(time),
        hooks.listening(cast, time),
        patch.object(jobs, "current_app", doorbell),
        patch.object(jobs, "_notifier", doorbell),
    ):
        yield


def _caller(slug: str) -> Caller:
    tenant = create_tenant(slug=slug, actor="cli:simulation")
    key = issue_key(tenant, NewKey(mode=Mode.LIVE), actor="cli:simulation")
    return Caller(
        tenant_id=tenant.id,
        tenant_slug=slug,
        key_id=key.id,
        mode=Mode.LIVE,
        require_idempotency_key=False,
        rate_limit=None,
        default_provider=None,
    )
