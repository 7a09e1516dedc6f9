"""A store in one SQLite file, shared by all proxies that name it; or in memory, for one.

Here are the store as a whole and the tokens of logins; `sqlite_state.py` has the rest.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from msgspec.structs import replace

from account_pool.core.account import AccountKey
from account_pool.core.claims import Claim, Taken
from account_pool.core.credential import Secret
from account_pool.store import agreed
from account_pool.store.agreed import Decision, Held, Login, Result
from account_pool.store.database import (
    IN_MEMORY,
    Database,
    number_of,
    put_aside,
    what_is_left,
    with_room,
)
from account_pool.store.machine import Clock, is_gone
from account_pool.store.sqlite_state import SqliteState
from account_pool.store.store import (
    DamagedError,
    MovedError,
    StateStore,
    StoreError,
    Tokens,
    TokenStore,
)

logger = logging.getLogger(__name__)

#: How long no claim is granted in a file that has replaced another, seconds: the proxies that
#: use it notice within one or two, and write what they know.
SETTLE_S = 3.0
#: How many damaged files are put aside by one proxy: a disk, or a mistake of ours, may
#: damage each new one.
MAX_ASIDES = 3

Value = TypeVar("Value")
How = ParamSpec("How")


def _lasting(
    method: Callable[Concatenate[SqliteTokens, How], Value],
) -> Callable[Concatenate[SqliteTokens, How], Value]:
    """Have *method* done again in a new file, where the one there is has been damaged."""

    @with_room
    @functools.wraps(method)
    def done(store: SqliteTokens, /, *args: How.args, **how: How.kwargs) -> Value:
        try:
            return method(store, *args, **how)
        except DamagedError as error:
            store.put_aside(error)
            return method(store, *args, **how)

    return done


class TokenTables:
    """What a state database has of logins, with times of its clock. Raises DamagedError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def _read(self, connection: sqlite3.Connection, family: str) -> Held | None:
        row = connection.execute(f"{_TOKENS} WHERE family = ?", (family,)).fetchone()
        try:
            return None if row is None else _tokens_of(row)[1]
        except (TypeError, ValueError):
            raise self._database.damaged() from None

    def _claim(self, connection: sqlite3.Connection, family: str) -> Claim:
        row = connection.execute(f"{_CLAIMS} WHERE family = ?", (family,)).fetchone()
        try:
            return Claim() if row is None else _claim_of(row)[1]
        except (TypeError, ValueError):
            raise self._database.damaged() from None

    def _login(self, connection: sqlite3.Connection, family: str) -> Login:
        return Login(
            now=self._database.now(),
            tokens=self._read(connection, family),
            claim=self._claim(connection, family),
        )

    def _engine_of(self, connection: sqlite3.Connection, family: str) -> str | None:
        """Return the engine that has *family* since; None: none has."""
        row = connection.execute(f"{_MOVED} WHERE family = ?", (family,)).fetchone()
        return None if row is None else str(row[1])


