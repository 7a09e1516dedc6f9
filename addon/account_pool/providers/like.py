"""Makes providers of others: more hosts for a built-in one, or its API on a host of one's own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from account_pool.core.outcome import Outcome, Scope, UpstreamResponse
from account_pool.core.sse import HAS_ERROR, HAS_FAILURE
from account_pool.providers.base import HostRule, Provider, RequestHead, Route


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

    changed = replace(
        base, name=name, hosts=tuple(hosts), env=(), route=route, error_marks=_marks(base)
    )
    if base.signals is not None:
        # How far the limits of its plans reach is not known: as far as they say.
        signals = replace(base.signals, plan_scope=Scope.ACCOUNT)
        changed = replace(changed, signals=signals, classify=signals.classify)
    return behind_gateway(changed)


def behind_gateway(provider: Provider) -> Provider:
    """Return *provider*, whose answers do not say whose limits they speak of.

    An organisation or project that is named there may be that of all of a gateway's keys,
    while each key has its own limits.
    """

    def classify(answer: UpstreamResponse) -> Outcome:
        outcome = provider.classify(answer)
        return outcome if outcome.owner is None else replace(outcome, owner=None)

    return replace(provider, owner=_nobody, classify=classify, signals=None)


def _marks(base: Provider) -> re.Pattern[bytes]:
    """Return the marks of *base*, and those of services that fail without an `error`."""
    return HAS_FAILURE if base.error_marks is HAS_ERROR else base.error_marks


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
