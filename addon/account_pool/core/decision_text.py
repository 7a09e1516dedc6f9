"""A decision in one line, for the log and for `pool.status`.

The demo reads these lines too (`demo/failover.py`).
"""

from __future__ import annotations

import math
import re

from account_pool.core.attempts import Attempts
from account_pool.core.decisions import NOT_KEPT, By, Decision, Kind, one_line
from account_pool.core.outcome import BY_HAND, Cause, Outcome, OutcomeClass
from account_pool.core.steps import Attempt

_EFFECTS = (Kind.COOLDOWN, Kind.DISABLE, Kind.SUSPECT)

#: Header values in a line; `pool.status KEY` shows all of them.
MAX_VALUES = 3


def line(decision: Decision) -> str:
    """Return *decision* in one line: `openai/work: 429 rate_limit, on cooldown for 38 s -> ...`."""
    why = _why(decision)
    match decision.kind:
        case Kind.MOVE if decision.by is By.SHORTAGE:
            return f"{_subject(decision)}: conversation moves -> {decision.to}{why}"
        case Kind.MOVE | Kind.RETRY:
            return f"{_subject(decision)} -> {decision.to}{why}"
        case Kind.WAIT if decision.by is By.SHORTAGE:
            return f"{decision.provider}: {_waiting(decision)}{_in_brackets(decision.reason)}"
        case Kind.WAIT:
            return f"{_subject(decision)}: {_waiting(decision)}{why}"
        case Kind.REFUSAL if decision.by is By.SOCKET:
            end = decision.reason or "delivered to the client"
            return f"{_subject(decision)}: in a WebSocket, {end}{_signal(decision.cause)}"
        case Kind.REFUSAL if _is_ours(decision):
            told = _told(decision.told_s)
            # A shortage is all accounts', a connection is one's.
            who = decision.provider if decision.by is By.SHORTAGE else decision.account
            return f"{who}: {decision.reason}; request refused{told}{_first(decision)}"
        case Kind.REFUSAL:
            kept = _in_brackets(NOT_KEPT) if decision.reason == NOT_KEPT else ""
            return (
                f"{_subject(decision)}: delivered to the client{_told(decision.told_s)}{why}{kept}"
            )
        case Kind.SILENCE:
            return f"{_subject(decision)}: {decision.reason}"
        case Kind.PROBE:
            return f"{_subject(decision)}: probed{why}"
        case Kind.RELEASE | Kind.ENABLE:
            return f"{_freed(decision)}, by {decision.by.value}{why}"
        case _:
            return f"{_subject(decision)}, by {decision.by.value}{why}"


def _subject(decision: Decision) -> str:
    """Return `openai/work: 429 rate_limit, on cooldown for 38 s (gpt-5)`, as far as known."""
    name = str(decision.account or decision.provider)
    parts = []
    if decision.cause is not None and decision.by not in (By.SHORTAGE, By.HAND, By.RESERVE):
        # Else it is not what has just happened, but why it is on cooldown already, or no answer.
        parts.append(_verdict(decision.cause))
    effect = decision.kind if decision.kind in _EFFECTS else decision.effect
    if effect is Kind.DISABLE:
        parts.append("disabled")
    elif effect is Kind.COOLDOWN and decision.until is not None and decision.kind is not Kind.WAIT:
        parts.append(_cools(decision.until - decision.at, decision.covers))
    elif effect is Kind.SUSPECT and decision.until is not None:
        parts.append(asked_last(decision.until - decision.at, decision.covers))
    return f"{name}: {', '.join(parts)}" if parts else name


def _verdict(cause: Cause | Outcome) -> str:
    """Return `429 rate_limit`."""
    return " ".join(filter(None, (_status(cause), cause.cls.value)))


def _status(cause: Cause | Outcome) -> str:
    """Return `429`; "" where a limit inside a stream came with a status that says nothing."""
    status = re.split("[: ]", cause.signal)[0]
    return status if status.isdigit() else ""


