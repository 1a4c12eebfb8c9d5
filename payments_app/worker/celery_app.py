"""Celery for this app: JSON only, no results, threads; it may forget everything."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from celery import Celery, Task
from celery.schedules import crontab
from celery.signals import setup_logging
from flask import Flask
from kombu.entity import Exchange, Queue
from redis.connection import parse_url

from payments_app.kernel import tracing
from payments_app.kernel.jobs import TRACEPARENT, Job, notify
from payments_app.kernel.trace_context import traceparent_of
from payments_app.kernel.tracing import Kind
from payments_app.worker.payment_processor import PROCESSOR, PaymentProcessor

# Work is waiting for providers, so threads; each holds a database connection at most at times.
CONCURRENCY: Final = 16
TICK_S: Final = 1.0
EXPIRE_ANSWERS_S: Final = 300.0
ERASE_PAYERS_S: Final = 3600.0
SEAL_EVENTS_S: Final = 60.0
FORGET_DELIVERIES_S: Final = 3600.0
# It reads everything, so at night (UTC), when few wait for the database.
CHECK_INVARIANTS_AT: Final = crontab(hour="1", minute="40")
BROKER_TIMEOUT_S: Final = 2.0
REDIS_PORT: Final = 6379
# Each can be given workers of its own: celery -A celery_worker worker -Q payments. Without -Q a
# worker consumes all.
PAYMENTS: Final = "payments"
WEBHOOKS: Final = "webhooks"
HOUSEKEEPING: Final = "maramoja"
QUEUES: Final = (PAYMENTS, WEBHOOKS, HOUSEKEEPING)
_QUEUE_OF: Final = {Job.PROCESS_DUE: PAYMENTS, Job.DISPATCH_WEBHOOKS: WEBHOOKS}
# What processes of the release before 2026-12 call them. During an upgrade both run.
_OLD_NAMES: Final = {"payments.advance": Job.PROCESS_DUE}
# RabbitMQ's; Redis has no use for them. Workers that were away for a day don't find a day's notifications.
DROP_OLD: Final = {"x-message-ttl": 30_000, "x-max-length": 10_000}
# RabbitMQ and a worker that lost each other without a word find out in twice this time.
HEARTBEAT_S: Final = 10.0


def init_celery(app: Flask, broker_url: str) -> Celery:
    """Make the Celery app, bound to `app`, and leave it in `app.extensions["celery"]`.

    Beside it stands the payment processor, which this process's tasks share.
    """

    class ContextTask(Task):  # type: ignore[misc]  # Celery has no types
        """A task runs in an application context of its own: its own database session."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with app.app_context(), _traced(self):
                return self.run(*args, **kwargs)

    celery = Celery("maramoja", task_cls=ContextTask, include=["payments_app.worker.tasks"])
    celery.conf.update(_configuration(broker_address(broker_url)))
    celery.set_default()
    # Our own log set-up stands; Celery's would add a second form and hide what is below WARNING.
    setup_logging.connect(_leave_logs_alone)
    app.extensions["celery"] = celery
    app.extensions[PROCESSOR] = PaymentProcessor(app)
    _accept_old_names(celery)
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


def _traced(task: Task) -> AbstractContextManager[object]:
    """In the trace of who notified; a tick of beat is nobody's, and no span."""
    caused_by = traceparent_of((task.request.headers or {}).get(TRACEPARENT))
    if caused_by is None:
        return nullcontext()
    return tracing.span(f"task {task.name}", Kind.CONSUMER, parent=caused_by)


def _leave_logs_alone(**_signal: Any) -> None:
    """Celery configures no logging when this signal has a receiver."""


def _configuration(broker_url: str) -> dict[str, Any]:
    return {
        "broker_url": broker_url,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_connection_timeout": BROKER_TIMEOUT_S,
        "broker_transport_options": _transport_options(broker_url),
        "broker_heartbeat": HEARTBEAT_S,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_default_queue": HOUSEKEEPING,
        "task_routes": {str(job): {"queue": queue} for job, queue in _QUEUE_OF.items()},
        # A notification that its broker loses is made up for within TICK_S: none is worth a disk.
        "task_default_delivery_mode": "transient",
        "task_queues": [_queue(name) for name in QUEUES],
        "worker_pool": "threads",
        "worker_concurrency": CONCURRENCY,
        "worker_prefetch_multiplier": 1,
        # Celery raises it again from a pool thread, and meets the main thread on the same AMQP
        # connection: both wait, for ever or until read_timeout. Seen on 5.7.0, each time RabbitMQ
        # was killed while tasks ran.
        "worker_enable_prefetch_count_reduction": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_send_task_events": False,
        "worker_enable_remote_control": False,
        # In memory: two beats in one folder don't fight over a file, and nothing is lost with it.
        "beat_scheduler": "payments_app.worker.scheduler:TickingScheduler",
        "beat_schedule": _schedule(),
    }


def _schedule() -> dict[str, Any]:
    return {
        "process-due": _every(TICK_S, Job.PROCESS_DUE, expires_s=5),
        "dispatch-webhooks": _every(TICK_S, Job.DISPATCH_WEBHOOKS, expires_s=5),
        "expire-answers": _every(EXPIRE_ANSWERS_S, Job.EXPIRE_ANSWERS, expires_s=60),
        "erase-payers": _every(ERASE_PAYERS_S, Job.ERASE_PAYERS, expires_s=600),
        "forget-deliveries": _every(FORGET_DELIVERIES_S, Job.FORGET_DELIVERIES, expires_s=600),
        "seal-events": _every(SEAL_EVENTS_S, Job.SEAL_EVENTS, expires_s=30),
        "check-invariants": _every(CHECK_INVARIANTS_AT, Job.CHECK_INVARIANTS, expires_s=3600),
    }


def _every(when: float | crontab, job: Job, *, expires_s: int) -> dict[str, Any]:
    return {"task": job.value, "schedule": when, "options": {"expires": expires_s}}


def _queue(name: str) -> Queue:
    exchange = Exchange(HOUSEKEEPING)  # type: ignore[no-untyped-call]
    return Queue(name, exchange, name, queue_arguments=DROP_OLD)  # type: ignore[no-untyped-call]


def _accept_old_names(celery: Celery) -> None:
    """A notification under an old name, on whatever queue, becomes one under the new name."""

    def forward(job: Job) -> Callable[[], None]:
        def notify_under_new_name() -> None:
            notify(job)

        return notify_under_new_name

    for name, job in _OLD_NAMES.items():
        celery.task(forward(job), name=name, ignore_result=True, shared=False)


def _transport_options(broker_url: str) -> dict[str, Any]:
    """A broker that hangs must cost a request no more than BROKER_TIMEOUT_S."""
    if broker_url.startswith("redis"):
        return {
            "socket_timeout": BROKER_TIMEOUT_S,
            "socket_connect_timeout": BROKER_TIMEOUT_S,
            "max_retries": 0,
        }
    # No publisher confirms: a round trip in each request, for a notification that may be lost.
    return {
        "read_timeout": BROKER_TIMEOUT_S,
        "write_timeout": BROKER_TIMEOUT_S,
        "max_retries": 0,
    }
