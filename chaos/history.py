"""What the clients sent and received, recorded line by line: asked, ok, refused or unknown.

A timeout, a broken connection and a 5xx are `unknown`, never a failure: the request may have
been processed. One line of JSON for each, flushed, so that a run that crashes leaves its history.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

Outcome = Literal["asked", "ok", "refused", "unknown"]

_TRANSIENT: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS})


@dataclass(frozen=True, slots=True)
class Line:
    """One line: a request before it is sent, or its outcome (with the same `call`)."""

    at: float
    call: int
    client: str
    tenant: str
    act: str
    outcome: Outcome
    key: str | None = None
    payment_id: str | None = None
    status: int | None = None
    code: str | None = None
    body: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A client's request, recorded before it is sent."""

    client: str
    tenant: str
    act: str
    key: str | None = None
    payment_id: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer, or the name of the error if there was none."""

    status: int | None = None
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None

    @property
    def outcome(self) -> Outcome:
        """What the client may conclude from it."""
        if self.status is None or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return "unknown"
        if self.status < HTTPStatus.BAD_REQUEST:
            return "ok"
        in_progress = self.code == "idempotency_key_in_progress"
        return "unknown" if in_progress or self.status in _TRANSIENT else "refused"

    @property
    def code(self) -> str | None:
        """The problem's stable code, if the answer is a problem document."""
        if self.status is None or self.status < HTTPStatus.BAD_REQUEST:
            return None
        return _text(self.document().get("code"))

    def document(self) -> dict[str, object]:
        """The body as JSON; empty when it is not a JSON object."""
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


class History:
    """Collects lines from many threads, in memory and in a file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._lock = threading.Lock()
        self._calls = itertools.count(1)
        self.lines: list[Line] = []

    def __enter__(self) -> Self:
        """Return the history itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()

    def asked(self, what: Asked, body: object = None) -> int:
        """Record a request before it is sent; return its number."""
        call = next(self._calls)
        text = None if body is None else json.dumps(body)
        self._add(Line(time.time(), call, outcome="asked", body=text, **asdict(what)))
        return call

    def answered(self, what: Asked, call: int, reply: Reply) -> None:
        """Record the outcome of a request."""
        self._add(
            Line(
                time.time(),
                call,
                outcome=reply.outcome,
                status=reply.status,
                code=reply.code,
                body=reply.body if reply.status is not None else None,
                headers=reply.headers,
                error=reply.error,
                **asdict(what),
            )
        )

    def count(self, outcome: Outcome) -> int:
        """The number of lines with this outcome so far."""
        with self._lock:
            return sum(line.outcome == outcome for line in self.lines)

    def _add(self, line: Line) -> None:
        text = json.dumps({name: value for name, value in asdict(line).items() if value})
        with self._lock:
            self.lines.append(line)
            self._file.write(f"{text}\n")
            self._file.flush()


def keys_of(lines: Iterable[Line]) -> set[tuple[str, str]]:
    """Every (tenant, key) that was used."""
    return {(line.tenant, line.key) for line in lines if line.key is not None}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