def _cools(left_s: float, model: str | None) -> str:
    """Return `on cooldown for 38 s (gpt-5)`."""
    return f"on cooldown for {duration(left_s)}{_in_brackets(model) if model else ''}"


def asked_last(left_s: float, model: str | None) -> str:
    """Return `asked last for 10 min`: another account shows whose fault it was."""
    return f"asked last for {duration(left_s)}{f' ({one_line(model)})' if model else ''}"


def _of_model(model: str | None) -> str:
    return f" for {one_line(model)}" if model else ""


def _waiting(decision: Decision) -> str:
    if decision.waited_s is None:
        left = duration((decision.until or decision.at) - decision.at)
        return f"a request is waiting, at most {left}"
    end = _ENDINGS.get(decision.released_by or decision.by, "")
    return f"a request waited {duration(decision.waited_s)}{end}"


_ENDINGS = {
    By.ACCOUNT: " and continues",
    By.TIME: ", the longest it may",
    By.CLIENT: " until its client disconnected",
}


def _is_ours(decision: Decision) -> bool:
    """Say whether there was no answer of the provider to be handed on."""
    transport = decision.cause is not None and decision.cause.cls is OutcomeClass.TRANSPORT
    return bool(decision.reason) and (decision.by is By.SHORTAGE or transport)


def _first(decision: Decision) -> str:
    if decision.by is not By.SHORTAGE or decision.account is None or decision.cause is None:
        return ""
    return f" ({decision.account} returns first: {evidence(decision.cause, most=MAX_VALUES)})"


def _freed(decision: Decision) -> str:
    name = str(decision.account)
    if decision.kind is Kind.ENABLE or decision.until is None:
        return f"{name}: back in use"
    early = duration(decision.until - decision.at)
    return f"{name}: back in use{_of_model(decision.covers)}, {early} early"


def _told(wait_s: float | None) -> str:
    return "" if wait_s is None else f", retry after {math.ceil(wait_s)} s"


def in_brief(attempt: Attempt, *, whole: bool) -> str:
    """Return `openai/work 429` of an attempt; without the provider if not *whole*."""
    outcome = attempt.outcome
    assert outcome is not None
    return f"{attempt.key if whole else attempt.key.label} {_status(outcome) or outcome.cls}"


def verdict(attempt: Attempt, attempts: Attempts, now: float) -> str:
    """Return `openai/work: 429 rate_limit, on cooldown for 38 s (gpt-5)` of an attempt."""
    outcome = attempt.outcome
    assert outcome is not None
    if outcome.cls is OutcomeClass.TRANSPORT:
        return f"{attempt.key}: {outcome.cls} ({outcome.signal})"
    state = attempts.pool.accounts.find(attempt.key)
    cooldown = None if state is None else state.cooldown_of(attempts.facts.model, now)
    covered = None if cooldown is None or cooldown.model is None else one_line(cooldown.model)
    text = f"{attempt.key}: {_verdict(outcome)}"
    if state is None:
        return text
    if state.disabled is not None:
        return f"{text}, disabled"
    if cooldown is not None:
        return f"{text}, {_cools(cooldown.until - now, covered)}"
    open_verdict = state.verdict_of(attempts.facts.model)
    if open_verdict is None:
        return text
    return f"{text}, {asked_last(open_verdict.until - now, open_verdict.covered)}"


def _why(decision: Decision) -> str:
    said = decision.cause is not None and decision.cause.signal == BY_HAND
    if decision.by is By.HAND and (said or decision.kind is Kind.COOLDOWN):
        return ""
    return _signal(decision.cause) if decision.cause else _in_brackets(decision.reason)


def _signal(cause: Cause | None) -> str:
    return "" if cause is None else _in_brackets(evidence(cause, most=MAX_VALUES))


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def evidence(cause: Cause, most: int | None = None) -> str:
    """Return what an answer said: its signal, and header values, *most* of them at most."""
    values = [f"{name}: {value}" for name, value in cause.evidence.items()]
    return "; ".join(filter(None, (cause.signal or cause.cls.value, ", ".join(values[:most]))))


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
