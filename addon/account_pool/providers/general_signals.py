"""What follows from the vocabulary that all vendors share (`core/meaning.py`).

Rows behind every provider's own: a sentence or a code about usage, quota, budget, balance,
credits, a plan or a period is a limit whatever the status.
"""

from __future__ import annotations

from collections.abc import Callable

from account_pool.core.facts import Facts
from account_pool.core.meaning import Meaning, is_about_request
from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.core.signals import RATE_WINDOW_S, REQUEST_CODES, Rule
from account_pool.core.waits import USUAL_WAITS, first_wait

_SOURCE = "core/meaning.py: vocabulary of recorded answers"
#: A return as near as this is that of a rate, unless a longer window is named.
_SOON_S = 60.0
#: Stands for what an account without credits lacks; it is no model.
LONG_CONTEXT = "long-context"


def _means(meaning: Meaning, *, about_model: bool | None = None) -> Callable[[Facts], bool]:
    """Return a condition on the meaning, and on whether it is about one model."""
    return lambda facts: facts.meaning is meaning and about_model in (None, facts.about_model)


def _is_short(facts: Facts) -> bool:
    """Say whether what is called a quota is one of an hour or less."""
    if facts.meaning is not Meaning.PLAN:
        return False
    if facts.window_s is not None:
        return facts.window_s <= RATE_WINDOW_S
    wait = first_wait(facts, USUAL_WAITS)
    return wait is not None and 0 < wait <= _SOON_S


def _is_about_request(facts: Facts) -> bool:
    """Say whether code and sentence blame the request, whatever the status."""
    return facts.meaning is None and is_about_request(facts.message)


GENERAL_RULES: tuple[Rule, ...] = (
    Rule(
        why="a feature beyond the plan, and no credit for it",
        cls=OutcomeClass.QUOTA,
        scope=Scope.MODEL,
        # Everything else still works.
        when=_means(Meaning.EXTRA),
        waits=(),
        feature=lambda _facts: LONG_CONTEXT,
        explicit=True,
        source="https://github.com/anthropics/claude-code/issues/61808",
    ),
    Rule(
        why="the plan does not include it",
        cls=OutcomeClass.FORBIDDEN_ACCOUNT,
        scope=Scope.MODEL,
        when=_means(Meaning.NOT_INCLUDED),
        explicit=True,
        source=_SOURCE,
    ),
    Rule(
        why="a quota of a short window",
        cls=OutcomeClass.RATE_LIMIT,
        when=_is_short,
        explicit=True,
        source=_SOURCE,
    ),
    Rule(
        why="what the plan allows for this model is spent",
        cls=OutcomeClass.QUOTA,
        scope=Scope.MODEL,
        when=_means(Meaning.PLAN, about_model=True),
        explicit=True,
        source=_SOURCE,
    ),
    Rule(
        why="what the plan allows is spent",
        cls=OutcomeClass.QUOTA,
        scope=Scope.ACCOUNT,
        when=_means(Meaning.PLAN),
        explicit=True,
        source=_SOURCE,
    ),
    Rule(
        why="out of credit",
        cls=OutcomeClass.QUOTA,
        scope=Scope.ACCOUNT,
        when=_means(Meaning.MONEY),
        # Paying cures it, not waiting.
        waits=(),
        explicit=True,
        source=_SOURCE,
    ),
    Rule(
        why="no capacity",
        cls=OutcomeClass.OVERLOADED,
        when=_means(Meaning.CAPACITY),
        explicit=True,
        source=_SOURCE,
    ),
    Rule(
        why="rate limit of this model",
        cls=OutcomeClass.RATE_LIMIT,
        scope=Scope.MODEL,
        when=_means(Meaning.RATE, about_model=True),
        explicit=True,
        source=_SOURCE,
    ),
    Rule(
        why="rate limit",
        cls=OutcomeClass.RATE_LIMIT,
        when=_means(Meaning.RATE),
        explicit=True,
        source=_SOURCE,
    ),
    Rule(
        why="about the request",
        cls=OutcomeClass.REQUEST_ERROR,
        status=frozenset({429}),
        words=REQUEST_CODES,
        when=_is_about_request,
        source=_SOURCE,
    ),
)
