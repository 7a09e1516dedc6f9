"""What a configuration says, after it was checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from account_pool.config.pool_options import OptionValue
from account_pool.credentials.copilot import ExchangeSettings
from account_pool.credentials.entry import AccountEntry
from account_pool.providers.base import Provider


@dataclass(frozen=True, slots=True)
class Config:
    """Everything accounts.yaml says.

    Attributes:
        accounts: in the order of the file, disabled ones included.
        providers: by name: the built-in ones, with the hosts added, and the user's own.
        exchanges: by name of provider, for those whose accounts exchange their token.
        options: the `pool:` section, by name without prefix, checked.
        path: the file; None when the accounts come from the environment.
        warnings: what looks wrong with the file and stops nothing.
        described: the providers as they are described: those whose hosts are their
            accounts' have all that accounts may name.
    """

    accounts: tuple[AccountEntry, ...]
    providers: Mapping[str, Provider]
    exchanges: Mapping[str, ExchangeSettings]
    options: Mapping[str, OptionValue]
    path: Path | None
    described: Mapping[str, Provider] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
