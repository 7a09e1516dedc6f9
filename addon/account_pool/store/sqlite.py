"""Tokens in the state database, shared by all proxies that name the same file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from account_pool.core import claims
from account_pool.core.claims import Claim, Taken
from account_pool.core.credential import Secret
from account_pool.store import process
from account_pool.store.clock import Clock
from account_pool.store.database import Database
from account_pool.store.tokens import Tokens


class SqliteTokens:
    """A `TokenStore` in a file that only its owner may read.

    Times in the file are of its own clock (`clock.py`): a proxy whose wall clock is set
    takes no token for older than it is.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock | None = None,
        is_gone: Callable[[str], bool] = process.is_gone,
    ) -> None:
        """Open *path*. Raises StoreError. The rest is for tests."""
        self._database = Database(path, clock=clock)
        self._is_gone = is_gone

    def load(self, family: str) -> Tokens | None:
        with self._database.reading() as connection:
            found = _read(connection, family)
        if found is None:
            return None
        return _moved(found[0], -self._database.ahead_of_wall())

    def save(
        self, family: str, tokens: Tokens, *, replaces: Secret | None = None, fence: int = 0
    ) -> bool:
        with self._database.writing() as connection:
            known = _read(connection, family)
            if replaces is not None and known is not None:
                stored, stored_fence = known
                same = stored.refresh == replaces
                if not claims.may_save(stored_fence, fence, is_same_token=same):
                    return False
            _write(connection, family, _moved(tokens, self._database.ahead_of_wall()), fence)
            _put(connection, family, claims.answered(_claim(connection, family), fence))
            self._database.note_time(connection)
            return True

    def claim(self, family: str, owner: str, *, token: Secret, is_over: bool) -> Claim | Taken:
        with self._database.writing() as connection:
            found = _claim(connection, family)
            asked = claims.ask(
                found,
                owner,
                token=token.digest(),
                now=self._database.now(),
                is_gone=found.owner != "" and self._is_gone(found.owner),
                is_over=is_over,
            )
            if isinstance(asked, Claim):
                _put(connection, family, asked)
            return asked

    def sending(self, family: str, fence: int, token: Secret) -> bool:
        with self._database.writing() as connection:
            found = _claim(connection, family)
            sent = claims.send(found, fence, token=token.digest(), now=self._database.now())
            if sent is None:
                return False
            _put(connection, family, sent)
            return True

    def release(self, family: str, fence: int, *, unknown: bool = False) -> None:
        with self._database.writing() as connection:
            found = _claim(connection, family)
            _put(connection, family, claims.release(found, fence, unknown=unknown))

    def close(self) -> None:
        self._database.close()


def _read(connection: sqlite3.Connection, family: str) -> tuple[Tokens, int] | None:
    row = connection.execute(
        "SELECT access_token, refresh_token, expires_at, refreshed_at, companions, fence "
        "FROM tokens WHERE family = ?",
        (family,),
    ).fetchone()
    if row is None:
        return None
    access, refresh, expires_at, refreshed_at, companions, fence = row
    tokens = Tokens(
        access=None if access is None else Secret(access),
        refresh=Secret(refresh),
        expires_at=expires_at,
        refreshed_at=refreshed_at,
        companions=json.loads(companions),
    )
    return tokens, fence


def _write(connection: sqlite3.Connection, family: str, tokens: Tokens, fence: int) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO tokens (family, access_token, refresh_token, expires_at, "
        "refreshed_at, companions, fence) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            family,
            None if tokens.access is None else tokens.access.reveal(),
            tokens.refresh.reveal(),
            tokens.expires_at,
            tokens.refreshed_at,
            json.dumps(dict(tokens.companions), sort_keys=True),
            fence,
        ),
    )


def _claim(connection: sqlite3.Connection, family: str) -> Claim:
    row = connection.execute(
        "SELECT fence, owner, until, sent FROM claims WHERE family = ?", (family,)
    ).fetchone()
    if row is None:
        return Claim()
    fence, owner, until, sent = row
    return Claim(fence=fence, owner=owner, until=until, sent=sent)


def _put(connection: sqlite3.Connection, family: str, claim: Claim) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO claims (family, owner, until, fence, sent) VALUES (?, ?, ?, ?, ?)",
        (family, claim.owner, claim.until, claim.fence, claim.sent),
    )


def _moved(tokens: Tokens, seconds: float) -> Tokens:
    """Return *tokens* with the times of another clock."""
    if not seconds:
        return tokens
    ends, got = tokens.expires_at, tokens.refreshed_at
    return replace(
        tokens,
        expires_at=None if ends is None else round(ends + seconds, 3),
        refreshed_at=None if got is None else round(got + seconds, 3),
    )
