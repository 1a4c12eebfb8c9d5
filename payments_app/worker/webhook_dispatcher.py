"""Webhooks of this process: one thread claims and records for the threads that send.

Deliveries have threads of their own: a receiver that hangs takes none from the payments.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog
from flask import Flask

from payments_app.kernel.clock import boot_seconds
from payments_app.payments import outbox
from payments_app.webhooks import dispatcher
from payments_app.webhooks.claims import LEASE, DeliveryClaim, DeliveryClaims
from payments_app.webhooks.dispatcher import DeliveryResult
from payments_app.worker.pulse import Pulse

log = structlog.get_logger(__name__)

# At once in one process. One tenant has at most half of them.
SLOTS: Final = 64
SLOTS_PER_TENANT: Final = SLOTS // 2
PUBLISH_EVERY_S: Final = 0.2
# So long, once one result is in, for others to be written with it: a commit for each alone would
# cost more than the exchange.
GATHER_S: Final = 0.01
# A result whose endpoint somebody else has locked is recorded after this, if it is free then.
RECORD_AGAIN_S: Final = 0.02


class WebhookDispatcher:
    """Publishes new events and sends what is due. Any thread may call it."""

    def __init__(self, app: Flask, stop: threading.Event, pulse: Pulse) -> None:
        self._app = app
        self._stop = stop
        self._pulse = pulse
        self._claims = DeliveryClaims(SLOTS_PER_TENANT)
        self._pool = _ExchangePool(app)
        self._unrecorded: list[DeliveryResult] = []
        self._publish_at = 0.0
        # At most one thread runs the loop; a call beside it has it run once more.
        self._running = threading.Lock()
        self._asked = threading.Event()

    def run_once(self) -> None:
        """Publish what is new and send until nothing is due and nothing is under way.

        In an application context. If another thread is at it, that one looks again at once, and
        this call returns.
        """
        self._asked.set()
        self._pool.wake()
        # Asked again while it was about to leave: nobody else would look.
        while self._asked.is_set() and self._running.acquire(blocking=False):
            try:
                self._asked.clear()
                self._publish_at = 0.0
                while self._step():
                    pass
            finally:
                self._running.release()

    def join(self) -> None:
        """Wait until what is under way has ended, and record it: each is bounded."""
        self._pool.join()
        with self._app.app_context(), self._running:
            try:
                self._record(self._pool.collect(0.0))
            except Exception:
                # Their leases end, and they are sent again.
                log.exception("webhooks.not_recorded", count=len(self._unrecorded))

    def _step(self) -> bool:
        """Record what is in, publish if it is time, fill the free slots; whether to go on."""
        # A long queue is no silence.
        self._pulse.beat()
        self._record(self._collect())
        is_busy = bool(self._unrecorded) or not self._pool.is_idle
        if self._stop.is_set():
            return is_busy
        published = self._publish() if self._is_time_to_publish() else None
        claims = self._claims.claim_due(self._pool.free_slots) if self._pool.free_slots else []
        for claim in claims:
            self._pool.submit(claim)
        if claims or is_busy:
            return True
        # Nothing to send: what there is to publish does not wait for its time.
        return bool(self._publish() if published is None else published)

    def _collect(self) -> list[DeliveryResult]:
        wait_s = self._publish_at - time.monotonic()
        if not self._unrecorded:
            return self._pool.collect(wait_s)
        if self._pool.is_idle:
            time.sleep(RECORD_AGAIN_S)
        return self._pool.collect(min(wait_s, RECORD_AGAIN_S))

    def _is_time_to_publish(self) -> bool:
        return self._asked.is_set() or time.monotonic() >= self._publish_at

    def _publish(self) -> int:
        self._asked.clear()
        published = outbox.publish_outbox()
        self._app.extensions["maramoja"].egress.close_idle()
        self._publish_at = time.monotonic() + PUBLISH_EVERY_S
        return published

    def _record(self, results: list[DeliveryResult]) -> None:
        """Also what an earlier call could not: the database was away, or an endpoint locked."""
        for result in results:
            self._claims.release(result.claim)
            if not result.is_ours:
                self._claims.learn(
                    result.claim,
                    delivered=result.is_delivered,
                    elapsed_s=result.seen.elapsed_s,
                )
        # Once its lease is over, somebody else has it.
        ended = boot_seconds() - LEASE.total_seconds()
        held = [result for result in self._unrecorded if result.claim.taken_at > ended]
        self._unrecorded = held + results
        self._unrecorded = dispatcher.record(self._unrecorded)


class _ExchangePool:
    """Threads that send, one claim each. One thread submits and collects; any may wake it."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._threads = ThreadPoolExecutor(
            SLOTS, thread_name_prefix="webhook", initializer=self._enter_context
        )
        # Guards what follows.
        self._changed = threading.Condition()
        self._under_way = 0
        self._results: list[DeliveryResult] = []
        self._is_woken = False

    @property
    def free_slots(self) -> int:
        """How many claims may be submitted now."""
        return SLOTS - self._under_way

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._under_way

    def submit(self, claim: DeliveryClaim) -> None:
        """Have it sent. There must be a free slot: a claim's lease runs from the claim."""
        self._under_way += 1
        self._threads.submit(self._send, claim)

    def collect(self, wait_s: float) -> list[DeliveryResult]:
        """The results that are in; waits so long at most for the first, in seconds.

        Returns without any at once if nothing is under way, or if it is woken.
        """
        with self._changed:
            if self._under_way:
                self._changed.wait_for(lambda: self._results or self._is_woken, max(0.0, wait_s))
                if self._results:
                    self._changed.wait_for(lambda: len(self._results) == self._under_way, GATHER_S)
            results, self._results, self._is_woken = self._results, [], False
            self._under_way -= len(results)
        return results

    def wake(self) -> None:
        """Let whoever waits in `collect` go on."""
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until nothing is under way. Nothing may be submitted after it."""
        self._threads.shutdown(wait=True)

    def _enter_context(self) -> None:
        # Of the thread, for as long as it lives: one for each exchange would cost as much as it.
        self._app.app_context().push()

    def _send(self, claim: DeliveryClaim) -> None:
        parts = self._app.extensions["maramoja"]
        try:
            result = dispatcher.send(claim, egress=parts.egress, cipher=parts.cipher)
        except Exception:
            log.exception("webhook.exchange_failed", delivery_id=str(claim.delivery_id))
            result = dispatcher.unknown_result(claim)
        with self._changed:
            self._results.append(result)
            # The first one begins the gathering, and the last one ends it.
            if len(self._results) in (1, self._under_way):
                self._changed.notify_all()
