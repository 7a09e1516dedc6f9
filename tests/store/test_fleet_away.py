"""An engine that refuses, hangs, says too much, or is not there: nobody waits for it in vain."""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.patience import PATIENCE_S
from tests.store.servers import Server, StartServer, new_pool, until

from account_pool.store.fleet import connection
from account_pool.store.fleet import engine as fleet_engine
from account_pool.store.fleet.engine import (
    MAX_PAUSE_S,
    PAUSE_S,
    Breaker,
    Engine,
    EngineClock,
    Listener,
)
from account_pool.store.pool_state import parse
from account_pool.store.store import DamagedError, FullError, StoreError, UnfitError

pytest.importorskip("redis")
#: An answer of a test's own server comes at once, or never.
SOON_S = 0.5


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# -- when it is tried again


def test_while_an_engine_is_away_one_caller_tries_at_intervals_that_grow() -> None:
    breaker = Breaker(lambda: 1.0)
    pauses, now = [], 0.0
    assert breaker.may_ask(now)
    for _ in range(8):
        breaker.failed(now)
        assert not breaker.may_ask(now)
        pauses.append(breaker.again_at - now)
        now = breaker.again_at
        assert breaker.may_ask(now)
        assert not breaker.may_ask(now), "another one tries"
    assert pauses[:4] == [PAUSE_S, 2 * PAUSE_S, 4 * PAUSE_S, 8 * PAUSE_S]
    assert pauses[-1] == MAX_PAUSE_S
    breaker.succeeded()
    assert breaker.may_ask(now)
    assert breaker.may_ask(now)
    assert breaker.failures == 0


def test_proxies_do_not_all_come_back_at_once() -> None:
    ends = []
    for chance in (0.0, 0.5, 1.0):
        breaker = Breaker(lambda chance=chance: chance)
        breaker.failed(0.0)
        ends.append(breaker.again_at)
    assert ends == [PAUSE_S / 2, PAUSE_S * 3 / 4, PAUSE_S]


def test_nobody_waits_for_the_one_who_tries(monkeypatch) -> None:
    clock = Clock()
    engine = Engine(parse("redis://localhost/"), now=clock, chance=lambda: 1.0)
    refused, may_end, asked = threading.Event(), threading.Event(), []

    def connect() -> Any:
        asked.append(clock.now)
        refused.set()
        assert may_end.wait(PATIENCE_S)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(engine._servers, "connect", connect)
    may_end.set()
    with pytest.raises(StoreError, match="connection was refused"):
        engine.call("ping")
    may_end.clear()
    refused.clear()
    clock.now += PAUSE_S
    said: queue.Queue[str] = queue.Queue()
    thread = threading.Thread(target=lambda: said.put(outcome(engine)), daemon=True)
    thread.start()
    assert refused.wait(PATIENCE_S)
    for _ in range(5):
        assert "connection was refused" in outcome(engine), "at once, and why it is away"
    assert len(asked) == 2
    may_end.set()
    assert "connection was refused" in said.get(timeout=PATIENCE_S)


def test_calls_that_were_under_way_when_it_went_are_one_failure(monkeypatch) -> None:
    """Else it would be left alone for seconds after a moment's break."""
    engine = Engine(parse("redis://localhost/"), now=Clock())
    monkeypatch.setattr(engine._servers, "connect", Replicated)

    def goes(depth: int) -> Any:
        def question(connection: Any) -> None:
            if depth:
                with pytest.raises(StoreError):
                    engine.ask(goes(depth - 1))
            raise ConnectionResetError(104, "Connection reset by peer")

        return question

    with pytest.raises(StoreError, match="has closed the connection"):
        engine.ask(goes(3))
    assert engine._breaker.failures == 1


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "Connection reset by peer"),
        BrokenPipeError(32, "Broken pipe"),
        ssl.SSLEOFError(8, "EOF occurred in violation of protocol (_ssl.c:2427)"),
        ssl.SSLError(1, "[SSL: UNEXPECTED_EOF] unexpected eof while reading (_ssl.c:1000)"),
        ConnectionAbortedError(103, "Software caused connection abort"),
        OSError(10053, "An established connection was aborted by the software in your host"),
        OSError(10054, "An existing connection was forcibly closed by the remote host"),
    ],
    ids=str,
)
def test_an_end_without_a_word_may_be_for_want_of_tls_or_a_certificate(error: OSError) -> None:
    said = str(connection.away_error("the state engine", error))
    assert "has closed the connection; check that it runs, and whether it wants TLS" in said
    assert "cert=PATH and key=PATH" in said


