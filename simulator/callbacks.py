"""Callbacks to the gateway: how many, when, and whether they are true (1.13).

A body never contains the reference id. Callbacks wait in memory: those not yet sent are lost with
the process, as MTN's may be.
"""

import heapq
import http.client
import itertools
import json
import queue
import threading
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from simulator.ledger import Payment
from simulator.scenarios import Status
from simulator.settings import Settings
from simulator.status_bodies import status_body
from simulator.store import Store

_SENDERS = 4
# An unreachable gateway must not fill our memory: what does not fit is dropped and recorded.
_QUEUE_MAX = 10_000
_FORGED_FINANCIAL_ID = "1999999999"


@dataclass(frozen=True, slots=True)
class Mode:
    """How the callbacks of one payment behave."""

    name: str
    times: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class _Parcel:
    """The callbacks of one payment, to be sent one after the other."""

    reference_id: str
    mode: str
    verb: str
    url: str
    bodies: tuple[str, ...]
    timeout_s: float


class Callbacks:
    """Plans callbacks and sends them on its own threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: queue.Queue[_Parcel | None] = queue.Queue(_QUEUE_MAX)
        self._late: list[tuple[float, int, _Parcel]] = []
        self._late_lock = threading.Lock()
        self._order = itertools.count()
        self._stopped = False
        # Modes that a fault gave to single payments, until these end.
        self._own_modes: dict[str, Mode] = {}
        self._threads = [
            threading.Thread(target=self._send_forever, name=f"callback-{n}", daemon=True)
            for n in range(_SENDERS)
        ]

    def start(self) -> None:
        """Start the sending threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let the threads end after what they are sending; nothing is recorded from here on."""
        self._stopped = True
        for _ in self._threads:
            try:
                self._queue.put_nowait(None)
            except queue.Full:
                return

    def created(self, payment: Payment, settings: Settings, own_mode: Mode | None) -> None:
        """Plan the callbacks of a new payment, before the response to its creation."""
        mode = own_mode or _mode_of(settings)
        if own_mode is not None and payment.status is Status.PENDING:
            self._own_modes[payment.order.reference_id] = own_mode
        if mode.name == "forged":
            self._dispatch(payment, settings, mode, (_forged(payment),))
        elif payment.status is not Status.PENDING:
            self._dispatch(payment, settings, mode, _told(payment, mode))

    def ended(self, payment: Payment, settings: Settings) -> None:
        """Send the callbacks of a payment that was PENDING and is final now."""
        mode = self._own_modes.pop(payment.order.reference_id, None) or _mode_of(settings)
        if mode.name != "forged":
            self._dispatch(payment, settings, mode, _told(payment, mode))

    def release_due(self, now: float) -> None:
        """Queue the late callbacks that are due."""
        with self._late_lock:
            while self._late and self._late[0][0] <= now:
                self._enqueue(heapq.heappop(self._late)[2])

    def _dispatch(
        self, payment: Payment, settings: Settings, mode: Mode, told: tuple[Payment, ...]
    ) -> None:
        url = payment.order.callback_url
        if url is None or not told:
            return
        parcel = _Parcel(
            reference_id=payment.order.reference_id,
            mode=mode.name,
            verb=settings.callback_verb,
            url=url,
            bodies=tuple(json.dumps(status_body(one, settings.reason_form)) for one in told),
            timeout_s=settings.callback_timeout_s,
        )
        if mode.name == "early":
            self._send(parcel)
        elif mode.name == "late":
            due_at = self._store.clock.now() + mode.delay_s
            with self._late_lock:
                heapq.heappush(self._late, (due_at, next(self._order), parcel))
        else:
            self._enqueue(parcel)

    def _enqueue(self, parcel: _Parcel) -> None:
        try:
            self._queue.put_nowait(parcel)
        except queue.Full:
            for body in parcel.bodies:
                self._note(parcel, body, "dropped: the queue is full")

    def _send_forever(self) -> None:
        while (parcel := self._queue.get()) is not None:
            self._send(parcel)

    def _send(self, parcel: _Parcel) -> None:
        for body in parcel.bodies:
            self._note(parcel, body, _deliver(parcel, body))

    def _note(self, parcel: _Parcel, body: str, answer: str) -> None:
        if self._stopped:
            return
        self._store.evidence.record_callback(
            self._store.clock.now(),
            (parcel.reference_id, parcel.mode, parcel.verb, parcel.url, body, answer),
        )


def _mode_of(settings: Settings) -> Mode:
    return Mode(settings.callback_mode, settings.callback_times, settings.callback_delay_s)


def _told(payment: Payment, mode: Mode) -> tuple[Payment, ...]:
    """List what the callbacks of a final payment say, in order."""
    wrong = replace(payment, order=replace(payment.order, amount="1" + payment.order.amount))
    special: dict[str, tuple[Payment, ...]] = {
        "none": (),
        "twice": (payment, payment),
        "times": (payment,) * mode.times,
        "out_of_order": (payment, _as(payment, Status.PENDING)),
        "contradictory": (payment, _opposite(payment)),
        "wrong_amount": (wrong,),
    }
    return special.get(mode.name, (payment,))


def _as(payment: Payment, status: Status, reason: str | None = None) -> Payment:
    financial_id = _FORGED_FINANCIAL_ID if status is Status.SUCCESSFUL else None
    return replace(payment, status=status, reason=reason, financial_transaction_id=financial_id)


def _forged(payment: Payment) -> Payment:
    return _as(payment, Status.SUCCESSFUL)


def _opposite(payment: Payment) -> Payment:
    if payment.status is Status.SUCCESSFUL:
        return _as(payment, Status.FAILED, "APPROVAL_REJECTED")
    return _forged(payment)


def _deliver(parcel: _Parcel, body: str) -> str:
    """Send one callback; returns the receiver's status or the error."""
    url = urlsplit(parcel.url)
    secure = url.scheme == "https"
    connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    path = url.path or "/"
    connection = connect(url.hostname or "", url.port, timeout=parcel.timeout_s)
    try:
        connection.request(
            parcel.verb,
            f"{path}?{url.query}" if url.query else path,
            body=body.encode(),
            headers={"Content-Type": "application/json"},
        )
        return str(connection.getresponse().status)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"error: {type(error).__name__}"
    finally:
        connection.close()
