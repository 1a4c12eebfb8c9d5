"""Content codings (RFC 9110, 8.4), undone within a bound on what they unfold to. Pure.

We ask for none (`Accept-Encoding: identity`). Who compresses all the same is read all the same.
"""

from __future__ import annotations

import zlib
from typing import Final

_GZIP: Final = 16 + zlib.MAX_WBITS
_ZLIB: Final = zlib.MAX_WBITS
# "deflate" is the zlib format; some servers send the bare one (RFC 9110, 8.4.1.2).
_BARE: Final = -zlib.MAX_WBITS
_FORMATS: Final = {"gzip": (_GZIP,), "x-gzip": (_GZIP,), "deflate": (_ZLIB, _BARE)}


def unfolded(body: bytes, codings: str, bytes_max: int) -> tuple[bytes, bool]:
    """`body` without its `codings`: at most `bytes_max` bytes, and whether that is the whole.

    `codings` is the value of Content-Encoding. A body under one that isn't known stays as it is:
    it can be read, or it can't.
    """
    for coding in reversed([coding.strip().lower() for coding in codings.split(",")]):
        if coding in {"", "identity"}:
            continue
        if coding not in _FORMATS:
            break
        body, whole = _decompressed(body, _FORMATS[coding], bytes_max)
        if not whole:
            return body, False
    return body[:bytes_max], len(body) <= bytes_max


def _decompressed(body: bytes, formats: tuple[int, ...], bytes_max: int) -> tuple[bytes, bool]:
    for window_bits in formats:
        try:
            return _inflated(body, window_bits, bytes_max)
        except zlib.error:
            continue
    return b"", False


def _inflated(body: bytes, window_bits: int, bytes_max: int) -> tuple[bytes, bool]:
    """Raises zlib.error for what isn't of this format."""
    out = b""
    while body:
        inflater = zlib.decompressobj(window_bits)
        out += inflater.decompress(body, bytes_max + 1 - len(out))
        if len(out) > bytes_max or not inflater.eof:
            return out[:bytes_max], False
        # A second member may follow (RFC 1952, 2.2).
        body = inflater.unused_data
    return out, True
