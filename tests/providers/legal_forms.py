"""One document and one answer in every form that RFC 8259 and RFC 9112 allow, drawn by Hypothesis."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from hypothesis import strategies as st

BOM = b"\xef\xbb\xbf"
# Members that our code does not read; one of them has a name like one that it reads.
EXTRA = {
    "payer": {"partyIdType": "MSISDN", "partyId": "46733123450", "status": "FAILED"},
    "payerMessage": 'A "quoted" \\ line\nwith ünïcödé, \U0001f600 and \x01',
    "": [],
    "Status": "FAILED",
    "numbers": [0, -0.0, 1e400, 123456789012345678901234567890, True, None],
    "deep": [[[[{"amount": "1"}]]]],
}


@st.composite
def number_forms(draw: st.DrawFn, whole: int) -> str:
    """A JSON number, or a string of one, that is exactly `whole`."""
    exponent = draw(st.integers(-40, 8))
    fraction = Decimal(whole).scaleb(-exponent)
    digits = f"{fraction:f}"
    if "." not in digits and draw(st.booleans()):
        digits += "." + "0" * draw(st.integers(1, 30))
    elif "." in digits:
        digits += "0" * draw(st.integers(0, 30))
    mark = draw(st.sampled_from("eE"))
    sign = draw(st.sampled_from(["", "+"])) if exponent >= 0 else ""
    zeros = "0" * draw(st.integers(0, 2))
    number = digits
    if exponent or draw(st.booleans()):
        number += f"{mark}{sign}{'-' * (exponent < 0)}{zeros}{abs(exponent)}"
    return draw(string_forms(number)) if draw(st.booleans()) else number


@st.composite
def string_forms(draw: st.DrawFn, text: str) -> str:
    """A JSON string, with escapes where none are needed."""
    return '"' + "".join(draw(_character(char)) for char in text) + '"'


@st.composite
def _character(draw: st.DrawFn, char: str) -> str:
    units = char.encode("utf-16-be").hex()
    escaped = "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
    forms = [json.dumps(char)[1:-1], escaped, escaped.upper().replace("\\U", "\\u")]
    if char == "/":
        forms.append("\\/")
    return draw(st.sampled_from(forms))


spaces = st.text(" \t\r\n", max_size=3)


@st.composite
def json_forms(draw: st.DrawFn, members: Mapping[str, str]) -> bytes:
    """An object of `members`, whose values are JSON already, as bytes."""
    extra = draw(st.lists(st.sampled_from(sorted(EXTRA)), unique=True))
    values = {**members, **{name: json.dumps(EXTRA[name]) for name in extra}}
    values = {name: value.replace("Infinity", "1e400") for name, value in values.items()}
    names = draw(st.permutations(sorted(values)))

    def spaced(text: str) -> str:
        return draw(spaces) + text + draw(spaces)

    pairs = [spaced(draw(string_forms(name))) + ":" + spaced(values[name]) for name in names]
    text = spaced("{" + ",".join(pairs) + "}")
    return (BOM if draw(st.booleans()) else b"") + text.encode()


@dataclass(frozen=True)
class Coding:
    """A content coding: its name in the header, and how it encodes a body."""

    name: str
    form: str = ""

    def folded(self, body: bytes) -> bytes:
        match self.form or self.name.lower():
            case "gzip" | "x-gzip":
                return gzip.compress(body)
            case "members":
                middle = len(body) // 2
                return gzip.compress(body[:middle]) + gzip.compress(body[middle:])
            case "deflate":
                return zlib.compress(body)
            case "bare":
                packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
                return packer.compress(body) + packer.flush()
            case _:
                return body


CODINGS = (
    Coding("identity"),
    Coding("gzip"),
    Coding("GZip"),
    Coding("x-gzip"),
    Coding("gzip", "members"),
    Coding("deflate"),
    Coding("deflate", "bare"),
)


@st.composite
def http_forms(draw: st.DrawFn, status: int, body: bytes) -> bytes:
    """A whole answer of `status` with `body`, for a connection that closes after it."""
    codings = draw(st.lists(st.sampled_from(CODINGS), max_size=2))
    for coding in codings:
        body = coding.folded(body)
    fields = [
        f"X-Filler-{number}: {number}" for number in range(draw(st.sampled_from([0, 3, 250])))
    ]
    # Lines of one field must keep their order (RFC 9110, 5.3), and the fields are shuffled below.
    if len(codings) > 1 or (codings and draw(st.booleans())):
        fields.append("content-ENCODING:" + " , ".join(coding.name for coding in codings))
    else:
        fields += [f"Content-Encoding:\t{coding.name} " for coding in codings]
    match draw(st.sampled_from(["length", "chunked", "close"])):
        case "length":
            fields += [f"content-length: {len(body)}"] * draw(st.integers(1, 2))
        case "chunked":
            fields.append("Transfer-Encoding: Chunked")
            body = draw(_chunks(body))
        case _:
            fields.append("Connection: close")
    fields.append("X-Long: " + "x" * draw(st.sampled_from([0, 30_000])))
    head = [f"HTTP/1.1 {status}{draw(st.sampled_from([' OK', ' ', '']))}"]
    head += draw(st.permutations(fields)) if len(fields) < 20 else fields
    ends = draw(st.sampled_from(["\r\n", "\n"]))
    return draw(_announced()) + ends.join((*head, "", "")).encode("latin-1") + body


@st.composite
def _announced(draw: st.DrawFn) -> bytes:
    interim: Sequence[bytes] = (
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n",
    )
    return b"".join(draw(st.lists(st.sampled_from(interim), max_size=2)))


@st.composite
def _chunks(draw: st.DrawFn, body: bytes) -> bytes:
    size = draw(st.integers(1, max(1, len(body))))
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    extension = draw(st.sampled_from([b"", b";a=b"]))
    trailer = draw(st.sampled_from([b"", b"X-Trailer: a\r\n"]))
    chunks = [b"%X%s\r\n%s\r\n" % (len(part), extension, part) for part in parts]
    return b"".join(chunks) + b"0\r\n" + trailer + b"\r\n"
