"""One SQLite file: made private, opened, brought to the newest version, and guarded.

Knows nothing of what is in it: `schema.py` has the tables, `sqlite.py` and
`sqlite_state.py` the questions. Other processes may use the same file
(`journal_mode=WAL`).

Its clock is shared by all proxies that use it, and cannot be set. It is the time since
the machine was started, sleep included, which goes on whatever becomes of the wall clock, and
is the same for all processes. The file notes for each run of a machine how far its clock is
ahead of that; with the first run the wall clock is taken, with another one the clock goes on
by what the wall clock has gone on: not at all if it was set back meanwhile. Where a machine
does not tell its runs apart, its wall clock is taken.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import shlex
import shutil
import sqlite3
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from account_pool.filesystem import NotAFile, reason_of, require_file
from account_pool.store.machine import Clock, Moment, moment
from account_pool.store.schema import BESIDE, MIGRATIONS
from account_pool.store.store import DamagedError, FullError, MovedError, StoreError, UnfitError

#: The path of a database that is in no file, and stays open until the process ends.
IN_MEMORY = Path(":memory:")
#: How long a write waits for another process unless it says otherwise, in seconds.
BUSY_TIMEOUT_S = 10.0
#: How long a query may take that runs beside writes, in seconds.
LOOK_TIMEOUT_S = 10.0
#: How often it is tried again where SQLite does not wait by itself, in seconds.
BUSY_LOOK_S = 0.02
#: Bytes in the file that are free, so that what is small can be written on a full disk.
RESERVE_BYTES = 256 * 1024
#: How much of the file a connection keeps in memory, KiB; SQLite would take 2,000. The system keeps
#: what is read often, and most of what is written is rows that are not read again.
CACHE_KIB = 512
#: What SQLite puts beside the file while it is open.
_BESIDE = ("", "-wal", "-shm")
#: The number of no file.
_LEFT = -1

#: What is done about an error, by the name SQLite gives it.
_REMEDIES = {
    "SQLITE_BUSY": ("is locked by another program", "close the program that has it open"),
    "SQLITE_LOCKED": ("is locked by another program", "close the program that has it open"),
    "SQLITE_READONLY": ("cannot be written", "make it and its directory writable"),
    "SQLITE_CANTOPEN": ("cannot be opened", "create its directory and make it writable"),
    "SQLITE_PERM": ("cannot be opened", "make it and its directory writable"),
    "SQLITE_FULL": ("cannot be written: the disk is full", "free some space"),
    # A quota, or a limit on the size of files, among others.
    "SQLITE_IOERR_WRITE": ("cannot be written", "free some space, or check the disk"),
    "SQLITE_IOERR": ("cannot be read or written", "check the disk"),
    "SQLITE_CORRUPT": ("is damaged", "DAMAGED"),
    "SQLITE_NOTADB": ("is not a database", "DAMAGED"),
}


_FULL = ("SQLITE_FULL", "SQLITE_IOERR_WRITE")

#: What SQLite says of a value, not of its file.
_UNFIT = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError)


class Database:
    """One connection, used by one thread at a time.

    *ahead* is how far the store's clock is ahead of the age of this run of the machine, seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        synchronous: str = "FULL",
        clock: Clock | None = None,
    ) -> None:
        """Open *path*, and make it if it is not there. Raises StoreError.

        Args:
            busy_timeout_s: how long a write waits for another process.
            synchronous: "FULL": a write has reached the disk when it returns; "NORMAL":
                it has left the process, so that only the machine can lose it.
            clock: the machine's clocks; for tests.
        """
        self.path = path
        self._moment = clock or moment
        self.ahead = 0.0
        self._busy_timeout_s = busy_timeout_s
        self._synchronous = synchronous
        self._lock = threading.Lock()
        try:
            # What SQLite puts beside the file is beside what a link leads to.
            self._file = path if path == IN_MEMORY else _real(path)
            if path != IN_MEMORY:
                _make_private(self._file)
        except (OSError, ValueError) as error:
            kind = "used" if isinstance(error, NotAFile | ValueError) else "made private"
            raise StoreError(
                f"the state database {path} cannot be {kind} ({reason_of(error)}); "
                "set pool_state to a file of your own, or to memory:"
            ) from None
        self._connection = self._open()
        if path == IN_MEMORY:
            weakref.finalize(self, self._connection.close)
        self._number = number_of(path)
        #: of the files that SQLite puts beside it while any process has it open
        self._beside = {
            name: number_of(name) for name in (Path(f"{self._file}{end}") for end in _BESIDE[1:])
        }

    def close(self) -> None:
        if self.path == IN_MEMORY:
            return
        try:
            self.check_place()
        except MovedError:
            self.leave()
            return
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._connection.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection for queries. SQLite's errors become StoreError."""
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                if isinstance(error, _UNFIT) or "binding parameter" in str(error):
                    raise UnfitError(type(error).__name__) from None
                if "not decode to UTF-8" in str(error):
                    raise self.damaged() from None
                raise self._explained(error) from None

    @contextlib.contextmanager
    def looking(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection for several queries that see the same state."""
        with self.reading() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def beside(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection of its own for queries that take long, from any thread.

        What is written meanwhile does not wait. Raises StoreError, also after LOOK_TIMEOUT_S.
        """
        if self.path == IN_MEMORY:
            with self.reading() as connection:
                yield connection
            return
        give_up_at = time.monotonic() + LOOK_TIMEOUT_S
        try:
            connection = sqlite3.connect(f"{self._file.as_uri()}?mode=ro", uri=True)
            with contextlib.closing(connection):
                connection.set_progress_handler(lambda: time.monotonic() > give_up_at, 100_000)
                yield connection
        except sqlite3.Error as error:
            if time.monotonic() > give_up_at:
                raise StoreError(f"the state database {self.path} takes too long") from None
            raise self._explained(error) from None

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection for one transaction: all of it is on the disk, or nothing.

        No other process writes between its statements.
        """
        with self.reading() as connection, transaction(connection):
            yield connection

    def now(self) -> float:
        """Return the time on the store's clock, seconds."""
        return self._moment().up + self.ahead

    def ahead_of_wall(self) -> float:
        """Return how far the store's clock is ahead of our wall clock, seconds."""
        now = self._moment()
        return round(now.up + self.ahead - now.wall, 3)

    def note_time(self, connection: sqlite3.Connection) -> None:
        """Let the store's clock go on from here after the machine was started anew.

        Call it in a transaction.
        """
        now = self._moment()
        connection.execute(
            "UPDATE clock SET at = ?, wall = ? WHERE run = ?",
            (now.up + self.ahead, now.wall, now.run),
        )

    def make_room(self) -> None:
        """Let the log begin anew, in the place it has: all in it goes to its place in the file.

        On a full disk it cannot grow, and the file has some pages to spare.
        """
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(RESTART)")

    def keep_reserve(self) -> None:
        """Have RESERVE_BYTES of the file free, if the disk has room for that."""
        with self._lock, contextlib.suppress(sqlite3.Error):
            _keep_reserve(self._connection)

    def check_place(self) -> None:
        """Raise MovedError when the path names another file than the one that was opened."""
        if self.path == IN_MEMORY:
            return
        if number_of(self.path) != self._number or _size(self.path) == 0:
            raise MovedError(
                f"the state database {self.path} was moved, deleted or replaced; what is there "
                "now gets what this proxy knows"
            )
        for name, number in self._beside.items():
            if number_of(name) != number:
                raise MovedError(
                    f"{name} was moved or deleted while it was in use; the state database is "
                    "opened anew"
                )

    def leave(self) -> None:
        """Let go of a file that was taken away, and touch nothing that has its name now.

        Call it before the file is opened anew. To close the last connection is to delete the
        log by its name, whosever it is by then.
        """
        with self._lock:
            connection = self._connection
            with contextlib.suppress(OSError):
                self._make_another()
            # What is left of ours would be taken for a part of the file that is there now.
            for name, number in self._beside.items():
                if number_of(name) == number:
                    with contextlib.suppress(OSError):
                        name.unlink()
            self._number = _LEFT
            if sys.version_info >= (3, 12):
                with contextlib.suppress(sqlite3.Error):
                    connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
                    connection.close()
            else:
                # SQLite cannot be stopped from deleting them on close: never close it.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))

    def _make_another(self) -> None:
        """Where only a part was taken away, put a copy of the rest in its place.

        For SQLite it would be the same file, which others use with the parts they have.
        """
        if number_of(self.path) != self._number:
            return
        copy = Path(f"{self._file}.copy-{os.getpid()}")
        copy.touch(mode=0o600)
        shutil.copyfile(self._file, copy)
        copy.replace(self._file)

    def _open(self) -> sqlite3.Connection:
        connection = None
        try:
            connection = sqlite3.connect(
                self._file,
                timeout=self._busy_timeout_s,
                isolation_level=None,
                check_same_thread=False,
            )
            _use_wal(connection)
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            if self.path != IN_MEMORY:
                connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            _migrate(connection, self.path)
            with transaction(connection):
                self.ahead = _set_clock(connection, self._moment())
            with contextlib.suppress(sqlite3.Error):
                _keep_reserve(connection)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise self._explained(error) from None
            raise
        return connection

    def _explained(self, error: sqlite3.Error) -> StoreError:
        """Return *error* in words. Its own text is not repeated: it may quote a value."""
        if str(error).startswith("no such "):
            return self.damaged("lacks a table")
        name = getattr(error, "sqlite_errorname", None) or type(error).__name__
        # Extended names begin with those of the table: SQLITE_READONLY_DBMOVED.
        known = max((one for one in _REMEDIES if name.startswith(one)), key=len, default="")
        wrong, remedy = _REMEDIES.get(known) or (
            f"cannot be used ({name})",
            "set pool_state to another file",
        )
        if remedy == "DAMAGED":
            return self.damaged(wrong)
        kind = FullError if known in _FULL else StoreError
        return kind(f"the state database {self.path} {wrong}; {remedy}")

    def damaged(self, wrong: str = "is damaged") -> DamagedError:
        """Return the error for a file that holds what no proxy has written."""
        aside = shlex.quote(f"{self.path}.damaged")
        return DamagedError(
            f"the state database {self.path} {wrong}",
            f"keep it, it may hold the newest logins: mv {shlex.quote(str(self.path))} "
            f"{aside}; accounts refused after that need a new login",
        )


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Have all that is written meanwhile written as a whole, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


class _InDatabase(Protocol):
    _database: Database


Half = TypeVar("Half", bound=_InDatabase)
How = ParamSpec("How")
Value = TypeVar("Value")


def with_room(
    method: Callable[Concatenate[Half, How], Value],
) -> Callable[Concatenate[Half, How], Value]:
    """Have *method*, which can be repeated, done again once room was made for it."""

    @functools.wraps(method)
    def done(half: Half, /, *args: How.args, **how: How.kwargs) -> Value:
        try:
            return method(half, *args, **how)
        except FullError:
            half._database.make_room()
            return method(half, *args, **how)

    return done


def number_of(path: Path) -> int | None:
    """Return what tells this file from another that has its name later; None: no file."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _real(path: Path) -> Path:
    # `Path.resolve` raises RuntimeError where links go round in a circle.
    return Path(os.path.realpath(path))


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def put_aside(path: Path, *, saved: bool = False) -> Path:
    """Give the damaged file *path* another name, and return that. Raises StoreError.

    One that can still be asked for logins stays, unless these are *saved*: what has them must
    not be forgotten.
    """
    path = _real(path)
    later = (Path(f"{path}.damaged-{n}") for n in itertools.count(2))
    names = itertools.chain([Path(f"{path}.damaged")], later)
    aside = next(name for name in names if not name.exists())
    # A login that cannot be read is of no use.
    if not saved and what_is_left(path, lambda c: c.execute("SELECT 1 FROM tokens").fetchone()):
        raise DamagedError(
            f"the state database {path} is damaged but holds logins",
            f"stop every proxy that uses it, then: mv {shlex.quote(str(path))} "
            f"{shlex.quote(str(aside))}; accounts refused after that need a new login",
        )
    try:
        for suffix in _BESIDE:
            with contextlib.suppress(FileNotFoundError):
                Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    except OSError as error:
        raise StoreError(
            f"the state database {path} is damaged and cannot be renamed ({reason_of(error)}); "
            "move it"
        ) from None
    return aside


def what_is_left(path: Path, ask: Callable[[sqlite3.Connection], Value]) -> Value | None:
    """Return what the damaged file *path* answers, None where it does not."""
    try:
        connection = sqlite3.connect(f"{_real(path).as_uri()}?mode=ro", uri=True)
    except sqlite3.Error:
        return None
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    with contextlib.closing(connection):
        try:
            return ask(connection)
        except sqlite3.Error:
            return None


def _set_clock(connection: sqlite3.Connection, now: Moment) -> float:
    """Return how far the store's clock is ahead of `Moment.up`; note it for a new run.

    Call it in a transaction.
    """
    if not now.run:
        return 0.0
    row = connection.execute("SELECT ahead FROM clock WHERE run = ?", (now.run,)).fetchone()
    if row is not None:
        return float(row[0])
    last = connection.execute("SELECT at, wall FROM clock ORDER BY at DESC LIMIT 1").fetchone()
    at = now.wall if last is None else last[0] + max(now.wall - last[1], 0.0)
    # To milliseconds, as all that is kept.
    ahead = round(at - now.up, 3)
    connection.execute("INSERT INTO clock VALUES (?, ?, ?, ?)", (now.run, ahead, at, now.wall))
    return ahead


def _use_wal(connection: sqlite3.Connection) -> None:
    """Turn on the write-ahead log. SQLite does not wait for others who do the same."""
    give_up_at = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() > give_up_at:
                raise
        time.sleep(BUSY_LOOK_S)


def _keep_reserve(connection: sqlite3.Connection) -> None:
    """Write pages to the file and let go of them: they are there for whatever comes.

    Raises sqlite3.Error.
    """
    [(free,), (size,)] = (
        connection.execute(f"PRAGMA {name}").fetchone() for name in ("freelist_count", "page_size")
    )
    if free * size >= RESERVE_BYTES:
        return
    connection.execute("CREATE TABLE IF NOT EXISTS reserve (room BLOB)")
    try:
        connection.execute("INSERT INTO reserve VALUES (zeroblob(?))", (RESERVE_BYTES,))
        # Only what goes from the log to the file takes room there.
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    finally:
        connection.execute("DROP TABLE reserve")


def _make_private(path: Path) -> None:
    """Create the file, or take it from others: SQLite's own files get its mode.

    Raises OSError, also for a folder or a device: others would not find that as it was.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    for suffix in _BESIDE:
        file = Path(f"{path}{suffix}")
        with contextlib.suppress(FileNotFoundError):
            if require_file(file).st_mode & 0o077 and os.name == "posix":
                file.chmod(0o600)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Do the steps that are missing, all or none. Raises StoreError for a newer file."""
    with transaction(connection):
        connection.execute("CREATE TABLE IF NOT EXISTS schema (version INTEGER NOT NULL)")
        found = connection.execute("SELECT max(version) FROM schema").fetchone()[0] or 0
        if found > len(MIGRATIONS):
            raise StoreError(
                f"the state database {path} was written by a newer version of the account pool; "
                "upgrade, or set pool_state to another file"
            )
        for step in (*MIGRATIONS[found:], BESIDE):
            for statement in step:
                connection.execute(statement)
        if found < len(MIGRATIONS):
            connection.execute("INSERT INTO schema VALUES (?)", (len(MIGRATIONS),))
