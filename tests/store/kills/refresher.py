"""A process that refreshes a login with the real code, and stops where it is told to.

Between two steps of a refresh it says where it is, and waits: it may be killed or stopped
there, and so may the engine.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx

from account_pool.core.claims import Claim, Taken
from account_pool.core.credential import Secret
from account_pool.credentials.http import ExchangeFailed, Http, HttpResponse
from account_pool.credentials.oauth import OAuthSource, Stop, post_with
from account_pool.credentials.refreshable_token import RefreshableToken, Refresher, RefreshPending
from account_pool.store.fleet.engine import Engine
from account_pool.store.fleet.token_rows import Keyring
from account_pool.store.fleet.tokens import FleetTokens, Unsaved
from account_pool.store.pool_state import parse
from account_pool.store.store import StoreError, Tokens

# What is imported late is imported once for all processes, which are forks.
for late in (
    "anyio._backends._asyncio",
    "httpcore._async",
    "redis.connection",
    "redis.credentials",
):
    importlib.import_module(late)

#: Where a refresh stops, in order. What the token server does is between `marked` and `answered`.
STEPS = (
    "claiming",
    "claimed",
    "sending",
    "marked",
    "answered",
    "kept",
    "saved",
    "releasing",
    "released",
)
#: An engine that was away is tried again so much sooner.
FASTER = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Of one process.

    Attributes:
        state: the URL of the engine.
        folder: its own disk.
        token_url: of the token server.
        refresh: the refresh token that is written down.
        wall_ahead_s: how far its wall clock is ahead.
    """

    state: str
    folder: str
    token_url: str
    refresh: str
    wall_ahead_s: float = 0.0


def source(token_url: str, refresh: str) -> OAuthSource:
    """Return the login as it is written down."""
    written = {"refresh_token": refresh, "token_url": token_url, "client_id": "me"}
    return OAuthSource.from_written("codex", "me", written, {})


class _SteppedUnsaved(Unsaved, frozen=True):
    """Says when an answer is to be forgotten, which the engine has by then."""

    saved: Callable[[], None]

    def drop(self, path: Path) -> None:
        self.saved()
        super().drop(path)


class _Stepped(FleetTokens):
    """Says where it is."""

    def __init__(self, parent: Connection, setting: Setting, key: str) -> None:
        engine = Engine(
            parse(setting.state), now=lambda: time.monotonic() * FASTER, chance=lambda: 0.0
        )
        pool = engine.address.pool
        super().__init__(
            engine,
            Keyring.read(Secret(key)),
            _SteppedUnsaved(Path(setting.folder), pool, lambda: self.step("saved")),
            wall_clock=lambda: time.time() + setting.wall_ahead_s,
            # They stand for proxies on machines of their own.
            is_gone=lambda _owner: False,
        )
        self._parent = parent
        self.stop_at = ""

    def step(self, name: str) -> None:
        if name == self.stop_at:
            self.stop_at = ""
            self._parent.send(("at", name))
            self._parent.recv()

    def claim(self, family: str, owner: str, *, token: Secret, is_over: bool) -> Claim | Taken:
        self.step("claiming")
        asked = super().claim(family, owner, token=token, is_over=is_over)
        self.step("claimed")
        return asked

    def sending(self, family: str, fence: int, token: Secret) -> bool:
        self.step("sending")
        may = super().sending(family, fence, token)
        self.step("marked")
        return may

    def release(self, family: str, fence: int, *, unknown: bool = False) -> None:
        self.step("releasing")
        super().release(family, fence, unknown=unknown)
        self.step("released")

    def _write_down(self, family: str, tokens: Tokens, fence: int) -> Path | None:
        path = super()._write_down(family, tokens, fence)
        self.step("kept")
        return path


def run(parent: Connection, setting: Setting, key: str) -> None:
    """Do what *parent* says, until it ends: ("keep",) or ("refresh", step to stop at)."""
    store = _Stepped(parent, setting, key)
    asking = post_with(Http(trust=httpx.create_ssl_context), Stop())

    def post(url: str, headers: dict[str, str], content: bytes, sending: Any) -> HttpResponse:
        response = asking(url, headers, content, sending)
        store.step("answered")
        return response

    login = RefreshableToken(
        source(setting.token_url, setting.refresh),
        Refresher(store=store, post=post, wall_clock=store._wall_clock),
        expiry=lambda _: None,
        chance=0.0,
    )
    while True:
        try:
            command, stop_at = parent.recv()
        except EOFError:
            return
        parent.send(("done", _done(store, login, command, stop_at)))


def _done(store: _Stepped, login: RefreshableToken, command: str, stop_at: str) -> str:
    """Return the access token that it came to, or what went wrong."""
    try:
        if command == "keep":
            store.keep()
            return "kept"
        # Whatever is the newest is refused.
        login._refused = login._newest(login._source.family()).access
        store.stop_at = stop_at
        access = login.tokens_now().access
        return "" if access is None else access.reveal()
    except (ExchangeFailed, RefreshPending, StoreError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        store.stop_at = ""
