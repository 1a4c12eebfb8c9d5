"""Parses the head of an HTTP/1 response, with a limit on its bytes, none on its lines. Pure.

http.client refuses a head of more than 100 lines, and has no public way to change that before
Python 3.15. RFC 9110, 5.4 and RFC 9112 have no such limit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import (
    BadStatusLine,
    HTTPException,
    HTTPMessage,
    IncompleteRead,
    RemoteDisconnected,
    UnknownProtocol,
)
from typing import Final, Protocol

# For all heads of one response together, interim ones included. Curl's limit is about the same.
HEAD_BYTES_MAX: Final = 256 * 1024
# The most interim responses before the final one (RFC 9110, 15.2).
INTERIM_MAX: Final = 10

_STATUS_LINE: Final = re.compile(r"(HTTP/\S+)[ \t]+([1-9][0-9]{2})(?:[ \t]+(.*))?")
_VERSIONS: Final = re.compile(r"HTTP/(0\.9|1\.[0-9]+)")
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH: Final = re.compile(r"[0-9]{1,18}", re.ASCII)


class Lines(Protocol):
    """A source of lines for a head."""

    def readline(self, limit: int, /) -> bytes:
        """A line with its line break; without it where the bytes or `limit` end."""
        ...


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """`version` is 10 or 11, as in http.client. `fields` keep their order and repetitions."""

    version: int
    status: int
    reason: str
    fields: HTTPMessage

    def is_chunked(self) -> bool:
        """Raises HTTPException for a transfer coding that we did not request (RFC 9112, 7.4)."""
        codings = self._members("transfer-encoding") - {"identity"}
        if codings - {"chunked"}:
            raise HTTPException("a transfer coding that was not asked for")
        return bool(codings)

    def length(self) -> int | None:
        """Content-Length. Raises HTTPException if it is invalid or ambiguous (RFC 9112, 6.3)."""
        lengths = self._members("content-length")
        if len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
            raise HTTPException("the length of the answer can't be read")
        return int(lengths.pop()) if lengths else None

    def closes(self) -> bool:
        """Whether the connection ends with this response (RFC 9112, 9.3)."""
        options = self._members("connection")
        if self.version >= 11:  # noqa: PLR2004
            return "close" in options
        return "keep-alive" not in options

    def has_no_body(self) -> bool:
        """Whether the status excludes a body, whatever the fields say (RFC 9112, 6.3)."""
        return self.status < HTTPStatus.OK or self.status in (
            HTTPStatus.NO_CONTENT,
            HTTPStatus.NOT_MODIFIED,
        )

    def _members(self, name: str) -> set[str]:
        values = ",".join(self.fields.get_all(name, []))
        return {member.strip(" \t").lower() for member in values.split(",")} - {""}


def read_head(source: Lines) -> ResponseHead:
    """The head of the final response; interim responses before it are skipped.

    Raises HTTPException if it is not HTTP, is too long or is cut (RFC 9112, 8: such a response is
    incomplete, whatever its status line says).
    """
    left = HEAD_BYTES_MAX
    for _ in range(INTERIM_MAX + 1):
        lines = _lines(source, left)
        left -= sum(map(len, lines))
        head = _head(lines)
        if not _is_interim(head.status):
            return head
    raise HTTPException("interim answers without end")


def _is_interim(status: int) -> bool:
    return status < HTTPStatus.OK and status != HTTPStatus.SWITCHING_PROTOCOLS


def _lines(source: Lines, bytes_max: int) -> Sequence[bytes]:
    """All lines before the empty line."""
    lines: list[bytes] = []
    while True:
        line = source.readline(bytes_max + 1)
        bytes_max -= len(line)
        if bytes_max < 0:
            raise HTTPException("the head is longer than may be read")
        if not line.endswith(b"\n"):
            raise IncompleteRead(line) if lines or line else RemoteDisconnected("no answer")
        if not lines and not line.startswith(b"HTTP/"):
            # Fail at once: a peer that does not speak HTTP may never send an empty line.
            raise BadStatusLine("not HTTP")
        if line in {b"\r\n", b"\n"}:
            return lines
        lines.append(line)


def _head(lines: Sequence[bytes]) -> ResponseHead:
    text = [line.decode("latin-1").rstrip("\r\n") for line in lines]
    found = _STATUS_LINE.fullmatch(text[0])
    if found is None:
        raise BadStatusLine("not a status line")
    if not _VERSIONS.fullmatch(found[1]):
        raise UnknownProtocol("not HTTP/1")
    version = 10 if found[1] in {"HTTP/0.9", "HTTP/1.0"} else 11
    return ResponseHead(version, int(found[2]), (found[3] or "").strip(), _fields(text[1:]))


def _fields(lines: Sequence[str]) -> HTTPMessage:
    """The header fields. A line that is not a field is ignored; the other fields stay valid."""
    found: list[tuple[str, str]] = []
    for line in lines:
        if line.startswith((" ", "\t")):
            if found:
                # A folded line continues the value before it (RFC 9112, 5.2).
                name, value = found.pop()
                found.append((name, value + " " + line.strip(" \t")))
            continue
        name, colon, value = line.partition(":")
        if colon and _NAME.fullmatch(name.rstrip(" \t")):
            found.append((name.rstrip(" \t"), value.strip(" \t")))
    fields = HTTPMessage()
    for name, value in found:
        fields[name] = value
    return fields
