"""Where vendors say what an account has left, for `pool_look_up`.

Each is the vendor's own address, asked with the account's own credential and under our own
name. What is not understood is left out, and an answer without any window shows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from math import isfinite
from typing import Any, NamedTuple

from account_pool.core.credential import Credential
from account_pool.core.headroom import Window
from account_pool.core.headroom_parsing import (
    ResponseContext,
    planned,
    snapshot,
    snapshot_parts,
    unified,
)
from account_pool.version import __version__

#: What we call ourselves.
USER_AGENT = f"account-pool/{__version__}"
_MAX_ITEMS = 32
_MAX_CHARS = 100


class Shown(NamedTuple):
    """What an answer says.

    Attributes:
        windows: what is left.
        reset_credits: how many resets of its windows the owner may still use; None: unknown.
    """

    windows: tuple[Window, ...]
    reset_credits: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LookUp:
    """How one vendor is asked.

    Attributes:
        url: the vendor's own.
        kind: of the credential that is sent.
        headers: makes what identifies the account.
        read: reads the JSON of the answer.
    """

    url: str
    kind: str
    headers: Callable[[Credential], Mapping[str, str]]
    read: Callable[[Mapping[str, Any], ResponseContext], Shown]


def _members(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(value: Any) -> list[Mapping[str, Any]]:
    return [_members(item) for item in value[:_MAX_ITEMS]] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    """Return a number of JSON, which may be of any size; None for what is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if isfinite(number) else None


def _kept(windows: Iterator[Window | None]) -> tuple[Window, ...]:
    return tuple([window for window in windows if window is not None])


def _bearer(credential: Credential) -> dict[str, str]:
    return {"authorization": f"Bearer {credential.secret.reveal()}"}


# -- Claude: `five_hour`, `seven_day`, `seven_day_opus` ...; `limits[]` names the model of a
# window that has one in words (CCF docs/anthropic-api-changelog.md)

_CLAUDE_NAMES = {"five_hour": "5h", "seven_day": "7d"}
_CLAUDE_KINDS = {"session": "5h", "weekly_all": "7d", "weekly_scoped": "7d"}


def _claude_headers(credential: Credential) -> Mapping[str, str]:
    return {**_bearer(credential), "anthropic-beta": "oauth-2025-04-20"}


def _claude(value: Mapping[str, Any], context: ResponseContext) -> Shown:
    def windows() -> Iterator[Window | None]:
        for name, said in islice(value.items(), _MAX_ITEMS):
            for known, short in _CLAUDE_NAMES.items():
                family = name.removeprefix(known)
                if name.startswith(known) and (not family or family[1:].isalpha()):
                    yield claude(short + family, said, "utilization")
        for limit in _items(value.get("limits")):
            short = _CLAUDE_KINDS.get(str(limit.get("kind")), "")
            model = _members(_members(limit.get("scope")).get("model")).get("display_name")
            scoped = limit.get("kind") == "weekly_scoped"
            if short and scoped == isinstance(model, str):
                family = "_" + str(model).lower().replace(" ", "-")[:_MAX_CHARS] if scoped else ""
                yield claude(short + family, limit, "percent")

    def claude(name: str, said: Any, used: str) -> Window | None:
        percent = _number(_members(said).get(used))
        if percent is None:
            return None
        parts = {"utilization": percent / 100, "reset": said.get("resets_at")}
        return unified(name, parts, context)

    return Shown(_kept(windows()))


# -- Codex: two windows of the account, those of named limits, and resets that are left
# (CB docs/codex.md)


def _codex_headers(credential: Credential) -> Mapping[str, str]:
    account_id = credential.companions.get("account_id")
    return {**_bearer(credential), **({"chatgpt-account-id": account_id} if account_id else {})}


