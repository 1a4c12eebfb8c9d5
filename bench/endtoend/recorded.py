"""Checks the webhooks that the receiver stored: signatures, order, and the same bytes each time."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

from bench.endtoend.receiver import RECORD

# So many signatures are verified, spread over all.
SIGNATURES = 200


@dataclass(frozen=True)
class Received:
    """One request that the receiver stored."""

    at: float
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Findings:
    """The webhooks received about these payments, and when.

    `wrong` has a sentence for each payment or request that breaks a promise.
    """

    times: list[float] = field(default_factory=list)
    repeats: int = 0
    verified: int = 0
    wrong: list[str] = field(default_factory=list)


def requests_in(path: Path, *, start: int = 0) -> Iterator[Received]:
    """All requests that begin at or after this offset of the file, in order of arrival."""
    with path.open("rb") as file:
        file.seek(start)
        while len(head := file.read(RECORD.size)) == RECORD.size:
            at, length = RECORD.unpack(head)
            request = file.read(length)
            if len(request) == length:
                yield _read(at, request)


def _read(at: float, request: bytes) -> Received:
    head, _, body = request.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    pairs = (one.partition(":") for one in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    return Received(at, line.split(" ")[1], headers, body)


def check(
    received: list[Received], secrets: Mapping[str, str], payments: Collection[str]
) -> Findings:
    """Verify what was received about these payments.

    `secrets`: by the path of the endpoint's URL; without any, signatures are not verified.
    """
    found = Findings()
    bytes_of: dict[str, bytes] = {}
    stories: dict[str, list[dict[str, Any]]] = {one: [] for one in payments}
    every = max(1, len(received) // SIGNATURES)
    for number, one in enumerate(received):
        if secrets and number % every == 0:
            _verify(one, secrets.get(one.path, ""), found)
        event = json.loads(one.body)
        if bytes_of.setdefault(event["id"], one.body) != one.body:
            found.wrong.append(f"{event['id']} was sent with other bytes the second time")
        story = stories.get(event["data"].get("payment_id"))
        if story is None:
            continue
        found.times.append(one.at)
        if any(event["id"] == earlier["id"] for earlier in story):
            found.repeats += 1
        else:
            story.append(event)
    found.wrong += [
        f"payment {one} was delivered as {_outline(story)}"
        for one, story in stories.items()
        if not _is_whole(story)
    ]
    return found


def _verify(one: Received, secret: str, found: Findings) -> None:
    try:
        Webhook(secret).verify(one.body, dict(one.headers))
    except (WebhookVerificationError, ValueError) as error:
        found.wrong.append(f"{one.headers.get('webhook-id')}: {error}")
    else:
        found.verified += 1


def _is_whole(events: list[dict[str, Any]]) -> bool:
    """Whether the events are complete, in order, each once. The plain service has no sequence numbers."""
    sequences = [event["data"].get("sequence") for event in events]
    types = [event["type"] for event in events]
    return (
        types[:1] == ["payment.accepted"]
        and types[-1:] == ["payment.successful"]
        and (None in sequences or sequences == list(range(1, len(events) + 1)))
    )


def _outline(events: list[dict[str, Any]]) -> str:
    events_seen = (f"{event['data'].get('sequence', '')} {event['type']}" for event in events)
    return ", ".join(events_seen) or "nothing"
