"""A store for all proxies that name the same engine and pool.

Also how the logins of the file that was used before get there, and what `check` and `doctor` say
of an engine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from account_pool.core.account import AccountKey
from account_pool.core.claims import Claim, Taken
from account_pool.core.credential import Secret
from account_pool.filesystem import expanded, reason_of
from account_pool.store.database import Database
from account_pool.store.fleet.connection import ask
from account_pool.store.fleet.engine import Engine
from account_pool.store.fleet.history import FleetDecisions, FleetRequests
from account_pool.store.fleet.link import Link
from account_pool.store.fleet.state import FleetState
from account_pool.store.fleet.token_rows import HOW, Keyring, SealingKeyError, TokenRows, era_of
from account_pool.store.fleet.tokens import Adopted, FleetTokens, Unsaved
from account_pool.store.machine import is_gone
from account_pool.store.pool_state import Address, Fact, Lookup
from account_pool.store.sqlite import TokenTables, moved_to
from account_pool.store.store import (
    GRACE_S,
    DamagedError,
    StateStore,
    StoreError,
    Tokens,
    TokenStore,
)

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
        tokens = FleetTokens(self.engine, keyring, unsaved)
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


# -- a move from a file: the engine takes over the logins that only the file knows
#
# The refresh token that was written down is spent once a login was refreshed, and the one that
# counts is in the file. So the first thing that a proxy does with an engine is to bring it there.
# Until that is done, because the engine is away or another proxy still runs with the file, the
# access token in the file serves, and nothing is refreshed: it would spend a token behind
# somebody's back, or send one that is spent.
#
# Each login is handed over in one transaction of the file: nobody claims it in between, and it is
# marked as moved once the engine has it, and only then. What the file has stays in it.


class _Waits(NamedTuple):
    """A login that is not moved yet: what is in the way, and what the file has of it, if known.

    *is_elsewhere*: an engine has it, and it is not ours.
    """

    why: StoreError
    tokens: Tokens | None = None
    is_elsewhere: bool = False


class MovingTokens:
    """A `TokenStore` in an engine, to which the logins of a file are moved."""

    def __init__(
        self, inner: FleetTokens, path: Path, engine: str, tell: Callable[[str], object]
    ) -> None:
        """Move what *path* has to *inner*, which is named *engine*, from the first call on."""
        self._inner = inner
        self._path = path
        self._engine = engine
        self._tell = tell
        self._lock = threading.Lock()
        #: logins of which the file has nothing that the engine has not
        self._done: set[str] = set()
        #: what was logged
        self._said: set[str] = set()

    def load(self, family: str) -> Tokens | None:
        waits = self._move(family)
        if waits is None or waits.tokens is None:
            return self._inner.load(family)
        try:
            found = self._inner.load(family)
        except StoreError:
            return waits.tokens
        if found is not None and waits.is_elsewhere:
            self._done.add(family)
        return found or waits.tokens

    def claim(self, family: str, owner: str, *, token: Secret, is_over: bool) -> Claim | Taken:
        waits = self._move(family)
        if waits is not None and self._inner.load(family) is None:
            raise waits.why
        return self._inner.claim(family, owner, token=token, is_over=is_over)

    def sending(self, family: str, fence: int, token: Secret) -> bool:
        return self._inner.sending(family, fence, token)

    def save(
        self, family: str, tokens: Tokens, *, replaces: Secret | None = None, fence: int = 0
    ) -> bool:
        return self._inner.save(family, tokens, replaces=replaces, fence=fence)

    def release(self, family: str, fence: int, *, unknown: bool = False) -> None:
        self._inner.release(family, fence, unknown=unknown)

    def keep(self) -> None:
        self._inner.keep()
        with self._lock:
            try:
                with open_file(self._path) as file:
                    if file is not None:
                        self._move_all(file)
            except StoreError as error:
                # The rest is in the file, and tried again when it is used.
                self._say(error)

    def close(self) -> None:
        self._inner.close()

    # -- inside

    def _move(self, family: str) -> _Waits | None:
        """Move a login, if the file has it; None: there is nothing to wait for."""
        if family in self._done:
            return None  # whatever keeps another one
        with self._lock:
            if family in self._done:
                return None
            try:
                with open_file(self._path) as file:
                    waits = None if file is None else self._moved(file, family)
            except StoreError as error:
                waits = _Waits(error)
                self._say(error)
            if waits is None:
                self._done.add(family)
            return waits

    def _moved(self, file: FormerFile, family: str) -> _Waits | None:
        found = file.find(family)
        if found is None or found.moved_to == self._engine:
            return None
        if found.moved_to:
            why = StoreError(moved_to(self._path, found.moved_to))
            return _Waits(why, found.tokens, is_elsewhere=True)
        try:
            adopted = file.hand_over(family, self._engine, self._inner)
        except InUseError as error:
            self._say(error)
            return _Waits(error, found.tokens)
        except StoreError as error:
            return _Waits(error, found.tokens)
        if adopted is Adopted.BUSY:
            return _Waits(StoreError("its login is being refreshed by another proxy"), found.tokens)
        if adopted is Adopted.TAKEN:
            self._tell_of(1)
        return None

    def _move_all(self, file: FormerFile) -> None:
        taken = 0
        try:
            for family in file.families():
                try:
                    adopted = file.hand_over(family, self._engine, self._inner)
                    taken += adopted is Adopted.TAKEN
                except DamagedError as error:
                    # One row, of the file or the engine: others are not.
                    self._say(error)
        finally:
            if taken:
                self._tell_of(taken)

    def _tell_of(self, count: int) -> None:
        logins = "1 login was" if count == 1 else f"{count} logins were"
        self._tell(
            f"{logins} taken over from {self._path} into the state engine "
            f"{self._engine}; the file keeps its copies, which are not refreshed any more"
        )

    def _say(self, error: StoreError) -> None:
        """Log *error* once."""
        if (text := str(error)) not in self._said:
            self._said.add(text)
            logger.warning("account-pool: %s", text)


# -- the file that was used before


class InUseError(StoreError):
    """Another proxy uses the file."""


class Kept(NamedTuple):
    """What a file has of a login: the newest tokens there, with times of our wall clock.

    *moved_to* is the engine that has newer ones; "": none.
    """

    tokens: Tokens
    moved_to: str


class FormerFile(TokenTables):
    """A state database, while it is open. Its methods raise StoreError."""

    def families(self) -> list[str]:
        """Return the logins that were not moved."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT family FROM tokens WHERE family NOT IN (SELECT family FROM moved_logins)"
            )
            return [str(family) for (family,) in rows]

    def find(self, family: str) -> Kept | None:
        with self._database.looking() as connection:
            found = self._read(connection, family)
            moved = self._engine_of(connection, family)
        return None if found is None else Kept(self._here(found[0]), moved or "")

    def hand_over(self, family: str, engine: str, tokens: FleetTokens) -> Adopted | None:
        """Have *tokens* keep a login, and note that *engine* has it.

        Return what became of it; None: there is none to be moved. Raises InUseError, and what
        *tokens* raises: the login stays here then.
        """
        with self._database.writing() as connection:
            self._require_alone(connection)
            login = self._login(connection, family)
            if login.is_held(is_gone):
                raise self._in_use()
            if login.tokens is None or self._engine_of(connection, family) is not None:
                return None
            newest, fence = login.tokens
            adopted = tokens.adopt(family, self._here(newest), fence, login.claim)
            if adopted is not Adopted.BUSY:
                connection.execute(
                    "INSERT OR REPLACE INTO moved_logins VALUES (?, ?, ?)",
                    (family, engine, self._database.now()),
                )
        return adopted

    def _here(self, tokens: Tokens) -> Tokens:
        """Return *tokens* with times of our wall clock."""
        return tokens.shifted(-self._database.ahead_of_wall())

    def _require_alone(self, connection: sqlite3.Connection) -> None:
        now = self._database.now()
        for proxy, seen_at in connection.execute("SELECT proxy, seen_at FROM proxies"):
            if abs(now - seen_at) < GRACE_S and not is_gone(proxy):
                raise self._in_use()

    def _in_use(self) -> InUseError:
        return InUseError(
            f"another proxy runs with the state database {self._database.path}, so its logins are "
            "not taken over, nor refreshed here; stop that proxy"
        )


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[FormerFile | None]:
    """Open the file; None: there is none. Raises StoreError."""
    try:
        is_there = path.exists()
    except OSError as error:
        why = reason_of(error)
        raise StoreError(f"the state database {path} cannot be read ({why})") from None
    if not is_there:
        yield None
        return
    database = Database(path)
    try:
        yield FormerFile(database)
    finally:
        database.close()


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
