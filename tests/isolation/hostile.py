"""Requests that no honest client sends. Each is all bytes of one connection, with a name."""

from __future__ import annotations

import json
from collections.abc import Iterator

PAYMENTS = b"/api/v1/payments"
AN_ID = b"01a209ad-4164-7047-9850-453984927403"
GOOD = b'{"amount": 1000, "currency": "EUR", "payer": "256772123456"}'
PATHS = (
    PAYMENTS,
    PAYMENTS + b"/" + AN_ID,
    PAYMENTS + b"/" + AN_ID + b"/events",
    b"/callbacks/mtn_momo/" + AN_ID,
    b"/health",
    b"/docs",
    b"/problems/not_found",
    b"/nothing",
)
# Values in place of a name, a value or a whole path.
NASTY = {
    "a null byte": b"%00",
    "an overlong slash": b"%c0%af",
    "an overlong null": b"%c0%80",
    "bytes that are no UTF-8": b"%ff%fe",
    "a lone surrogate": b"%ed%a0%80",
    "dots": b"../../../../etc/passwd",
    "encoded dots": b"%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "twice encoded dots": b"%252e%252e%252f",
    "a backslash": b"..%5c..%5cwindows",
    "a line break": b"%0d%0aSet-Cookie:%20a=b",
    "SQL": b"'%20OR%20'1'='1",
    "SQL with a comment": b"1;DROP%20TABLE%20payments--",
    "a template": b"%7b%7b7*7%7d%7d",
    "a format": b"%25s%25n%25x",
    "a look-up": b"$%7bjndi:ldap://x%7d",
    "a script": b"%3cscript%3ealert(1)%3c/script%3e",
    "half an escape": b"%",
    "a wrong escape": b"%zz",
    "a right-to-left mark": b"%e2%80%ae",
    "very long": b"a" * 3900,
    "longer than a line may be": b"a" * 9000,
    "many slashes": b"/" * 500,
}
RAW = {"a null byte": b"a\0b", "a high byte": b"\xff\xfe", "a tab": b"a\tb", "a lone CR": b"a\rb"}
FILTERS = ("payer", "external_id", "amount", "status", "cursor", "limit", "created_from", "%00")
JSON_VALUES = (
    "null", "true", "-1", "0", "1.5", "1e400", "-0", "1e-400", "NaN", "Infinity", '""', '"\\u0000"',
    '"\\ud800"', "[]", "{}", "[[]]", "9" * 400, '"' + "9" * 400 + '"', '"١٢٣"', '"12.345"',
    '"0x10"', '"\'; DROP TABLE payments; --"', '{"$ne": null}', '"' + "é" * 2000 + '"',
)  # fmt: skip
FIELDS = ("amount", "currency", "payer", "provider", "external_id", "payer_message", "metadata")
METHODS = (
    b"TRACE", b"CONNECT", b"PATCH", b"DELETE", b"PROPFIND", b"get", b"G\xc9T", b"GET\0", b"X" * 300,
    b"", b"DEBUG", b"PUT", b"LOCK", b"POST ", b"M-SEARCH", b"PRI",
)  # fmt: skip


def request(
    path: bytes,
    *headers: bytes,
    method: bytes = b"POST",
    body: bytes = b"",
    version: bytes = b"HTTP/1.1",
    plain: bool = True,
) -> bytes:
    """One request; `plain` adds a content type and a content length."""
    own = (b"Host: gateway", b"Connection: close", b"X-API-Key: KEY")
    usual = (b"Content-Type: application/json", b"Content-Length: %d" % len(body)) if plain else ()
    lines = (b"%s %s %s" % (method, path, version), *own, *usual, *headers, b"", b"")
    return b"\r\n".join(lines) + body


def corpus() -> dict[str, bytes]:
    """All requests, by name."""
    made: dict[str, bytes] = {}
    for name, sent in (*_addresses(), *_bodies(), *_headers(), *_framings(), *_protocols()):
        assert name not in made, name
        made[name] = sent
    return made


