"""The worker's poller: finds due work and writes checkpoints, also while the broker is unavailable.

Celery's consumer can lose its broker, and sometimes reconnects without receiving anything; then no
notification reaches this process. So a few threads poll the database.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Final, NamedTuple

from celery.signals import worker_init, worker_shutdown, worker_shutting_down
from flask import Flask

from payments_app.integrity import checkpoints
from payments_app.worker.celery_app import HOUSEKEEPING, PAYMENTS, WEBHOOKS
from payments_app.worker.failures import FailuresInARow
from payments_app.worker.heartbeat import Heartbeat
from payments_app.worker.payment_processor import PROCESSOR, PaymentProcessor
from payments_app.worker.webhook_dispatcher import WebhookDispatcher

# At least as often as payments/rate_limit.py releases status checks.
POLL_PAYMENTS_S: Final = 0.5
DISPATCH_WEBHOOKS_S: Final = 0.2
# If a payment's last events are removed before a checkpoint, no check can detect it.
CHECKPOINT_EVERY_S: Final = 60.0
# Well within heartbeat.SILENT_MAX_S.
BEAT_EVERY_S: Final = 5.0
# How long the end of the worker waits for each poll thread. A provider call takes 30 s at most.
JOIN_S: Final = 35.0


# The dispatcher's name in `app.extensions`.
DISPATCHER: Final = "maramoja_webhook_dispatcher"


class _Poll(NamedTuple):
    """The work that a worker polls for, if it consumes `queue`."""

    queue: str
    work: Callable[[], object]
    every_s: float


class Poller:
    """Threads that poll for due payments and deliveries, and write checkpoints, until `stop`.

    A worker polls for the queues that it consumes: `celery worker -Q payments` sends no webhook.
    """

    def __init__(
        self,
        app: Flask,
        stop: threading.Event,
        *,
        checkpoint_every_s: float = CHECKPOINT_EVERY_S,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self._app = app
        self._stop = stop
        self._heartbeat = heartbeat or Heartbeat()
        self._processor: PaymentProcessor = app.extensions[PROCESSOR]
        self._processor.heartbeat = self._heartbeat
        self._dispatcher = WebhookDispatcher(app, stop, self._heartbeat)
        app.extensions[DISPATCHER] = self._dispatcher
        heads_file = app.extensions["maramoja"].settings.audit_heads_file
        self._polls = (
            _Poll(PAYMENTS, self._processor.run_once, POLL_PAYMENTS_S),
            _Poll(WEBHOOKS, self._dispatcher.run_once, DISPATCH_WEBHOOKS_S),
            _Poll(
                HOUSEKEEPING, partial(checkpoints.write_checkpoints, heads_file), checkpoint_every_s
            ),
        )
        self._threads: list[threading.Thread] = []

    def connect(self) -> None:
        """Start and stop with the Celery worker of this process."""
        worker_init.connect(self._start_for_worker, weak=False)
        worker_shutting_down.connect(self.stop, weak=False)
        worker_shutdown.connect(self.join, weak=False)

    def start(self, queues: Collection[str] = (PAYMENTS, WEBHOOKS, HOUSEKEEPING)) -> None:
        """Start to poll for these queues."""
        self._threads = [
            threading.Thread(
                target=self._repeat, args=(poll,), name=f"poll {poll.queue}", daemon=True
            )
            for poll in self._polls
            if poll.queue in queues
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, **_signal: Any) -> None:
        """Take no new work; finish what is under way."""
        self._stop.set()

    def is_alive(self) -> bool:
        """Whether it polls. True also after `stop`, while it finishes what is under way."""
        if self._stop.is_set():
            return True
        running = [thread.is_alive() for thread in self._threads]
        return self._heartbeat.is_fresh() and bool(running) and all(running)

    def join(self, **_signal: Any) -> None:
        """Wait until the work that is under way is finished."""
        for thread in self._threads:
            if thread.is_alive():
                thread.join(JOIN_S)
        self._processor.join()
        self._dispatcher.join()

    def _start_for_worker(self, sender: Any = None, **_signal: Any) -> None:
        """Start for the worker's queues: all of them, or those of -Q, which are known by now."""
        self.start(sender.app.amqp.queues.consume_from)

    def _stops_within(self, seconds: float) -> bool:
        """Wait this long, touching the heartbeat meanwhile; True at once after `stop`."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            if self._stop.wait(min(left_s, BEAT_EVERY_S)):
                return True
            self._heartbeat.touch()
        return self._stop.is_set()

    def _repeat(self, poll: _Poll) -> None:
        failures = FailuresInARow(queue=poll.queue)
        while not self._stops_within(poll.every_s):
            try:
                with self._app.app_context():
                    poll.work()
            except Exception as error:  # noqa: BLE001  it logs, and the poll is tried again
                failures.failed(error)
            else:
                failures.went_well()
