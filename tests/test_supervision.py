"""Background tasks: what fails is told and begun anew, and none is started elsewhere."""

from __future__ import annotations

import ast
import asyncio
import sqlite3
import sys
import threading
from pathlib import Path

import pytest

import account_pool
from account_pool.supervision import MAX_PAUSE_S, DaemonThreads, Tasks, begun
from tests.patience import PATIENCE_S

PACKAGE = Path(account_pool.__file__).parent
#: What begins something that outlives the call.
STARTS = {"create_task", "ensure_future", "Thread", "TaskGroup", "Timer"}
#: Where such a thing is allowed beside `supervision.py`, and why.
ALLOWED = {
    "credentials/command.py": "awaited where it is started, also by who is cancelled",
    "credentials/oauth.py": "in the loop of a thread, awaited where it is started",
    "proxy/tracing.py": "a thread that may hang, waited for in bounds, and catches everything",
    "proxy/fast/handler.py": "in the place of mitmproxy's own tasks, and named as they are",
    "store/fleet/engine.py": "a thread of the store, which catches everything",
    "store/pool_state.py": "a thread that reads a pipe which may stay open; waited for in bounds",
    "cli/shared.py": "the thread of `run`, without a loop; each step catches everything",
    "cli/tool_login.py": "a thread that copies what a tool prints; waited for in bounds",
    "cli/child.py": "the thread of `run` that copies; its errors are those of its descriptors",
    "workers/worker.py": "a thread that waits, and ends the process; it cannot fail",
    "demo/mitmdump.py": "awaited when the process is stopped",
}


class Clock:
    """A clock that sleeping moves; it ends the task after so many pauses."""

    def __init__(self, pauses: int) -> None:
        self.time, self.left, self.slept = 0.0, pauses, []

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds
        self.left -= 1
        if not self.left:
            raise asyncio.CancelledError


async def over(task: asyncio.Task) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait([task])


async def test_what_fails_is_told_without_its_text_and_begun_again(caplog):
    clock, runs = Clock(9), []
    tasks = Tasks(clock.now, clock.sleep)

    async def work() -> None:
        runs.append(clock.now())
        raise ValueError("sk-fake-secret")

    await over(tasks.supervised("keeping", work))
    assert len(runs) == 9
    assert clock.slept == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, MAX_PAUSE_S, MAX_PAUSE_S, MAX_PAUSE_S]
    assert caplog.messages[0].startswith("account-pool: keeping failed: ValueError at ")
    assert "test_supervision.py" in caplog.messages[0]
    assert caplog.messages[0].endswith("; it is begun again in 1 s")
    assert "sk-fake" not in caplog.text
    failed = tasks.failed["keeping"]
    assert (failed.failures, failed.error, failed.running) == (9, "ValueError", False)


