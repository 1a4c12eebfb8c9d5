"""This process's webhook dispatcher: one thread claims and records, others send.

Deliveries have their own thread pool: a receiver that hangs takes no thread from the payments.
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
from payments_app.worker.heartbeat import Heartbeat

log = structlog.get_logger(__name__)

# Deliveries at once in one process. One tenant has at most half of the slots.
SLOTS: Final = 64
SLOTS_PER_TENANT: Final = SLOTS // 2
PUBLISH_EVERY_S: Final = 0.2
# After the first result, wait this long for more and write them in one transaction: a commit for
# each result would cost more than its exchange.
GATHER_S: Final = 0.03
# If another transaction has locked a result's endpoint, try to record the result again after this.
RECORD_AGAIN_S: Final = 0.02


class WebhookDispatcher:
    """Publishes new events and sends due deliveries. Any thread may call it."""

    def __init__(self, app: Flask, stop: threading.Event, heartbeat: Heartbeat) -> None:
        self._app = app
        self._stop = stop
        self._heartbeat = heartbeat
        self._claims = DeliveryClaims(SLOTS_PER_TENANT)
        self._pool = _ExchangePool(app)
        self._unrecorded: list[DeliveryResult] = []
        self._publish_at = 0.0
        # At most one thread runs the loop; a concurrent call sets a flag that makes it run again.
        self._running = threading.Lock()
        self._asked = threading.Event()

    def run_once(self) -> None:
        """Publish new events and send, until no delivery is due and none is under way.

        Call it in an application context. If another thread runs the loop already, that thread runs
        it again at once, and this call returns.
        """
        self._asked.set()
        self._pool.wake()
        # If another call set the flag while this loop was ending, no other thread would run it.
        while self._asked.is_set() and self._running.acquire(blocking=False):
            try:
                self._asked.clear()
                self._publish_at = 0.0
                while self._step():
                    pass
            finally:
                self._running.release()

    def join(self) -> None:
        """Wait for the exchanges that are under way, each with a deadline, and record them."""
        self._pool.join()
        with self._app.app_context(), self._running:
            try:
                self._record(self._pool.collect(0.0))
            except Exception:
                # Their leases end, and the deliveries are sent again.
                log.exception("webhooks.not_recorded", count=len(self._unrecorded))

    def _step(self) -> bool:
        """Record results, publish if it is time, fill the free slots; returns whether to go on."""
        # The process also counts as alive while it works off a long queue.
        self._heartbeat.touch()
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
        # Nothing to send: publish now, without waiting for the next time.
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
        """Record these and earlier results that failed: no database, or an endpoint was locked."""
        for result in results:
            self._claims.release(result.claim)
            if not result.is_ours:
                self._claims.learn(
                    result.claim,
                    delivered=result.is_delivered,
                    elapsed_s=result.seen.elapsed_s,
                )
        # Drop results whose lease is over: another worker may have claimed the delivery.
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
        # Guards the fields below.
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
        """Send it in a thread. There must be a free slot, because the lease runs already."""
        self._under_way += 1
        self._threads.submit(self._send, claim)

    def collect(self, wait_s: float) -> list[DeliveryResult]:
        """The finished results; waits at most `wait_s` seconds for the first one.

        Returns an empty list at once if nothing is under way, or if it is woken.
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
        """Let a thread that waits in `collect` continue."""
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until nothing is under way. Nothing may be submitted after it."""
        self._threads.shutdown(wait=True)

    def _enter_context(self) -> None:
        # One app context for the thread's whole life: one for each exchange would cost as much as
        # the exchange.
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
            # Notify for the first result, which starts the wait for more, and for the last one.
            if len(self._results) in (1, self._under_way):
                self._changed.notify_all()
