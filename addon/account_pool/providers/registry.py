"""Which providers there are, those a user makes of them, and whose host is whose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from account_pool.providers import (
    anthropic,
    azure,
    claude_code,
    codex,
    compatible,
    compatible_vendors,
    copilot,
    gemini,
    gemini_cli,
    openai,
)
from account_pool.providers.base import HostRule, Provider
from account_pool.providers.built_in import BuiltIn
from account_pool.providers.like import behind_gateway

#: What a service may be like that is no provider of its own.
BASES: Mapping[str, Provider] = {compatible.BASE.name: compatible.BASE}

_CODED = (
    *(openai.PROVIDER, anthropic.PROVIDER, claude_code.PROVIDER, gemini.PROVIDER),
    *(gemini_cli.PROVIDER, copilot.PROVIDER, codex.PROVIDER, azure.PROVIDER),
    *compatible_vendors.VENDORS,
)
#: The providers that need no definition in accounts.yaml, by name.
BUILT_IN = BuiltIn({provider.name: provider for provider in _CODED}, BASES)


class HostIndex:
    """Finds the providers of a host: exact names first, then suffixes at a dot.

    What a user added to a built-in provider is taken for a gateway.

    Attributes:
        find: return the providers of a host, in the order they were given; () if none.
            Each request asks, mostly for the same few.
    """

    __slots__ = ("_exact", "_suffix", "find")

    def __init__(self, providers: Iterable[Provider]) -> None:
        self._exact: dict[str, list[tuple[HostRule, Provider]]] = {}
        self._suffix: dict[str, list[tuple[HostRule, Provider]]] = {}
        self.find: Callable[[str, int], tuple[Provider, ...]] = lru_cache(1024)(self._find)
        for provider in providers:
            gateway = behind_gateway(provider) if provider.added_hosts else provider
            for rule in provider.hosts:
                table = self._suffix if rule.subdomains else self._exact
                there = gateway if rule in provider.added_hosts else provider
                table.setdefault(rule.host, []).append((rule, there))

    def ports(self, host: str) -> list[int]:
        """Return the ports at which *host* is anybody's."""
        tails = [host[at:] for at, c in enumerate(host) if c == "."]
        found = [*self._exact.get(host, ())]
        found += [one for tail in tails for one in self._suffix.get(tail[1:], ())]
        return sorted({rule.port for rule, _ in found})

    def has(self, name: str, host: str, port: int) -> bool:
        """Say whether *host* is one of the provider *name*."""
        return any(provider.name == name for provider in self.find(host, port))

    def _find(self, host: str, port: int) -> tuple[Provider, ...]:
        host = host.lower()
        found = list(self._exact.get(host, ()))
        if self._suffix:
            dot = host.find(".")
            while dot != -1:
                found += self._suffix.get(host[dot + 1 :], ())
                dot = host.find(".", dot + 1)
        if not found:
            return ()
        # A dict of names: one provider may match by several rules, the nearest comes first.
        by_name: dict[str, Provider] = {}
        for rule, provider in found:
            if rule.port == port:
                by_name.setdefault(provider.name, provider)
        return tuple(by_name.values())
