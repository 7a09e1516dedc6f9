"""How the credential of an account was written down, as a fingerprint to be kept.

What answers said of an account was said of its credential: when the owner writes down
another while the proxy is not running, nothing of it is believed any more.
"""

from __future__ import annotations

from hashlib import sha256

from account_pool.credentials.entry import AccountEntry
from account_pool.credentials.errors import CredentialError
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.sources import EnvSource, Source, ValueSource


def mark(entry: AccountEntry) -> str:
    """Return what tells the credential of *entry* from another under the same label.

    A file or a command is told by its name: what is in it may change by itself, as vendors'
    tools refresh their logins, and the account is still the same, unless the credential says
    that it is not (`core.credential.identity`).
    """
    account = entry.account
    parts = [_told(entry.source), account.account_type or "", sorted(account.companions.items())]
    return sha256(ascii(parts).encode()).hexdigest()[:32]


def _told(source: Source) -> str:
    try:
        match source:
            case ValueSource() | EnvSource():
                return source.read_now().digest()
            case OAuthSource():
                return source.refresh_token.digest()
    except CredentialError:
        pass  # no credential: nothing was or will be learnt with it
    return source.describe()
