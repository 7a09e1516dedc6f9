"""What a person reads in the log: one line per failover, none per ordinary request.

The demo reads these lines too (`demo/screen.py`).
"""

from __future__ import annotations

import logging
import math

from account_pool.core.account import AccountKey
from account_pool.core.attempts import Attempt, Attempts
from account_pool.core.errors import UnknownAccount
from account_pool.core.outcome import Outcome, OutcomeClass
from account_pool.core.steps import Answer

logger = logging.getLogger(__name__)


def replay(attempts: Attempts, now: float) -> None:
    """A refused attempt is replayed."""
    before, after = attempts.history[-2:]
    outcome = before.outcome
    if outcome is None or outcome.cls is OutcomeClass.TRANSPORT:
        return
    logger.info(f"{_verdict(before, attempts, now)} -> {after.key} ({outcome.signal})")


def delivered(attempts: Attempts, wait_s: float | None, now: float) -> None:
    """The client gets to see a refusal; nothing is said when it is its own fault."""
    last = attempts.history[-1]
    if last.outcome is None or last.outcome.cls is OutcomeClass.REQUEST_ERROR:
        return
    logger.warning(f"{_verdict(last, attempts, now)}: given to the client{_told(wait_s)}")


def answered(step: Answer, status: int) -> None:
    """A request got no answer from the provider, and the client *status*."""
    logger.warning(f"{step.message}: {status} to the client{_told(step.retry_after_s)}")


def socket(key: AccountKey, outcome: Outcome, *, closed: bool) -> None:
    """A WebSocket was told of a limit."""
    end = "closed, its client opens another" if closed else "given to the client"
    logger.info(f"{key}: {outcome.cls} in a WebSocket, {end} ({outcome.signal})")


def _told(wait_s: float | None) -> str:
    return "" if wait_s is None else f", told to wait {math.ceil(wait_s)} s"


def _verdict(attempt: Attempt, attempts: Attempts, now: float) -> str:
    """Return `openai/work: 429 rate_limit, cools 38 s for gpt-5`."""
    outcome = attempt.outcome
    assert outcome is not None
    status = outcome.signal.partition(" ")[0]
    # A limit inside a stream came with a success status, which says nothing.
    text = f"{attempt.key}: {status + ' ' if status.isdigit() else ''}{outcome.cls}"
    try:
        state = attempts.pool.get(attempt.key)
    except UnknownAccount:
        return text
    if state.disabled is not None:
        return f"{text}, disabled"
    cooldown = state.cooldown_of(attempts.facts.model, now)
    if cooldown is None:
        return text
    of_model = f" for {cooldown.model}" if cooldown.model else ""
    return f"{text}, cools {duration(cooldown.until - now)}{of_model}"


def duration(seconds: float) -> str:
    """Return *seconds* for people: `640 ms`, `38 s`, `12 min`, `5 h 3 min`, `2 d 4 h`."""
    if seconds < 1:
        return f"{max(math.ceil(seconds * 1000), 0)} ms"
    whole = math.ceil(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
