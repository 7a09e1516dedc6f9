"""What the owner of a pool is notified of: when an account goes, and when it is back.

Conditions are looked for in the state of the pool, not in what happens to it: one that stood
before a restart, or that another proxy has caused, is found as well. A condition is told when
it begins, in a log that all proxies on one store share (`note`), so that each is told once;
the same event of the same account not again within `QUIET_S`. One that begins within that
time is told afterwards, if it still stands.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from math import inf
from typing import Any, NamedTuple

from account_pool.core.account import AccountKey
from account_pool.core.accounts import Accounts
from account_pool.core.decision_text import duration
from account_pool.core.decisions import one_line
from account_pool.core.outcome import BY_HAND
from account_pool.core.state import AccountState
from account_pool.core.wrong import without_secrets

#: The same event of the same account is told once in so many seconds.
QUIET_S = 600.0
#: A window over its mark has to fall by this much before it counts as over it again.
SLACK = 0.05
#: How long before its end the end of a login is told, seconds.
ENDING_S = 3 * 86400.0
#: Models for which it is looked whether anybody can serve them: clients choose their names.
MAX_MODELS = 50


class Event(StrEnum):
    """What is told."""

    #: an account is out of use until somebody acts; not where that was done by hand
    DISABLED = "disabled"
    #: an account has no credential, and none comes without somebody acting
    LOGIN_LAPSED = "login_lapsed"
    #: a login comes to its own end within days
    LOGIN_ENDING = "login_ending"
    #: nobody can serve a provider, or one of its models, for longer than requests are held
    ALL_ON_COOLDOWN = "all_on_cooldown"
    #: what was told before is over, and the account, or the provider, can serve
    BACK = "back"
    #: more than 80, 95 % of a window longer than an hour is used
    WINDOW_80 = "window_80"
    WINDOW_95 = "window_95"
    #: what the pool learns is kept in memory only
    STATE_IN_MEMORY = "state_in_memory"


_MARKS = ((Event.WINDOW_80, 0.80), (Event.WINDOW_95, 0.95))
#: Whose end is an event too.
_ENDS_AS_BACK = frozenset(
    {Event.DISABLED, Event.LOGIN_LAPSED, Event.ALL_ON_COOLDOWN, Event.STATE_IN_MEMORY}
)


class Subject(NamedTuple):
    """What a condition is about.

    Attributes:
        event: which condition.
        about: an account as `provider/label`, a provider, or "" for the proxy.
        detail: the window, the model, or what is over; "" for none.
    """

    event: Event
    about: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """One thing to tell. No secret and no text of a user is in it.

    Attributes:
        subject: what it is about.
        text: a sentence for people.
        provider, account, model, window: where that applies.
        used: share of the window that is used, 0 to 1.
        until: when it ends by itself, monotonic seconds; infinity where nobody knows.
    """

    subject: Subject
    text: str
    provider: str | None = None
    account: AccountKey | None = None
    model: str | None = None
    window: str | None = None
    used: float | None = None
    until: float = inf


@dataclass(slots=True)
class Found:
    """What a look has found.

    Attributes:
        standing: the conditions that stand, by what they are about.
        unknown: accounts and providers of which that cannot be said yet.
        serving: accounts and providers that can serve.
    """

    standing: dict[Subject, Notification] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    serving: set[str] = field(default_factory=set)

    def add(self, told: Notification) -> None:
        self.standing[told.subject] = told


def find(
    accounts: Accounts,
    *,
    now: float,
    wall_now: float,
    held_s: float,
    before: Collection[Subject],
    state_problem: str | None = None,
    login_ends: Mapping[AccountKey, float] | None = None,
) -> Found:
    """Return the conditions that stand *now* (monotonic seconds).

    Args:
        held_s: how long a request is held while nobody can serve it, seconds.
        before: conditions that stood at the look before.
        state_problem: why what is learnt is kept in memory only.
        login_ends: when logins come to their own end, seconds since the epoch.
    """
    found = Found()
    for provider in accounts.providers():
        states = [state for state in accounts.of(provider) if state.account.enabled]
        for state in states:
            _look_at_account(found, state, before, now)
        _look_at_provider(found, provider, states, held_s, now)
    for key, ends_at in (login_ends or {}).items():
        if 0 < ends_at - wall_now < ENDING_S:
            text = f"{key}: its login ends in {duration(ends_at - wall_now)}; log in again"
            _add(found, key, Event.LOGIN_ENDING, text, until=now + ends_at - wall_now)
    if state_problem is not None:
        why = _plain(state_problem)
        text = f"cooldowns and sessions are kept in memory only: {why}"
        found.add(Notification(subject=Subject(Event.STATE_IN_MEMORY, ""), text=text))
    else:
        found.serving.add("")
    return found


def _plain(text: str) -> str:
    return one_line(without_secrets(text), 300)


def _look_at_account(
    found: Found, state: AccountState, before: Collection[Subject], now: float
) -> None:
    key = state.key
    if state.disabled is not None:
        if state.disabled.signal != BY_HAND:
            why = _plain(state.disabled.signal or str(state.disabled.cls))
            _add(found, key, Event.DISABLED, f"{key} is disabled: {why}")
        return
    if not state.credentials:
        if state.pending or state.passing or state.problem is None:
            found.unknown.add(str(key))
        else:
            why = _plain(state.problem)
            _add(found, key, Event.LOGIN_LAPSED, f"{key} has no credential: {why}")
        return
    found.serving.add(str(key))
    for window in state.headroom.at(now).windows.values():
        if not window.long:
            continue  # no one can act on a window of minutes
        name = window.name if window.model is None else f"{window.name} {one_line(window.model)}"
        used = 1.0 - window.share
        for event, mark in _MARKS:
            if used < mark - (SLACK if Subject(event, str(key), name) in before else 0.0):
                continue
            left = f", it is reset in {duration(window.reset_at - now)}"
            text = f"{key} has used {used:.0%} of its window {name}"
            _add(
                found,
                key,
                event,
                text + (left if window.reset_at < inf else ""),
                name,
                model=window.model,
                window=window.name,
                used=round(used, 4),
                until=window.reset_at,
            )


def _add(
    found: Found, key: AccountKey, event: Event, text: str, detail: str = "", **more: Any
) -> None:
    """Add a condition of the account *key*; *more*: further fields of `Notification`."""
    subject = Subject(event, str(key), detail)
    found.add(Notification(subject=subject, text=text, provider=key.provider, account=key, **more))


def _look_at_provider(
    found: Found, provider: str, states: Collection[AccountState], held_s: float, now: float
) -> None:
    able = [state for state in states if state.disabled is None and state.credentials]
    if not able:
        if any(str(state.key) in found.unknown for state in states):
            found.unknown.add(provider)
        return
    models: list[str | None] = [None]
    models += sorted({c.model for s in able for c in s.holds() if c.model and c.active(now)})
    for model in models[: 1 + MAX_MODELS]:
        may = [state for state in able if state.account.models.allows(model)]
        first = min(may, key=lambda state: state.cooling_until(model, now), default=None)
        if first is None:
            continue
        back_at = first.cooling_until(model, now)
        if back_at <= now and model is None:
            found.serving.add(provider)
        if back_at - now <= held_s:
            continue
        of_model = "" if model is None else f" for {one_line(model)}"
        all_of = "its only account is" if len(may) == 1 else f"all {len(may)} accounts are"
        text = (
            f"{provider}: {all_of} on cooldown{of_model}; {first.key} returns first, "
            f"in {duration(back_at - now)}"
        )
        told = Notification(
            subject=Subject(Event.ALL_ON_COOLDOWN, provider, one_line(model or "")),
            text=text,
            provider=provider,
            account=first.key,
            model=model,
            until=back_at,
        )
        found.add(told)
        if model is None:
            return  # it covers every model


# -- the log that all proxies on a store share


class Row(NamedTuple):
    """What is kept of a subject.

    Attributes:
        standing: it was told, and is not over.
        at: when it was told last, seconds of the store's clock.
    """

    standing: bool
    at: float


Rows = Mapping[Subject, Row]


class Verdict(Enum):
    """What becomes of a condition that begins or ends."""

    #: tell it
    TELL = auto()
    #: another proxy, or an earlier run, has told it
    KNOWN = auto()
    #: too soon after the last time: ask again later if it still stands
    LATER = auto()


def note(
    rows: Rows, begun: Iterable[Subject], ended: Iterable[Subject], now: float
) -> tuple[dict[Subject, Verdict], dict[Subject, Row]]:
    """Decide which of *begun* and *ended* are to be told; return also the rows that change.

    An end is told as `Event.BACK`, if its beginning was.
    """
    # A clock that was set back is no reason to be silent.
    last: dict[tuple[Event, str], float] = {}
    for subject, row in rows.items():
        if row.at <= now:
            of = subject.event, subject.about
            last[of] = max(row.at, last.get(of, -inf))
    verdicts: dict[Subject, Verdict] = {}
    changed: dict[Subject, Row] = {}
    for subject in begun:
        known = rows.get(subject)
        of = subject.event, subject.about
        if known is not None and known.standing:
            verdicts[subject] = Verdict.KNOWN
        elif now - last.get(of, -inf) < QUIET_S:
            verdicts[subject] = Verdict.LATER
        else:
            verdicts[subject] = Verdict.TELL
            changed[subject] = Row(standing=True, at=now)
            last[of] = now
    for subject in ended:
        over = rows.get(subject)
        verdicts[subject] = Verdict.KNOWN
        if over is None or not over.standing:
            continue
        changed[subject] = over._replace(standing=False)
        of = Event.BACK, subject.about
        if subject.event in _ENDS_AS_BACK and now - last.get(of, -inf) >= QUIET_S:
            verdicts[subject] = Verdict.TELL
            changed[Subject(*of)] = Row(standing=False, at=now)
            last[of] = now
    return verdicts, changed


class Watch:
    """Which conditions stand, from look to look.

    Attributes:
        standing: those that were told, by whomever.
    """

    def __init__(self, standing: Iterable[Subject] = ()) -> None:
        self.standing = set(standing)
        self._later: dict[Subject, float] = {}

    def compare(self, found: Found, now: float) -> tuple[list[Subject], list[Subject]]:
        """Return what has begun and what has ended since the look before."""
        self._later = {s: at for s, at in self._later.items() if s in found.standing}
        begun = [
            subject
            for subject in found.standing
            if subject not in self.standing and self._later.get(subject, now) <= now
        ]
        ended = [
            subject
            for subject in self.standing
            if subject not in found.standing and subject.about not in found.unknown
        ]
        return begun, ended

    def took(
        self, found: Found, verdicts: Mapping[Subject, Verdict], now: float
    ) -> Iterator[Notification]:
        """Take over the *verdicts* on what `compare` returned; yield what is to be told."""
        for subject, verdict in verdicts.items():
            told = found.standing.get(subject)
            if told is None:
                self.standing.discard(subject)
                if verdict is Verdict.TELL and subject.about in found.serving:
                    yield _back(subject)
            elif verdict is Verdict.LATER:
                self._later[subject] = now + QUIET_S / 10
            else:
                self.standing.add(subject)
                higher = subject._replace(event=Event.WINDOW_95)
                is_lesser = subject.event is Event.WINDOW_80 and higher in found.standing
                if verdict is Verdict.TELL and not is_lesser:
                    yield told


def _back(over: Subject) -> Notification:
    subject = Subject(Event.BACK, over.about)
    if not over.about:
        return Notification(subject=subject, text="the state can be written again")
    if over.event is Event.ALL_ON_COOLDOWN:
        of_model = f" for {over.detail}" if over.detail else ""
        text = f"{over.about}: an account can serve again{of_model}"
        return Notification(
            subject=subject, text=text, provider=over.about, model=over.detail or None
        )
    key = AccountKey.parse(over.about)
    text = f"{key} is back in use"
    return Notification(subject=subject, text=text, provider=key.provider, account=key)
