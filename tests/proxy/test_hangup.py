"""SIGHUP reads the file again; a terminal that is closed ends the proxy, as it always has."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from account_pool.proxy import hangup
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP")

ADDON = Path(hangup.__file__).parents[2]
#: Takes its terminal, if its standard input is one, and says what happens.
CHILD = """
import asyncio, fcntl, os, signal, sys, termios

if "nohup" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
if os.isatty(0):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from account_pool.proxy import hangup

async def main():
    said = asyncio.Queue()
    hangup.listen(
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
    undo = hangup.listen(lambda: None, lambda: None, lambda: None)
    assert signal.getsignal(signal.SIGHUP) is not before
    undo(False)
    assert signal.getsignal(signal.SIGHUP) is before


async def test_a_process_that_ends_is_not_cut_short(before: Any) -> None:
    hangup.listen(lambda: None, lambda: None, lambda: None)(True)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_elsewhere_than_in_the_main_thread_it_does_nothing() -> None:
    async def listen() -> None:
        hangup.listen(lambda: None, lambda: None, lambda: None)(True)

    asyncio.run(asyncio.to_thread(asyncio.run, listen()))  # type: ignore[arg-type]
