"""What Cohere says when it refuses: a sentence, and the status.

https://docs.cohere.com/reference/errors. The last word of a trial key's sentence tells
the minute from the month.
"""

from __future__ import annotations

from account_pool.core.signals import AUTH_INVALID, QUOTA, REQUEST_ERROR, Rule
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_ERRORS = "https://docs.cohere.com/reference/errors"

RULES: tuple[Rule, ...] = (
    # Elsewhere a 498 is about capacity.
    Rule("the token is not accepted", AUTH_INVALID, status={498}, source=_ERRORS + " (498)"),
    Rule("billing limit", QUOTA, status={402, 403, 429},
        phrase=r"\bbilling limit\b|\bpayment method\b", waits=(), source=_ERRORS + " (402)"),
    Rule("no such model, or not for this account", REQUEST_ERROR, status={400, 404},
        phrase=r"^model '?[\w./:-]+'? (?:not found|is not available)\b", missing_model=True,
        source=_ERRORS + " (404)"),
    *COMPATIBLE_RULES,
)  # fmt: skip