def _codex(value: Mapping[str, Any], context: ResponseContext) -> Shown:
    def windows() -> Iterator[Window | None]:
        yield from limit(value.get("rate_limit"), None)
        for more in _items(value.get("additional_rate_limits")):
            if isinstance(name := more.get("limit_name"), str) and name:
                yield from limit(more.get("rate_limit"), name[:_MAX_CHARS].lower())

    def limit(said: Any, model: str | None) -> Iterator[Window | None]:
        for slot in ("primary", "secondary"):
            window = _members(_members(said).get(f"{slot}_window"))
            length_s = _number(window.get("limit_window_seconds"))
            parts = {
                "used-percent": window.get("used_percent"),
                "window-minutes": None if length_s is None else length_s / 60,
                "reset-at": window.get("reset_at"),
                "reset-after-seconds": window.get("reset_after_seconds"),
            }
            yield planned(slot, parts, model, context)

    left = _members(value.get("rate_limit_reset_credits")).get("available_count")
    is_count = isinstance(left, int) and not isinstance(left, bool) and left >= 0
    return Shown(_kept(windows()), left if is_count else None)


# -- Copilot: quotas of a month. Windows of hours and weeks are not shown there.


def _github_headers(credential: Credential) -> Mapping[str, str]:
    return {"authorization": f"token {credential.secret.reveal()}"}


def _copilot(value: Mapping[str, Any], context: ResponseContext) -> Shown:
    reset = value.get("quota_reset_date_utc") or value.get("quota_reset_date")

    def windows() -> Iterator[Window | None]:
        for name, said in islice(_members(value.get("quota_snapshots")).items(), _MAX_ITEMS):
            quota = _members(said)
            # Without an entitlement, as of a plan that is billed by tokens, nothing is counted.
            if quota.get("unlimited") is True or not quota.get("entitlement"):
                continue
            parts = {**snapshot_parts(quota), "rst": quota.get("quota_reset_at") or reset}
            yield snapshot(name, parts, context)

    return Shown(_kept(windows()))


# -- OpenRouter: the credit of a key, whole again each day, week (Monday) or month, in UTC, or never


def _openrouter(value: Mapping[str, Any], context: ResponseContext) -> Shown:
    data = _members(value.get("data"))
    limit, left = _number(data.get("limit")), _number(data.get("limit_remaining"))
    if limit is None or left is None or limit <= 0 or context.wall_now is None:
        return Shown(())
    period = str(data.get("limit_reset")).lower()
    window = Window(
        name="credit",
        share=min(max(left / limit, 0.0), 1.0),
        told_at=context.now,
        length_s=_PERIOD_S.get(period, _PERIOD_S["monthly"]),
        limit=limit,
        remaining=max(left, 0.0),
    )
    if period in _PERIOD_S:
        reset_s = _next(period, context.wall_now) - context.wall_now
        window = window._replace(reset_at=context.now + reset_s)
    return Shown((window,))


_PERIOD_S = {"daily": 86_400.0, "weekly": 604_800.0, "monthly": 2_592_000.0}


def _next(period: str, wall_now: float) -> float:
    """Return when the next day, week or month begins in UTC, seconds since the epoch."""
    now = datetime.fromtimestamp(wall_now, UTC)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "monthly":
        return (today.replace(day=1) + timedelta(days=32)).replace(day=1).timestamp()
    days = 1 if period == "daily" else 7 - today.weekday()
    return (today + timedelta(days=days)).timestamp()


#: By name of the built-in provider.
LOOK_UPS: Mapping[str, LookUp] = {
    "claude-code": LookUp(
        url="https://api.anthropic.com/api/oauth/usage",
        kind="oauth",
        headers=_claude_headers,
        read=_claude,
    ),
    "codex": LookUp(
        url="https://chatgpt.com/backend-api/wham/usage",
        kind="oauth",
        headers=_codex_headers,
        read=_codex,
    ),
    "copilot": LookUp(
        url="https://api.github.com/copilot_internal/user",
        kind="github",
        headers=_github_headers,
        read=_copilot,
    ),
    "openrouter": LookUp(
        url="https://openrouter.ai/api/v1/key", kind="key", headers=_bearer, read=_openrouter
    ),
}
