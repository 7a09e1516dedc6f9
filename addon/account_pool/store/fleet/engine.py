"""The engine of a fleet: functions are called in it, its clock is known, its news are heard.

Knows nothing of what the functions do. Blocks: it is used by the threads of the store, never by
the event loop. While an engine is away nobody waits for it: one caller tries, at intervals that
grow, and all others are answered at once.

The version of the functions, which are joined from their files, is a digest of what they say: so
proxies of two versions may share an engine while they are upgraded, each with functions of its
own.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Sequence
from importlib import resources
from math import inf
from typing import Any, NamedTuple, TypeVar

from account_pool.store.fleet.connection import (
    Argument,
    Servers,
    ask,
    away_error,
    damaged_error,
    is_elsewhere,
    is_missing,
    is_refused,
    is_stale,
    refusal_error,
)
from account_pool.store.pool_state import Address
from account_pool.store.store import StoreError, UnfitError
from account_pool.supervision import tasks

#: How many idle connections are kept: as many as threads ask at the same time.
MAX_IDLE = 8
#: How long a write that must last waits for a replica, seconds, and which part of the time that
#: an answer may take: it has to come in that.
REPLICA_S, REPLICA_PART = 0.15, 0.6
#: The first pause after a failure, and the longest, seconds.
PAUSE_S = 0.5
MAX_PAUSE_S = 10.0
#: How fast two clocks part at most, seconds a second.
DRIFT = 2e-4
#: How often it asks whether the engine is there while that says nothing, seconds.
SILENCE_S = 5.0
#: How long its end is waited for: a connection may be under way for longer, seconds.
CLOSE_S = 1.0
#: The longest name of a proxy.
MAX_NAME_BYTES = 4096

Value = TypeVar("Value")


class Engine:
    """Redis or Valkey, as one pool of proxies uses it. May be used from any thread.

    While it cannot be reached each call ends at once in a StoreError, but for one that tries.
    """

    def __init__(
        self,
        address: Address,
        *,
        now: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Name an engine; nothing is connected yet. *now* and *chance* are for tests."""
        self.address = address
        self._now = now
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        self._servers = Servers(address)
        self._breaker = Breaker(chance)
        self._clock = EngineClock(now)
        self._idle: list[Any] = []
        #: why it could not be reached
        self._why = ""
        #: functions are refused: the same source is run as a script
        self._scripted = False

    def call(
        self,
        function: str,
        *args: Argument,
        keys: Sequence[str | bytes] = (),
        lasting: bool = False,
    ) -> Any:
        """Run a function of `functions/*.lua` in the engine, and return what it returns.

        That is bytes, an int, None, or a list of such: data, which may be anything. What a
        call that raises has done is not known, unless it raises UnfitError, FullError or
        DamagedError: then it has done nothing. Raises StoreError.

        *lasting*: where there are replicas, one of them has it by then, or REPLICA_S are over
        (less where an answer may not take so long).
        """
        arguments = [_packed(argument) for argument in args]
        names = [self.key("")[:-1].encode(), *map(_packed, keys)]

        def run(connection: Any) -> Any:
            asked = self._now()
            reply = self._run(connection, function, names, arguments)
            answered = self._now()
            if lasting:
                _replicate(connection, min(REPLICA_S, REPLICA_PART * self.address.timeout_s))
            seconds, micros, *value = reply
            self._clock.note(asked, answered, int(seconds) + int(micros) / 1e6)
            return value[0] if value else None

        try:
            return self.ask(run)
        except (TypeError, ValueError, ArithmeticError, RecursionError):
            wrong = f"answers {function} with what is no answer"
            raise damaged_error(self._shown, wrong) from None

    def ask(self, question: Callable[[Any], Value]) -> Value:
        """Return what *question* gets of a `redis.Connection`. Raises StoreError.

        Its own errors are raised as they are. It may be asked twice: a server that does not have
        the pool any more has done nothing.
        """
        from redis.exceptions import (  # noqa: PLC0415 - only proxies of a fleet pay for it
            ConnectionError,
            RedisError,
            ResponseError,
        )

        with self._lock:
            if not self._breaker.may_ask(self._now()):
                raise StoreError(self._why)
            before = self._breaker.failures
        for is_last in (False, True):
            connection = None
            try:
                connection = self._idle_connection() or self.connect()
                value = question(connection)
            except ResponseError as error:
                if not is_elsewhere(error):
                    self._give_back(connection)
                    raise refusal_error(self._shown, error) from None
                self._drop(connection)
                if is_last:
                    raise self._failed(error, before) from None
            except (RedisError, OSError) as error:
                self._drop(connection)
                is_loading = isinstance(error, ConnectionError) and is_elsewhere(error)
                if is_last or not is_loading:
                    raise self._failed(error, before) from None
            except StoreError as error:
                self._drop(connection)
                raise self._failed(error, before) from None
            except BaseException:
                # What is left of the answer must not become that to another question.
                self._drop(connection)
                with self._lock:
                    self._breaker.succeeded()
                raise
            else:
                self._give_back(connection)
                return value
            # The others are to the same server.
            self.close()
        raise AssertionError  # the last try returns or raises

    def key(self, name: str) -> str:
        """Return the key of this pool with that name: all of them are in one hash slot."""
        return f"{{ap:{self.address.pool}}}:{name}"

    def now(self) -> float:
        """Return the time on the engine's clock, seconds since the epoch. Never blocks.

        Before the first answer it is the wall clock's.
        """
        return self._clock.read()

    def listen(self, heard: Callable[[str], object]) -> Listener:
        """Call *heard* in a thread of its own with each proxy that has written.

        With "" where news may have been missed: at the start, and after each break.
        """
        return Listener(self.connect, self.key("news"), heard)

    def close(self) -> None:
        """Close connections that nobody uses now. The next call opens another."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.disconnect()

    # -- connections

    def connect(self) -> Any:
        """Return a new connection. Raises redis.RedisError, OSError or StoreError.

        One at a time is made. Who would have to wait for another's is told that it is away.
        """
        if not self._connecting.acquire(timeout=self.address.timeout_s):
            error = away_error(self._shown, TimeoutError("timeout connecting"))
            raise StoreError(self._why) if self._why else error
        try:
            return self._servers.connect()
        finally:
            self._connecting.release()

    @property
    def _shown(self) -> str:
        return f"the state engine {self.address}"

    def _idle_connection(self) -> Any:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if not is_stale(connection):
                return connection
            connection.disconnect()

    def _give_back(self, connection: Any) -> None:
        with self._lock:
            self._breaker.succeeded()
            self._why = ""
            if connection is not None and len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
                return
        self._drop(connection)

    def _drop(self, connection: Any) -> None:
        if connection is not None:
            connection.disconnect()

    def _failed(self, error: Exception, before: int) -> StoreError:
        """Note a failure of a call that began after *before* of them in a row."""
        away = error if isinstance(error, StoreError) else away_error(self._shown, error)
        with self._lock:
            # Calls that were under way when it went are one failure.
            if self._breaker.failures == before:
                self._breaker.failed(self._now())
                self._why = str(away)
        # Whatever broke one has broken the others.
        self.close()
        return away

    # -- functions

    def _run(self, connection: Any, function: str, keys: list[bytes], args: list[bytes]) -> Any:
        """Have a function run, and loaded where it is missing. Raises redis.RedisError."""
        from redis.exceptions import ResponseError  # noqa: PLC0415 - only proxies of a fleet

        lib = library()
        rest: list[Argument] = [len(keys), *keys]
        if not self._scripted:
            called: list[Argument] = ["FCALL", f"{lib.name}_{function}", *rest, *args]
            try:
                return ask(connection, *called)
            except ResponseError as error:
                has_none = is_missing(error)
                if not has_none and not is_refused(error, "fcall"):
                    raise
            try:
                if has_none:
                    ask(connection, "FUNCTION", "LOAD", "REPLACE", lib.source)
                    return ask(connection, *called)
            except ResponseError as error:
                if not is_refused(error, "function"):
                    raise
        # Until a script has run: the next call may find that functions are allowed.
        self._scripted = False
        called = ["EVALSHA", lib.sha, *rest, function, *args]
        try:
            reply = ask(connection, *called)
        except ResponseError as error:
            if not is_missing(error):
                raise
            ask(connection, "SCRIPT", "LOAD", lib.script)
            reply = ask(connection, *called)
        self._scripted = True
        return reply


def _replicate(connection: Any, wait_s: float) -> None:
    """Wait for a replica to have what this connection wrote. Raises redis.RedisError."""
    from redis.exceptions import ResponseError  # noqa: PLC0415 - only proxies of a fleet

    with contextlib.suppress(ResponseError):  # a user who may not ask that
        if b"connected_slaves:0" not in ask(connection, "INFO", "replication"):
            ask(connection, "WAIT", 1, round(wait_s * 1000))


def _packed(argument: Argument) -> bytes:
    if isinstance(argument, bytes):
        return argument
    if isinstance(argument, float):
        return repr(argument).encode()
    try:
        return str(argument).encode()
    except UnicodeEncodeError:
        raise UnfitError("text that is not Unicode") from None


# -- when it is tried again, its clock, its news


class Breaker:
    """Counts failures in a row. Not thread-safe: its caller holds a lock.

    *failures* are 0 while the engine can be used; before *again_at* nobody tries.
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        """*chance* returns a number from 0 to 1: proxies must not all come back at once."""
        self._chance = chance
        self.failures = 0
        self.again_at = -inf
        self._is_tried = False

    def may_ask(self, now: float) -> bool:
        """Say whether a caller may ask the engine; whoever may says how it went."""
        if not self.failures:
            return True
        if self._is_tried or now < self.again_at:
            return False
        self._is_tried = True
        return True

    def succeeded(self) -> None:
        self.failures, self._is_tried = 0, False

    def failed(self, now: float) -> None:
        self.failures += 1
        self._is_tried = False
        longest = min(PAUSE_S * 2.0 ** min(self.failures - 1, 10), MAX_PAUSE_S)
        self.again_at = now + longest * (0.5 + 0.5 * self._chance())


