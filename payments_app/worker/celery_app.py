"""Celery for this app: JSON only, no results, threads; it may forget everything."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from celery import Celery, Task
from celery.signals import setup_logging
from flask import Flask
from redis.connection import parse_url

from payments_app.kernel.jobs import Job

# Work is waiting for providers, so threads; each holds a database connection at most at times.
CONCURRENCY: Final = 16
TICK_S: Final = 1.0
EXPIRE_ANSWERS_S: Final = 300.0
ERASE_PAYERS_S: Final = 3600.0
SEAL_EVENTS_S: Final = 60.0
FORGET_DELIVERIES_S: Final = 3600.0
BROKER_TIMEOUT_S: Final = 2.0
REDIS_PORT: Final = 6379


def init_celery(app: Flask, broker_url: str) -> Celery:
    """Make the Celery app, bound to `app`, and leave it in `app.extensions["celery"]`."""

    class ContextTask(Task):  # type: ignore[misc]  # Celery has no types
        """A task runs in an application context of its own: its own database session."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery = Celery("maramoja", task_cls=ContextTask, include=["payments_app.worker.tasks"])
    celery.conf.update(_configuration(broker_address(broker_url)))
    celery.set_default()
    # Our own log set-up stands; Celery's would add a second form and hide what is below WARNING.
    setup_logging.connect(_leave_logs_alone)
    app.extensions["celery"] = celery
    return celery


def broker_address(url: str) -> str:
    """`url` in kombu's words, where they differ from redis-py's.

    kombu has another scheme for a Unix socket, takes the database from the path only, and over
    TLS would trust whoever answers.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss", "unix"):
        return url
    given = parse_url(url)  # type: ignore[no-untyped-call]
    login = ":".join(quote(given.get(name, ""), safe="") for name in ("username", "password"))
    login = "" if login == ":" else f"{login}@"
    database = given.get("db", 0)
    if parts.scheme == "unix":
        return f"redis+socket://{login}{parts.path}?virtual_host={database}"
    host, port = given.get("host", "localhost"), given.get("port", REDIS_PORT)
    address = f"{parts.scheme}://{login}{f'[{host}]' if ':' in host else host}:{port}/{database}"
    tls = {name: value for name, value in parse_qsl(parts.query) if name.startswith("ssl_")}
    if parts.scheme == "rediss":
        tls.setdefault("ssl_cert_reqs", "required")
    return f"{address}?{urlencode(tls)}" if tls else address


def _leave_logs_alone(**_signal: Any) -> None:
    """Celery configures no logging when this signal has a receiver."""


def _configuration(broker_url: str) -> dict[str, Any]:
    # A broker that hangs must cost a request no more than BROKER_TIMEOUT_S.
    options: dict[str, Any] = {}
    if broker_url.startswith("redis"):
        options = {
            "socket_timeout": BROKER_TIMEOUT_S,
            "socket_connect_timeout": BROKER_TIMEOUT_S,
            "max_retries": 0,
        }
    return {
        "broker_url": broker_url,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_connection_timeout": BROKER_TIMEOUT_S,
        "broker_transport_options": options,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_default_queue": "maramoja",
        "task_create_missing_queues": True,
        "worker_pool": "threads",
        "worker_concurrency": CONCURRENCY,
        "worker_prefetch_multiplier": 1,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_send_task_events": False,
        "worker_enable_remote_control": False,
        # In memory: two beats in one folder don't fight over a file, and nothing is lost with it.
        "beat_scheduler": "celery.beat:Scheduler",
        "beat_schedule": {
            "advance": _every(TICK_S, Job.ADVANCE_PAYMENTS, expires_s=5),
            "expire-answers": _every(EXPIRE_ANSWERS_S, Job.EXPIRE_ANSWERS, expires_s=60),
            "erase-payers": _every(ERASE_PAYERS_S, Job.ERASE_PAYERS, expires_s=600),
            "forget-deliveries": _every(FORGET_DELIVERIES_S, Job.FORGET_DELIVERIES, expires_s=600),
            "seal-events": _every(SEAL_EVENTS_S, Job.SEAL_EVENTS, expires_s=30),
        },
    }


def _every(seconds: float, job: Job, *, expires_s: int) -> dict[str, Any]:
    return {"task": job.value, "schedule": seconds, "options": {"expires": expires_s}}
