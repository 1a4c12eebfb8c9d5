"""A compressed body takes no more memory than its limit, however large it is decompressed."""

from __future__ import annotations

import gzip
import tracemalloc

import pytest

from payments_app.kernel.http.content_coding import unfolded

BYTES_MAX = 64 * 1024


@pytest.mark.parametrize("codings", ["gzip", "gzip, gzip"])
def test_a_bomb_is_not_unfolded(codings: str) -> None:
    bomb = gzip.compress(b" " * 60_000_000)
    if codings == "gzip, gzip":
        bomb = gzip.compress(bomb)
    tracemalloc.start()
    body, whole = unfolded(bomb[:BYTES_MAX], codings, BYTES_MAX)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (body, whole) == (b" " * len(body), False)
    assert len(body) <= BYTES_MAX
    assert peak < 10 * BYTES_MAX
