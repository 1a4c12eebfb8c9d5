"""The adapters by their code: ours and partners', loaded alike. See docs/adding-a-provider.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Final, cast

from payments_app.kernel.errors import GatewayError
from payments_app.providers.contract import Provider
from payments_app.providers.tokens import TokenCache

GROUP: Final = "payments_app.providers"
# Strings, not imports: nothing in the gateway may depend on one provider's module.
BUILT_IN: Final[Mapping[str, str]] = {
    "mtn_momo": "payments_app.providers.mtn_momo:MtnMomo",
}


class ProviderUnknown(GatewayError):
    """No adapter of this installation has this code."""

    code = "provider_unknown"


class Registry:
    """All adapters of this process, loaded once at the start."""

    def __init__(self, providers: Mapping[str, Provider]) -> None:
        self._providers = dict(providers)

    @classmethod
    def load(cls, tokens: TokenCache) -> Registry:
        """Load every adapter. Raises, and so stops the start, when one of them is faulty."""
        built_in = [EntryPoint(code, where, GROUP) for code, where in BUILT_IN.items()]
        return cls.of([*built_in, *entry_points(group=GROUP)], tokens)

    @classmethod
    def of(cls, points: Iterable[EntryPoint], tokens: TokenCache) -> Registry:
        """Raises ValueError if two adapters share a name, or one's code is not its name."""
        providers: dict[str, Provider] = {}
        for point in points:
            if point.name in providers:
                raise ValueError(f"two provider adapters are named {point.name!r}")
            make = cast("Callable[[TokenCache], Provider]", point.load())
            provider = make(tokens)
            if provider.code != point.name:
                raise ValueError(
                    f"the provider adapter {point.value!r} has the code {provider.code!r}"
                    f" but is registered as {point.name!r}"
                )
            providers[point.name] = provider
        return cls(providers)

    def get(self, code: str) -> Provider:
        """Raises ProviderUnknown."""
        try:
            return self._providers[code]
        except KeyError:
            raise ProviderUnknown("There is no provider of this name.") from None

    def codes(self) -> list[str]:
        """All codes, sorted."""
        return sorted(self._providers)
