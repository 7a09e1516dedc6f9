"""A closed terminal, and SIGHUP, which reads accounts.yaml again unless the terminal is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from account_pool.proxy import terminal
from account_pool.proxy.terminal import Terminal
from tests.patience import PATIENCE_S

if sys.platform == "win32":
    pytest.skip("there are no such terminals", allow_module_level=True)


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


def test_the_console_does_not_read_its_end(window: Window) -> None:
    said: list[str] = []
    screen = SimpleNamespace(get_available_raw_input=lambda: said.append("read") or [65])
    window.terminal.watch(screen, lambda: said.append("gone"))
    assert screen.get_available_raw_input() == [65]
    window.close()
    assert screen.get_available_raw_input() == []
    assert said == ["read", "gone"]


def test_where_there_is_no_such_screen_nothing_is_watched(window: Window) -> None:
    window.terminal.watch(None, lambda: None)
    window.terminal.watch(SimpleNamespace(), lambda: None)


def test_what_was_never_a_terminal_is_left_alone() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb"), os.fdopen(writer, "wb"):
        terminal = Terminal((reader, writer, writer))
        assert not terminal.is_gone
        terminal.write_nowhere()
        os.write(writer, b"kept")
        assert os.read(reader, 100) == b"kept"


# -- SIGHUP


ADDON = Path(terminal.__file__).parents[2]
#: Takes its terminal, if its standard input is one, and says what happens.
CHILD = """
import asyncio, fcntl, os, signal, sys, termios

if "nohup" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
if os.isatty(0):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from account_pool.proxy import terminal

async def main():
    said = asyncio.Queue()
    terminal.on_sighup(
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


def test_a_signal_reads_again_and_a_closed_terminal_ends(child: Child) -> None:
    for _ in range(2):
        child.hang_up()
        assert [child.said(), child.said()] == ["at once", "reload"]
    child.close_terminal()
    assert [child.said(), child.said()] == ["at once", "end"]
    assert child.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("child", [("nohup",)], indirect=True)
def test_who_asked_to_outlive_the_terminal_does(child: Child) -> None:
    child.close_terminal()
    child.hang_up()
    assert [child.said(), child.said()] == ["at once", "reload"]


@pytest.fixture
def before() -> Iterator[Any]:
    handler = signal.getsignal(signal.SIGHUP)
    yield handler
    signal.signal(signal.SIGHUP, handler)


async def test_it_is_undone(before: Any) -> None:
    undo = terminal.on_sighup(lambda: None, lambda: None, lambda: None)
    assert signal.getsignal(signal.SIGHUP) is not before
    undo(False)
    assert signal.getsignal(signal.SIGHUP) is before


async def test_a_process_that_ends_is_not_cut_short(before: Any) -> None:
    terminal.on_sighup(lambda: None, lambda: None, lambda: None)(True)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_elsewhere_than_in_the_main_thread_it_does_nothing() -> None:
    async def listen() -> None:
        terminal.on_sighup(lambda: None, lambda: None, lambda: None)(True)

    asyncio.run(asyncio.to_thread(asyncio.run, listen()))  # type: ignore[arg-type]