@pytest.mark.parametrize("words", ["HTTP/1.1 408 Request Timeout", "220 mail.example"])
def test_what_is_no_engine_is_said_without_its_words(words: str) -> None:
    exceptions = pytest.importorskip("redis.exceptions")
    error = exceptions.InvalidResponse(f"Protocol Error: {words.encode()!r}")
    said = str(connection.away_error("the state engine", error))
    assert said == (
        "the state engine does not speak the protocol of Redis; check host and port: they are of "
        "something else"
    )


def outcome(engine: Engine) -> str:
    try:
        return str(engine.call("ping"))
    except StoreError as error:
        return str(error)


def test_while_a_first_connection_is_made_others_are_told(monkeypatch) -> None:
    """Nobody knows yet whether it is away."""
    engine = Engine(parse("redis://localhost/?timeout=0.05"))
    connecting, may_end = threading.Event(), threading.Event()

    def connect() -> Any:
        connecting.set()
        assert may_end.wait(PATIENCE_S)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(engine._servers, "connect", connect)
    thread = threading.Thread(target=outcome, args=(engine,), daemon=True)
    thread.start()
    assert connecting.wait(PATIENCE_S)
    assert "cannot be reached: it does not answer" in outcome(engine)
    may_end.set()
    thread.join(PATIENCE_S)


