"""Liveness and readiness. Redis and the providers are reported, but never make it not ready."""

from __future__ import annotations

from typing import Final

import marshmallow as ma
from flask import Response, current_app
from redis import RedisError

from payments_app.api.blueprint import ApiBlueprint
from payments_app.api.json import json_response
from payments_app.api.readiness import OK, database_verdict, last_found
from payments_app.monitoring.gauges import ProviderHealth, provider_health

blp = ApiBlueprint(
    "health", __name__, url_prefix="/health", description="For probes and people", public=True
)
UNAVAILABLE: Final = "unavailable"
DRAINING: Final = "draining"
# The server may store a function here that returns whether this process is about to end.
LEAVING: Final = "maramoja.leaving"
# When a probe that found this process not ready may retry.
RETRY_AFTER_S: Final = 2
_CANNOT: Final = (
    "It can't: the database is away, its schema isn't this version's, SECRET_KEYS opens nothing that is"
    " stored, or it is to end"
)
_RETRY: Final = {
    "Retry-After": {
        "description": "Seconds to wait before the next try.",
        "schema": {"type": "integer", "minimum": 1},
    }
}


class LiveSchema(ma.Schema):
    """The body of the liveness check."""

    class Meta:
        """Unknown fields are an error."""

        unknown = ma.RAISE

    status = ma.fields.String(required=True, validate=ma.validate.Equal(OK))


class ReadySchema(ma.Schema):
    """Whether this process can take payments. Without Redis it can, slower."""

    class Meta:
        """Unknown fields are an error."""

        unknown = ma.RAISE

    status = ma.fields.String(
        required=True,
        validate=ma.validate.OneOf([OK, UNAVAILABLE, DRAINING]),
        metadata={"description": "`draining`: it serves on, and is about to end."},
    )
    database = ma.fields.String(
        required=True, metadata={"description": "`ok`, or what is wrong.", "example": OK}
    )
    redis = ma.fields.String(
        required=True, metadata={"description": "`ok`, or what is wrong.", "example": OK}
    )


class PlatformAccountSchema(ma.Schema):
    """The platform's own account at a provider, without its credentials."""

    class Meta:
        """Unknown fields are an error."""

        unknown = ma.RAISE

    provider = ma.fields.String(
        required=True, metadata={"description": "Its code.", "example": "mtn_momo"}
    )
    target_environment = ma.fields.String(
        required=True, metadata={"description": "In its words.", "example": "mtnuganda"}
    )


class SummarySchema(ReadySchema):
    """The same verdict, with the providers of this installation."""

    providers = ma.fields.List(
        ma.fields.String(),
        required=True,
        metadata={"description": "The rails' codes.", "example": ["mtn_momo"]},
    )
    provider_states = ma.fields.Dict(
        keys=ma.fields.String(),
        values=ma.fields.String(validate=ma.validate.OneOf(list(ProviderHealth))),
        required=True,
        metadata={
            "description": "By code: what was heard of each in the last 5 minutes.",
            "example": {"mtn_momo": "answers"},
        },
    )
    platform_accounts = ma.fields.List(ma.fields.Nested(PlatformAccountSchema), required=True)


@blp.route("/live")
@blp.doc(operationId="live")
@blp.response(200, LiveSchema, description="It answers")
def live() -> Response:
    """Say whether this process answers.

    Asks nobody else: a database that is away is no reason to start this process anew.
    """
    return json_response({"status": OK})


@blp.route("/ready")
@blp.doc(operationId="ready")
@blp.response(200, ReadySchema, description="It can take payments")
@blp.alt_response(
    503,
    schema=ReadySchema,
    content_type="application/json",
    headers=_RETRY,
    description=_CANNOT,
)
def ready() -> Response:
    """Say whether this process can take payments.

    The database must be there, with this version's schema and secrets that SECRET_KEYS opens, and
    this process not about to end. Redis is only reported.
    """
    return _answer(_checks())


@blp.route("")
@blp.doc(operationId="health")
@blp.response(200, SummarySchema, description="It can take payments")
@blp.alt_response(
    503,
    schema=SummarySchema,
    content_type="application/json",
    headers=_RETRY,
    description=_CANNOT,
)
def summary() -> Response:
    """Tell people how it is.

    The verdict of /health/ready, with the providers that this installation has.
    """
    parts = current_app.extensions["maramoja"]
    accounts = [
        {"provider": account.provider, "target_environment": account.target_environment}
        for account in parts.settings.platform_accounts
    ]
    return _answer(
        {
            **_checks(),
            "providers": parts.registry.codes(),
            "provider_states": last_found().get(_states),
            "platform_accounts": accounts,
        }
    )


def _checks() -> dict[str, object]:
    database, redis = database_verdict(), last_found().get(_redis)
    status = OK if database == OK else UNAVAILABLE
    if current_app.extensions.get(LEAVING, bool)():
        # Load balancers stop sending traffic here while every request is still answered.
        status = DRAINING
    return {
        "status": status,
        "database": database,
        "redis": redis,
    }


def _states() -> dict[str, ProviderHealth]:
    return provider_health(current_app.extensions["maramoja"].registry.codes())


def _redis() -> str:
    try:
        current_app.extensions["maramoja"].redis.ping()
    except RedisError:
        return "away: working without it, slower"
    return OK


def _answer(document: dict[str, object]) -> Response:
    if document["status"] == OK:
        return json_response(document)
    response = json_response(document, 503)
    response.headers["Retry-After"] = str(RETRY_AFTER_S)
    return response
