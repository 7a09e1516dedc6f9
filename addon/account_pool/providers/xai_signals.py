"""What xAI says when it refuses: `{"code", "error": "text"}`, or the text alone.

Credits and limits belong to a team, which sentences name. https://docs.x.ai/docs/key-information/debugging.
"""

from __future__ import annotations

import re

from account_pool.core.facts import Facts
from account_pool.core.signals import AUTH_INVALID, QUOTA, REQUEST_ERROR, Rule
from account_pool.providers.compatible_signals import COMPATIBLE_RULES

_I = re.IGNORECASE
_DEBUGGING = "https://docs.x.ai/docs/key-information/debugging"
_TEAM = re.compile(r"\bteam ([0-9a-f]{8}-[0-9a-f-]{27})\b", _I)


def team(facts: Facts) -> str | None:
    """Return the team a sentence names."""
    found = _TEAM.search(facts.message)
    return found[1].lower() if found else None


RULES: tuple[Rule, ...] = (
    Rule("out of credit", QUOTA, status={0, 402, 403, 429},
        phrase=r"\bpurchase (?:more )?credits\b|\bhave any credits\b|\bspending[- ]limit\b",
        waits=(), source="continuedev/continue#10373; xAI 403 and 429, recorded"),
    # A 400 as well. Anchored: other 400s echo what a user wrote.
    Rule("the key is not accepted", AUTH_INVALID, status={400, 401, 403},
        phrase=r"^incorrect api key provided\b|^[\w' ]{0,40}\bapi key is (?:currently )?(?:blocked"
        r"|deleted|disabled|expired|inactive|invalid|missing|revoked|suspended|not (?:active"
        r"|authorized|enabled|valid))\b", source=_DEBUGGING),
    Rule("the input was flagged", REQUEST_ERROR, status={0, 403},
        phrase=r"\bviolates usage guidelines\b|\bsafety_check\w*\b", source=_DEBUGGING + " (403)"),
    Rule("no such model, or not for this team", REQUEST_ERROR, status={400, 404},
        phrase=r"^the model \S+ does not exist or your team\b|^model not found\b",
        missing_model=True, source=_DEBUGGING + " (404)"),
    *COMPATIBLE_RULES,
)  # fmt: skip
