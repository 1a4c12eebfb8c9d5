"""Decodes content codings (RFC 9110, 8.4), with a limit on the decompressed size. Pure.

We ask for no coding (`Accept-Encoding: identity`). A response that is compressed anyway is decoded.
"""

from __future__ import annotations

import zlib
from typing import Final

_GZIP: Final = 16 + zlib.MAX_WBITS
_ZLIB: Final = zlib.MAX_WBITS
# "deflate" is the zlib format; some servers send raw deflate data (RFC 9110, 8.4.1.2).
_BARE: Final = -zlib.MAX_WBITS
_FORMATS: Final = {"gzip": (_GZIP,), "x-gzip": (_GZIP,), "deflate": (_ZLIB, _BARE)}


def unfolded(body: bytes, codings: str, bytes_max: int) -> tuple[bytes, bool]:
    """`body` decoded: at most `bytes_max` bytes, and whether that is all of it.

    `codings` is the value of Content-Encoding. At an unknown coding it stops, and the body is
    returned as it is then: the adapter reads it if it can.
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
    """Raises zlib.error if the body does not have this format."""
    out = b""
    while body:
        inflater = zlib.decompressobj(window_bits)
        out += inflater.decompress(body, bytes_max + 1 - len(out))
        if len(out) > bytes_max or not inflater.eof:
            return out[:bytes_max], False
        # A second gzip member may follow (RFC 1952, 2.2).
        body = inflater.unused_data
    return out, True
