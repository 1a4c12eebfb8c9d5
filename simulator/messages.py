"""Requests and replies as values: handlers make the replies, the server sends them.

Source of the body shapes: provider facts 1.4 to 1.10. There are three error shapes, and clients
depend on the difference: Azure's `{statusCode, message}`, MTN's `{code, message}`, and `{error}`
of the token endpoints.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from urllib.parse import parse_qsl

JSON = "application/json"
HTML = "text/html; charset=utf-8"

NO_SUCH_KEY = (
    "Access denied due to invalid subscription key. "
    "Make sure to provide a valid key for an active subscription."
)
NO_KEY = (
    "Access denied due to missing subscription key. "
    "Make sure to include subscription key when making requests to an API."
)
BAD_TOKEN = "Unauthorized. Access token is invalid or has expired."  # noqa: S105 - a message

# MTN's `code` → (HTTP status, message). Logical refusals have status 500 (1.10).
CODED: dict[str, tuple[int, str]] = {
    "RESOURCE_NOT_FOUND": (404, "Requested resource was not found."),
    "RESOURCE_ALREADY_EXIST": (409, "Duplicated reference id. Creation of resource failed."),
    "SERVICE_UNAVAILABLE": (503, "Service temporarily unavailable, try again later."),
    "INTERNAL_PROCESSING_ERROR": (500, "An internal error occurred while processing."),
    "NOT_ALLOWED": (500, "Authorization failed. Insufficient permissions."),
    "NOT_ALLOWED_TARGET_ENVIRONMENT": (500, "Access to target environment is forbidden."),
    "INVALID_CALLBACK_URL_HOST": (
        500,
        "Callback URL with different host name than configured for API User.",
    ),
    "INVALID_CURRENCY": (500, "Currency not supported."),
    "PAYER_NOT_FOUND": (500, "Payer not found."),
    "PAYEE_NOT_FOUND": (500, "Payee does not exist."),
    "PAYEE_NOT_ALLOWED_TO_RECEIVE": (500, "Payee is unable to receive the payment."),
    "PAYER_LIMIT_REACHED": (500, "The payer's limit has been breached."),
    "NOT_ENOUGH_FUNDS": (500, "The payer does not have enough funds."),
    "COULD_NOT_PERFORM_TRANSACTION": (500, "The transaction could not be performed."),
    "APPROVAL_REJECTED": (500, "The payer rejected the request."),
    "EXPIRED": (500, "The request was not approved in time."),
}


class Transmission(Enum):
    """How the server sends a reply on the wire."""

    NORMAL = "normal"
    RESET = "reset"  # no answer; the connection is reset (RST)
    CLOSE = "close"  # no answer; the connection is closed (FIN)
    DRIP = "drip"  # byte by byte
    CUT = "cut"  # Content-Length is more than is sent
    RAW = "raw"  # the body alone, which is not HTTP


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; header names are in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes

    def header(self, name: str) -> str:
        """Read a header; an empty string when it is not there."""
        return self.headers.get(name, "")

    def argument(self, name: str) -> str | None:
        """Read a query parameter, the last one when it is repeated."""
        return dict(parse_qsl(self.query)).get(name)

    def document(self) -> object:
        """Read the body as JSON; None when it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Reply:
    """One response, and how it is sent to the client."""

    status: int
    body: bytes = b""
    content_type: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    delay_s: float = 0.0
    wire: Transmission = Transmission.NORMAL
    drip_interval_s: float = 0.0

    @property
    def status_on_wire(self) -> int | None:
        """The status that the client can read, if it can read one."""
        return (
            None
            if self.wire in {Transmission.RESET, Transmission.CLOSE, Transmission.RAW}
            else self.status
        )


class RefusedError(Exception):
    """A check refused the request; it has the reply."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


def json_reply(status: int, payload: object) -> Reply:
    """Answer with a JSON body."""
    return Reply(status, json.dumps(payload, separators=(",", ":")).encode(), JSON)


def azure(status: int, message: str) -> Reply:
    """Answer in the shape of the Azure gateway in front of MTN."""
    return json_reply(status, {"statusCode": status, "message": message})


def coded(code: str) -> Reply:
    """Answer in MTN's own shape; a code that is not in the table has status 500."""
    status, message = CODED.get(code, (500, code.replace("_", " ").capitalize() + "."))
    return json_reply(status, {"code": code, "message": message})


def token_error(status: int, error: str) -> Reply:
    """Answer in the shape of the token endpoints (1.5)."""
    return json_reply(status, {"error": error})


def request_rejected() -> Reply:
    """Answer as the web application firewall: 200, HTML, and nothing was created (1.10)."""
    return Reply(
        200,
        b"<html><head><title>Request Rejected</title></head><body>The requested URL was rejected."
        b" Please consult with your administrator.<br><br>Your support ID is: 17105582614"
        b"</body></html>",
        HTML,
    )


def forbidden_page() -> Reply:
    """Answer with the gateway's HTML 403 (1.2)."""
    return Reply(
        403,
        b"<html><head><title>403 Forbidden</title></head><body><center><h1>403 Forbidden</h1>"
        b"</center><hr><center>Microsoft-Azure-Application-Gateway/v2</center></body></html>",
        HTML,
    )
