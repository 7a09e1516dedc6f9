"""A store for all proxies that name the same engine and pool."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from account_pool.core.account import AccountKey
from account_pool.filesystem import expanded
from account_pool.store.fleet.connection import ask
from account_pool.store.fleet.engine import Engine
from account_pool.store.fleet.history import FleetDecisions, FleetRequests
from account_pool.store.fleet.link import Link
from account_pool.store.fleet.moving import MovingTokens
from account_pool.store.fleet.state import FleetState
from account_pool.store.fleet.token_rows import HOW, Keyring, SealingKeyError, TokenRows, era_of
from account_pool.store.fleet.tokens import FleetTokens, Unsaved
from account_pool.store.pool_state import Address, Fact, Lookup
from account_pool.store.store import StateStore, StoreError, TokenStore

logger = logging.getLogger(__name__)

#: Of what is kept in an engine. Versions of the account pool with the same one share a pool.
FORMAT = 1


def unsaved_folder(confdir: str) -> Path:
    """Return where a machine has what the engine does not have yet, in mitmproxy's directory."""
    return expanded(confdir) / "account-pool.unsaved"


class FleetStore:
    """A `Store` in Redis or Valkey. Both halves use one engine."""

    durable = True
    kind = "engine"

    def __init__(
        self,
        address: Address,
        directory: Path,
        *,
        before: Path | None = None,
        tell: Callable[[str], object] = logger.warning,
    ) -> None:
        """Name an engine; nothing is connected yet. Raises StoreError without the extra.

        *directory* has what only this machine has: answers that the engine does not have yet.
        *before*: the file that kept logins until the engine was named; they are taken over, of
        which *tell* gets one line.
        """
        if importlib.util.find_spec("redis") is None:
            raise StoreError(
                "a state engine needs the extra fleet; pip install 'mitmproxy-account-pool[fleet]'"
            )
        self.server, self.pool = str(address), address.pool
        self.engine = Engine(address)
        self._directory = directory
        self._before = before
        self._link = Link(self.engine)
        self._tell = tell
        self._tokens: TokenStore | None = None
        self._counted: dict[AccountKey, int] = {}

    def tokens(self) -> TokenStore:
        # It can be away: the proxy serves with the access tokens that it has.
        keyring, address = self._keyring(), self.engine.address
        unsaved = Unsaved(self._directory, address.pool)
        tokens = FleetTokens(self.engine, keyring, unsaved=unsaved)
        self._tokens = tokens
        if self._before is not None:
            shown = f"{address} (pool {address.pool})"
            self._tokens = MovingTokens(tokens, self._before, shown, self._tell)
        return self._tokens

    def state(self) -> StateStore:
        self.open()
        if self._tokens is not None:
            # An engine that has lost something gets the newest logins before anybody refreshes
            # one. What is wrong with them is told by their accounts: the rest goes on.
            with contextlib.suppress(StoreError):
                self._tokens.keep()
        requests, decisions = FleetRequests(self.engine), FleetDecisions(self.engine)
        return FleetState(self._link, self._counted, requests, decisions)

    def check(self) -> None:
        """Raise StoreError where the pool cannot be used, or not with this key. Changes nothing."""
        self.open(anew=False)
        if "sealing_key" in self.engine.address.references:
            keyring = self._keyring()
            era = era_of(TokenRows(self.engine, keyring).read_era().values[0])
            if era is not None:
                keyring.require(era.key, "the logins of this pool are")

    def _keyring(self) -> Keyring:
        secret = Lookup("sealing_key", self.engine.address.references.get("sealing_key"))()
        if secret is None:
            raise StoreError(
                f"logins are kept in a state engine only sealed; {HOW}, and write sealing_key="
                "file:PATH into the URL, the same key for all proxies"
            )
        try:
            return Keyring.read(secret)
        except SealingKeyError as error:
            raise StoreError(f"sealing_key: {error}") from None

    def open(self, *, anew: bool = True) -> None:
        """Begin to use the pool. Raises StoreError where another version does.

        *anew*: note its format where there is none yet.
        """
        found = self.engine.call("open", FORMAT if anew else "")
        if found is not None and found != str(FORMAT).encode():
            raise StoreError(
                f"the pool {self.engine.address.pool} of the state engine {self.engine.address} "
                "is used by another version of the account pool, with which it cannot be shared; "
                "upgrade, or name another pool"
            )

    def put_aside(self) -> str | None:
        if moved := self.engine.call("put_aside"):
            return f"{moved} keys that end in :damaged"
        raise StoreError(
            f"the state engine {self.engine.address} holds something that no proxy has written; "
            "name another database or pool in pool_state"
        )


# -- what an engine is, and which of its settings would lose logins, for `check` and `doctor`
#
# `facts` decides from what the engine says of itself (INFO, CONFIG GET); only `inspect` asks.

#: The oldest version of Redis: before it no stream takes an id of a time alone (XADD).
OLDEST = (7, 0)
#: How much of its memory may be in use, and how far clocks may be apart, seconds.
FULL = 0.8
CLOCK_S = 60.0
_SETTINGS = ("appendfsync", "maxmemory-policy", "min-replicas-to-write", "save")
_SECTIONS = ("server", "memory", "persistence", "replication")


