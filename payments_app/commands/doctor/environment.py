"""Checks of the settings, and of the services that they name, other than the database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from flask import current_app
from kombu.connection import Connection
from kombu.exceptions import OperationalError
from redis import RedisError

from payments_app.commands.doctor.finding import Finding, ok, problem, warning
from payments_app.commands.parts import gateway, redis, settings
from payments_app.commands.probes import check_accounts, platform_accounts
from payments_app.kernel.http.messages import HttpRequest, HttpResponse

_CALLBACK_MAX_S: Final = 5.0
# A proxy may let only callbacks through to us. So the request uses a provider's path, with a method
# that changes nothing. Only the gateway answers like this.
_CALLBACK_PATH: Final = "/callbacks/doctor/check"
_CALLBACK_ANSWER: Final = (405, "application/problem+json")
# With this share of its memory used, Redis will soon refuse writes.
_FULL: Final = 0.9


def check_settings() -> Iterator[Finding]:
    """Finds settings that are right for a developer's machine and wrong for money."""
    found = settings()
    url = found.public_base_url
    if url is None:
        yield warning(
            "PUBLIC_BASE_URL isn't set: results are found by asking only",
            "set it to the address at which providers reach this gateway",
        )
    elif not url.startswith("https://"):
        yield warning(f"PUBLIC_BASE_URL is {url}: providers call https only", "put TLS before it")
    if found.database_allow_superuser:
        yield problem(
            "DATABASE_ALLOW_SUPERUSER is true: no row-level security holds a superuser",
            "set it to false, and give DATABASE_URL a plain role",
        )
    if found.webhook_allow_private_addresses:
        yield warning(
            "WEBHOOK_ALLOW_PRIVATE_ADDRESSES is true: a tenant can reach your network",
            "set it to false",
        )
    if len(found.secret_keys) > 1:
        yield warning(
            f"SECRET_KEYS has {len(found.secret_keys)} keys: a rotation isn't finished",
            "flask secrets rotate, then take the old keys out",
        )
    yield ok("settings were read")


def check_redis() -> Iterator[Finding]:
    """Redis answers, persists its data, and refuses writes rather than evicts keys."""
    try:
        # redis-py's types leave open whether the client is asynchronous.
        said: Any = redis().info()
    except RedisError as error:
        yield warning(
            f"Redis doesn't answer ({type(error).__name__}): it works without, slower",
            "see REDIS_URL, and whether Redis is up",
        )
        return
    yield ok(f"Redis {said.get('redis_version')} answers")
    yield from _room(said, "Redis")
    policy = said.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield warning(
            f"Redis' maxmemory-policy is {policy}: it may drop a lock or a ring unseen",
            "set maxmemory-policy to noeviction",
        )
    if not said.get("aof_enabled"):
        yield warning(
            "Redis has no append-only file: a restart forgets limits and tokens",
            "set appendonly to yes",
        )


def check_broker() -> Iterator[Finding]:
    """The broker carries notifications to the workers; without it they poll each second."""
    celery = current_app.extensions["celery"]
    try:
        with celery.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=3)
            said = _memory(connection)
    except (OperationalError, OSError, RedisError) as error:
        yield warning(
            f"the broker doesn't answer ({type(error).__name__}): workers look each second instead",
            "see CELERY_BROKER_URL",
        )
        return
    yield from _room(said, "the broker")
    yield ok("the broker answers")


def _memory(connection: Connection) -> dict[str, Any]:
    if connection.transport.driver_type != "redis":
        return {}
    # kombu's types know only what all its transports have in common.
    channel: Any = connection.default_channel
    found: dict[str, Any] = channel.client.info("memory")
    return found


def _room(said: dict[str, Any], named: str) -> Iterator[Finding]:
    """The memory use of a Redis that has a limit and evicts nothing."""
    most = said.get("maxmemory", 0)
    if not most or said.get("maxmemory_policy", "noeviction") != "noeviction":
        return
    used = said["used_memory"] - said.get("mem_not_counted_for_evict", 0)
    told = f"{named} uses {used / 2**20:.0f} of {most / 2**20:.0f} MiB"
    remedy = "raise maxmemory, or see what else is kept there"
    if used >= most:
        yield problem(f"{told}: it refuses all that is written", remedy)
    elif used >= _FULL * most:
        yield warning(told, remedy)


def check_providers() -> Iterator[Finding]:
    """Requests a token with each of the platform's own accounts; no money moves."""
    reached = platform_accounts()
    if not reached:
        yield warning(
            "the platform has no provider account: only tenants with their own can be paid",
            "set MTN_TARGET_ENVIRONMENT and the MTN_COLLECTION_… settings, if you want one",
        )
    for seen in check_accounts(reached):
        named = f"{seen['provider']} ({seen['target_environment']})"
        if seen["works"]:
            yield ok(f"{named} takes the platform's credentials")
        else:
            yield problem(
                f"{named} doesn't: {seen['reason']}, HTTP {seen['http_status'] or '-'}",
                "flask providers check shows more; see the credentials and the network",
            )


def check_callbacks() -> Iterator[Finding]:
    """Whether PUBLIC_BASE_URL leads to a gateway, as far as this host can see."""
    url = settings().public_base_url
    if url is None:
        return
    call = HttpRequest("GET", f"{url}{_CALLBACK_PATH}", {}, None, _CALLBACK_MAX_S)
    answer = gateway().transport.unleased().send(call)
    if isinstance(answer, HttpResponse):
        if (answer.status, answer.headers.get("content-type")) == _CALLBACK_ANSWER:
            yield ok(f"{url} leads callbacks to a gateway")
            return
        why = f"HTTP {answer.status} of something else"
    else:
        why = answer.why
    yield warning(
        f"{url}/callbacks/ doesn't lead to a gateway from here: {why}",
        "see DNS, TLS and the way in; from inside it may be no fault",
    )
