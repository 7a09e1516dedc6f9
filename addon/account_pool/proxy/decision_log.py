"""Which decisions are logged, and when; nothing of ordinary requests.

A cooldown and the request that caused it are one line, that of the request: it says where the
request went, or what its client got. The text of a line comes from `core/decision_text.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from mitmproxy import ctx
from mitmproxy.log import ALERT

from account_pool.core.decision_text import duration, line
from account_pool.core.decisions import By, Decision, Kind
from account_pool.core.outcome import OutcomeClass

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


@dataclass(slots=True)
class _Repeated:
    """A line that was logged, and how often it was the same again."""

    text: str
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
            known.text = line(decision)
            return
        if known is not None:
            self._end(same, level)
        self._repeated[same] = _Repeated(line(decision), decision.at)
        self._later(REPEAT_S, lambda: self._end(same, level))
        self._write(level, line(decision))

    def _end(self, same: tuple[object, ...], level: int) -> None:
        """Log how often it was the same, if it was."""
        known = self._repeated.pop(same, None)
        if known is not None and known.times:
            times = "once more" if known.times == 1 else f"{known.times} more times"
            self._write(level, f"{known.text} [{times} in {duration(REPEAT_S)}]")


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
