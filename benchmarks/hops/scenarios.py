"""What is recorded: a request, a failover, a chunk of a stream, each several times."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

from benchmarks import proxies
from benchmarks.bench import Bench
from benchmarks.hops.way import Way
from benchmarks.requests import Wish, chat

ORDINARY, FAILOVER, CHUNK = "ordinary request", "failover", "later chunk of a stream"
FIRST_FAILOVER = "first failover of a proxy"


@dataclass(frozen=True, slots=True)
class Most:
    """A bound on the way of a scenario."""

    files: int
    changes: int


#: What it should be.
TARGETS = {ORDINARY: Most(20, 110), FAILOVER: Most(32, 250), CHUNK: Most(4, 7)}
#: What it is, on whichever Python and mitmproxy it is most. A test holds the way to it: it may
#: go down, and never up.
BOUNDS = {ORDINARY: Most(20, 109), FAILOVER: Most(32, 218), CHUNK: Most(3, 5)}

_RECORDER = Path(__file__).parent / "recorder.py"
#: Requests before the first one that is recorded.
_WARM_UP = 20
#: Recordings of a scenario that have to agree, and the most that are made.
_AGREE, _MOST = 3, 30
#: Before each of them, seconds: by then what answers say of the next 30 ms is over.
_PAUSE_S = 0.05
#: What takes longer hangs, seconds.
_TIMEOUT_S = 60.0
#: Models: only the second account may serve the one, both the other.
_PLAIN, _BOTH = "gpt-5-mini", "gpt-5"
_REFUSING = "sk-bench-trips-0"
#: Events of a stream before those that are recorded.
_BEFORE = 10


def measure(bench: Bench) -> dict[str, Way]:
    """Return the way of each scenario by its name. Raises RuntimeError if one cannot be run."""
    good = [proxies.account(label, f"sk-bench-good-{label}") for label in "abc"]
    with _running(bench, good) as line:
        request = chat(bench.port)
        line.warm_up(request)
        ordinary = _usual(lambda: line.record(request))
        later_chunk = _usual(line.stream())
    first = proxies.account("first", _REFUSING, models=[_BOTH])
    second = proxies.account("second", "sk-bench-good", priority=1)
    with _running(bench, [first, second]) as line:
        line.warm_up(chat(bench.port, model=_PLAIN))
        # A conversation each: none is bound to the account that served another.
        requests = (chat(bench.port, model=_BOTH, text=f"question {n}") for n in itertools.count())
        first_failover = line.record_failover(next(requests))
        failover = _usual(lambda: line.record_failover(next(requests)))
    return {
        ORDINARY: ordinary,
        FAILOVER: failover,
        FIRST_FAILOVER: first_failover,
        CHUNK: later_chunk,
    }


def _usual(record: Callable[[], Way]) -> Way:
    """Return the way without what happens only now and then: the one with the fewest calls.

    Of those that were recorded several times: on a busy machine a way may be shorter once.
    """
    ways: list[Way] = []
    while len(ways) < _MOST:
        ways.append(record())
        fewest = min(ways, key=lambda way: len(way.calls))
        if ways.count(fewest) == _AGREE:
            return fewest
    if alike := [way for way in ways if ways.count(way) >= _AGREE]:
        return min(alike, key=lambda way: len(way.calls))
    raise RuntimeError(f"{_MOST} recordings, and no {_AGREE} are alike")


class _Line:
    """A connection through a proxy that records."""

    def __init__(
        self,
        bench: Bench,
        connection: ssl.SSLSocket,
        recorder: socket.socket,
        answers: BufferedReader,
    ) -> None:
        self._bench = bench
        self._connection = connection
        self._recorder = recorder
        self._answers = answers

    def warm_up(self, request: bytes) -> None:
        for _ in range(_WARM_UP):
            self._send(request).read()

    def record(self, request: bytes) -> Way:
        """Return the way of *request*, which is to be answered with 200."""
        return self._record(lambda: self._send(request).read())

    def record_failover(self, request: bytes) -> Way:
        """Return the way of *request*, which the first account is to refuse, and it alone."""
        self._bench.forget()
        way = self.record(request)
        seen = self._bench.seen()["credentials"]
        served = {credential: each["requests"] for credential, each in seen.items()}
        if served != {_REFUSING: 1, "sk-bench-good": 1}:
            raise RuntimeError(f"not a failover: {served}")
        self._tell("pool.clear openai/first")
        return way

    def stream(self) -> Callable[[], Way]:
        """Begin a stream; return what records one of its later events. Nothing follows it."""
        wish = Wish(name="stream", chunks=_BEFORE + _MOST + 1, held=_BEFORE)
        response = self._send(chat(self._bench.port, wish, text="a stream"))

        def read_event() -> None:
            while response.readline().strip():
                pass

        def next_event() -> None:
            self._bench.next_event()
            read_event()

        for _ in range(_BEFORE):
            read_event()
        return lambda: self._record(next_event)

    def _send(self, request: bytes) -> http.client.HTTPResponse:
        self._connection.sendall(request)
        response = http.client.HTTPResponse(self._connection)
        response.begin()
        if response.status != 200:
            raise RuntimeError(f"the answer was {response.status}")
        return response

    def _record(self, act: Callable[[], object]) -> Way:
        time.sleep(_PAUSE_S)
        self._tell("start")
        act()
        return Way.of(self._tell("stop"))

    def _tell(self, command: str) -> Any:
        self._recorder.sendall(command.encode() + b"\n")
        return json.loads(self._answers.readline())


@contextmanager
def _running(bench: Bench, accounts: Sequence[Mapping[str, Any]]) -> Iterator[_Line]:
    """Run a proxy with these *accounts*, and connect to the provider through it."""
    assert bench.addon is not None
    # The proxies of a run differ by it.
    port_file = bench.directory / f"recorder-{len(accounts)}.port"
    kind = proxies.pool(bench.addon, accounts, hops_port=str(port_file))
    with bench.running(replace(kind, observer=_RECORDER)) as (proxy,):
        port = _read_port(proxy, port_file)
        with (
            socket.create_connection(("127.0.0.1", port), _TIMEOUT_S) as recorder,
            recorder.makefile("rb") as answers,
            proxy.connect(bench.port, bench.proxy_authority) as connection,
        ):
            yield _Line(bench, connection, recorder, answers)


def _read_port(proxy: proxies.Proxy, file: Path) -> int:
    deadline = time.monotonic() + _TIMEOUT_S
    while not file.exists():
        if proxy.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the proxy does not record")
        time.sleep(0.01)
    return int(file.read_text())