class EngineClock:
    """Knows the engine's time without asking."""

    def __init__(self, now: Callable[[], float]) -> None:
        """*now* is the monotonic clock of this process."""
        self._now = now
        self._ahead: float | None = None
        self._error = 0.0
        self._noted_at = 0.0

    def note(self, asked: float, answered: float, time_of_engine: float) -> None:
        """Note an answer: its time is of some moment between question and answer."""
        ahead, error = time_of_engine - (asked + answered) / 2, (answered - asked) / 2
        if self._ahead is not None:
            known = self._error + (answered - self._noted_at) * DRIFT
            # A worse look at the same clock says nothing new.
            if error > known and abs(ahead - self._ahead) <= error + known:
                return
        self._ahead, self._error, self._noted_at = ahead, error, answered

    def read(self) -> float:
        """Return the engine's time; before the first answer the wall clock's."""
        return time.time() if self._ahead is None else self._now() + self._ahead


class Listener:
    """Hears the news of a pool, until it is closed. Its thread connects again by itself."""

    def __init__(
        self, connect: Callable[[], Any], channel: str, heard: Callable[[str], object]
    ) -> None:
        """*heard* is called in a thread of its own.

        With the proxy that has written; with "" where news may have been missed: at the start,
        and after each break. *connect* raises redis.RedisError, OSError or StoreError.
        """
        self._connect = connect
        self._channel = channel
        self._heard = heard
        self._over = threading.Event()
        self._connection: Any = None
        self._thread = threading.Thread(target=self._run, name="account-pool news", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hear nothing more; returns once the thread has ended, or after CLOSE_S."""
        self._over.set()
        sock = getattr(self._connection, "_sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        from redis.exceptions import RedisError  # noqa: PLC0415 - only proxies of a fleet

        breaker = Breaker(random.random)
        while not self._over.is_set():
            try:
                self._connection = self._connect()
                self._follow(self._connection, breaker)
            except (RedisError, OSError, ValueError, StoreError):
                pass  # whoever calls functions meets the same, and says so
            except Exception as error:
                tasks.note("hearing of other proxies", error, "it is begun again")
            finally:
                if self._connection is not None:
                    self._connection.disconnect()
            breaker.failed(time.monotonic())
            self._over.wait(breaker.again_at - time.monotonic())

    def _follow(self, connection: Any, breaker: Breaker) -> None:
        connection.send_command("SUBSCRIBE", self._channel, check_health=False)
        unanswered = False
        while not self._over.is_set():
            connection._sock.next_answer()
            if not connection.can_read(timeout=SILENCE_S):
                if unanswered:
                    return
                connection.send_command("PING", check_health=False)
                unanswered = True
                continue
            message = connection.read_response()
            unanswered = False
            breaker.succeeded()
            match message:
                case [b"subscribe", *_]:
                    self._heard("")
                case [b"message", _, bytes(proxy)]:
                    self._heard(proxy[:MAX_NAME_BYTES].decode("utf-8", "replace"))


# -- the functions that run in it

_MARK = "--{functions}"
#: In a library functions are registered, by a script one is called.
_REGISTER = """redis.register_function({
  function_name = "%s_%s",
  callback = function(keys, args) return answer("%s", keys, args) end,
  flags = FLAGS["%s"] or {},
})
"""
_SCRIPT_TAIL = "return answer(table.remove(ARGV, 1), KEYS, ARGV)\n"


class Library(NamedTuple):
    """The functions of one version; their names begin with that of the library.

    *source* is what `FUNCTION LOAD` takes, *script* what `SCRIPT LOAD` does: its first argument is
    the name of the function. *sha* is for `EVALSHA`.
    """

    name: str
    source: str
    script: str
    sha: str


@functools.cache
def library() -> Library:
    """Return the functions of this version of the account pool."""
    folder = resources.files(__package__)
    parts = sorted(folder.joinpath("functions").iterdir(), key=lambda part: part.name)
    # Each file's own locals end with it.
    functions = "\n".join(
        f"do -- {part.name}\n{part.read_text(encoding='utf-8')}end"
        for part in parts
        if part.name.endswith(".lua")
    )
    text = folder.joinpath("library.lua").read_text(encoding="utf-8")
    body = text.replace(_MARK, functions)
    name = f"ap_{hashlib.sha256(body.encode()).hexdigest()[:12]}"
    # While a library is loaded Lua has no pairs(): the names are read here.
    added = re.findall(r"^F\.(\w+) = function", functions, re.MULTILINE)
    tail = "".join(_REGISTER % (name, one, one, one) for one in added)
    script = body + _SCRIPT_TAIL
    return Library(
        name=name,
        source=f"#!lua name={name}\n{body}{tail}",
        script=script,
        sha=hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest(),
    )
