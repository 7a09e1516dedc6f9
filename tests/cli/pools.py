"""Answers of GET /account-pool, for what shows them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

#: 2026-11-21T12:00:00Z
NOW = 1795262400.0

Json = dict[str, Any]


def iso(after_s: float) -> str:
    return datetime.fromtimestamp(NOW + after_s, UTC).isoformat().replace("+00:00", "Z")


def account(key: str, **settings: Any) -> Json:
    """Return an account that serves and of which nothing is known, but for *settings*."""
    provider, _, label = key.partition("/")
    usual = {
        "key": key,
        "provider": provider,
        "label": label,
        "state": "available",
        "reason": "",
        "in_flight": 0,
        "oldest_s": None,
        "departures": 0,
        "broken": 0,
        "served": 0,
        "sessions": 0,
        "priority": 0,
        "weight": 1,
        "models": [],
        "reserve": {},
        "max_concurrent": None,
        "min_interval_s": 0.0,
        "cooldowns": [],
        "asked_last": [],
        "disabled": None,
        "problem": None,
        "headroom": [],
        "tightest": None,
        "usage": dict.fromkeys(("requests", "input_tokens", "cached_tokens", "output_tokens"), 0),
    }
    one = {**usual, **settings}
    windows = one["headroom"]
    return {**one, "tightest": min(windows, key=lambda w: w["remaining"], default=None)}


def window(name: str, remaining: float, resets_s: float, model: str | None = None) -> Json:
    at = iso(resets_s)
    return {"window": name, "model": model, "remaining": remaining, "resets_at": at}


def cooldown(left_s: float, model: str | None = None, **settings: Any) -> Json:
    return {
        "model": model,
        "class": "rate_limit",
        "signal": "429 code=rate_limit_exceeded",
        "evidence": {"retry-after": "120"},
        "since_at": iso(-10),
        "until_at": iso(left_s),
        "remaining_s": left_s,
        **settings,
    }


def cooling(key: str, left_s: float, **settings: Any) -> Json:
    return account(key, state="cooling", cooldowns=[cooldown(left_s)], **settings)


def status(accounts: Iterable[Json], **settings: Any) -> Json:
    accounts = list(accounts)
    states = [one["state"] for one in accounts]
    return {
        "accounts_file": "/home/ann/.config/account-pool/accounts.yaml",
        "accounts": accounts,
        "summary": {
            "total": len(accounts),
            "available": states.count("available"),
            "cooling_down": states.count("cooling"),
            "disabled": states.count("disabled"),
            "in_flight": sum(one["in_flight"] for one in accounts),
        },
        "warnings": [],
        **settings,
    }


#: One of each kind, as in docs/cli.md.
ACCOUNTS = [
    account(
        "openai/private",
        headroom=[window("requests", 0.93, 20, "gpt-5"), window("tokens", 0.62, 38, "gpt-5")],
        in_flight=2,
        oldest_s=12.3,
        usage={
            "requests": 212,
            "input_tokens": 1_034_120,
            "cached_tokens": 830_000,
            "output_tokens": 62_310,
        },
    ),
    cooling("openai/work", 38, headroom=[window("tokens", 0.0, 38, "gpt-5")], sessions=2),
    account(
        "openai/old",
        state="disabled",
        disabled={
            "class": "auth_invalid",
            "signal": "401 code=invalid_api_key",
            "evidence": {},
            "since_at": iso(-86400),
        },
    ),
    account(
        "claude-code/max",
        headroom=[
            window("5h", 0.5, 7000),
            window("7d", 0.41, 180_000),
            window("7d_opus", 0.0, 18_180, "claude-opus-*"),
        ],
        cooldowns=[
            cooldown(18_180, "claude-opus-*", **{"class": "quota", "signal": "429: 7d_opus"})
        ],
        sessions=1,
    ),
    account("claude-code/team", headroom=[window("5h", 0.12, 4000), window("7d", 0.6, 90_000)]),
    account(
        "gemini/spare",
        state="no_credential",
        reason="the variable GEMINI_API_KEY is not set",
        problem="the variable GEMINI_API_KEY is not set",
    ),
    account("openai/holiday", state="off", reason="enabled: false"),
]
POOL = status(ACCOUNTS)


#: The last decisions, the newest first.
DECISIONS = [
    {"at": iso(-10), "text": text}
    for text in (
        "openai/work: 429 rate_limit, on cooldown for 48 s (gpt-5) -> openai/private",
        "openai/old: 401 auth_invalid, disabled -> openai/work (401 code=invalid_api_key)",
        "openai: a request waited 2 s and continues",
    )
]