FAILURES = [
    MemoryError(),
    asyncio.CancelledError(),
    sqlite3.OperationalError("sk-fake-secret"),
    UnicodeDecodeError("utf-8", b"sk-fake-secret", 0, 1, "sk-fake-secret"),
    RecursionError(),
    StopAsyncIteration("sk-fake-secret"),
    ExceptionGroup("sk-fake-secret", [ValueError("sk-fake-secret")]),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
async def test_whatever_fails_is_begun_again(error, caplog):
    """Also where what it waited for was cancelled, and nobody has cancelled it."""
    tasks = Tasks(sleep=lambda _seconds: asyncio.sleep(0))
    again, runs = asyncio.Event(), []

    async def work() -> None:
        runs.append(1)
        if len(runs) < 3:
            raise error
        again.set()
        await asyncio.Event().wait()

    task = tasks.supervised("keeping", work)
    async with asyncio.timeout(PATIENCE_S):
        await again.wait()
        assert await tasks.once("reading", lambda: fail(error)) is None
    task.cancel()
    await over(task)
    assert task.cancelled()
    assert [f.failures for f in tasks.failed.values()] == [2, 1]
    assert f"reading failed: {type(error).__name__} at " in caplog.text
    assert "sk-fake" not in caplog.text


async def fail(error) -> None:
    raise error


async def test_what_is_cancelled_ends_and_has_not_failed():
    tasks = Tasks()
    for start in (tasks.supervised, tasks.once):
        task = start("waiting", asyncio.Event().wait)
        await asyncio.sleep(0)
        task.cancel()
        await over(task)
        assert task.cancelled()
    assert tasks.failed == {}


async def test_what_takes_its_end_for_an_error_of_its_own_ends():
    tasks = Tasks()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise KeyError("x") from None

    task = tasks.supervised("keeping", work)
    await asyncio.sleep(0)
    task.cancel()
    await over(task)
    assert task.cancelled()


async def test_it_is_running_again_once_it_was_begun():
    tasks = Tasks(sleep=lambda _seconds: asyncio.sleep(0))
    again, runs = asyncio.Event(), []

    async def work() -> None:
        runs.append(1)
        if len(runs) == 1:
            raise KeyError("x")
        again.set()
        await asyncio.Event().wait()

    task = tasks.supervised("keeping", work)
    async with asyncio.timeout(PATIENCE_S):
        await again.wait()
    assert tasks.failed["keeping"].running
    task.cancel()
    await over(task)
    assert task.cancelled()


async def test_pauses_begin_anew_after_it_worked_for_long():
    clock = Clock(4)
    tasks = Tasks(clock.now, clock.sleep)

    async def work() -> None:
        clock.time += MAX_PAUSE_S
        raise ValueError

    await over(tasks.supervised("keeping", work))
    assert clock.slept == [1.0] * 4


async def test_what_returns_is_over():
    tasks = Tasks()

    async def work() -> None:
        return

    await over(tasks.supervised("keeping", work))
    assert tasks.failed == {}


async def test_what_is_done_once_is_told_and_given_up(caplog):
    tasks = Tasks()

    async def work() -> int:
        raise OSError("sk-fake-secret")

    async def good() -> int:
        return 7

    async with asyncio.timeout(PATIENCE_S):
        assert await tasks.once("reading", work) is None
        assert await tasks.once("reading", good) == 7
    assert caplog.messages[0].endswith("; it is given up")
    assert "sk-fake" not in caplog.text
    assert not tasks.failed["reading"].running


def starts_in(tree: ast.AST) -> list[int]:
    """Return the lines in which something is started."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", "")) in STARTS
    ]


@pytest.mark.parametrize(
    "text",
    ["asyncio.create_task(x)", "loop.create_task(x)", "ensure_future(x)", "threading.Thread()"],
)
def test_a_start_is_found(text):
    assert starts_in(ast.parse(text)) == [1]


def test_nothing_is_started_elsewhere():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if lines := starts_in(ast.parse(path.read_text(encoding="utf-8"))):
            found[name] = lines
    del found["supervision.py"]
    assert {name: at for name, at in found.items() if name not in ALLOWED} == {}
    assert set(ALLOWED) <= set(found), "no longer needed"


def test_daemon_threads_do_one_thing_after_the_other_and_end():
    threads, goes_on, done = DaemonThreads(1, "test"), threading.Event(), []
    first = threads.submit(goes_on.wait, PATIENCE_S)
    second = threads.submit(done.append, 1)
    failing = threads.submit(int, "x")
    cancelled = threads.submit(done.append, 2)
    assert cancelled.cancel()
    goes_on.set()
    assert (first.result(PATIENCE_S), second.result(PATIENCE_S)) == (True, None)
    with pytest.raises(ValueError):
        failing.result(PATIENCE_S)
    goes_on.clear()
    began = threading.Event()
    held = threads.submit(lambda: began.set() or goes_on.wait(PATIENCE_S))
    left = threads.submit(done.append, 3)
    assert began.wait(PATIENCE_S)
    threads.shutdown(wait=False, cancel_futures=True)
    assert left.cancelled() and not held.done()
    with pytest.raises(RuntimeError):
        threads.submit(done.append, 4)
    goes_on.set()
    threads.shutdown()
    assert done == [1]
    assert all(thread.daemon for thread in threads._threads)


def test_what_ends_a_thread_does_not_end_who_waits_for_it():
    threads = DaemonThreads(1, "test")
    for answer in (begun(sys.exit), threads.submit(sys.exit)):
        with pytest.raises(RuntimeError, match="a thread was ended by SystemExit"):
            answer.result(PATIENCE_S)
    threads.shutdown()


def test_a_question_has_a_thread_that_keeps_no_process():
    assert begun(lambda: threading.current_thread().daemon).result(PATIENCE_S)
