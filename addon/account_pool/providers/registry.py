"""Which providers there are, and whose host is whose.

Some have a module of their own; the others are written in `builtin.yaml`, in the language
users have. That file is read when the first of them is asked for, and each is compiled when it
is used: a start that uses none of them costs nothing.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from msgspec.structs import replace

from account_pool.core.meaning import LazyPattern
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
from account_pool.providers.base import HostRule, Provider, behind_gateway
from account_pool.providers.definition import build

_FILE = "builtin.yaml"
#: A provider begins at the margin; so do comments.
_SECTION = LazyPattern(r"^([a-z][a-z0-9-]*):\n", re.MULTILINE)
_LIST = r"^  {}: \[([^\]]*)\]$"
_ENV = LazyPattern(_LIST.format("env"), re.MULTILINE)
_HOSTS = LazyPattern(_LIST.format("hosts"), re.MULTILINE)


class BuiltIn(Mapping[str, Provider]):
    """All providers that need no definition in accounts.yaml, by name.

    Args:
        coded: those with a module of their own; first in order.
        bases: what the others are like, besides those.
    """

    def __init__(self, coded: Mapping[str, Provider], bases: Mapping[str, Provider]) -> None:
        self._providers = dict(coded)
        self._coded = tuple(coded)
        self._bases = {**coded, **bases}

    def __getitem__(self, name: str) -> Provider:
        if name not in self._providers:
            self._providers[name] = self._compile(name, _sections()[name])
        return self._providers[name]

    def __contains__(self, name: object) -> bool:
        return name in self._providers or name in _sections()

    def __iter__(self) -> Iterator[str]:
        yield from self._coded
        yield from _sections()

    def __len__(self) -> int:
        return len(self._coded) + len(_sections())

    def env(self, name: str) -> tuple[str, ...]:
        """Return the variables that hold a credential of *name*, without compiling it."""
        return (
            self._providers[name].env if name in self._providers else _list(_ENV, _sections()[name])
        )

    def hosts(self, name: str) -> tuple[HostRule, ...]:
        """Return the hosts of *name*, without compiling it."""
        if name in self._providers:
            return self._providers[name].hosts
        return tuple(map(HostRule.parse, _list(_HOSTS, _sections()[name])))

    def _compile(self, name: str, text: str) -> Provider:
        # Imported where one of these is used, as what reads the file.
        from account_pool.providers.definition_reader import read_definition  # noqa: PLC0415

        written = parse(text)[name]
        definition = read_definition(_Ours(name), (name,), written)
        made = build(
            self._bases[written.get("like", "compatible")], name, self.hosts(name), definition
        )
        # `definition.like` leaves out variables, which a service of one's own must not inherit.
        return replace(made, env=self.env(name))


def parse(text: str) -> dict[str, Any]:
    """Return the values of a part of the file."""
    import yaml  # noqa: PLC0415 - only where one of these is used

    # libyaml's where it is there: a tenth of the time.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return dict(yaml.load(text, Loader=loader))  # noqa: S506 - a safe one


def source() -> str:
    """Return the text of the file."""
    from importlib import resources  # noqa: PLC0415 - as in `parse`

    return resources.files(__package__).joinpath(_FILE).read_text(encoding="utf-8")


@functools.cache
def _sections() -> Mapping[str, str]:
    """Return the text of each provider, by name, in the file's order."""
    text = source()
    begins = [(found[1], found.start()) for found in _SECTION.finditer(text)]
    ends = [*(start for _, start in begins[1:]), len(text)]
    return {name: text[start:end] for (name, start), end in zip(begins, ends, strict=True)}


def _list(pattern: LazyPattern[str], text: str) -> tuple[str, ...]:
    found = pattern.search(text)
    return tuple(name.strip() for name in found[1].split(",") if name.strip()) if found else ()


class _Ours:
    """What is wrong with our own definitions is a defect: tests compile each."""

    def __init__(self, name: str) -> None:
        self._name = name

    def problem(self, loc: tuple[str | int, ...], wrong: str, remedy: str) -> None:
        raise ValueError(f"{_FILE}: {loc}: {wrong}; {remedy}")

    def place(self, loc: tuple[str | int, ...]) -> str:
        return f"{_FILE}, {self._name}: rule {loc[-1]}"

    def has_shape(self, _loc: tuple[str | int, ...], _kind: str, _value: Any) -> bool:
        return True


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
