"""A terminal that is closed: what is written vanishes, and nobody reads its end for ever."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace

import pytest

from account_pool.proxy.terminal import Terminal

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
