"""What a configuration says, after it was checked; and what there is without accounts.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from account_pool.config.options import OptionValue
from account_pool.core.account import Account
from account_pool.core.credential import Secret
from account_pool.credentials.copilot import ExchangeSettings
from account_pool.credentials.files import FileSource
from account_pool.credentials.sources import AccountEntry, EnvSource, Source, ValueSource, literal
from account_pool.filesystem import is_file
from account_pool.providers.base import HostRule, Provider
from account_pool.providers.registry import BUILT_IN


class Config(Struct, frozen=True):
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


# -- the accounts there are without accounts.yaml

LABEL = "default"
COPILOT = "copilot"
#: Where a GitHub token is usually kept, in this order.
GITHUB_VARIABLES = ("GITHUB_TOKEN", "GH_TOKEN")
GITHUB_FILE = "github_token"


def from_environment(
    environ: Mapping[str, str],
    *,
    github_token: str | None,
    account_type: str | None,
    directories: Sequence[Path],
) -> Config:
    """Return one account per provider that has a credential in one of the usual places.

    Each is labelled `default`. Copilot takes *github_token*, else GITHUB_TOKEN, GH_TOKEN or a
    file `github_token` in one of *directories*; the others the variables their provider names
    (`Provider.env`). None at all is no error. Whether a credential can be used is the state of
    its account.
    """
    entries = []
    for name in BUILT_IN:
        is_copilot = name == COPILOT
        found = (
            _github_sources(environ, github_token, directories, BUILT_IN.env(name))
            if is_copilot
            else _variables(environ, BUILT_IN.env(name))
        )
        source = next(found, None)
        if source is None:
            continue
        provider = BUILT_IN[name]
        if provider.host_per_account:
            continue  # a variable does not say where
        account = Account(
            provider=name, label=LABEL, account_type=account_type if is_copilot else None
        )
        entries.append(AccountEntry(account, source, provider))
    exchanges = {COPILOT: ExchangeSettings()} if COPILOT in BUILT_IN else {}
    return Config(tuple(entries), BUILT_IN, exchanges, {}, None, BUILT_IN)


def _variables(environ: Mapping[str, str], names: Sequence[str]) -> Iterator[Source]:
    """Yield those that are set; an empty variable is the usual way to unset one."""
    for name in names:
        if environ.get(name, "").strip():
            yield EnvSource(name, environ)


def _github_sources(
    environ: Mapping[str, str],
    github_token: str | None,
    directories: Sequence[Path],
    variables: Sequence[str],
) -> Iterator[Source]:
    if github_token:
        # A dollar sign on the command line was the shell's business.
        yield ValueSource(Secret(literal(Secret(github_token))), environ, "pool_github_token")
    yield from _variables(environ, (*GITHUB_VARIABLES, *variables))
    for directory in directories:
        path = directory / GITHUB_FILE
        if is_file(path):
            yield FileSource(path)
