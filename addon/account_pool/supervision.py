"""Errors of our own that no request must suffer from: in background tasks, and in observers.

Every task and thread of the proxy is started here, which `tests/test_supervision.py`
checks. An error is logged with its place and type, not with its text, which may quote
anything. `/health` lists the tasks that failed.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

from msgspec import Struct

logger = logging.getLogger(__name__)

#: Pause before a task that failed is started again, seconds: at first, and at most; doubles.
PAUSE_S = 1.0
MAX_PAUSE_S = 60.0

Value = TypeVar("Value")


def where(error: BaseException) -> str:
    """Return the type of *error* and where it was raised, without its text."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " < ".join(f"{f.filename}:{f.lineno} {f.name}" for f in reversed(frames))
    return f"{type(error).__name__} at {places}"


class Failed(Struct):
    """A task that has failed.

    Attributes:
        failures: how often.
        error: the type of the last error.
        running: it was started again.
    """

    failures: int = 0
    error: str = ""
    running: bool = False


def begun(question: Callable[[], Value]) -> Future[Value]:
    """Ask *question* in a thread of its own, for which nobody has to wait: it may hang for ever.

    Threads of the event loop are few, and look up hosts; those of a pool keep the process.
    """
    answer: Future[Value] = Future()
    ask = partial(_answer, answer, question)
    threading.Thread(target=ask, daemon=True, name="account-pool question").start()
    return answer


def _answer(answer: Future[Value], question: Callable[[], Value]) -> None:
    """Let *answer* have what *question* returns or raises: raised in a thread, it is printed."""
    try:
        settle = partial(answer.set_result, question())
    except Exception as error:
        settle = partial(answer.set_exception, error)
    except BaseException as error:
        # What ends a thread must not end the process of whoever waits for it.
        ended = RuntimeError(f"a thread was ended by {type(error).__name__}")
        settle = partial(answer.set_exception, ended)
    settle()


class DaemonThreads(Executor):
    """Threads that do one thing after the other, and keep no process from its end.

    Those of `ThreadPoolExecutor` are waited for: one that asks a disk that hangs, for ever.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name = most, name
        self._lock = threading.Lock()
        self._work: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._waiting: dict[Future[Any], None] = {}
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, ask: Callable[..., Value], /, *args: Any, **kwargs: Any) -> Future[Value]:
        answer: Future[Value] = Future()

        def work() -> None:
            self._waiting.pop(answer, None)
            if answer.set_running_or_notify_cancel():
                _answer(answer, partial(ask, *args, **kwargs))

        with self._lock:
            if self._closed:
                raise RuntimeError("these threads have ended")
            self._waiting[answer] = None
            self._work.put(work)
            if len(self._threads) < self._most:
                name = f"{self._name}_{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._run, daemon=True, name=name))
                self._threads[-1].start()
        return answer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            self._closed = True
            for _ in self._threads:
                self._work.put(None)
        for answer in tuple(self._waiting) if cancel_futures else ():
            answer.cancel()
        for thread in self._threads if wait else ():
            thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # what it was about may be large


async def settled(answer: Future[Value], timeout_s: float | None) -> Value:
    """Return *answer*. Raises what that raises, and TimeoutError after *timeout_s* seconds."""
    loop, is_settled = asyncio.get_running_loop(), asyncio.Event()

    def wake(_answer: object) -> None:
        # The proxy may have ended meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(is_settled.set)

    answer.add_done_callback(wake)
    async with asyncio.timeout(timeout_s):
        await is_settled.wait()
    return answer.result()


class Tasks:
    """The background tasks of a process.

    Attributes:
        failed: those that have failed, by name.
    """

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.failed: dict[str, Failed] = {}
        self._now = now
        self._sleep = sleep
        #: asyncio itself keeps only weak references
        self._running: set[asyncio.Task[Any]] = set()

    def supervised(
        self, name: str, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> asyncio.Task[None]:
        """Run *work* until it returns; when it fails, log that and start it again."""
        return self._start(name, self._for_ever(name, work))

    def once(
        self, name: str, work: Callable[[], Coroutine[Any, Any, Value]]
    ) -> asyncio.Task[Value | None]:
        """Run *work*; when it fails, log that and return None."""
        return self._start(name, self._once(name, work))

    def _start(self, name: str, work: Coroutine[Any, Any, Value]) -> asyncio.Task[Value]:
        task = asyncio.create_task(work, name=f"account-pool {name}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _for_ever(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        pause_s = PAUSE_S
        while True:
            began_at = self._now()
            try:
                await work()
                return
            except (Exception, asyncio.CancelledError) as e:
                if _is_cancelled(e):
                    raise
                if self._now() - began_at >= MAX_PAUSE_S:
                    pause_s = PAUSE_S  # it had worked for long
                self._failed(name, e, f"it is begun again in {pause_s:g} s")
            if _is_to_end():
                raise asyncio.CancelledError  # something took it for an error of its own
            await self._sleep(pause_s)
            self.failed[name].running = True
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _once(
        self, name: str, work: Callable[[], Coroutine[Any, Any, Value]]
    ) -> Value | None:
        try:
            return await work()
        except (Exception, asyncio.CancelledError) as e:
            if _is_cancelled(e):
                raise
            self._failed(name, e, "it is given up")
            return None

    def note(self, name: str, error: BaseException, then: str) -> None:
        """Log that a part of the task *name* has failed; the task goes on, as *then* says."""
        self._failed(name, error, then)
        self.failed[name].running = True

    def _failed(self, name: str, error: BaseException, then: str) -> None:
        failed = self.failed.setdefault(name, Failed())
        failed.failures += 1
        failed.error, failed.running = type(error).__name__, False
        # Not as an error: one during the start would end mitmproxy.
        logger.warning(f"account-pool: {name} failed: {where(error)}; {then}")


def _is_cancelled(error: BaseException) -> bool:
    """Return whether *error* is that of a task which is to end.

    A CancelledError of something else that it waited for must not end it.
    """
    return isinstance(error, asyncio.CancelledError) and _is_to_end()


def _is_to_end() -> bool:
    """Return whether the task that runs was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


tasks = Tasks()


class LogAndContinue:
    """`with log_and_continue:` keeps an error of an observer from the request it observes.

    Each place is logged once. What every request passes catches errors by itself and calls
    `log`, which saves two calls.
    """

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def __enter__(self) -> None:
        """Nothing is acquired."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.log(error)
        return True

    def log(self, error: Exception) -> None:
        """Log *error*, unless one from the same place was logged before."""
        if (text := where(error)) not in self._logged:
            self._logged.add(text)
            logger.error(f"account-pool: {text}; the request continues without it")


log_and_continue = LogAndContinue()