class SqliteTokens(TokenTables):
    """A `TokenStore` in a file that only its owner may read.

    Times in the file are of its own clock (`database.py`): setting the wall clock of
    a proxy makes no token older.

    What was seen of each login stays in memory. A file that knows less (a new one, after it
    was deleted; a backup) gets it before anything else is done with it.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock | None = None,
        is_gone: Callable[[str], bool] = is_gone,
    ) -> None:
        """Open *path*. Raises StoreError. The rest is for tests."""
        self._path = path
        self._clock = clock
        super().__init__(Database(path, clock=clock))
        self._is_gone = is_gone
        self._lock = threading.RLock()
        #: by family, with times of the store's clock: tokens and by which claim; the claim
        self._tokens: dict[str, Held] = {}
        self._claims: dict[str, Claim] = {}
        #: the engine that has a login since, by family
        self._moved: dict[str, str] = {}
        self._asides = 0
        self._said: set[str] = set()
        #: when the file took the place of another, by the store's clock: others may still have
        #: to write what they know
        self._begun_at = -inf

    @_lasting
    def load(self, family: str) -> Tokens | None:
        with self._lock:
            self._stay()
            with self._database.reading() as connection:
                found = self._read(connection, family)
            known = self._tokens.get(family)
            if known is not None and (found is None or found[1] < known[1]):
                with self._writing(family):
                    found = known
            if found is None:
                return None
            with self._database.reading() as connection:
                self._note_engine(connection, family)
            if (engine := self._moved.get(family)) is not None and engine not in self._said:
                self._said.add(engine)
                logger.warning("account-pool: %s", moved_to(self._path, engine))
            self._tokens[family] = found
            return found[0].shifted(-self._database.ahead_of_wall())

    @_lasting
    def save(
        self, family: str, tokens: Tokens, *, replaces: Secret | None = None, fence: int = 0
    ) -> bool:
        def decide(login: Login) -> Decision[bool]:
            kept = tokens.shifted(self._database.ahead_of_wall())
            return agreed.save_tokens(login, kept, replaces=replaces, fence=fence)

        return self._decide(family, decide)

    @_lasting
    def claim(self, family: str, owner: str, *, token: Secret, is_over: bool) -> Claim | Taken:
        def decide(login: Login) -> Decision[Claim | Taken]:
            if (engine := self._moved.get(family)) is not None:
                raise StoreError(moved_to(self._path, engine))
            return agreed.claim_login(
                login,
                owner,
                token=token,
                is_over=is_over,
                is_gone=self._is_gone,
                begun_at=self._begun_at,
                settle_s=SETTLE_S,
            )

        return self._decide(family, decide)

    @_lasting
    def sending(self, family: str, fence: int, token: Secret) -> bool:
        return self._decide(family, lambda login: agreed.send_token(login, fence, token))

    @_lasting
    def release(self, family: str, fence: int, *, unknown: bool = False) -> None:
        self._decide(family, lambda login: agreed.release_claim(login, fence, unknown=unknown))

    @_lasting
    def keep(self) -> None:
        with self._lock:
            self._stay()

    def put_aside(self, error: DamagedError | None = None) -> Path | None:
        """Give the file, which is damaged, another name; the next one gets what is known.

        None: another proxy has done it. Raises StoreError where it has to stay.
        """
        with self._lock:
            try:
                self._database.check_place()
            except MovedError:
                return None
            self._remember_all()
            return self._rename(error or self._database.damaged())

    def close(self) -> None:
        self._database.close()

    def _decide(self, family: str, decide: Callable[[Login], Decision[Result]]) -> Result:
        """Return what *decide* makes of a login, once that is written."""
        with self._lock:
            with self._writing(family) as connection:
                self._note_engine(connection, family)
                found = self._login(connection, family)
                then = decide(found)
                if then.tokens is not None:
                    _write(connection, family, *then.tokens)
                    self._database.note_time(connection)
                if then.claim is not None:
                    _put(connection, family, then.claim)
            self._claims[family] = then.claim or found.claim
            if then.tokens is not None:
                self._tokens[family] = then.tokens
        return then.result

    # -- a file that knows less than we do

    @contextlib.contextmanager
    def _writing(self, family: str) -> Iterator[sqlite3.Connection]:
        """As `Database.writing`, in the file that has the name now, with what we know."""
        self._stay()
        with self._database.writing() as connection:
            self._mend(connection, family)
            yield connection

    def _stay(self) -> None:
        """Continue in the file that has the name now. Raises StoreError."""
        try:
            self._database.check_place()
        except MovedError as moved:
            before = self._database.ahead
            self._database.leave()
            # Until that works, each try ends here: the one that was left is not used.
            self._database = self._opened_anew()
            later = self._database.ahead - before
            for family, (tokens, fence) in self._tokens.items():
                self._tokens[family] = tokens.shifted(later), fence
            for family, claim in self._claims.items():
                self._claims[family] = replace(claim, until=claim.until + later)
            families = self._tokens.keys() | self._claims.keys()
            with self._database.writing() as connection:
                for family in families:
                    self._mend(connection, family)
            self._begun_at = self._database.now()
            # The other half, which checks every second, logs it for people.
            logger.debug("account-pool: %s (%d logins)", moved, len(self._tokens))

    def _mend(self, connection: sqlite3.Connection, family: str) -> None:
        known, found = self._tokens.get(family), self._read(connection, family)
        if known is not None and (found is None or found[1] < known[1]):
            _write(connection, family, *known)
        claim = self._claims.get(family)
        if claim is not None and self._claim(connection, family).fence < claim.fence:
            _put(connection, family, claim)
        if family in self._moved:
            connection.execute(
                "INSERT OR IGNORE INTO moved_logins VALUES (?, ?, ?)",
                (family, self._moved[family], self._database.now()),
            )

    def _opened_anew(self) -> Database:
        """Open what has the name of the database now; what is none goes aside."""
        number = number_of(self._path)
        try:
            return Database(self._path, clock=self._clock)
        except DamagedError as error:
            if number == number_of(self._path):
                self._rename(error)
            return Database(self._path, clock=self._clock)

    def _rename(self, error: DamagedError) -> Path:
        if self._asides == MAX_ASIDES:
            raise error
        self._asides += 1
        aside = put_aside(self._path, saved=True)
        logger.warning("account-pool: %s: it was kept as %s", error.wrong, aside)
        return aside

    def _remember_all(self) -> None:
        """Read what can still be read of logins that were not used here."""
        self._tokens = self._left(_TOKENS, _tokens_of) | self._tokens
        self._claims = self._left(_CLAIMS, _claim_of) | self._claims
        self._moved = self._left(_MOVED, _mark_of) | self._moved

    def _left(
        self, question: str, read: Callable[[tuple[Any, ...]], tuple[str, Value]]
    ) -> dict[str, Value]:
        """Return what *read* makes of the rows that can still be read, by family."""
        found: dict[str, Value] = {}

        def ask(connection: sqlite3.Connection) -> None:
            for row in connection.execute(question):
                with contextlib.suppress(TypeError, ValueError):
                    family, value = read(row)
                    found[family] = value

        what_is_left(self._path, ask)
        return found

    def _note_engine(self, connection: sqlite3.Connection, family: str) -> None:
        """Note which engine has *family* since, so that it is not refreshed here, if one has."""
        if (found := self._engine_of(connection, family)) is not None:
            self._moved[family] = found


_TOKENS = (
    "SELECT family, access_token, refresh_token, expires_at, refreshed_at, companions, fence "
    "FROM tokens"
)
_MOVED = "SELECT family, engine FROM moved_logins"
_CLAIMS = "SELECT family, owner, until, fence, sent FROM claims"


def moved_to(path: Path, engine: str) -> str:
    """Return what is said of logins in the file *path* that *engine* has since."""
    return (
        f"the newest tokens of logins in {path} are in the state engine {engine}, so they are not "
        "refreshed here; set pool_state to its URL again, or log in again"
    )


def _tokens_of(row: tuple[Any, ...]) -> tuple[str, Held]:
    """Return family, and tokens with their fence. Raises TypeError or ValueError for damage."""
    family, access, refresh, expires_at, refreshed_at, companions, fence = row
    tokens = Tokens(
        access=None if access is None else Secret(_is(str, access)),
        refresh=Secret(_is(str, refresh)),
        expires_at=None if expires_at is None else _is(float, expires_at),
        refreshed_at=None if refreshed_at is None else _is(float, refreshed_at),
        companions=_is(dict, json.loads(companions)),
    )
    return _is(str, family), (tokens, _is(int, fence))


def _claim_of(row: tuple[Any, ...]) -> tuple[str, Claim]:
    """Return family and claim. Raises TypeError for a damaged row."""
    family, owner, until, fence, sent = row
    claim = Claim(
        fence=_is(int, fence), owner=_is(str, owner), until=_is(float, until), sent=_is(str, sent)
    )
    return _is(str, family), claim


def _mark_of(row: tuple[Any, ...]) -> tuple[str, str]:
    """Return family and engine of a login that was moved. Raises TypeError for a damaged row."""
    family, engine = row
    return _is(str, family), _is(str, engine)


def count_logins(path: Path) -> tuple[int, dict[str, int]] | None:
    """Return how many logins are in the file alone, and how many each engine has since.

    Only reads; None where there is no file, or it cannot be read.
    """

    def ask(connection: sqlite3.Connection) -> tuple[int, dict[str, int]]:
        logins = {family for (family,) in connection.execute("SELECT family FROM tokens")}
        try:
            moved = dict(connection.execute("SELECT family, engine FROM moved_logins").fetchall())
        except sqlite3.OperationalError:  # of an older version
            moved = {}
        engines = Counter(str(engine) for family, engine in moved.items() if family in logins)
        return len(logins - moved.keys()), dict(engines)

    return what_is_left(path, ask) if path.is_file() else None


def _is(kind: type[Value], value: object) -> Value:
    if not isinstance(value, kind):
        raise TypeError
    return value


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


def _put(connection: sqlite3.Connection, family: str, claim: Claim) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO claims (family, owner, until, fence, sent) VALUES (?, ?, ?, ?, ?)",
        (family, claim.owner, claim.until, claim.fence, claim.sent),
    )


# -- the store as a whole


class SqliteStore:
    """A `Store` in one file."""

    durable = True
    kind = "file"
    server = pool = ""

    def __init__(self, path: Path, *, clock: Clock | None = None) -> None:
        """Name *path*; nothing is opened. *clock* is for tests."""
        self._path = path
        self._clock = clock
        self._tokens: SqliteTokens | None = None
        self._number: int | None = None
        self._counted: dict[AccountKey, int] = {}

    def tokens(self) -> TokenStore:
        self._tokens = SqliteTokens(self._path, clock=self._clock)
        return self._tokens

    def state(self) -> StateStore:
        if self._tokens is not None:
            # A file that was taken away is made anew with the newest logins in it.
            self._tokens.keep()
        # Known also when it cannot be opened.
        self._number = number_of(self._path)
        opened = SqliteState(self._path, clock=self._clock, counted=self._counted)
        self._number = number_of(self._path)
        return opened

    def put_aside(self) -> str | None:
        if number_of(self._path) != self._number:
            return None
        if self._tokens is not None:
            aside = self._tokens.put_aside()
            return None if aside is None else str(aside)
        return str(put_aside(self._path))


class MemoryStore(SqliteStore):
    """A `Store` for `pool_state=memory:`: gone with the process, the same whenever it is opened."""

    durable = False
    kind = "memory"

    def __init__(self) -> None:
        super().__init__(IN_MEMORY)
        self._state: SqliteState | None = None

    def tokens(self) -> TokenStore:
        return self._tokens or super().tokens()

    def state(self) -> StateStore:
        self._state = self._state or SqliteState(self._path)
        return self._state
