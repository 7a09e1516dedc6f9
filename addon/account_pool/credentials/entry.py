"""An account as it was written down."""

from __future__ import annotations

from dataclasses import dataclass

from account_pool.core.account import Account
from account_pool.credentials.sources import Source
from account_pool.providers.base import Provider


@dataclass(frozen=True, slots=True)
class AccountEntry:
    """An account and where its credential comes from.

    Attributes:
        account: what its owner wrote.
        source: where the credential is read.
        provider: whose account it is.
        line: of accounts.yaml; None when it does not come from there.
    """

    account: Account
    source: Source
    provider: Provider
    line: int | None = None
