"""A move from a file to an engine: the engine takes over the logins that only the file knows.

The refresh token that was written down is spent once a login was refreshed, and the one that
counts is in the file. So the first thing that a proxy does with an engine is to bring it there.
Until that is done, because the engine is away or another proxy still runs with the file, the
access token in the file serves, and nothing is refreshed: it would spend a token behind somebody's
back, or send one that is spent.

Each login is handed over in one transaction of the file: nobody claims it in between, and it is
marked as moved once the engine has it, and only then. What the file has stays in it.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from account_pool.core.claims import Claim, Taken
from account_pool.core.credential import Secret
from account_pool.filesystem import reason_of
from account_pool.store.database import Database
from account_pool.store.fleet.tokens import Adopted, FleetTokens
from account_pool.store.machine import is_gone
from account_pool.store.sqlite import TokenTables, moved_to
from account_pool.store.store import GRACE_S, DamagedError, StoreError, Tokens

logger = logging.getLogger(__name__)

#: Takes a login over: its tokens, the claim they were got under, the last claim. Says whether it
#: is somewhere else now.
Take = Callable[[Tokens, int, Claim], bool]


class _Waits(NamedTuple):
    """A login that is not moved yet.

    Attributes:
        why: what is in the way.
        tokens: what the file has of it; None where that is not known.
        is_elsewhere: an engine has it, and it is not ours.
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
        self._move_all()

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
            adopted = self._hand_over(file, family)
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

    def _move_all(self) -> None:
        """Move what can be moved. The rest is in the file, and tried again when it is used."""
        with self._lock:
            try:
                with open_file(self._path) as file:
                    if file is not None:
                        self._move_all_of(file)
            except StoreError as error:
                self._say(error)

    def _move_all_of(self, file: FormerFile) -> None:
        taken = 0
        try:
            for family in file.families():
                try:
                    taken += self._hand_over(file, family) is Adopted.TAKEN
                except DamagedError as error:
                    # One row, of the file or the engine: others are not.
                    self._say(error)
        finally:
            if taken:
                self._tell_of(taken)

    def _hand_over(self, file: FormerFile, family: str) -> Adopted | None:
        """Return what became of a login; None where the file has none. Raises StoreError."""
        adopted = None

        def take(tokens: Tokens, fence: int, claim: Claim) -> bool:
            nonlocal adopted
            adopted = self._inner.adopt(family, tokens, fence, claim)
            return adopted is not Adopted.BUSY

        file.hand_over(family, self._engine, take)
        return adopted

    def _tell_of(self, count: int) -> None:
        logins = "1 login was" if count == 1 else f"{count} logins were"
        self._tell(
            f"{logins} taken over from {self._path} into the state engine "
            f"{self._engine}; the file keeps what it has of them, and refreshes them no more"
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
    """What a file has of a login.

    Attributes:
        tokens: the newest there, with times of our wall clock.
        moved_to: the engine that has newer ones; "": none.
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

    def hand_over(self, family: str, engine: str, take: Take) -> bool:
        """Have *take* keep a login, and note that *engine* has it.

        Say whether that was done. Raises InUseError, and what *take* raises: the login stays
        here then.
        """
        with self._database.writing() as connection:
            self._require_alone(connection)
            login = self._login(connection, family)
            if login.is_held(is_gone):
                raise self._in_use()
            if login.tokens is None or self._engine_of(connection, family) is not None:
                return False
            tokens, fence = login.tokens
            if not take(self._here(tokens), fence, login.claim):
                return False
            connection.execute(
                "INSERT OR REPLACE INTO moved_logins VALUES (?, ?, ?)",
                (family, engine, self._database.now()),
            )
        return True

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
