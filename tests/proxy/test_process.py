"""What happens to the process: too few open files, a closed terminal, SIGHUP."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from account_pool.proxy import process
from account_pool.proxy.process import ACCEPT, LOG_S, Shortage, Terminal, queued
from tests.patience import PATIENCE_S
from tests.proxy.helpers import FakeClock

OUT = OSError(errno.EMFILE, "Too many open files")
FULL = OSError(errno.ENOBUFS, "No buffer space available")


class Accepting:
    """A loop whose listening socket cannot accept, as asyncio goes about it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = asyncio.get_running_loop()
        self.clock = FakeClock()
        self.listener: Any = SimpleNamespace(fileno=lambda: self.number)
        self.number = 7
        self.waiting: int | None = 3
        self.shortage = Shortage(self.clock.now)
        self.began: list[object] = []
        monkeypatch.setattr(process, "queued", lambda _listener: self.waiting)
        self.shortage.install()

    def fail(self, error: OSError = OUT, times: int = 100) -> list[asyncio.TimerHandle]:
        """Fail as `_accept_connection` does; return the retries there are then."""

        def _start_serving(*args: object) -> None:
            self.began.append(args)

        timers = []
        for _ in range(times):
            context = {"message": ACCEPT, "exception": error, "socket": self.listener}
            self.loop.call_exception_handler(context)
            timers.append(self.loop.call_later(0.0, _start_serving, "factory", self.listener))
        return list(dict.fromkeys(timers))

    async def after(self, timer: asyncio.TimerHandle) -> None:
        """Wait until *timer* has run, and all that was due."""
        passed = asyncio.Event()
        self.loop.call_at(timer.when(), passed.set)
        async with asyncio.timeout(PATIENCE_S):
            await passed.wait()


@pytest.fixture
async def accepting(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Accepting(monkeypatch)
    yield made
    made.shortage.uninstall()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    caplog.set_level(logging.INFO, logger=process.__name__)

    def messages() -> list[str]:
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    return messages


async def test_a_hundred_retries_are_one(accepting: Accepting) -> None:
    (timer,) = accepting.fail()
    await accepting.after(timer)
    assert accepting.began == [("factory", accepting.listener)]
    # And the next round again.
    (timer,) = accepting.fail()
    await accepting.after(timer)
    assert len(accepting.began) == 2


async def test_what_else_is_to_be_called_later_is(accepting: Accepting) -> None:
    before = accepting.loop.call_later
    accepting.loop.call_exception_handler({"message": ACCEPT, "socket": accepting.listener})
    came: asyncio.Future[str] = accepting.loop.create_future()
    accepting.loop.call_later(0.0, came.set_result, "called")
    assert accepting.loop.call_later == before
    assert await came == "called"


async def test_a_socket_that_was_closed_meanwhile_is_left_alone(accepting: Accepting) -> None:
    (timer,) = accepting.fail()
    accepting.number = -1
    await accepting.after(timer)
    assert accepting.began == []


async def test_it_is_told_once_a_minute(accepting: Accepting, said: Any) -> None:
    async def fail(waiting: int) -> None:
        accepting.waiting = waiting
        (timer,) = accepting.fail()
        await accepting.after(timer)

    await fail(3)
    (line,) = said()
    assert line.startswith("account-pool: out of file descriptors (limit ")
    assert line.endswith("): 3 connections had to wait; raise it with ulimit -n")
    for waiting in (5, 11, 1):
        await fail(waiting)
    assert said() == []
    accepting.clock.advance(LOG_S)
    await fail(1)
    # The most that waited at a time, of all that was not told.
    assert "): 11 connections had to wait;" in "".join(said())
    accepting.clock.advance(LOG_S)
    await fail(1)
    assert "): 1 connection had to wait;" in "".join(said())


async def test_where_nobody_waits_nothing_is_told(accepting: Accepting, said: Any) -> None:
    accepting.waiting = 0
    accepting.fail()
    assert said() == []


async def test_how_many_wait_may_not_be_known(accepting: Accepting, said: Any) -> None:
    accepting.waiting = None
    accepting.fail()
    assert "): new connections had to wait;" in "".join(said())


async def test_another_shortage_has_another_cause(accepting: Accepting, said: Any) -> None:
    accepting.fail(FULL)
    (line,) = said()
    assert line.startswith("account-pool: the system is out of resources (No buffer space")
    assert "ulimit" not in line


async def test_all_else_is_for_the_former_handler() -> None:
    loop = asyncio.get_running_loop()
    heard: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: heard.append(context))
    former = loop.get_exception_handler()
    shortage = Shortage()
    shortage.install()
    other = {"message": "something else", "exception": OUT}
    loop.call_exception_handler(other)
    assert heard == [other]
    shortage.uninstall()
    assert loop.get_exception_handler() is former