def _addresses() -> Iterator[tuple[str, bytes]]:
    for name, nasty in NASTY.items():
        for path in PATHS:
            yield f"{path!r}/{name}", request(path + b"/" + nasty, method=b"GET")
        for field in FILTERS:
            query = PAYMENTS + b"?" + field.encode() + b"=" + nasty
            yield f"?{field}={name}", request(query, method=b"GET")
    for name, raw in RAW.items():
        for path in PATHS:
            yield f"{path!r} and {name} as it is", request(path + raw, method=b"GET")


def _bodies() -> Iterator[tuple[str, bytes]]:
    for field in FIELDS:
        for number, value in enumerate(JSON_VALUES):
            order = {**json.loads(GOOD), field: "HERE"}
            body = json.dumps(order).replace('"HERE"', value, 1).encode("utf-8", "surrogatepass")
            yield f"{field} is value {number}", request(PAYMENTS, body=body)
    whole = {
        "deep lists": b"[" * 30_000,
        "deep objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        "deep metadata": GOOD[:-1] + b', "metadata": ' + b'{"a":' * 900 + b"1" + b"}" * 901,
        "many names": b"{" + b",".join(b'"a%d":1' % n for n in range(4000)) + b"}",
        "one name often": b"{" + b",".join([b'"amount":1'] * 3000) + b"}",
        "more than 64 KiB": b'{"a":"' + b"x" * 70_000 + b'"}',
        "UTF-16": GOOD.decode().encode("utf-16"),
        "UTF-32": GOOD.decode().encode("utf-32"),
        "UTF-7": GOOD.decode().encode("utf-7"),
        "a byte order mark": b"\xef\xbb\xbf" + GOOD,
        "bytes that are no UTF-8": GOOD.replace(b"EUR", b"\xff\xc0\x80"),
        "nothing": b"",
        "a null byte": b"\0",
        "two documents": GOOD + GOOD,
        "XML": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a/>',
        "YAML": b"!!python/object/apply:os.system ['true']",
        "pickle": b"\x80\x04\x95\x01\x00\x00\x00\x00\x00\x00\x00N.",
        "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
        "a form": b"amount=1&currency=EUR",
    }
    for name, body in whole.items():
        for path in (PAYMENTS, PATHS[3]):
            yield f"{path!r} takes {name}", request(path, body=body)


def _headers() -> Iterator[tuple[str, bytes]]:
    for header in ("Idempotency-Key", "X-Tenant-Id", "X-Request-Id", "traceparent",
                   "Authorization", "X-API-Key", "Content-Type", "Accept"):  # fmt: skip
        one = header.encode()
        for name, value in {**RAW, "very long": b"a" * 7000, "too long": b"a" * 20_000,
                            "nothing": b"", "quotes": b'"' * 90, "commas": b"," * 900}.items():  # fmt: skip
            sent = request(PAYMENTS, one + b": " + value, body=GOOD, plain=one != b"Content-Type")
            yield f"{header}: {name}", sent
        twice = (one + b": " + AN_ID, one + b": other")
        yield f"{header} twice", request(PAYMENTS, *twice, body=GOOD)
    tricks = {
        "folded": b"X-A: a\r\n b",
        "a space before the colon": b"X-A : a",
        "no colon": b"X-A",
        "no name": b": a",
        "an underscore": b"X_API_KEY: a",
        "a line feed alone": b"X-A: a\nX-B: b",
        "a hundred": b"\r\n".join(b"X-%d: a" % n for n in range(100)),
        "two hosts": b"Host: evil",
        "another scheme": b"X-Forwarded-Proto: gopher",
        "another source": b"X-Forwarded-For: 127.0.0.1, ::1, 'x",
        "another path": b"X-Original-URL: /admin",
        "another verb": b"X-HTTP-Method-Override: DELETE",
        "a range": b"Range: bytes=0-,0-,0-,0-",
        "an upgrade": b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AA",
        "what is expected": b"Expect: 100-continue",
        "what nobody expects": b"Expect: the-inquisition",
        "an odd charset": b"Content-Type: application/json; charset=utf-7",
        "cookies": b"Cookie: session=eyJhIjoxfQ.x; a=" + b"b" * 4000,
    }
    for name, header in tricks.items():
        for path in (PAYMENTS, b"/health", PATHS[3]):
            yield f"{name} to {path!r}", request(path, header, body=GOOD)


