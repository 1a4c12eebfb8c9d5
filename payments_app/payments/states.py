"""The state machine of a payment, as a table. Pure: a transition that isn't in it is illegal."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class Status(StrEnum):
    """The public status. The last two are final."""

    PENDING = "PENDING"
    SUCCESSFUL = "SUCCESSFUL"
    FAILED = "FAILED"


class Stage(StrEnum):
    """The stage of a payment; more detailed than the status, with fewer guarantees.

    ACCEPTED: stored here; nothing was sent to the provider, or nothing that had an effect.
    SUBMITTING: a worker may send it; it may have arrived.
    AWAITING_PAYER: the provider has it.
    UNKNOWN: sent, with an unknown outcome; we check its status.
    FINAL: ended, on the provider's evidence.
    """

    ACCEPTED = "accepted"
    SUBMITTING = "submitting"
    AWAITING_PAYER = "awaiting_payer"
    UNKNOWN = "unknown"
    FINAL = "final"


class Event(StrEnum):
    """What can happen to a payment. The values are the types of its events; SUBMITTING and NOT_SENT
    write none.
    """

    ACCEPTED = "payment.accepted"
    SUBMITTING = "payment.submitting"
    NOT_SENT = "payment.handed_back"
    PENDING = "payment.pending"
    UNKNOWN = "payment.unknown"
    SUCCESSFUL = "payment.successful"
    FAILED = "payment.failed"
    CONTRADICTED = "payment.contradicted"


class Step(StrEnum):
    """The next step for an open payment."""

    SUBMIT = "submit"
    CHECK = "check"


class State(NamedTuple):
    """Status and stage, which change together."""

    status: Status
    stage: Stage


class IllegalTransition(Exception):
    """This event can't happen to a payment in this stage."""


INITIAL_STATE: Final = State(Status.PENDING, Stage.ACCEPTED)
_SUBMITTING: Final = State(Status.PENDING, Stage.SUBMITTING)
_WAITING: Final = State(Status.PENDING, Stage.AWAITING_PAYER)
_UNKNOWN: Final = State(Status.PENDING, Stage.UNKNOWN)
_PAID: Final = State(Status.SUCCESSFUL, Stage.FINAL)
_FAILED: Final = State(Status.FAILED, Stage.FINAL)

# A resend doesn't change what is known: only the first submission leaves ACCEPTED.
TRANSITIONS: Final[dict[tuple[Stage, Event], State]] = {
    (Stage.ACCEPTED, Event.SUBMITTING): _SUBMITTING,
    # A restored database doesn't know what was sent since the backup: see recovery.py.
    (Stage.ACCEPTED, Event.UNKNOWN): _UNKNOWN,
    (Stage.SUBMITTING, Event.SUBMITTING): _SUBMITTING,
    (Stage.AWAITING_PAYER, Event.SUBMITTING): _WAITING,
    (Stage.UNKNOWN, Event.SUBMITTING): _UNKNOWN,
    (Stage.SUBMITTING, Event.NOT_SENT): INITIAL_STATE,
    (Stage.SUBMITTING, Event.PENDING): _WAITING,
    (Stage.UNKNOWN, Event.PENDING): _WAITING,
    (Stage.AWAITING_PAYER, Event.PENDING): _WAITING,
    (Stage.SUBMITTING, Event.UNKNOWN): _UNKNOWN,
    (Stage.UNKNOWN, Event.UNKNOWN): _UNKNOWN,
    (Stage.AWAITING_PAYER, Event.UNKNOWN): _UNKNOWN,
    (Stage.SUBMITTING, Event.SUCCESSFUL): _PAID,
    (Stage.AWAITING_PAYER, Event.SUCCESSFUL): _PAID,
    (Stage.UNKNOWN, Event.SUCCESSFUL): _PAID,
    (Stage.SUBMITTING, Event.FAILED): _FAILED,
    (Stage.AWAITING_PAYER, Event.FAILED): _FAILED,
    (Stage.UNKNOWN, Event.FAILED): _FAILED,
}


def next_state(stage: Stage, event: Event) -> State:
    """The state after `event` in `stage`. Raises IllegalTransition."""
    try:
        return TRANSITIONS[stage, event]
    except KeyError:
        raise IllegalTransition(f"{event} can't happen to a payment that is {stage}") from None
