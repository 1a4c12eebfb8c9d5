"""Which header names count as a misspelt Idempotency-Key, and which never do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments_app.api.near_misses import is_near_miss

NEAR = [
    "X-Idempotency-Key",
    "Idempotency_Key",
    "Idempotence-Key",
    "Idempotency-Token",
    "X-Request-Idempotency-Key",
    "IdempotencyKey",
    "Idempotent-Key",
    "X-Idempotent-Key",
    "Idempotency",
    "Idempotency-Id",
    "X-Idempotency",
    "Idempotency-Keys",
    "Idempotencykey",
    "XIdempotencyKey",
    "Idempotency-Key-2",
    "Idempotency.Key",
    "X_IDEMPOTENCY_KEY",
    "Request-Idempotency-Key",
    "My-Shop-Idempotency-Key",
    "Idempotent",
    "Idempotent-Request-Id",
    "Idepotency-Key",
    "Idempotncy-Key",
    "Indempotency-Key",
    "Idemponency-Key",
    "Impotency-Key",
    "Idempontency-Key",
    "Idmpotency-Key",
    "Idempotecny-Key",
    "Idemoptency-Key",
    "Ydempotency-Key",
    "Idempotensy-Key",
    "X-Idepotency-Key",
    "Idem-Key",
    "X-Idem-Key",
    "X-Idem",
    "Idemp-Key",
    "idempotency_key",
    "idempotencyKey",
]
# Headers of RFC 9110 and related RFCs, of browsers, of proxies, and of other gateways.
FAR = [
    "Accept",
    "Accept-Charset",
    "Accept-Encoding",
    "Accept-Language",
    "Access-Control-Request-Headers",
    "Access-Control-Request-Method",
    "Authorization",
    "Baggage",
    "Cache-Control",
    "CF-Connecting-IP",
    "CF-IPCountry",
    "CF-Ray",
    "Client-Request-Id",
    "Connection",
    "Content-Digest",
    "Content-Encoding",
    "Content-Language",
    "Content-Length",
    "Content-Location",
    "Content-Type",
    "Cookie",
    "Correlation-Id",
    "Correlation-Key",
    "CDN-Loop",
    "Currency-Key",
    "Date",
    "Dependency-Key",
    "Competency-Key",
    "Dedupe-Key",
    "Device-Memory",
    "DNT",
    "Dpr",
    "Early-Data",
    "Expect",
    "Forwarded",
    "From",
    "Frequency-Key",
    "Host",
    "If-Match",
    "If-Modified-Since",
    "If-None-Match",
    "If-Unmodified-Since",
    "Keep-Alive",
    "Last-Event-Id",
    "Latency-Key",
    "Link",
    "Max-Forwards",
    "Message-Id",
    "Ocp-Apim-Subscription-Key",
    "Origin",
    "PayPal-Request-Id",
    "Pragma",
    "Prefer",
    "Priority",
    "Proxy-Authorization",
    "Purpose",
    "Range",
    "Referer",
    "Repeatability-First-Sent",
    "Repeatability-Request-ID",
    "Request-Id",
    "Save-Data",
    "Sec-CH-UA",
    "Sec-CH-UA-Mobile",
    "Sec-CH-UA-Platform",
    "Sec-Fetch-Dest",
    "Sec-Fetch-Mode",
    "Sec-Fetch-Site",
    "Sec-GPC",
    "Sec-WebSocket-Key",
    "Side-Menu",
    "Signature",
    "Signature-Input",
    "Stripe-Account",
    "Stripe-Version",
    "TE",
    "Tenancy-Key",
    "Tenant-Id",
    "Traceparent",
    "Tracestate",
    "Trailer",
    "Transfer-Encoding",
    "True-Client-IP",
    "Upgrade",
    "Upgrade-Insecure-Requests",
    "User-Agent",
    "Via",
    "Want-Content-Digest",
    "Warning",
    "X-Amzn-Trace-Id",
    "X-API-Key",
    "X-API-Version",
    "X-Auth-Token",
    "X-B3-SpanId",
    "X-B3-TraceId",
    "X-Callback-Url",
    "X-Client-Id",
    "X-Client-Key",
    "X-Cloud-Trace-Context",
    "X-Correlation-Id",
    "X-CSRF-Token",
    "X-Custom-Header",
    "X-Device-Id",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Proto",
    "X-HTTP-Method-Override",
    "X-Mode",
    "X-Original-URL",
    "X-Real-IP",
    "X-Reference-Id",
    "X-Request-Id",
    "X-Request-Key",
    "X-Request-Start",
    "X-Requested-With",
    "X-Session-Id",
    "X-Signature",
    "X-Target-Environment",
    "X-Tenant-Id",
    "X-Timestamp",
    "X-Trace-Id",
    "X-Transaction-Id",
    "X-Unique-Id",
    "X-User-Id",
    "X-Wallet-Key",
]
WORDS = sorted({word for name in FAR for word in name.split("-")})


@pytest.mark.parametrize("name", NEAR)
def test_a_near_miss_is_one_in_any_case(name: str) -> None:
    assert is_near_miss(name)
    assert is_near_miss(name.upper())
    assert is_near_miss(name.lower())


@pytest.mark.parametrize("name", ["Idempotency-Key", "idempotency-key", "IDEMPOTENCY-KEY"])
def test_the_right_name_is_none(name: str) -> None:
    assert not is_near_miss(name)


@pytest.mark.parametrize("name", FAR)
def test_a_header_that_is_in_use_is_none(name: str) -> None:
    assert not is_near_miss(name)


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5), st.sampled_from(["-", "", "_"]))
def test_nothing_made_of_the_words_of_headers_in_use_is_one(words: list[str], between: str) -> None:
    assert not is_near_miss(between.join(words))


@given(st.text(alphabet="abcfghjlqrsuvwxz0123456789-", min_size=1, max_size=200))
def test_what_shares_none_of_its_letters_is_none(name: str) -> None:
    assert not is_near_miss(name)


@given(
    st.text(alphabet="abcxyz-_.0", max_size=200),
    st.sampled_from(["idempotency", "Idempotent", "IDEMPOTENCE"]),
    st.text(alphabet="abcxyz_.0", min_size=1, max_size=200),
)
def test_whatever_stands_around_the_word_it_is_one(before: str, word: str, behind: str) -> None:
    assert is_near_miss(before + word + behind)


@given(st.data())
def test_one_letter_missing_doubled_or_wrong_makes_one(data: st.DataObject) -> None:
    right = "idempotencykey"
    at = data.draw(st.integers(0, len(right) - 1))
    other = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz"))
    behind = right[at + 1 :]

    for letters in (
        right[:at] + behind,
        right[: at + 1] + right[at] + behind,
        right[:at] + other + behind,
    ):
        assert is_near_miss(letters)
