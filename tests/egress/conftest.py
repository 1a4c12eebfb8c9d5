"""Fixtures of the tests of outgoing webhooks: receivers, their names and their certificates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from payments_app.kernel.http.egress import Egress, EgressRules
from tests.egress.receivers import Authority
from tests.providers.conftest import app_context, serve
from tests.pure.hostile_urls import Names

__all__ = ["app_context", "serve"]

Making = Callable[..., Egress]


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Signs receivers' certificates."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def egress() -> Egress:
    """As in development: private addresses are allowed, and every name is this machine."""
    return Egress(
        EgressRules(allow_private=True), user_agent="Maramoja/test", resolve=Names("127.0.0.1")
    )


@pytest.fixture
def guarded(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Making:
    """As in production, but 127.0.0.1 counts as public; no other address of this machine does."""
    monkeypatch.setattr(
        "payments_app.kernel.http.egress.is_public", lambda one: str(one) == "127.0.0.1"
    )

    def make(port: int, names: Names, ca_file: Path | None = authority.path) -> Egress:
        return Egress(
            EgressRules(ports=(port,)),
            user_agent="Maramoja/test",
            ca_file=str(ca_file) if ca_file else None,
            resolve=names,
        )

    return make
