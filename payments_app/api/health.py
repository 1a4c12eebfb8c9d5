"""Is it alive, and can it work? Redis and the providers are reported, but refuse no traffic."""

from __future__ import annotations

from typing import Final

import orjson
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from flask import Blueprint, Response, current_app
from redis import RedisError
from sqlalchemy.exc import SQLAlchemyError

from payments_app.kernel.database import snapshot

blp = Blueprint("health", __name__)
OK: Final = "ok"


@blp.route("/health/live")
def live() -> Response:
    """This process answers."""
    return _answer({"status": OK}, healthy=True)


@blp.route("/health/ready")
def ready() -> Response:
    """This process can take payments: the database is there, at this version's schema."""
    checks = {"database": _database(), "redis": _redis()}
    return _answer(checks, healthy=checks["database"] == OK)


@blp.route("/health")
def summary() -> Response:
    """A summary for people; the same verdict as readiness."""
    parts = current_app.extensions["maramoja"]
    database = _database()
    document = {
        "status": OK if database == OK else "unavailable",
        "database": database,
        "redis": _redis(),
        "providers": parts.registry.codes(),
        "platform_accounts": [
            {"provider": account.provider, "target_environment": account.target_environment}
            for account in parts.settings.platform_accounts
        ],
    }
    return _answer(document, healthy=database == OK)


def _database() -> str:
    try:
        with snapshot() as connection:
            current = MigrationContext.configure(connection).get_current_heads()
    except SQLAlchemyError:
        return "unreachable"
    wanted = ScriptDirectory(current_app.extensions["migrate"].directory).get_heads()
    return OK if set(current) == set(wanted) else "migrations pending: run flask db upgrade"


def _redis() -> str:
    try:
        current_app.extensions["maramoja"].redis.ping()
    except RedisError:
        return "away: working without it, slower"
    return OK


def _answer(document: dict[str, object], *, healthy: bool) -> Response:
    status = 200 if healthy else 503
    return Response(orjson.dumps(document), status, content_type="application/json")
