"""The worker's hands: threads that wait for providers, so many and no more."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog
from flask import Flask

from payments_app.payments.hands import Errand, Finding

log = structlog.get_logger(__name__)

# A provider that takes two seconds for everything still gets a dozen a second from one process.
HANDS: Final = 32
# So long, once one is home, for others to be written down with it. Nobody waits for so little,
# and a commit for each alone would cost more than the whole exchange.
GATHER_S: Final = 0.02
# What falls due meanwhile is looked for so often, though nobody calls: the clock's own thread may
# be the one that waits here, and the broker away.
LOOK_S: Final = 1.0


class WorkersHands:
    """See payments.hands.Hands. Any thread may call out `look_again`."""

    def __init__(self, app: Flask, count: int = HANDS) -> None:
        self._app = app
        self._count = count
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="hand")
        # Guards what follows: who is out, what has come home (None of who failed), who called.
        self._news = threading.Condition()
        self._out = 0
        self._home: list[Finding | None] = []
        self._called = False

    @property
    def free(self) -> int:
        """See Hands."""
        return self._count - self._out

    @property
    def are_idle(self) -> bool:
        """See Hands."""
        return not self._out

    def send_out(self, errand: Errand) -> None:
        """See Hands."""
        self._out += 1
        self._threads.submit(self._run, errand)

    def come_home(self) -> list[Finding]:
        """See Hands."""
        if not self._out:
            return []
        with self._news:
            self._news.wait_for(lambda: self._home or self._called, LOOK_S)
            if self._home:
                self._news.wait_for(lambda: len(self._home) == self._out, GATHER_S)
            home, self._home, self._called = self._home, [], False
        self._out -= len(home)
        return [finding for finding in home if finding is not None]

    def look_again(self) -> None:
        """There may be more to do: let whoever waits for the hands look."""
        with self._news:
            self._called = True
            self._news.notify_all()

    def join(self) -> None:
        """Wait until those that are out are home: each is bounded."""
        self._threads.shutdown(wait=True)

    def _run(self, errand: Errand) -> None:
        finding = None
        try:
            with self._app.app_context():
                finding = errand()
        except Exception:
            # What became of it isn't written down: its lease ends, and somebody asks.
            log.exception("payment.errand_failed")
        finally:
            with self._news:
                self._home.append(finding)
                self._news.notify_all()
