"""Reads accounts.yaml as a whole: all of it, or all that is wrong with it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from account_pool.config.accounts import read_accounts
from account_pool.config.document import Document, read
from account_pool.config.options import BY_NAME, OptionValue
from account_pool.config.problems import UNKNOWN_KEY, Wrong, unknown
from account_pool.config.providers import read_providers
from account_pool.config.values import AtTheirHosts, Config
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.sources import AccountEntry, ValueSource
from account_pool.providers.base import HTTPS_PORT, Provider
from account_pool.providers.registry import BUILT_IN

SECTIONS = ("accounts", "providers", "pool")


def load(
    path: Path, environ: Mapping[str, str], known: Mapping[str, Provider] = BUILT_IN
) -> Config:
    """Read accounts.yaml. Raises ConfigError that lists all problems at once.

    Credentials in variables, files and the like are not read: that one cannot be had now is
    the state of its account. The sources keep *environ* and look into it later. *known* are the
    providers there are without the file.
    """
    document = _read_mapping(path)
    for key in document.data:
        if key not in SECTIONS:
            document.problem((key,), UNKNOWN_KEY, unknown(key, SECTIONS))
    providers = read_providers(document, known)
    accounts = read_accounts(document, providers, environ, path.parent)
    options = _read_options(document)
    document.require_right()
    return Config(
        accounts=accounts,
        providers=AtTheirHosts(providers.known, accounts),
        exchanges=providers.exchanges,
        options=options,
        path=path,
        described=providers.known,
        warnings=(*_warnings(path, accounts), *_without_port(path, document.data.get("providers"))),
    )


def load_providers(path: Path) -> Mapping[str, Provider]:
    """Return the providers *path* knows, the built-in ones included; reads no credential.

    Raises ConfigError that lists what is wrong with its `providers:`.
    """
    document = _read_mapping(path)
    known = read_providers(document, BUILT_IN).known
    document.require_right()
    return known


def _read_mapping(path: Path) -> Document:
    document = read(path)
    if not isinstance(document.data, dict):
        document.problem((), "the file is not a mapping", "start it with `accounts:`")
        document.require_right()
    return document


def with_added(config: Config, path: Path, environ: Mapping[str, str]) -> Config:
    """Return *config* with the accounts in *path*. Raises ConfigError.

    They were added while the proxy ran, where accounts.yaml cannot hold them: a file of the
    same form beside the state database. Of two with the same name, the one of *config* counts.
    """
    added = load(path, environ, config.described or BUILT_IN)
    known = {entry.account.key for entry in config.accounts}
    new = tuple(entry for entry in added.accounts if entry.account.key not in known)
    accounts = (*config.accounts, *new)
    return replace(
        config,
        accounts=accounts,
        providers=AtTheirHosts(config.described, accounts),
        exchanges={**added.exchanges, **config.exchanges},
        warnings=(*config.warnings, *added.warnings),
    )


def _read_options(document: Document) -> dict[str, OptionValue]:
    options: dict[str, OptionValue] = {}
    section = document.data.get("pool")
    if section is None:
        return options
    if not isinstance(section, dict):
        document.problem(("pool",), "is not a mapping", "write `option: value` below it")
        return options
    for name, value in section.items():
        try:
            options[name] = _read_option(name, value)
        except Wrong as error:
            document.problem(("pool", name), error.wrong, error.remedy)
    return options


def _read_option(name: str, value: object) -> OptionValue:
    option = BY_NAME.get(name) or BY_NAME.get(name.removeprefix("pool_"))
    if option is None:
        accepted = [o.name for o in BY_NAME.values() if not o.not_in_file]
        raise Wrong("unknown option", unknown(name, accepted))
    if option.name != name:
        raise Wrong("the prefix pool_ is for the command line", f"write {option.name}")
    if option.not_in_file:
        raise Wrong(f"cannot be set here: {option.not_in_file}", "remove this line")
    return option.check(value)


def _without_port(path: Path, section: Any) -> Iterator[str]:
    """Warn of this machine's name without a port: a service of one's own is rarely at 443."""
    for name, provider in (section or {}).items():
        for host in (provider or {}).get("hosts", ()):
            if host.strip().lower() in ("localhost", "127.0.0.1", "[::1]"):
                yield (
                    f"{path}: providers.{name}.hosts: {host} is port {HTTPS_PORT} of this machine; "
                    f"write the port that the service uses, such as {host}:8000"
                )


def _warnings(path: Path, accounts: Sequence[AccountEntry]) -> Iterator[str]:
    """Warn when tokens stand in a file that others may read; `cp` makes such files.

    Not an error as for credential files: most of these files hold only references.
    """
    sources = [entry.source for entry in accounts]
    tokens = [
        s
        for s in sources
        if isinstance(s, OAuthSource) or (isinstance(s, ValueSource) and not s.refers)
    ]
    if tokens and os.name == "posix" and path.stat().st_mode & 0o044:
        yield (
            f"{path} holds tokens and can be read by other users; "
            f"run: chmod 600 {shlex.quote(str(path))}"
        )
