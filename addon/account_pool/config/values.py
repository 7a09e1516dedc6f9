"""What a configuration says, after it was checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from account_pool.config.options import OptionValue
from account_pool.credentials.copilot import ExchangeSettings
from account_pool.credentials.sources import AccountEntry
from account_pool.providers.base import HostRule, Provider


@dataclass(frozen=True, slots=True)
class Config:
    """Everything accounts.yaml says.

    Attributes:
        accounts: in the order of the file, disabled ones included.
        providers: by name: the built-in ones, with the hosts added, and the user's own.
        exchanges: by name of provider, for those that exchange the tokens of their accounts.
        options: the `pool:` section, by name without prefix, checked.
        path: the file; None when the accounts come from the environment.
        warnings: what looks wrong with the file and stops nothing.
        described: the providers as they are described: where each account has a host of
            its own, with all hosts that accounts may name.
    """

    accounts: tuple[AccountEntry, ...]
    providers: Mapping[str, Provider]
    exchanges: Mapping[str, ExchangeSettings]
    options: Mapping[str, OptionValue]
    path: Path | None
    described: Mapping[str, Provider] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class AtTheirHosts(Mapping[str, Provider]):
    """Providers by name; one with a host per account has the hosts of its accounts only."""

    def __init__(self, known: Mapping[str, Provider], accounts: Sequence[AccountEntry]) -> None:
        self._known = known
        self._made: dict[str, Provider] = {}
        self._hosts: dict[str, list[HostRule]] = {}
        for entry in accounts:
            if entry.account.enabled and (host := entry.account.companions.get("host")):
                self._hosts.setdefault(entry.account.provider, []).append(HostRule.parse(host))

    def __getitem__(self, name: str) -> Provider:
        if name not in self._made:
            provider = self._known[name]
            if provider.host_per_account:
                hosts = tuple(dict.fromkeys(self._hosts.get(name, ())))
                provider = replace(provider, hosts=hosts)
            self._made[name] = provider
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)
