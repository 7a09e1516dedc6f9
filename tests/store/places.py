"""Where proxies keep tokens, for tests: SQLite, or a pool in a real engine."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from tests.store.servers import TIMEOUT_S, Server, new_pool

from account_pool.core.claims import Claim, Taken
from account_pool.core.credential import Secret
from account_pool.store.fleet.engine import Engine
from account_pool.store.fleet.token_rows import Keyring
from account_pool.store.fleet.tokens import SETTLE_S, FleetTokens, Unsaved
from account_pool.store.machine import Moment
from account_pool.store.pool_state import parse
from account_pool.store.sqlite import SqliteTokens
from account_pool.store.store import Tokens, TokenStore

ROT = Secret("rt-0")
#: Neither of them is worth anything.
KEY, OTHER_KEY = (Secret(f"{n:02x}" * 32) for n in (1, 2))
SOME = Tokens(
    access=Secret("at-1"),
    refresh=Secret("rt-1"),
    expires_at=1800000000.25,
    refreshed_at=1799990000.5,
    companions={"account_id": "a"},
)


class Place(Protocol):
    """Where proxies keep tokens."""

    def open(self, *, wall_ahead_s: float = 0.0) -> TokenStore:
        """Return what one more proxy has, whose wall clock is so far ahead."""
        ...

    def passes(self, seconds: float) -> None:
        """Let time pass."""
        ...


class SqlitePlace:
    def __init__(self, path: Path) -> None:
        self.path, self.now = path, 1_000_000.0

    def open(self, *, wall_ahead_s: float = 0.0) -> TokenStore:
        return SqliteTokens(
            self.path, clock=lambda: Moment("one", self.now, self.now + wall_ahead_s)
        )

    def passes(self, seconds: float) -> None:
        self.now += seconds


class FleetPlace:
    """A pool of its own in an engine, whose clock cannot be set: what is in it gets older."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder, self.pool = server, folder, new_pool()
        self.engines: list[Engine] = []
        self.client = server.client()
        self.open().keep()
        self.passes(SETTLE_S)

    def open(
        self,
        *,
        wall_ahead_s: float = 0.0,
        key: Secret = KEY,
        folder: Path | None = None,
        timeout_s: float = TIMEOUT_S,
        url: str = "redis://localhost/",
    ) -> FleetTokens:
        self.engines.append(self.server.engine(self.pool, timeout_s=timeout_s))
        tokens = FleetTokens(
            self.engines[-1],
            Keyring.read(key),
            Unsaved(folder or self.folder, self.pool),
            wall_clock=lambda: time.time() + wall_ahead_s,
        )
        return noticing(tokens, url)

    def key(self, name: str) -> str:
        return f"{{ap:{self.pool}}}:{name}"

    def keys(self, kind: str) -> list[Any]:
        """Return the keys of this pool of that kind: others on the engine hold other types."""
        return list(self.client.keys(self.key(kind).replace("{", "\\{")))

    def row(self, name: str) -> dict[str, Any]:
        return dict(json.loads(self.client.get(self.key(name))))

    def passes(self, seconds: float) -> None:
        for kind, field in (("era", "since"), ("claim:*", "until")):
            for name in self.keys(kind):
                row = json.loads(self.client.get(name))
                row[field] -= seconds
                self.client.set(name, json.dumps(row))

    def close(self) -> None:
        for engine in self.engines:
            engine.close()
        self.client.close()


def noticing(tokens: FleetTokens, url: str = "redis://localhost/") -> FleetTokens:
    """Have *tokens* notice as soon as with *url*: an answer may take far longer in tests."""
    tokens._address = parse(url)
    return tokens


@pytest.fixture
def fleet(server: Server, tmp_path: Path) -> Iterator[FleetPlace]:
    with contextlib.closing(FleetPlace(server, tmp_path / "unsaved")) as place:
        yield place


def claim(store: TokenStore, family: str, owner: str, *, is_over: bool = True) -> Claim | Taken:
    return store.claim(family, owner, token=ROT, is_over=is_over)
