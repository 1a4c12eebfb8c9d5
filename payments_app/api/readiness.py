"""Whether the database lets this process work. The result is cached for a short time."""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import Lock
from typing import Final, TypeVar, cast

import structlog
from flask import Flask, current_app
from sqlalchemy.exc import SQLAlchemyError

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.schema import is_behind, needed_versions, present_versions
from payments_app.tenants.rotation import ENCRYPTED_COLUMNS, opens_newest_secrets

log = structlog.get_logger(__name__)

OK: Final = "ok"
_FOUND: Final = "maramoja_health"
_SAID: Final = "maramoja_health_said"
# Probes come every few seconds. More frequent requests get the cached result.
KNOWN_FOR_S: Final = 1.0
# While a check takes long, the oldest result that is returned.
TOLD_FOR_S: Final = 3.0
T = TypeVar("T")


class LastFound:
    """Caches results for KNOWN_FOR_S: anyone may send the request, and a check costs a query.

    While one request runs the check, others get the result of the check before.
    """

    def __init__(self, seconds: Callable[[], float] = boot_seconds) -> None:
        self._seconds = seconds
        self._found: dict[Callable[[], object], tuple[float, object]] = {}
        self._looking = Lock()

    def get(self, look: Callable[[], T]) -> T:
        """The result of `look`, new or at most TOLD_FOR_S old."""
        if self._age_s(look) >= KNOWN_FOR_S and self._looking.acquire(
            blocking=self._age_s(look) >= TOLD_FOR_S
        ):
            try:
                if self._age_s(look) >= KNOWN_FOR_S:
                    looked_at = self._seconds()
                    self._found[look] = (looked_at, look())
            finally:
                self._looking.release()
        return cast("T", self._found[look][1])

    def _age_s(self, look: Callable[[], object]) -> float:
        return self._seconds() - self._found[look][0] if look in self._found else math.inf


def register_readiness(app: Flask) -> None:
    """Create the app's cache of results, and the last verdict that was logged."""
    app.extensions[_FOUND] = LastFound()
    app.extensions[_SAID] = OK


def last_found() -> LastFound:
    """This app's cache of results."""
    found: LastFound = current_app.extensions[_FOUND]
    return found


def database_verdict() -> str:
    """`ok`, or a text for people why this process can't work with the database."""
    return last_found().get(_database)


def _database() -> str:
    # Only one check runs at a time (LastFound), so each change of the verdict is logged once.
    verdict = _look()
    if verdict != current_app.extensions[_SAID]:
        current_app.extensions[_SAID] = verdict
        if verdict == OK:
            log.info("health.ready")
        else:
            log.error("health.not_ready", why=verdict)
    return verdict


def _look() -> str:
    directory = current_app.extensions["migrate"].directory
    try:
        present = present_versions()
        if is_behind(directory, present):
            return (
                f"migrations pending: the schema is at {_named(present)}, this version needs"
                f" {_named(needed_versions(directory))}: run flask db upgrade"
            )
        opens = opens_newest_secrets(current_app.extensions["maramoja"].cipher, ENCRYPTED_COLUMNS)
    except SQLAlchemyError:
        return "unreachable"
    return OK if opens else "SECRET_KEYS opens nothing that is stored: put the right key back"


def _named(versions: frozenset[str]) -> str:
    return ", ".join(sorted(versions)) or "nothing"