def inspect(store: FleetStore) -> list[Fact]:
    """Return what there is to say of the engine of *store*. Blocks for some seconds at most."""
    address, engine = store.engine.address, store.engine
    try:
        store.check()
        info, settings = engine.ask(_said)
    except StoreError as error:
        text, _, remedy = str(error).partition("; ")
        return [Fact("bad", text, remedy)]
    found = list(facts(info, settings, address))
    apart = abs(engine.now() - time.time())
    if apart > CLOCK_S:
        text = f"its clock and that of this machine are {apart:,.0f} s apart"
        found.append(Fact("note", text, "set both by NTP: times that are shown are wrong"))
    return found


def _said(connection: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Return what the engine says of itself, and its settings; nothing where it may not be asked.

    Raises redis.RedisError.
    """
    from redis.exceptions import ResponseError  # noqa: PLC0415 - only proxies of a fleet

    info: dict[str, str] = {}
    settings: dict[str, str] = {}
    try:
        for section in _SECTIONS:
            text = ask(connection, "INFO", section).decode("utf-8", "replace")
            lines = (line.partition(":") for line in text.splitlines())
            info |= {name: value for name, colon, value in lines if colon}
        for name in _SETTINGS:
            answer = ask(connection, "CONFIG", "GET", name)
            pairs = [part.decode("utf-8", "replace") for part in answer]
            settings |= dict(zip(pairs[::2], pairs[1::2], strict=False))
    except ResponseError:
        pass  # a user who may not ask that
    return info, settings


def facts(info: Mapping[str, str], settings: Mapping[str, str], address: Address) -> Iterator[Fact]:
    """Yield what *info* and *settings* say; nothing of what they leave out."""
    yield _version(info, address)
    yield from _eviction(info, settings)
    yield from _persistence(info, settings)
    yield from _replicas(info, settings)
    if not settings:
        text = "its settings cannot be read: CONFIG GET is refused"
        remedy = "check by hand: appendfsync always (docs/fleet.md)"
        yield Fact("note", text, remedy)
    if "sealing_key" not in address.references:
        text = "the URL names no sealing_key: no login that is refreshed can be kept"
        yield Fact("note", text, "without such accounts none is needed (docs/fleet.md)")


def _version(info: Mapping[str, str], address: Address) -> Fact:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = info.get("valkey_version") or info.get("redis_version", "")
    shown = "".join(c for c in version if c.isalnum() or c in ".-")[:20]
    text = f"{name} {shown or 'of an unknown version'} at {address}, pool {address.pool}"
    numbers = tuple(int(part) if part.isdigit() else 0 for part in version.split(".")[:2])
    if name == "Redis" and version and numbers < OLDEST:
        return Fact("bad", text, "it is too old: Redis 7.0 or newer, or Valkey, is needed")
    return Fact("ok", text)


def _eviction(info: Mapping[str, str], settings: Mapping[str, str]) -> Iterator[Fact]:
    policy = settings.get("maxmemory-policy") or info.get("maxmemory_policy", "noeviction")
    most, used = _number(info, "maxmemory"), _number(info, "used_memory")
    if policy != "noeviction":
        text = f"maxmemory-policy is {_word(policy)}: when it is full, logins and cooldowns go"
        level: Literal["note", "bad"] = "bad" if most else "note"
        yield Fact(level, text, "CONFIG SET maxmemory-policy noeviction, and in its configuration")
    if most and used > FULL * most:
        text = f"{used / most:.0%} of its memory is in use (maxmemory {most / 2**20:,.0f} MiB)"
        yield Fact("bad", text, "raise maxmemory: when it is full nothing more is kept")


def _persistence(info: Mapping[str, str], settings: Mapping[str, str]) -> Iterator[Fact]:
    if info.get("aof_enabled") == "0":
        saves = bool(settings.get("save", "unknown"))
        keeps = "only snapshots" if saves else "nothing"
        text = f"it keeps {keeps} on its disk: a restart loses logins that were refreshed"
        remedy = "CONFIG SET appendonly yes, and in its configuration; appendfsync always"
        yield Fact("bad", text, remedy)
    elif (sync := settings.get("appendfsync", "always")) != "always":
        lost = "a second" if sync == "everysec" else "half a minute"
        text = f"appendfsync is {_word(sync)}: a power failure loses {lost} of logins"
        level: Literal["note", "bad"] = "note" if sync == "everysec" else "bad"
        yield Fact(level, text, "CONFIG SET appendfsync always, and in its configuration")
    failed = [
        name
        for name in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
        if info.get(name, "ok") != "ok"
    ]
    if failed:
        text = f"it could not write to its disk ({failed[0]})"
        yield Fact("bad", text, "free some space there, and look at its log")


def _replicas(info: Mapping[str, str], settings: Mapping[str, str]) -> Iterator[Fact]:
    wanted = settings.get("min-replicas-to-write")
    if _number(info, "connected_slaves") and wanted == "0":
        text = "min-replicas-to-write is 0: a failover may lose logins that were refreshed"
        yield Fact("note", text, "CONFIG SET min-replicas-to-write 1, and in its configuration")


def _number(info: Mapping[str, str], name: str) -> int:
    value = info.get(name, "0")
    return int(value) if value.isdigit() else 0


def _word(text: str) -> str:
    """Return *text* as it may be shown, which is what a server says."""
    return "".join(c for c in text if c.isalnum() or c == "-")[:30]
