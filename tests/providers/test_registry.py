"""Adapters are found by name: our own, and those in a partner's package."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from redis import Redis

from payments_app.kernel.secrets import Cipher
from payments_app.providers.registry import GROUP, ProviderUnknown, Registry
from payments_app.providers.tokens import TokenCache

ADAPTER = """
class Adapter:
    code = "{code}"
    def __init__(self, tokens):
        self.tokens = tokens
"""


@pytest.fixture
def tokens() -> TokenCache:
    return TokenCache(Redis(port=1), Cipher([Fernet.generate_key().decode()]))


def install(where: Path, module: str, *, name: str, code: str) -> None:
    """Install a package with one adapter, as pip would leave it on the path."""
    (where / f"{module}.py").write_text(ADAPTER.format(code=code))
    metadata = where / f"{module}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}:Adapter\n")


def test_our_own_adapters_are_there(tokens: TokenCache) -> None:
    registry = Registry.load(tokens)
    assert "mtn_momo" in registry.codes()
    assert registry.get("mtn_momo").code == "mtn_momo"


def test_an_unknown_code_is_told_as_such(tokens: TokenCache) -> None:
    with pytest.raises(ProviderUnknown) as caught:
        Registry.load(tokens).get("no_such")
    assert caught.value.code == "provider_unknown"


def test_a_partners_package_brings_its_adapter_along(
    tokens: TokenCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "partner_rail_one", name="partner", code="partner")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry.load(tokens)
    assert registry.codes() == ["mtn_momo", "partner"]
    assert registry.get("partner").code == "partner"


def test_an_adapter_may_not_go_by_another_name(
    tokens: TokenCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "partner_rail_two", name="partner", code="other")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"'other'.*'partner'"):
        Registry.load(tokens)


def test_nobody_takes_the_place_of_one_of_ours(
    tokens: TokenCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "partner_rail_three", name="mtn_momo", code="mtn_momo")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="two provider adapters are named 'mtn_momo'"):
        Registry.load(tokens)


def test_an_adapter_that_cannot_be_loaded_stops_the_start(tokens: TokenCache) -> None:
    with pytest.raises(ModuleNotFoundError):
        Registry.of([EntryPoint("gone", "no_such_module:Adapter", GROUP)], tokens)
