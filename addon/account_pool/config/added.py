"""Accounts that were added while the proxy ran, where accounts.yaml cannot hold them.

They are in a file of the same form beside the state database, and are pooled like those
of accounts.yaml; of two with the same name, the one there counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from account_pool.config import load
from account_pool.config.loader import AtTheirHosts
from account_pool.config.values import Config


def with_added(config: Config, path: Path, environ: Mapping[str, str]) -> Config:
    """Return *config* with the accounts in *path*. Raises ConfigError."""
    added = load(path, environ, config.described)
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
