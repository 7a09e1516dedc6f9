"""A fingerprint of how an account's credential is configured, to be stored.

What responses said of an account, they said of its credential: if the owner configures
another while the proxy is not running, all of it is discarded.
"""

from __future__ import annotations

from hashlib import sha256

from account_pool.credentials.entry import AccountEntry
from account_pool.credentials.errors import CredentialError
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.sources import EnvSource, Source, ValueSource


def fingerprint(entry: AccountEntry) -> str:
    """Return 32 hex digits that differ if another credential is configured for *entry*.

    A file or a command counts by its name: its content may change by itself, as vendors'
    tools refresh their logins, and the account is still the same, unless the credential says
    that it is not (`core.credential.identity`).
    """
    account = entry.account
    source = _described(entry.source)
    parts = [source, account.account_type or "", sorted(account.companions.items())]
    return sha256(ascii(parts).encode()).hexdigest()[:32]


def _described(source: Source) -> str:
    try:
        match source:
            case ValueSource() | EnvSource():
                return source.read_now().digest()
            case OAuthSource():
                return source.refresh_token.digest()
    except CredentialError:
        pass  # no credential: nothing was or will be learnt with it
    return source.describe()
