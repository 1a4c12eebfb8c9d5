"""What each fault does: it replaces the call (BEFORE) or alters its response (AFTER)."""

import gzip
import json
import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

from simulator.faults import Fault
from simulator.inputs import count
from simulator.messages import (
    BAD_TOKEN,
    JSON,
    Reply,
    Transmission,
    azure,
    coded,
    forbidden_page,
    request_rejected,
    token_error,
)


def instead(fault: Fault) -> Reply | None:
    """Answer instead of the call; None when the call is processed after a delay."""
    return _INSTEAD[fault.kind](fault)


def altered(fault: Fault, reply: Reply) -> Reply:
    """Alter the response after the call has had its effect."""
    return _ALTERED[fault.kind](fault, reply)


def _wait(fault: Fault) -> None:
    time.sleep(fault.seconds())


def _refused(fault: Fault) -> Reply:
    status_and_body = coded(fault.text("code"))
    return replace(status_and_body, status=500)


def _unanswered(fault: Fault) -> Reply:
    return Reply(0, wire=Transmission(fault.text("how")))


def _busy(fault: Fault, reply: Reply) -> Reply:
    after = fault.parameters["retry_after"]
    return reply if after is None else replace(reply, headers=(("Retry-After", str(after)),))


_INSTEAD: dict[str, Callable[[Fault], Reply | None]] = {
    "refuse_400": lambda _: Reply(400),
    "refuse_500_code": _refused,
    "internal_error": lambda _: coded("INTERNAL_PROCESSING_ERROR"),
    "reset_before": _unanswered,
    "hang": _wait,
    "waf_html_200": lambda _: request_rejected(),
    "html_403": lambda _: forbidden_page(),
    "unauthorized_401": lambda _: azure(401, BAD_TOKEN),
    "quota_403": lambda fault: azure(
        403,
        f"Out of call volume quota. Quota will be replenished in {fault.text('replenished_in')}.",
    ),
    "too_many_429": lambda fault: _busy(fault, azure(429, "Rate limit is exceeded.")),
    "unavailable_503": lambda fault: _busy(fault, coded("SERVICE_UNAVAILABLE")),
    "no_route_404": lambda _: azure(404, "Resource not found"),
    "conflict_409": lambda _: coded("RESOURCE_ALREADY_EXIST"),
    "status_404": lambda _: coded("RESOURCE_NOT_FOUND"),
    "token_500": lambda _: token_error(500, "login_failed"),
    "token_401": lambda _: token_error(401, "invalid_client"),
    "token_html_200": lambda _: request_rejected(),
    "token_slow": _wait,
}


def _late(fault: Fault, reply: Reply) -> Reply:
    return replace(reply, delay_s=reply.delay_s + fault.seconds())


def _unreadable(fault: Fault, reply: Reply) -> Reply:
    match fault.text("form"):
        case "bytes":
            return replace(
                reply, body=b"\x00\xff\x16\x03\x01 not HTTP \xfe\x00", wire=Transmission.RAW
            )
        case "cut":
            return replace(reply, body=reply.body or b'{"status":"', wire=Transmission.CUT)
        case "body":
            return replace(reply, body=b"\x00\xff not JSON \xfe", content_type=JSON)
        case _:
            return Reply(200, b'{"status":"SUCC', JSON)


def _failing(fault: Fault) -> Reply:
    if fault.text("form") == "bare":
        return Reply(500)
    return coded("INTERNAL_PROCESSING_ERROR")


def _with_fields(reply: Reply, fields: dict[str, str]) -> Reply:
    return replace(reply, body=json.dumps({**json.loads(reply.body), **fields}).encode())


def _with_headers(fault: Fault, reply: Reply) -> Reply:
    lines = count("lines", fault.parameters["lines"])
    filler = tuple((f"X-Filler-{number}", "x") for number in range(lines))
    return replace(reply, headers=(*filler, *reply.headers))


def _compressed(reply: Reply) -> Reply:
    headers = (*reply.headers, ("Content-Encoding", "gzip"))
    return replace(reply, body=gzip.compress(reply.body), headers=headers)


def _with_number(reply: Reply) -> Reply:
    """Write the same amount as a JSON number with an exponent."""
    quoted = json.dumps(json.loads(reply.body)["amount"])
    number = f"{Decimal(json.loads(quoted)):E}"
    return replace(reply, body=reply.body.replace(quoted.encode(), number.encode(), 1))


def _without_life(reply: Reply) -> Reply:
    fields = {name: value for name, value in json.loads(reply.body).items() if name != "expires_in"}
    return replace(reply, body=json.dumps(fields).encode())


_ALTERED: dict[str, Callable[[Fault, Reply], Reply]] = {
    "accept_then_401": lambda _fault, _reply: azure(401, BAD_TOKEN),
    "accept_then_404": lambda _fault, _reply: azure(404, "Resource not found"),
    "accept_then_409": lambda _fault, _reply: coded("RESOURCE_ALREADY_EXIST"),
    "accept_then_429": lambda fault, _reply: _busy(fault, azure(429, "Rate limit is exceeded.")),
    "accept_then_500": lambda fault, _reply: _failing(fault),
    "accept_then_503": lambda _fault, _reply: coded("SERVICE_UNAVAILABLE"),
    "accept_then_reset": lambda fault, _reply: _unanswered(fault),
    "accept_then_hang": _late,
    "slow": _late,
    "garbage": _unreadable,
    "empty_200": lambda _fault, _reply: Reply(200),
    "gzip": lambda _fault, reply: _compressed(reply),
    "many_headers": _with_headers,
    "amount_number": lambda _fault, reply: _with_number(reply),
    "token_without_life": lambda _fault, reply: _without_life(reply),
    "unknown_status_word": lambda fault, reply: _with_fields(reply, {"status": fault.text("word")}),
    "status_wrong_amount": lambda fault, reply: _with_fields(
        reply, {"amount": fault.text("amount")}
    ),
    "connection_drip": lambda fault, reply: replace(
        reply, wire=Transmission.DRIP, drip_interval_s=fault.seconds("interval_s")
    ),
}
