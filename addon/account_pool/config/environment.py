"""The accounts there are without accounts.yaml: one per provider, labelled `default`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from account_pool.config.values import Config
from account_pool.core.account import Account
from account_pool.core.credential import Secret
from account_pool.credentials.copilot import ExchangeSettings
from account_pool.credentials.files import FileSource
from account_pool.credentials.sources import AccountEntry, EnvSource, Source, ValueSource, literal
from account_pool.providers.registry import BUILT_IN

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

    Copilot takes *github_token*, else GITHUB_TOKEN, GH_TOKEN or a file `github_token` in one of
    *directories*; the others the variables their provider names (`Provider.env`). None at all
    is no error. Whether a credential can be used is the state of its account.
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
        if path.is_file():
            yield FileSource(path)