def _framings() -> Iterator[tuple[str, bytes]]:
    chunked = b"Transfer-Encoding: chunked"
    whole = b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)
    framings = {
        "a length and chunks": ((chunked, b"Content-Length: 5"), whole),
        "chunks and a length": ((b"Content-Length: 5", chunked), whole),
        "two lengths": ((b"Content-Length: 5", b"Content-Length: 6"), GOOD),
        "a list of lengths": ((b"Content-Length: 5, 5",), GOOD),
        "a negative length": ((b"Content-Length: -1",), GOOD),
        "a length with a plus": ((b"Content-Length: +60",), GOOD),
        "a length in hexadecimal": ((b"Content-Length: 0x3c",), GOOD),
        "a length without end": ((b"Content-Length: " + b"9" * 60,), GOOD),
        "a length that is too long": ((b"Content-Length: 5000",), GOOD),
        "an unknown coding": ((b"Transfer-Encoding: xchunked",), whole),
        "chunks twice": ((chunked, chunked), whole),
        "chunks in a list": ((b"Transfer-Encoding: chunked, identity",), whole),
        "gzip in chunks": ((b"Transfer-Encoding: gzip, chunked",), whole),
        "chunks spelt with a tab": ((b"Transfer-Encoding:\tchunked",), whole),
        "chunks behind a space": ((b"Transfer-Encoding : chunked",), whole),
        "trailers": ((chunked, b"Trailer: X-API-Key"), whole[:-2] + b"X-API-Key: other\r\n\r\n"),
        "an extension": ((chunked,), whole.replace(b"\r\n", b";a=" + b"b" * 4000 + b"\r\n", 1)),
        "a huge chunk": ((chunked,), b"ffffffffffffffff\r\n" + GOOD),
        "a negative chunk": ((chunked,), b"-1\r\n" + GOOD),
        "chunks without an end": ((chunked,), whole[:-5]),
        "a second request behind": ((b"Content-Length: 0",), request(PAYMENTS, body=GOOD)),
    }
    for name, (headers, body) in framings.items():
        for path in (PAYMENTS, PATHS[3]):
            yield f"{name} to {path!r}", request(path, *headers, body=body, plain=False)


def _protocols() -> Iterator[tuple[str, bytes]]:
    for number, method in enumerate(METHODS):
        for path in (PAYMENTS, PATHS[1], PATHS[3]):
            yield f"method {number} to {path!r}", request(path, method=method)
    addresses = {
        "an absolute address": b"http://evil.example/api/v1/payments",
        "another scheme": b"file:///etc/passwd",
        "an address with a user": b"http://a:b@127.0.0.1/api/v1/payments",
        "an authority": b"evil.example:443",
        "an asterisk": b"*",
        "no slash": b"api/v1/payments",
        "two slashes": b"//evil.example/api/v1/payments",
        "a fragment": PAYMENTS + b"#a",
        "a space": PAYMENTS + b" a",
    }
    for name, address in addresses.items():
        yield f"{name} as the target", request(address, method=b"GET")
    for version in (
        b"HTTP/0.9",
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"HTTP/9.9",
        b"HTTP/1.1.1",
        b"HTTP",
        b"X",
    ):
        yield f"version {version!r}", request(PAYMENTS, method=b"GET", version=version)
    yield "HTTP/0.9 as it was", b"GET /api/v1/payments\r\n"
    yield "HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"
    yield "TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + b"\0" * 200
    yield "nulls", b"\0" * 4096
    yield "line breaks", b"\r\n" * 400
    yield "no end", b"GET /api/v1/payments HTTP/1.1\r\nHost: a\r\n"
    yield "PROXY", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + request(PAYMENTS, method=b"GET")
    for host in (b"", b"evil.example", b"a b", b"[::1", b"a" * 3000, b"\xff", b"x:99999", b"x\0y"):
        lines = b"GET /health/live HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % host
        yield f"host {host[:20]!r}", lines
