"""The worker's poller: due work is found, and events sealed, while the broker is away.

Celery's consumer can lose its broker, and has been seen to come back without receiving anything;
then no notification reaches this process. A few threads look at the rows themselves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Final, NamedTuple

from celery.signals import worker_init, worker_shutdown, worker_shutting_down
from flask import Flask

from payments_app.payments import checkpoints
from payments_app.worker.celery_app import HOUSEKEEPING, PAYMENTS, WEBHOOKS
from payments_app.worker.failures import FailuresInARow
from payments_app.worker.payment_processor import PROCESSOR, PaymentProcessor
from payments_app.worker.pulse import Pulse
from payments_app.worker.webhook_dispatcher import WebhookDispatcher

# As often as an account's rate hands out questions: see payments/rate_limit.py.
POLL_PAYMENTS_S: Final = 0.5
DISPATCH_WEBHOOKS_S: Final = 0.2
# What was removed before it was sealed leaves no trace of its own.
SEAL_EVERY_S: Final = 60.0
# Well within pulse.SILENT_MAX_S.
BEAT_EVERY_S: Final = 5.0
# A provider call is bounded at 30 s; one that is under way at the end is waited for this long.
JOIN_S: Final = 35.0


# Its name among the app's extensions.
DISPATCHER: Final = "maramoja_webhook_dispatcher"


class _Poll(NamedTuple):
    """What a worker that consumes `queue` does by itself."""

    queue: str
    work: Callable[[], object]
    every_s: float


class Poller:
    """Threads that look for due payments and deliveries, and seal events, until told to stop.

    A worker polls for the queues that it consumes: `celery worker -Q payments` sends no webhook.
    """

    def __init__(
        self,
        app: Flask,
        stop: threading.Event,
        *,
        seal_every_s: float = SEAL_EVERY_S,
        pulse: Pulse | None = None,
    ) -> None:
        self._app = app
        self._stop = stop
        self._pulse = pulse or Pulse()
        self._processor: PaymentProcessor = app.extensions[PROCESSOR]
        self._processor.pulse = self._pulse
        self._dispatcher = WebhookDispatcher(app, stop, self._pulse)
        app.extensions[DISPATCHER] = self._dispatcher
        heads_file = app.extensions["maramoja"].settings.audit_heads_file
        self._polls = (
            _Poll(PAYMENTS, self._processor.run_once, POLL_PAYMENTS_S),
            _Poll(WEBHOOKS, self._dispatcher.run_once, DISPATCH_WEBHOOKS_S),
            _Poll(HOUSEKEEPING, partial(checkpoints.write_checkpoints, heads_file), seal_every_s),
        )
        self._threads: list[threading.Thread] = []

    def connect(self) -> None:
        """Start and stop with the Celery worker of this process."""
        worker_init.connect(self._start_for_worker, weak=False)
        worker_shutting_down.connect(self.stop, weak=False)
        worker_shutdown.connect(self.join, weak=False)

    def start(self, queues: Collection[str] = (PAYMENTS, WEBHOOKS, HOUSEKEEPING)) -> None:
        """Begin to poll for these queues."""
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
        """Take nothing new on; what is under way is finished."""
        self._stop.set()

    def is_alive(self) -> bool:
        """Whether it polls. One that was told to end, and finishes what is under way, does."""
        if self._stop.is_set():
            return True
        running = [thread.is_alive() for thread in self._threads]
        return self._pulse.is_felt() and bool(running) and all(running)

    def join(self, **_signal: Any) -> None:
        """Wait until what was under way is finished."""
        for thread in self._threads:
            if thread.is_alive():
                thread.join(JOIN_S)
        self._processor.join()
        self._dispatcher.join()

    def _start_for_worker(self, sender: Any = None, **_signal: Any) -> None:
        """The worker has chosen its queues by now: all of them, or those of -Q."""
        self.start(sender.app.amqp.queues.consume_from)

    def _stops_within(self, seconds: float) -> bool:
        """Wait so long; True at once when told to stop. A long wait is no silence."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            if self._stop.wait(min(left_s, BEAT_EVERY_S)):
                return True
            self._pulse.beat()
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
