"""When and where a vendor is asked what an idle account has left, and what the answer changes.

Only where the owner has switched it on (`pool_look_up`). An account that serves reports its
headroom with each answer; one that is idle is asked at most every `LEAST_S`, and less and less
often while nothing changes. Where a provider refuses our own name it is not asked any more
for a day.

Each address is the vendor's own, asked with the account's own credential and under our own
name. What is not understood is left out, and an answer without any window changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import islice
from typing import Any, NamedTuple

from msgspec import Struct

from account_pool.core import reset_hints
from account_pool.core.account import AccountKey
from account_pool.core.cooldown import Cooldown, covers
from account_pool.core.credential import Credential
from account_pool.core.headroom import SPENT_SHARE, Window
from account_pool.core.headroom_parsing import (
    ResponseContext,
    planned,
    snapshot,
    snapshot_parts,
    unified,
)
from account_pool.core.json_values import finite_number, members, text_in
from account_pool.core.outcome import LIMITS
from account_pool.core.state import AccountState
from account_pool.version import __version__

#: Least and greatest time between two look-ups of an account that is idle, seconds.
LEAST_S, GREATEST_S = 300.0, 1800.0
#: The greatest after look-ups that failed.
FAILED_S = 3600.0
#: How long a provider that refuses look-ups is left alone, seconds.
OFF_S = 86_400.0
#: How many look-ups in a row are put off before that counts as a refusal.
MAX_PUT_OFF = 5
#: When the first look-up of an account is due, and how far apart those of others are, seconds: a
#: proxy that is started again and again is no reason to ask, and requests may report by then.
FIRST_S, APART_S = 60.0, 2.0


class Answer(Enum):
    """What a look-up came to."""

    #: the provider said what is left
    SHOWN = auto()
    #: it does not answer a program of our name, or this account
    REFUSED = auto()
    #: it was asked too often: later
    PUT_OFF = auto()
    #: there was no answer, or none that is understood
    FAILED = auto()


#: Statuses that asking again soon will not change.
_REFUSALS = frozenset({400, 403, 404, 405, 406, 410, 422, 426, 451, 501})


def answer_of(status: int, *, understood: bool) -> Answer:
    """Return what an answer with *status* means. A 401 is about the token: it fails."""
    if status == 200:
        return Answer.SHOWN if understood else Answer.FAILED
    if status == 429:
        return Answer.PUT_OFF
    return Answer.REFUSED if status in _REFUSALS else Answer.FAILED


@dataclass(slots=True)
class LookedUp:
    """The look-ups of one account. Times are monotonic seconds.

    Attributes:
        next_at: when it is asked next at the earliest.
        asked_at: when it was asked last.
        shown_at: when an answer was last understood.
        problem: why there was none the last time, for people; None if there was.
        reset_credits: how many resets of its windows its owner may still use; None: unknown.
        wait_s: the pause between look-ups.
        put_off: how many in a row were put off.
        windows: of the last answer, without their times.
    """

    next_at: float = -math.inf
    asked_at: float = -math.inf
    shown_at: float = -math.inf
    problem: str | None = None
    reset_credits: int | None = None
    wait_s: float = LEAST_S
    put_off: int = 0
    windows: Collection[tuple[str, str | None, float]] = ()


@dataclass(slots=True)
class _OfProvider:
    """What look-ups of one provider have come to.

    Attributes:
        shown: one of its accounts was shown.
        off_until: it is not asked before this.
        reason: why.
    """

    shown: bool = False
    off_until: float = -math.inf
    reason: str = ""


@dataclass(slots=True)
class LookUps:
    """The look-ups of all accounts.

    Attributes:
        accounts: those that were asked, or are to be.
    """

    accounts: dict[AccountKey, LookedUp] = field(default_factory=dict)
    _providers: dict[str, _OfProvider] = field(default_factory=dict)

    def due(self, states: Iterable[AccountState], now: float) -> list[AccountKey]:
        """Return which of *states*, that can be looked up, are to be asked now."""
        due = []
        present = set()
        for number, state in enumerate(states):
            present.add(state.key)
            one = self.accounts.get(state.key)
            if one is None:
                one = LookedUp(next_at=now + FIRST_S + min(number * APART_S, LEAST_S))
                self.accounts[state.key] = one
            if one.next_at <= now and self.why_not(state.key, now) is None and _is_idle(state, now):
                due.append(state.key)
        self.accounts = {key: one for key, one in self.accounts.items() if key in present}
        return due

    def why_not(self, key: AccountKey, now: float) -> str | None:
        """Return why *key* is not asked now, whoever wants it; None if it may be."""
        provider = self._providers.get(key.provider)
        if provider is not None and now < provider.off_until:
            return provider.reason
        one = self.accounts.get(key)
        if one is not None and now - one.asked_at < LEAST_S:
            return f"asked {now - one.asked_at:.0f} s ago"
        if one is not None and one.put_off and now < one.next_at:
            return one.problem
        return None

    def asked(self, key: AccountKey, now: float) -> None:
        """*key* is asked now, by this proxy or another one."""
        one = self.accounts.setdefault(key, LookedUp())
        one.asked_at, one.next_at = now, now + max(one.wait_s, LEAST_S)

    def shown(
        self, key: AccountKey, windows: Collection[Window], reset_credits: int | None, now: float
    ) -> None:
        """The provider has said what *key* has left."""
        one = self.accounts.setdefault(key, LookedUp())
        self._providers.setdefault(key.provider, _OfProvider()).shown = True
        said = {(w.name, w.model, round(w.share, 3)) for w in windows}
        one.wait_s = min(2 * one.wait_s, GREATEST_S) if said == one.windows else LEAST_S
        one.windows, one.reset_credits = said, reset_credits
        one.shown_at, one.problem, one.put_off = now, None, 0
        one.next_at = now + one.wait_s

    def failed(
        self, key: AccountKey, answer: Answer, why: str, now: float, retry_after_s: float = 0.0
    ) -> str | None:
        """Nothing was learnt of *key*; return what to say once, if its provider is off now.

        *why* is for people.
        """
        one = self.accounts.setdefault(key, LookedUp())
        of_provider = self._providers.setdefault(key.provider, _OfProvider())
        one.problem = why
        one.put_off = one.put_off + 1 if answer is Answer.PUT_OFF else 0
        one.wait_s = min(2 * one.wait_s, FAILED_S)
        refused = answer is Answer.REFUSED or one.put_off >= MAX_PUT_OFF
        if refused and not of_provider.shown:
            of_provider.off_until = now + OFF_S
            of_provider.reason = f"{key.provider} refuses look-ups: {why}; off for a day"
            one.put_off = 0
            return of_provider.reason
        # Others are answered: it is this account, whose plan or token may not have it.
        one.next_at = now + (OFF_S if refused else max(one.wait_s, retry_after_s))
        return None


def _is_idle(state: AccountState, now: float) -> bool:
    return not state.running and now - state.asked_at >= LEAST_S


def lifted(cooldown: Cooldown, windows: Iterable[Window], asked_at: float) -> bool:
    """Say whether *windows*, as the provider shows them, end *cooldown*.

    Only a limit, of which the windows speak, that began before they were asked for: there is
    room in each window of more than an hour that covers what is on cooldown, and there is one
    of the same scope.

    Args:
        asked_at: when the provider was asked, monotonic seconds.
    """
    cause = cooldown.cause
    if cause.cls not in LIMITS or cause.unknown or cause.money or not cooldown.in_doubt:
        return False
    if cooldown.since >= asked_at:
        return False
    covering = [w for w in windows if w.long and _covers(w, cooldown.model)]
    same = [w for w in covering if (w.model is None) == (cooldown.model is None)]
    return bool(same) and all(w.share > SPENT_SHARE for w in covering)


def _covers(window: Window, model: str | None) -> bool:
    if window.model is None or window.model == model:
        return True
    # A cooldown of a family (`claude-opus-*`) is told in the same words.
    return model is not None and covers(window.model, model.replace("*", ""))


def view(one: LookedUp, now: float) -> Mapping[str, object]:
    """Return `age_s`, `problem` and `reset_credits` of an account that was asked."""
    known = one.shown_at > -math.inf
    return {
        "age_s": round(now - one.shown_at, 3) if known else None,
        "problem": one.problem,
        "reset_credits": one.reset_credits,
    }


# -- where vendors say it

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


class LookUp(Struct, frozen=True, kw_only=True):
    """How one vendor is asked.

    Attributes:
        url: the vendor's own.
        kind: of the credential that is sent.
        headers: makes what identifies the account.
        windows: finds them in the JSON of the answer; None for what is none.
        reset_credits: the same, as in `Shown`.
    """

    url: str
    kind: str
    headers: Callable[[Credential], Mapping[str, str]]
    windows: Callable[[Mapping[str, Any], ResponseContext], Iterable[Window | None]]
    reset_credits: Callable[[Mapping[str, Any]], int | None] = lambda _value: None

    def read(self, value: Mapping[str, Any], context: ResponseContext) -> Shown:
        """Read the JSON of the answer."""
        windows = [window for window in self.windows(value, context) if window is not None]
        return Shown(tuple(windows), self.reset_credits(value))


def _items(value: Any) -> list[Mapping[str, Any]]:
    return [members(item) for item in value[:_MAX_ITEMS]] if isinstance(value, list) else []


def _bearer(credential: Credential) -> dict[str, str]:
    return {"authorization": f"Bearer {credential.secret.reveal()}"}


# -- Claude: `five_hour`, `seven_day`, `seven_day_opus` ...; `limits[]` names the model of a
# window that has one in words (CCF docs/anthropic-api-changelog.md)

_CLAUDE_NAMES = {"five_hour": "5h", "seven_day": "7d"}
_CLAUDE_KINDS = {"session": "5h", "weekly_all": "7d", "weekly_scoped": "7d"}


def _claude(value: Mapping[str, Any], context: ResponseContext) -> Iterator[Window | None]:
    def claude(name: str, said: Any, used: str) -> Window | None:
        percent = finite_number(members(said).get(used))
        if percent is None:
            return None
        parts = {"utilization": percent / 100, "reset": said.get("resets_at")}
        return unified(name, parts, context)

    for name, said in islice(value.items(), _MAX_ITEMS):
        for known, short in _CLAUDE_NAMES.items():
            family = name.removeprefix(known)
            if name.startswith(known) and (not family or family[1:].isalpha()):
                yield claude(short + family, said, "utilization")
    for limit in _items(value.get("limits")):
        short = _CLAUDE_KINDS.get(str(limit.get("kind")), "")
        model = members(members(limit.get("scope")).get("model")).get("display_name")
        scoped = limit.get("kind") == "weekly_scoped"
        if short and scoped == isinstance(model, str):
            family = "_" + str(model).lower().replace(" ", "-")[:_MAX_CHARS] if scoped else ""
            yield claude(short + family, limit, "percent")


# -- Codex: two windows of the account, those of named limits, and resets that are left
# (CB docs/codex.md)


def _codex_headers(credential: Credential) -> Mapping[str, str]:
    account_id = credential.companions.get("account_id")
    return {**_bearer(credential), **({"chatgpt-account-id": account_id} if account_id else {})}


def _codex(value: Mapping[str, Any], context: ResponseContext) -> Iterator[Window | None]:
    def limit(said: Any, model: str | None) -> Iterator[Window | None]:
        for slot in ("primary", "secondary"):
            window = members(members(said).get(f"{slot}_window"))
            length_s = finite_number(window.get("limit_window_seconds"))
            parts = {
                "used-percent": window.get("used_percent"),
                "window-minutes": None if length_s is None else length_s / 60,
                "reset-at": window.get("reset_at"),
                "reset-after-seconds": window.get("reset_after_seconds"),
            }
            yield planned(slot, parts, model, context)

    yield from limit(value.get("rate_limit"), None)
    for more in _items(value.get("additional_rate_limits")):
        if name := text_in(more.get("limit_name")):
            yield from limit(more.get("rate_limit"), name[:_MAX_CHARS].lower())


def _codex_credits(value: Mapping[str, Any]) -> int | None:
    left = members(value.get("rate_limit_reset_credits")).get("available_count")
    is_count = isinstance(left, int) and not isinstance(left, bool) and left >= 0
    return left if is_count else None


# -- Copilot: quotas of a month. Windows of hours and weeks are not shown there.


def _copilot(value: Mapping[str, Any], context: ResponseContext) -> Iterator[Window | None]:
    reset = value.get("quota_reset_date_utc") or value.get("quota_reset_date")
    for name, said in islice(members(value.get("quota_snapshots")).items(), _MAX_ITEMS):
        quota = members(said)
        # Without an entitlement, as of a plan that is billed by tokens, nothing is counted.
        if quota.get("unlimited") is True or not quota.get("entitlement"):
            continue
        parts = {**snapshot_parts(quota), "rst": quota.get("quota_reset_at") or reset}
        yield snapshot(name, parts, context)


# -- OpenRouter: the credit of a key, whole again each day, week (Monday) or month, in UTC, or never


def _openrouter(value: Mapping[str, Any], context: ResponseContext) -> Iterator[Window | None]:
    data = members(value.get("data"))
    limit, left = finite_number(data.get("limit")), finite_number(data.get("limit_remaining"))
    if limit is None or left is None or limit <= 0 or context.wall_now is None:
        return
    period = _PERIODS.get(str(data.get("limit_reset")).lower())
    length_s, until = period or _PERIODS["monthly"]
    reset_s = until(context.wall_now) if period else None
    yield Window(
        name="credit",
        share=min(max(left / limit, 0.0), 1.0),
        told_at=context.now,
        reset_at=math.inf if reset_s is None else context.now + reset_s,
        length_s=length_s,
        limit=limit,
        remaining=max(left, 0.0),
    )


#: Length in seconds, and how long it is until the next one.
_PERIODS = {
    "daily": (86_400.0, reset_hints.until_utc_midnight),
    "weekly": (604_800.0, reset_hints.until_utc_monday),
    "monthly": (2_592_000.0, reset_hints.until_utc_month),
}


#: By name of the built-in provider.
LOOK_UPS: Mapping[str, LookUp] = {
    "claude-code": LookUp(
        url="https://api.anthropic.com/api/oauth/usage",
        kind="oauth",
        headers=lambda held: {**_bearer(held), "anthropic-beta": "oauth-2025-04-20"},
        windows=_claude,
    ),
    "codex": LookUp(
        url="https://chatgpt.com/backend-api/wham/usage",
        kind="oauth",
        headers=_codex_headers,
        windows=_codex,
        reset_credits=_codex_credits,
    ),
    "copilot": LookUp(
        url="https://api.github.com/copilot_internal/user",
        kind="github",
        headers=lambda held: {"authorization": f"token {held.secret.reveal()}"},
        windows=_copilot,
    ),
    "openrouter": LookUp(
        url="https://openrouter.ai/api/v1/key", kind="key", headers=_bearer, windows=_openrouter
    ),
}
