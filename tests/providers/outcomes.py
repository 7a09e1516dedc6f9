"""How the tables of these tests write an outcome."""

import json
from typing import Any

from account_pool.core.outcome import Outcome, UpstreamResponse
from account_pool.providers.base import Provider


def brief(outcome: Outcome) -> str:
    """Return `class scope seconds`, such as "rate_limit account+model 1.5"."""
    wait = outcome.cooldown_s
    return f"{outcome.cls} {outcome.scope} {'-' if wait is None else format(wait, '.9g')}"


def classify(
    provider: Provider,
    status: int,
    headers: dict[str, str] | None = None,
    payload: Any = None,
    **fields: Any,
) -> str:
    """Return in brief what an answer with this body (JSON, or text) means."""
    text = payload if isinstance(payload, str) else json.dumps(payload) if payload else ""
    return brief(
        provider.classify(
            UpstreamResponse(
                status=status,
                headers=headers or {},
                payload=None if isinstance(payload, str) else payload,
                text=text,
                **fields,
            )
        )
    )
