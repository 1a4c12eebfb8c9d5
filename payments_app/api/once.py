"""Makes a change once per Idempotency-Key, and replays its answer; for payments see payments/accept.py.

The transaction of the change also takes the key and stores the answer. If a change needs several
transactions, the last one does: before it, a retry finds no answer, and makes the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Protocol

from flask import Response, current_app, request
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from payments_app.api.authentication import caller
from payments_app.api.idempotent import key_of_request, wait_for_original
from payments_app.kernel import idempotency, stored_answers
from payments_app.kernel.database import transaction
from payments_app.kernel.encryption import DataKey
from payments_app.kernel.errors import GatewayError
from payments_app.kernel.idempotency import (
    Attempt,
    Earlier,
    KeyExpired,
    KeyInProgress,
    StoredAnswer,
)
from payments_app.kernel.postgres import is_lock_timeout

# Builds the response to a change, in its transaction.
Render = Callable[[Session, Any], Response]


class Change(Protocol):
    """Makes a change, and calls `keep` with its result in the change's last transaction."""

    def __call__(self, *, keep: Callable[[Session, Any], None]) -> object:
        """Raises GatewayError if the change can't be made."""
        ...


class _Taken(Exception):
    """Another request with this key has committed in the meantime."""


def change_once(
    asked: Mapping[str, object], change: Change, render: Render, *, path: str | None = None
) -> Response:
    """Make the change and answer with `render`, or replay the first answer to this key.

    `asked`: the validated body, without None values. `path`: the address of what is changed; for a
    new resource, the answer's Location. Raises what the change raises, KeyInvalid, KeyReused,
    KeyInProgress, KeyExpired, DataKeyUnreadable.
    """
    answer = _Answer(render, path, _claim(asked))
    if answer.claim is None:
        change(keep=answer.keep)
        return answer.made
    if (earlier := wait_for_original(answer.find) or answer.find()) is not None:
        return earlier
    try:
        change(keep=answer.keep)
    except _Taken:
        earlier = answer.find()
    except GatewayError:
        # This request may fail because the first one has made the change.
        if (earlier := answer.find()) is None:
            raise
    else:
        return answer.made
    if earlier is None:
        raise RuntimeError("a key that is neither ours nor to be found")
    return earlier


@dataclass(frozen=True, slots=True)
class _Claim:
    """A request under a key, and the key that encrypts its answer: read before any transaction."""

    attempt: Attempt
    data_key: DataKey

    def encrypt(self, body: bytes) -> bytes:
        return self.data_key.encrypt(body, about=f"answer {self.attempt.key}")

    def decrypt(self, body: bytes) -> bytes:
        """Raises DataKeyUnreadable."""
        return self.data_key.decrypt(body, about=f"answer {self.attempt.key}")


@dataclass
class _Answer:
    """The answer to a request: built by the change, or found under its key."""

    render: Render
    path: str | None
    claim: _Claim | None
    _made: Response | None = None

    @property
    def made(self) -> Response:
        """The response to the change that was made."""
        if self._made is None:
            raise RuntimeError("a change that has kept no answer")
        return self._made

    def keep(self, session: Session, result: object) -> None:
        """Build the answer, and store it under the key. Raises _Taken, KeyInProgress."""
        self._made = self.render(session, result)
        if self.claim is None:
            return
        headers = {name: self._made.headers[name] for name in _STORED if name in self._made.headers}
        body = self.claim.encrypt(self._made.get_data())
        settings = current_app.extensions["maramoja"].settings
        try:
            is_ours = stored_answers.keep_answer(
                session,
                self.claim.attempt,
                resource_path=self.path or headers["Location"],
                answer=StoredAnswer(self._made.status_code, headers, body),
                keep_for=timedelta(hours=settings.idempotency_ttl_hours),
            )
        except OperationalError as error:
            if not is_lock_timeout(error):
                raise
            raise KeyInProgress(
                "The first request with this Idempotency-Key is still running.", retry_after_s=1
            ) from None
        if not is_ours:
            raise _Taken

    def find(self) -> Response | None:
        """The first answer to the key. Raises KeyReused, KeyExpired, DataKeyUnreadable."""
        if self.claim is None:
            return None
        attempt = self.claim.attempt
        with transaction(attempt.tenant_id) as session:
            row = stored_answers.find_row(session, attempt)
        return None if row is None else _again(self.claim, idempotency.earlier_of(attempt, row))


_STORED = ("Content-Type", "Location")


def _again(claim: _Claim, earlier: Earlier) -> Response:
    if earlier.answer is None or earlier.is_past_expiry:
        raise KeyExpired(
            "The answer to this Idempotency-Key is no longer kept; what it changed is.",
            resource=earlier.resource_path,
        )
    response = Response(claim.decrypt(earlier.answer.body), earlier.answer.status)
    response.headers.update(earlier.answer.headers)
    response.headers["Idempotent-Replayed"] = "true"
    return response


def _claim(asked: Mapping[str, object]) -> _Claim | None:
    """None without a key. Raises KeyInvalid, DataKeyUnreadable."""
    key = key_of_request(required=False)
    if key is None:
        return None
    rule = request.url_rule
    place = {name: str(value) for name, value in (request.view_args or {}).items()}
    body = {name: _canonical(value) for name, value in asked.items() if value is not None}
    context = caller()
    data_key: DataKey = current_app.extensions["maramoja"].keyring.key_for(context.tenant_id)
    attempt = Attempt(
        tenant_id=context.tenant_id,
        mode=context.mode,
        key=key,
        fields={"method": request.method, "route": rule.rule if rule else "", **place, **body},
        digest=partial(data_key.digest, about="request"),
    )
    return _Claim(attempt, data_key)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_text)


def _text(value: object) -> str:
    """A value as text. An instant gives the same text in every offset."""
    if not isinstance(value, datetime):
        return str(value)
    try:
        return value.astimezone(UTC).isoformat()
    except OverflowError:
        # In UTC it is before the year 1 or after the year 9999.
        return str((value - _EPOCH) // timedelta(microseconds=1))