async def test_without_a_former_handler_it_is_asyncios(caplog: pytest.LogCaptureFixture) -> None:
    shortage = Shortage()
    shortage.install()
    asyncio.get_running_loop().call_exception_handler({"message": "something else"})
    assert [record.getMessage() for record in caplog.records] == ["something else"]
    shortage.uninstall()


async def test_a_handler_that_came_later_stays() -> None:
    loop = asyncio.get_running_loop()
    shortage = Shortage()
    shortage.install()

    def later(_loop: Any, _context: Any) -> None:
        """Hear nothing."""

    loop.set_exception_handler(later)
    shortage.uninstall()
    assert loop.get_exception_handler() is later


@pytest.mark.skipif(sys.platform != "linux", reason="it is not known elsewhere")
def test_who_waits_is_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert queued(listener) == 0
        address = listener.getsockname()
        with socket.create_connection(address), socket.create_connection(address):
            assert queued(listener) == 2
    assert queued(listener) is None


def test_a_request_opens_no_file_of_ours() -> None:
    """mitmproxy would crash the connection: everything is imported at the start."""
    code = "import sys, account_pool.proxy.addon; print('account_pool.proxy.stream' in sys.modules)"
    command = [sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": str(Path(process.__file__).parents[2])}
    assert (
        subprocess.run(command, check=True, env=env, capture_output=True).stdout.strip() == b"True"
    )


# -- the limit

FOREVER = -1


class Limits:
    """Stands for `resource`; *most* is what the system takes."""

    RLIMIT_NOFILE, RLIM_INFINITY = 7, FOREVER

    def __init__(self, soft: int, hard: int, most: int = 1 << 30) -> None:
        self.now, self._most = (soft, hard), most

    def getrlimit(self, _number: int) -> tuple[int, int]:
        return self.now

    def setrlimit(self, _number: int, limits: tuple[int, int]) -> None:
        if limits[0] > self._most:
            raise ValueError("current limit exceeds maximum limit")
        self.now = limits


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Limits(1024, 524_288), (65_536, 524_288)),
        (Limits(256, FOREVER), (65_536, FOREVER)),
        (Limits(256, FOREVER, most=10_240), (10_240, FOREVER)),
        (Limits(256, FOREVER, most=256), (256, FOREVER)),
        (Limits(256, 4096), (4096, 4096)),
        (Limits(64, 64), (64, 64)),
        # Never fewer than there were.
        (Limits(1_048_576, 1_048_576), (1_048_576, 1_048_576)),
        (Limits(20_000, FOREVER, most=20_000), (20_000, FOREVER)),
        (Limits(FOREVER, FOREVER), (FOREVER, FOREVER)),
    ],
)
def test_the_limit_is_raised(
    monkeypatch: pytest.MonkeyPatch, before: Limits, after: tuple[int, int]
) -> None:
    monkeypatch.setattr(process, "resource", before)
    process.raise_limit()
    assert before.now == after


def test_there_may_be_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "resource", None)
    process.raise_limit()


# -- a closed terminal

TERMINALS = pytest.mark.skipif(sys.platform == "win32", reason="there are no such terminals")


class Window:
    """A terminal, and standard input, output and errors in it."""

    def __init__(self) -> None:
        self.outside, inside = os.openpty()
        self.numbers = (inside, os.dup(inside), os.dup(inside))
        self.terminal = Terminal(self.numbers)

    def close(self) -> None:
        os.close(self.outside)
        self.outside = -1


@pytest.fixture
def window() -> Iterator[Window]:
    made = Window()
    yield made
    for number in (*made.numbers, made.outside):
        with suppress(OSError):
            os.close(number)


@TERMINALS
def test_what_is_written_vanishes_once_it_is_gone(window: Window) -> None:
    window.terminal.write_nowhere()
    _, output, errors = window.numbers
    os.write(output, b"shown")
    assert os.read(window.outside, 100) == b"shown"
    assert not window.terminal.is_gone
    window.close()
    assert window.terminal.is_gone
    with pytest.raises(OSError):
        os.write(output, b"lost")
    for _ in range(2):
        window.terminal.write_nowhere()
        os.write(output, b"nowhere")
        os.write(errors, b"nowhere")
    assert window.terminal.is_gone


@TERMINALS
async def test_nobody_waits_for_its_input_any_more(window: Window) -> None:
    loop = asyncio.get_running_loop()
    keyboard = window.numbers[0]
    loop.add_reader(keyboard, lambda: None)
    window.terminal.let_go()
    assert loop.remove_reader(keyboard)
    loop.add_reader(keyboard, lambda: None)
    window.close()
    window.terminal.let_go()
    assert not loop.remove_reader(keyboard)


