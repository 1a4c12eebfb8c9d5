"""Celery for this app: JSON only, no results, threads. The broker may lose every message."""

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

# Threads, because tasks mostly wait for providers; each holds a database connection only at times.
CONCURRENCY: Final = 16
TICK_S: Final = 1.0
PURGE_RESPONSES_S: Final = 300.0
ERASE_PAYERS_S: Final = 3600.0
SEAL_EVENTS_S: Final = 60.0
PURGE_DELIVERIES_S: Final = 3600.0
# The check reads all rows, so it runs at night (UTC), when few requests wait for the database.
CHECK_INVARIANTS_AT: Final = crontab(hour="1", minute="40")
BROKER_TIMEOUT_S: Final = 2.0
REDIS_PORT: Final = 6379
# Each queue can have its own workers: celery -A celery_worker worker -Q payments. A worker without
# -Q consumes all queues.
PAYMENTS: Final = "payments"
WEBHOOKS: Final = "webhooks"
HOUSEKEEPING: Final = "maramoja"
QUEUES: Final = (PAYMENTS, WEBHOOKS, HOUSEKEEPING)
_QUEUE_OF: Final = {Job.PROCESS_DUE: PAYMENTS, Job.DISPATCH_WEBHOOKS: WEBHOOKS}
# Job names of the release before 2026-12. During an upgrade both releases run.
_OLD_NAMES: Final = {"payments.advance": Job.PROCESS_DUE}
# Queue arguments for RabbitMQ; Redis ignores them. They drop old notifications, so that workers
# that were down for a day don't receive a day's backlog.
DROP_OLD: Final = {"x-message-ttl": 30_000, "x-max-length": 10_000}
# RabbitMQ and a worker detect a dead connection in twice this time.
HEARTBEAT_S: Final = 10.0


def init_celery(app: Flask, broker_url: str) -> Celery:
    """Make the Celery app, bound to `app`, and store it in `app.extensions["celery"]`.

    It also stores the payment processor there, which this process's tasks share.
    """

    class ContextTask(Task):  # type: ignore[misc]  # Celery has no types
        """Each task runs in its own application context, and so with its own database session."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            with app.app_context(), _traced(self):
                return self.run(*args, **kwargs)

    celery = Celery("maramoja", task_cls=ContextTask, include=["payments_app.worker.tasks"])
    celery.conf.update(_configuration(broker_address(broker_url)))
    celery.set_default()
    # Keep our own log configuration: Celery's would add a second format and hide what is below
    # WARNING.
    setup_logging.connect(_leave_logs_alone)
    app.extensions["celery"] = celery
    app.extensions[PROCESSOR] = PaymentProcessor(app)
    _accept_old_names(celery)
    return celery


def broker_address(url: str) -> str:
    """`url` in kombu's form, where it differs from redis-py's.

    kombu has another scheme for a Unix socket, reads the database from the path only, and over
    TLS would accept any certificate.
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
    """A span in the trace of the notification; none for a task that Celery beat sent."""
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
        # A poll replaces a lost notification within TICK_S, so none is written to disk.
        "task_default_delivery_mode": "transient",
        "task_queues": [_queue(name) for name in QUEUES],
        "worker_pool": "threads",
        "worker_concurrency": CONCURRENCY,
        "worker_prefetch_multiplier": 1,
        # Celery would raise the prefetch count again from a pool thread, which then uses the main
        # thread's AMQP connection: both wait, for ever or until read_timeout. Seen on 5.7.0, each
        # time RabbitMQ was killed while tasks ran.
        "worker_enable_prefetch_count_reduction": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_send_task_events": False,
        "worker_enable_remote_control": False,
        # In memory: two beats in one folder don't share a file, and its state may be lost.
        "beat_scheduler": "payments_app.worker.scheduler:TickingScheduler",
        "beat_schedule": _schedule(),
    }


def _schedule() -> dict[str, Any]:
    return {
        "process-due": _every(TICK_S, Job.PROCESS_DUE, expires_s=5),
        "dispatch-webhooks": _every(TICK_S, Job.DISPATCH_WEBHOOKS, expires_s=5),
        "expire-answers": _every(PURGE_RESPONSES_S, Job.PURGE_RESPONSES, expires_s=60),
        "erase-payers": _every(ERASE_PAYERS_S, Job.ERASE_PAYERS, expires_s=600),
        "forget-deliveries": _every(PURGE_DELIVERIES_S, Job.PURGE_DELIVERIES, expires_s=600),
        "seal-events": _every(SEAL_EVENTS_S, Job.WRITE_CHECKPOINTS, expires_s=30),
        "check-invariants": _every(CHECK_INVARIANTS_AT, Job.CHECK_INVARIANTS, expires_s=3600),
    }


def _every(when: float | crontab, job: Job, *, expires_s: int) -> dict[str, Any]:
    return {"task": job.value, "schedule": when, "options": {"expires": expires_s}}


def _queue(name: str) -> Queue:
    exchange = Exchange(HOUSEKEEPING)  # type: ignore[no-untyped-call]
    return Queue(name, exchange, name, queue_arguments=DROP_OLD)  # type: ignore[no-untyped-call]


def _accept_old_names(celery: Celery) -> None:
    """Forward a notification with an old job name, from any queue, under the new name."""

    def forward(job: Job) -> Callable[[], None]:
        def notify_under_new_name() -> None:
            notify(job)

        return notify_under_new_name

    for name, job in _OLD_NAMES.items():
        celery.task(forward(job), name=name, ignore_result=True, shared=False)


def _transport_options(broker_url: str) -> dict[str, Any]:
    """Timeouts: a broker that hangs must delay a caller by BROKER_TIMEOUT_S at most."""
    if broker_url.startswith("redis"):
        return {
            "socket_timeout": BROKER_TIMEOUT_S,
            "socket_connect_timeout": BROKER_TIMEOUT_S,
            "max_retries": 0,
        }
    # No publisher confirms: they cost a round trip for each notification, which may be lost anyway.
    return {
        "read_timeout": BROKER_TIMEOUT_S,
        "write_timeout": BROKER_TIMEOUT_S,
        "max_retries": 0,
    }
