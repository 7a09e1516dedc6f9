"""Decisions in two logs: that of mitmproxy, and that which all proxies on one store share.

mitmproxy's gets nothing of ordinary requests. A cooldown and the request that caused it are one
line, that of the request: it says where the request went, or what its client got. The text of a
line comes from `core/decision_text.py`.

The shared one is written by the thread that writes what the pool learns, and by whoever asks for
it, so that the answer has all that was decided before. While the store cannot be used, what is
known here is shown.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from threading import Lock

from mitmproxy import ctx
from mitmproxy.log import ALERT
from msgspec import Struct

from account_pool.core.decision_history import (
    ECHOES,
    DecisionHistory,
    DecisionsShown,
    LoggedDecision,
    Record,
    record_of,
)
from account_pool.core.decision_text import duration, line
from account_pool.core.decisions import KEPT, By, Decision, Decisions, Kind
from account_pool.core.outcome import OutcomeClass
from account_pool.store.store import BEAT_S, StateStore, StoreError

logger = logging.getLogger(__name__)

#: For so many seconds the same decision is counted, not logged again.
REPEAT_S = 5.0
#: Waits shorter than this are not logged, seconds.
LONG_WAIT_S = 1.0

#: Who decides what is logged in the line of the request, or where accounts are restored.
_LOGGED_ELSEWHERE = frozenset({By.ANSWER, By.SOCKET, By.RESTART, By.CLOCK})
_WARNINGS = frozenset({Kind.REFUSAL, Kind.DISABLE})
#: What changes who serves: `termlog_verbosity=alert` leaves these and what is worse.
_ALERTS = frozenset({Kind.MOVE, Kind.COOLDOWN, Kind.RELEASE, Kind.ENABLE})


def is_logged(decision: Decision) -> bool:
    """Return whether *decision*, new or just ended, has a line of its own."""
    cause = decision.cause
    match decision.kind:
        case Kind.WAIT:
            if decision.waited_s is None:
                return False  # logged when it is over
            if decision.by is By.ANSWER:
                # The next decision logs the refusal, unless the client has left.
                return decision.released_by is By.CLIENT
            return decision.waited_s >= LONG_WAIT_S
        case _ if decision.ended_at is not None or decision.times > 1:
            return False  # logged when it was made
        case Kind.RETRY:
            return cause is None or cause.cls is not OutcomeClass.TRANSPORT
        case Kind.COOLDOWN | Kind.DISABLE:
            return decision.by not in _LOGGED_ELSEWHERE
        case Kind.RELEASE | Kind.ENABLE:
            return decision.by is not By.CLOCK
        case Kind.SUSPECT:
            return False  # the line of the request has it
        case _:
            return True


class _Repeated(Struct):
    """A decision that was logged, as it was made last, and how often it was the same again."""

    last: Decision
    since: float
    times: int = 0


class DecisionLog:
    """Writes decisions to the log. Subscribe it to `Pool.decisions`.

    The same decision again within `REPEAT_S` is counted, and logged once more with the
    count: fifty agents that are limited at once are two lines.

    Args:
        write: takes the level and the text.
        later: calls a function after so many seconds, where there is an event loop.
    """

    def __init__(
        self,
        write: Callable[[int, str], None] | None = None,
        later: Callable[[float, Callable[[], None]], None] | None = None,
    ) -> None:
        self._write = write or _write
        self._later = later or _later
        self._repeated: dict[tuple[object, ...], _Repeated] = {}

    def __call__(self, decision: Decision) -> None:
        """Log *decision* if `is_logged` says so."""
        if not is_logged(decision):
            return
        level = logging.WARNING if decision.kind in _WARNINGS else logging.INFO
        if decision.kind in _ALERTS:
            level = ALERT
        signal = decision.cause.signal if decision.cause else ""
        same = (
            decision.kind,
            decision.provider,
            decision.account,
            decision.to,
            decision.by,
            signal,
        )
        known = self._repeated.get(same)
        if known is not None and decision.at < known.since + REPEAT_S:
            known.times += 1
            known.last = decision
            return
        if known is not None:
            self._end(same, level)
        self._repeated[same] = _Repeated(decision, decision.at)
        self._later(REPEAT_S, lambda: self._end(same, level))
        self._write(level, line(decision))

    def _end(self, same: tuple[object, ...], level: int) -> None:
        """Log how often it was the same, if it was."""
        known = self._repeated.pop(same, None)
        if known is not None and known.times:
            times = "once more" if known.times == 1 else f"{known.times} more times"
            self._write(level, f"{line(known.last)} [{times} in {duration(REPEAT_S)}]")


def _write(level: int, text: str) -> None:
    """Log once the current event is handled, which does not wait for it."""
    if level == ALERT and _hides_alerts():
        level = logging.INFO
    try:
        asyncio.get_running_loop().call_soon(logger.log, level, text)
    except RuntimeError:
        logger.log(level, text)


def _hides_alerts() -> bool:
    """Say whether this is mitmweb, whose event log leaves alerts out (11.0 to 12.3).

    Who asks for alerts reads its terminal.
    """
    options = getattr(ctx, "options", None)
    if options is None or "web_columns" not in options:
        return False
    return bool(options.termlog_verbosity != "alert")


def _later(seconds: float, act: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # without a loop nothing runs later
        asyncio.get_running_loop().call_later(seconds, act)


# -- the log that proxies share

#: A difference of two clocks is taken anew when it has changed by so much, seconds: an instant
#: stays the same to the millisecond, however often it is read.
_CLOCKS_DIFFER_S = 0.1


class SharedDecisions:
    """Decisions of all proxies.

    Args:
        wall_now: returns seconds since the epoch.
        name: returns the name of this proxy, for people.

    Attributes:
        changed: called when there is something to be written.
    """

    def __init__(self, wall_now: Callable[[], float], name: Callable[[], str]) -> None:
        self.changed: Callable[[], object] = lambda: None
        self._wall_now, self._name = wall_now, name
        self._origin = secrets.token_hex(6)
        self._decisions = Decisions()
        self._history = DecisionHistory()
        self._ahead_s = 0.0
        #: guards the next two; whoever has it does nothing that takes time
        self._lock = Lock()
        self._waiting: dict[int, Decision] = {}
        #: decisions up to this number are in the store
        self._written = 0
        #: whoever reads has it, who may also write
        self._reading = Lock()
        #: whoever writes has it, and the next two
        self._writing = Lock()
        #: the log that has what was written; "": nothing was
        self._log = ""
        self._is_begun = False

    def follow(self, decisions: Decisions) -> None:
        """Share *decisions*, this proxy's own."""
        self._decisions = decisions
        decisions.subscribe(self._note)

    @property
    def waiting(self) -> bool:
        """Whether something is to be written."""
        return bool(self._waiting) or self._is_begun

    def begin(self) -> None:
        """A store was opened: see whether it has what was written."""
        self._is_begun = True

    def write(self, store: StateStore) -> None:
        """Write what is new and changed. Blocks; from any thread. Raises StoreError."""
        with self._writing:
            self._write(store)

    def sync(self, store: StateStore) -> DecisionsShown:
        """Write, and return what all proxies have decided.

        Blocks; from any thread. Raises StoreError.
        """
        self.write(store)
        # What takes long to read keeps nobody from writing.
        with self._reading:
            known = self._history
            page = store.decisions.read(known.upto)
            with self._writing:
                is_lost = self._log not in ("", page.log) or page.upto < known.upto
                if is_lost:
                    self._lose()
                    self._write(store)
            if is_lost or known.log not in (None, page.log):
                known, page = DecisionHistory(), store.decisions.read(0)
            self._measure(store)
            self._history = known.read(*page)
        return self.own()

    def own(self) -> DecisionsShown:
        """Return what is known here without the store: what was read of others, and our own."""
        history, ahead_s = self._history, self._ahead_s
        with self._lock:
            waiting = list(self._waiting.values())
        if history.log is None:
            # The store was never read: these are all there are.
            waiting = list(self._decisions)
        logged = [self._logged(one) for one in sorted(waiting, key=lambda one: one.number)]
        return history.shown(logged, ahead_s=ahead_s, wall_now=self._wall_now())

    def read_already(self) -> list[Record]:
        """Return what all proxies had decided when it was read last, and we since.

        The oldest first; nothing before it was read. Does not block.
        """
        return [] if self._history.log is None else self.own().rows

    async def keep_read(
        self, ask: Callable[[Callable[[StateStore], object]], Awaitable[object]]
    ) -> None:
        """Read what others decide every few seconds, for those who cannot wait for it."""
        while True:
            with suppress(StoreError):
                await ask(self.sync)
            await asyncio.sleep(BEAT_S)

    def _note(self, decision: Decision) -> None:
        if decision.by in ECHOES:
            return
        with self._lock:
            self._waiting[decision.number] = decision
            if len(self._waiting) > KEPT:
                del self._waiting[min(self._waiting)]
        self.changed()

    def _lose(self) -> None:
        """What was in the log is lost: it gets what is known here."""
        with self._lock:
            self._log, self._written = "", 0
            # At once: the event loop goes on deciding, which is what changes them.
            known = list(self._decisions)
            self._waiting = {d.number: d for d in known if d.by not in ECHOES}

    def _write(self, store: StateStore) -> None:
        if self._is_begun and self._log and store.decisions.add([], []) != self._log:
            self._lose()
        self._is_begun = False
        # Another log in its place gets all that is known; if that goes on, in the next round.
        if not self._write_waiting(store):
            self._write_waiting(store)

    def _write_waiting(self, store: StateStore) -> bool:
        """Write what waits; return whether the log is the one that has what was written before."""
        with self._lock:
            waiting, written = dict(sorted(self._waiting.items())), self._written
        if not waiting:
            return True
        self._measure(store)
        new = [self._logged(d) for n, d in waiting.items() if n > written]
        changed = [self._logged(d) for n, d in waiting.items() if n <= written]
        log = store.decisions.add(new, changed)
        is_same = self._log in ("", log)
        if not is_same:
            self._lose()
        self._log = log
        if is_same:
            with self._lock:
                self._written = max(written, *waiting)
                # What has changed meanwhile is written again.
                self._waiting = {n: d for n, d in self._waiting.items() if waiting.get(n) is not d}
        return is_same

    def _measure(self, store: StateStore) -> None:
        now = store.now()
        ahead_s = 0.0 if now is None else now - self._wall_now()
        if abs(ahead_s - self._ahead_s) > _CLOCKS_DIFFER_S:
            self._ahead_s = ahead_s

    def _logged(self, decision: Decision) -> LoggedDecision:
        record = record_of(decision, self._ahead_s)
        return LoggedDecision(self._origin, decision.number, self._name(), record)
