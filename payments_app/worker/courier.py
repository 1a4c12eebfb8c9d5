"""Deliveries have threads of their own: a receiver that hangs takes none from the payments."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog
from flask import Flask

from payments_app.payments import news
from payments_app.webhooks import outbound
from payments_app.webhooks.outbound import Post
from payments_app.worker.pulse import Pulse

log = structlog.get_logger(__name__)

# At once in one process. A tenant may have PER_TENANT of them.
SLOTS: Final = 32
PUBLISH_EVERY_S: Final = 0.2


class Courier:
    """One look at a time publishes and claims; the slots send."""

    def __init__(self, app: Flask, stop: threading.Event, pulse: Pulse) -> None:
        self._app = app
        self._stop = stop
        self._pulse = pulse
        self._publish_at = 0.0
        self._free = threading.BoundedSemaphore(SLOTS)
        self._slots = ThreadPoolExecutor(SLOTS, thread_name_prefix="deliver")

    def look(self) -> None:
        """Publish what is new, then send until nothing is due; in an application context."""
        self._publish()
        while not self._stop.is_set():
            # A long queue is no silence.
            self._pulse.beat()
            # Claimed only once somebody is free to send it: a lease runs from the claim.
            if not self._free.acquire(timeout=PUBLISH_EVERY_S):
                self._publish()
                continue
            try:
                post = outbound.claim_due()
            except BaseException:
                self._free.release()
                raise
            if post is None:
                self._free.release()
                return
            self._slots.submit(self._deliver, post)
            # A long queue must not keep what is new from being published.
            if time.monotonic() >= self._publish_at:
                self._publish()

    def _publish(self) -> None:
        news.publish_news()
        self._publish_at = time.monotonic() + PUBLISH_EVERY_S

    def join(self) -> None:
        """Wait until what is under way has ended: each is bounded."""
        self._slots.shutdown(wait=True)

    def _deliver(self, post: Post) -> None:
        try:
            parts = self._app.extensions["maramoja"]
            with self._app.app_context():
                outbound.deliver(post, egress=parts.egress, cipher=parts.cipher)
        except Exception:
            # What came of it isn't written down: the lease ends, and it is sent again.
            log.exception("webhook.not_recorded", delivery_id=str(post.delivery.id))
        finally:
            self._free.release()
