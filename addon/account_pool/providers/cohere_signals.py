"""What Cohere says when it refuses: a sentence, and the status.

https://docs.cohere.com/reference/errors. The last word of a trial key's sentence tells
the minute from the month.
"""

from __future__ import annotations

import re

from account_pool.core.outcome import OutcomeClass
from account_pool.core.signals import Rule
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_I = re.IGNORECASE
_ERRORS = "https://docs.cohere.com/reference/errors"

RULES: tuple[Rule, ...] = (
    Rule(
        why="the token is not accepted",
        cls=OutcomeClass.AUTH_INVALID,
        # Elsewhere a 498 is about capacity.
        status=frozenset({498}),
        source=_ERRORS + " (498)",
    ),
    Rule(
        why="billing limit",
        cls=OutcomeClass.QUOTA,
        status=frozenset({402, 403, 429}),
        phrase=re.compile(r"\bbilling limit\b|\bpayment method\b", _I),
        waits=(),
        source=_ERRORS + " (402)",
    ),
    Rule(
        why="no such model, or not for this account",
        cls=OutcomeClass.REQUEST_ERROR,
        status=frozenset({400, 404}),
        phrase=re.compile(r"^model '?[\w./:-]+'? (?:not found|is not available)\b", _I),
        missing_model=True,
        source=_ERRORS + " (404)",
    ),
    *COMPATIBLE_RULES,
)
