"""What xAI says when it refuses: `{"code", "error": "text"}`, or the text alone.

Credits and limits belong to a team, which sentences name. https://docs.x.ai/docs/key-information/debugging.
"""

from __future__ import annotations

import re

from account_pool.core.facts import Facts
from account_pool.core.outcome import OutcomeClass
from account_pool.core.signals import Rule
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_I = re.IGNORECASE
_DEBUGGING = "https://docs.x.ai/docs/key-information/debugging"
_TEAM = re.compile(r"\bteam ([0-9a-f]{8}-[0-9a-f-]{27})\b", _I)


def team(facts: Facts) -> str | None:
    """Return the team a sentence names."""
    found = _TEAM.search(facts.message)
    return found[1].lower() if found else None


RULES: tuple[Rule, ...] = (
    Rule(
        why="out of credit",
        cls=OutcomeClass.QUOTA,
        status=frozenset({0, 402, 403, 429}),
        phrase=re.compile(
            r"\bpurchase (?:more )?credits\b|\bhave any credits\b|\bspending[- ]limit\b", _I
        ),
        waits=(),
        source="continuedev/continue#10373; xAI 403 and 429, recorded",
    ),
    Rule(
        why="the key is not accepted",
        cls=OutcomeClass.AUTH_INVALID,
        # A 400 as well.
        status=frozenset({400, 401, 403}),
        phrase=re.compile(
            # Anchored: other 400s echo what a user wrote.
            r"^incorrect api key provided\b"
            r"|^[\w' ]{0,40}\bapi key is (?:currently )?(?:blocked|deleted|disabled|expired"
            r"|inactive|invalid|missing|revoked|suspended"
            r"|not (?:active|authorized|enabled|valid))\b",
            _I,
        ),
        source=_DEBUGGING,
    ),
    Rule(
        why="the input was flagged",
        cls=OutcomeClass.REQUEST_ERROR,
        status=frozenset({0, 403}),
        phrase=re.compile(r"\bviolates usage guidelines\b|\bsafety_check\w*\b", _I),
        source=_DEBUGGING + " (403)",
    ),
    Rule(
        why="no such model, or not for this team",
        cls=OutcomeClass.REQUEST_ERROR,
        status=frozenset({400, 404}),
        phrase=re.compile(r"^the model \S+ does not exist or your team\b|^model not found\b", _I),
        missing_model=True,
        source=_DEBUGGING + " (404)",
    ),
    *COMPATIBLE_RULES,
)
