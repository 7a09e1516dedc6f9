"""Tokens in the state database, shared by all proxies that name the same file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from account_pool.core.credential import Secret
from account_pool.store.database import Database
from account_pool.store.tokens import Tokens


class SqliteTokens:
    """A `TokenStore` in a file that only its owner may read."""

    def __init__(self, path: Path) -> None:
        """Open *path*. Raises StoreError."""
        self._database = Database(path)

    def load(self, family: str) -> Tokens | None:
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT access_token, refresh_token, expires_at, refreshed_at, companions "
                "FROM tokens WHERE family = ?",
                (family,),
            ).fetchone()
        if row is None:
            return None
        access, refresh, expires_at, refreshed_at, companions = row
        return Tokens(
            access=None if access is None else Secret(access),
            refresh=Secret(refresh),
            expires_at=expires_at,
            refreshed_at=refreshed_at,
            companions=json.loads(companions),
        )

    def save(self, family: str, tokens: Tokens, *, replaces: Secret | None = None) -> bool:
        access = None if tokens.access is None else tokens.access.reveal()
        with self._database.writing() as connection:
            done = connection.execute(
                "INSERT INTO tokens VALUES (:family, :access, :refresh, :expires_at, "
                ":refreshed_at, :companions) ON CONFLICT (family) DO UPDATE SET "
                "access_token = :access, refresh_token = :refresh, expires_at = :expires_at, "
                "refreshed_at = :refreshed_at, companions = :companions "
                "WHERE :replaces IS NULL OR refresh_token = :replaces",
                {
                    "family": family,
                    "access": access,
                    "refresh": tokens.refresh.reveal(),
                    "expires_at": tokens.expires_at,
                    "refreshed_at": tokens.refreshed_at,
                    "companions": json.dumps(dict(tokens.companions), sort_keys=True),
                    "replaces": None if replaces is None else replaces.reveal(),
                },
            )
            return done.rowcount > 0

    def claim(
        self, family: str, owner: str, *, clock: Callable[[], float], lasts_s: float
    ) -> float | None:
        with self._database.writing() as connection:
            now = clock()
            # One that ends later than any could was made before the clock was set back.
            done = connection.execute(
                "INSERT INTO claims VALUES (:family, :owner, :until) "
                "ON CONFLICT (family) DO UPDATE SET owner = :owner, until = :until "
                "WHERE owner = :owner OR until <= :now OR until > :until",
                {"family": family, "owner": owner, "now": now, "until": now + lasts_s},
            )
            return now + lasts_s if done.rowcount > 0 else None

    def release(self, family: str, owner: str) -> None:
        with self._database.writing() as connection:
            connection.execute("DELETE FROM claims WHERE family = ? AND owner = ?", (family, owner))

    def close(self) -> None:
        self._database.close()