@TERMINALS
def test_the_console_does_not_read_its_end(window: Window) -> None:
    said: list[str] = []
    screen = SimpleNamespace(get_available_raw_input=lambda: said.append("read") or [65])
    window.terminal.watch(screen, lambda: said.append("gone"))
    assert screen.get_available_raw_input() == [65]
    window.close()
    assert screen.get_available_raw_input() == []
    assert said == ["read", "gone"]


@TERMINALS
def test_where_there_is_no_such_screen_nothing_is_watched(window: Window) -> None:
    window.terminal.watch(None, lambda: None)
    window.terminal.watch(SimpleNamespace(), lambda: None)


@TERMINALS
def test_what_was_never_a_terminal_is_left_alone() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb"), os.fdopen(writer, "wb"):
        terminal = Terminal((reader, writer, writer))
        assert not terminal.is_gone
        terminal.write_nowhere()
        os.write(writer, b"kept")
        assert os.read(reader, 100) == b"kept"


# -- SIGHUP


ADDON = Path(process.__file__).parents[2]
#: Takes its terminal, if its standard input is one, and says what happens.
CHILD = """
import asyncio, fcntl, os, signal, sys, termios

if "nohup" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
if os.isatty(0):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from account_pool.proxy import process

async def main():
    said = asyncio.Queue()
    process.on_sighup(
        lambda: said.put_nowait("reload"),
        lambda: said.put_nowait("end"),
        lambda: print("at once", flush=True),
    )
    print("ready", flush=True)
    while True:
        word = await said.get()
        print(word, flush=True)
        if word == "end":
            return

asyncio.run(main())
"""


class Child:
    """CHILD with a terminal of its own."""

    def __init__(self, *args: str) -> None:
        self.terminal, inside = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *args],
            stdin=inside,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ADDON)},
            text=True,
        )
        os.close(inside)
        assert self.said() == "ready"

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def hang_up(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def close_terminal(self) -> None:
        os.close(self.terminal)
        self.terminal = -1


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[Child]:
    made = Child(*getattr(request, "param", ()))
    yield made
    if made.terminal >= 0:
        made.close_terminal()
    made.process.kill()
    made.process.communicate()


@TERMINALS
def test_a_signal_reads_again_and_a_closed_terminal_ends(child: Child) -> None:
    for _ in range(2):
        child.hang_up()
        assert [child.said(), child.said()] == ["at once", "reload"]
    child.close_terminal()
    assert [child.said(), child.said()] == ["at once", "end"]
    assert child.process.wait(PATIENCE_S) == 0


@TERMINALS
@pytest.mark.parametrize("child", [("nohup",)], indirect=True)
def test_who_asked_to_outlive_the_terminal_does(child: Child) -> None:
    child.close_terminal()
    child.hang_up()
    # The terminal that closes may say so by a signal of its own.
    said = child.said()
    while said == "at once":
        said = child.said()
    assert said == "reload"


@pytest.fixture
def before() -> Iterator[Any]:
    handler = signal.getsignal(signal.SIGHUP)
    yield handler
    signal.signal(signal.SIGHUP, handler)


@TERMINALS
async def test_it_is_undone(before: Any) -> None:
    undo = process.on_sighup(lambda: None, lambda: None, lambda: None)
    assert signal.getsignal(signal.SIGHUP) is not before
    undo(False)
    assert signal.getsignal(signal.SIGHUP) is before


@TERMINALS
async def test_a_process_that_ends_is_not_cut_short(before: Any) -> None:
    process.on_sighup(lambda: None, lambda: None, lambda: None)(True)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@TERMINALS
def test_elsewhere_than_in_the_main_thread_it_does_nothing() -> None:
    async def listen() -> None:
        process.on_sighup(lambda: None, lambda: None, lambda: None)(True)

    asyncio.run(asyncio.to_thread(asyncio.run, listen()))  # type: ignore[arg-type]


# -- its memory


@pytest.mark.parametrize(("many", "frozen"), [(0, 1), (1_000_000, 0)])
def test_no_collection_goes_through_many_accounts(monkeypatch, many, frozen):
    """It would stop the loop for 100 ms with 10,000 of them."""
    spared: list[bool] = []
    monkeypatch.setattr(process, "MANY_OBJECTS", many)
    monkeypatch.setattr(process.gc, "freeze", lambda: spared.append(gc.isenabled()))
    with process.without_collections():
        assert not gc.isenabled()
        made = [[] for _ in range(10)]
    assert gc.isenabled() and made
    assert spared == [False] * frozen