class Replicated:
    """A connection to a server with a replica, which is behind."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def send_command(self, *command: Any, **how: Any) -> None:
        self.asked.append(command)

    def read_response(self) -> Any:
        answers = {"INFO": b"connected_slaves:1", "WAIT": 0}
        return answers.get(self.asked[-1][0], [b"1000", b"0", b"1"])

    def disconnect(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize(("answer_s", "waits_ms"), [(60, 150), (0.25, 150), (0.05, 30)])
def test_a_replica_is_waited_for_as_long_as_an_answer_may_take(
    monkeypatch, answer_s: float, waits_ms: int
) -> None:
    """What was written would else count as lost, and the engine as away."""
    engine, server = Engine(parse(f"redis://localhost/?timeout={answer_s}")), Replicated()
    monkeypatch.setattr(engine._servers, "connect", lambda: server)
    assert engine.call("open", "1", lasting=True) == b"1"
    assert server.asked[-1] == ("WAIT", 1, waits_ms)


@pytest.mark.parametrize("host", ["a..example", f"{'a' * 64}.example", ".example"])
def test_a_name_that_no_host_can_have_is_said(host: str) -> None:
    with contextlib.closing(Engine(parse(f"rediss://{host}/"))) as engine:
        assert "cannot be found by its name; check" in outcome(engine)
        assert engine._breaker.failures == 1, "the next one does not try at once"


# -- servers that are none


Say = Callable[[socket.socket], None]


@contextlib.contextmanager
def server_that(says: Say) -> Iterator[tuple[Engine, list[int]]]:
    """A server that does *says* on each connection, which stays open; how many there were."""
    seen: list[int] = []
    kept: list[socket.socket] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                conn, _ = listening.accept()
                seen.append(len(seen))
                kept.append(conn)
                threading.Thread(target=speak, args=(conn,), daemon=True).start()

    def speak(conn: socket.socket) -> None:
        with contextlib.suppress(OSError):
            says(conn)

    threading.Thread(target=serve, daemon=True).start()
    port = listening.getsockname()[1]
    engine = Engine(parse(f"redis://127.0.0.1:{port}/?timeout={SOON_S}"))
    try:
        yield engine, seen
    finally:
        engine.close()
        listening.close()
        for conn in kept:
            conn.close()


def answering(answer: bytes, *, close: bool = False) -> Say:
    """Greet as a server does, and give *answer* to a function."""

    def say(conn: socket.socket) -> None:
        while data := conn.recv(65536):
            if b"FCALL" in data or b"EVALSHA" in data:
                conn.sendall(answer)
                if close:
                    conn.shutdown(socket.SHUT_RDWR)
                return
            conn.sendall(b"+OK\r\n" * data.count(b"SETINFO") or b"+OK\r\n")

    return say


def test_one_that_does_not_answer_is_not_waited_for() -> None:
    with server_that(answering(b"")) as (engine, seen):
        assert "does not answer in time" in outcome(engine)
        assert "does not answer in time" in outcome(engine)
        assert len(seen) == 1, "the second caller did not ask"


def test_one_that_closes_the_connection_is_said() -> None:
    with server_that(answering(b"", close=True)) as (engine, _):
        assert "has closed the connection; check that it runs, and whether it wants TLS" in outcome(
            engine
        )


def test_one_that_answers_byte_by_byte_is_not_waited_for_for_ever(monkeypatch) -> None:
    """Each byte comes in time, and the answer never ends."""
    monkeypatch.setattr(connection, "WHOLE_TIMES", 1)

    def say(conn: socket.socket) -> None:
        while data := conn.recv(65536):
            if b"FCALL" in data:
                conn.sendall(b"$1000000000\r\n")
                while not over.wait(SOON_S / 50):
                    conn.sendall(b"x")
            conn.sendall(b"+OK\r\n" * data.count(b"SETINFO") or b"+OK\r\n")

    over = threading.Event()
    with server_that(say) as (engine, _):
        assert "does not answer in time" in outcome(engine)
    over.set()


def test_one_that_says_too_much_is_not_listened_to(monkeypatch) -> None:
    monkeypatch.setattr(connection, "MAX_REPLY_BYTES", 100_000)

    def say(conn: socket.socket) -> None:
        while data := conn.recv(65536):
            if b"FCALL" in data:
                conn.sendall(b"$1000000000000\r\n")
                while True:
                    conn.sendall(b"x" * 65536)
            conn.sendall(b"+OK\r\n" * data.count(b"SETINFO") or b"+OK\r\n")

    with server_that(say) as (engine, _):
        assert "sends more than an answer can have" in outcome(engine)


@pytest.mark.parametrize(
    ("answer", "error", "wrong"),
    [
        (b":1\r\n", DamagedError, "what is no answer"),
        (b"*0\r\n", DamagedError, "what is no answer"),
        (b"$-1\r\n", DamagedError, "what is no answer"),
        (b"*3\r\n$1\r\nx\r\n$1\r\ny\r\n:1\r\n", DamagedError, "what is no answer"),
        (b"*2\r\n$400\r\n%s\r\n:0\r\n" % (b"9" * 400), DamagedError, "what is no answer"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", StoreError, "does not speak the protocol of Redis"),
        (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", FullError, "memory"),
        (b"-MISCONF Redis is configured to save RDB snapshots\r\n", StoreError, "to its disk"),
        (b"-NOREPLICAS Not enough good replicas to write.\r\n", StoreError, "too few replicas"),
        (b"-BUSY Redis is busy running a script.\r\n", StoreError, "busy with a script"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", StoreError, "is loading its"),
        (
            b"-READONLY You can't write against a read only replica.\r\n",
            StoreError,
            "a replica; name the server that",
        ),
        (b"-CLUSTERDOWN The cluster is down\r\n", StoreError, "cluster that is down"),
        (b"-NOPERM User pool has no permissions to run the 'hset' command\r\n", StoreError, "HSET"),
        (b"-WRONGTYPE Operation against a key\r\n", DamagedError, "no proxy has written"),
        (b"-ERR Invalid stream ID specified\r\n", StoreError, "older than Redis 7.0; upgrade"),
        (b"-UNFIT a name\r\n", UnfitError, "^a name$"),
        (b"-DAMAGED :a\r\n", DamagedError, "no proxy has written"),
        (b"-ERR fake: sk-fake0123456789abcdef0123\r\n", StoreError, r"refuses .*\[not shown\]"),
    ],
)
def test_an_answer_is_data_and_a_refusal_is_said_in_words(answer, error, wrong) -> None:
    with server_that(answering(answer)) as (engine, _), pytest.raises(error, match=wrong) as found:
        engine.call("ping")
    assert type(found.value) is error


def test_an_answer_that_has_no_end_of_lists_is_none() -> None:
    with server_that(answering(b"*1\r\n" * 10_000)) as (engine, _), pytest.raises(StoreError):
        engine.call("ping")


# -- real ones


def test_one_that_is_out_of_memory_still_reads(start_server: StartServer) -> None:
    server: Server = start_server("redis", "maxmemory-policy noeviction")
    engine = server.engine()
    engine.call("open", "1")
    server.ask("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(FullError, match="out of memory; raise its maxmemory"):
        engine.call("open", "1")
    assert engine.call("ping") is None
    assert engine._breaker.failures == 0
    server.ask("CONFIG", "SET", "maxmemory", "0")
    assert engine.call("open", "1") == b"1"
    engine.close()


def test_one_that_hangs_is_used_again_once_it_goes_on(start_server: StartServer) -> None:
    server: Server = start_server("redis")
    engine = server.engine(timeout_s=SOON_S)
    until(lambda: outcome(engine) == "None")
    server.pause()
    assert "does not answer in time" in outcome(engine)
    server.go_on()
    until(lambda: outcome(engine) == "None")
    engine.close()


def test_a_connection_that_was_closed_meanwhile_is_not_used(server: Server) -> None:
    engine = server.engine()
    engine.call("ping")
    with contextlib.closing(server.client()) as client:
        client.client_kill_filter(_type="normal", skipme=True)
    assert engine.call("ping") is None
    engine.close()


def test_who_listens_hears_again_after_a_break(start_server: StartServer) -> None:
    server: Server = start_server("redis")
    pool, heard = new_pool(), queue.Queue[str]()
    engine = server.engine(pool)
    with contextlib.closing(engine.listen(heard.put)):
        assert heard.get(timeout=PATIENCE_S) == ""
        server.kill()
        server.start()
        assert heard.get(timeout=PATIENCE_S) == "", "something may have been missed"
        server.ask("PUBLISH", engine.key("news"), "me")
        assert heard.get(timeout=PATIENCE_S) == "me"
    engine.close()


def test_a_connection_that_does_not_come_is_not_waited_for_at_the_end(monkeypatch) -> None:
    monkeypatch.setattr(fleet_engine, "CLOSE_S", 0.0)
    connecting, may_end = threading.Event(), threading.Event()

    def connect() -> Any:
        connecting.set()
        may_end.wait(PATIENCE_S)
        raise ConnectionRefusedError(111, "Connection refused")

    heard: list[str] = []
    listening = Listener(connect, "news", heard.append)
    assert connecting.wait(PATIENCE_S)
    listening.close()
    assert listening._thread.is_alive()
    may_end.set()
    listening._thread.join(PATIENCE_S)
    assert not listening._thread.is_alive() and not heard


def test_an_error_of_who_listens_ends_nothing(server: Server) -> None:
    engine, heard = server.engine(), queue.Queue[str]()

    def fail_once(proxy: str) -> None:
        heard.put(proxy)
        if heard.qsize() == 1:
            raise RuntimeError("fake")

    with contextlib.closing(engine.listen(fail_once)):
        until(lambda: heard.qsize() > 1)
    engine.close()


def test_a_clock_is_followed_through_slow_answers() -> None:
    moment = Clock()
    clock = EngineClock(moment)
    clock.note(1000.0, 1000.002, 5000.001)
    assert clock.read() == pytest.approx(5000.0, abs=1e-6)
    # One that took two seconds tells less than what is known.
    moment.now = 1010.0
    clock.note(1008.0, 1010.0, 5008.1)
    assert clock.read() == pytest.approx(5010.0, abs=1e-6)
    # Another clock, of a server that took over.
    clock.note(1010.0, 1010.0, 5100.0)
    assert clock.read() == pytest.approx(5100.0)
