"""Which providers there are, those a user makes of them, and whose host is whose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from account_pool.core.outcome import Answer, Outcome, Scope
from account_pool.providers import (
    anthropic,
    azure,
    cerebras,
    claude_code,
    codex,
    cohere,
    copilot,
    deepseek,
    fireworks,
    gemini,
    gemini_cli,
    groq,
    mistral,
    openai,
    openrouter,
    perplexity,
    together,
    xai,
)
from account_pool.providers.base import HostRule, Provider, RequestHead, Route

#: The providers that need no definition in accounts.yaml, by name.
BUILT_IN: Mapping[str, Provider] = MappingProxyType(
    {
        module.PROVIDER.name: module.PROVIDER
        for module in (
            *(openai, anthropic, claude_code, gemini, gemini_cli, copilot, codex),
            *(azure, openrouter, groq, mistral, xai, deepseek, together, fireworks, cohere),
            *(cerebras, perplexity),
        )
    }
)


def add_hosts(provider: Provider, hosts: Iterable[HostRule]) -> Provider:
    """Return *provider* with more hosts, for `providers: {openai: {hosts: [...]}}`."""
    more = [rule for rule in hosts if rule not in provider.hosts]
    return replace(
        provider,
        hosts=tuple(dict.fromkeys((*provider.hosts, *more))),
        added_hosts=provider.added_hosts.union(more),
    )


def like(base: Provider, name: str, hosts: Iterable[HostRule]) -> Provider:
    """Return a service of one's own that speaks the API of *base* on other hosts.

    Its paths may stand under any prefix: `/chat/completions`, `/api/v1/chat/completions`
    and `/team/openai/v1/chat/completions` are one. It has no hosts of *base* and none
    of its environment variables: a key of one must not be sent to the other.
    """

    def route(head: RequestHead) -> Route:
        return _route_under_any_prefix(base, head)

    changed = replace(base, name=name, hosts=tuple(hosts), env=(), route=route)
    if base.signals is not None:
        # How far the limits of its plans reach is not known: as far as they say.
        signals = replace(base.signals, plan_scope=Scope.ACCOUNT)
        changed = replace(changed, signals=signals, classify=signals.classify)
    return _behind_gateway(changed)


def _behind_gateway(provider: Provider) -> Provider:
    """Return *provider*, whose answers do not say whose limits they speak of.

    An organisation or project that is named there may be that of all of a gateway's keys,
    while each key has its own limits.
    """

    def classify(answer: Answer) -> Outcome:
        outcome = provider.classify(answer)
        return outcome if outcome.owner is None else replace(outcome, owner=None)

    return replace(provider, owner=_nobody, classify=classify)


def _nobody(_headers: Mapping[str, str]) -> None:
    return None


#: Deepest prefix that is looked for.
_MAX_SEGMENTS = 12


def _route_under_any_prefix(base: Provider, head: RequestHead) -> Route:
    """Return the first route other than PASS among the tails of the path."""
    segments = head.path.split("/")[1:]
    if len(segments) > _MAX_SEGMENTS:
        return Route.PASS
    for start in range(len(segments)):
        tail = "/" + "/".join(segments[start:])
        for path in (tail, "/v1" + tail):
            found = base.route(replace(head, path=path))
            if found is not Route.PASS:
                return found
    return Route.PASS


class HostIndex:
    """Finds the providers of a host: exact names first, then suffixes at a dot.

    What a user added to a built-in provider is taken for a gateway.
    """

    __slots__ = ("_exact", "_suffix")

    def __init__(self, providers: Iterable[Provider]) -> None:
        self._exact: dict[str, list[tuple[HostRule, Provider]]] = {}
        self._suffix: dict[str, list[tuple[HostRule, Provider]]] = {}
        for provider in providers:
            gateway = _behind_gateway(provider) if provider.added_hosts else provider
            for rule in provider.hosts:
                table = self._suffix if rule.subdomains else self._exact
                there = gateway if rule in provider.added_hosts else provider
                table.setdefault(rule.host, []).append((rule, there))

    def has(self, name: str, host: str, port: int) -> bool:
        """Say whether *host* is one of the provider *name*."""
        return any(provider.name == name for provider in self.find(host, port))

    def find(self, host: str, port: int) -> tuple[Provider, ...]:
        """Return the providers of *host*, in the order they were given; () if none."""
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
            if rule.port is None or rule.port == port:
                by_name.setdefault(provider.name, provider)
        return tuple(by_name.values())
