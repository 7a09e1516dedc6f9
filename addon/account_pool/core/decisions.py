"""What was decided about accounts and requests, and why: the last 1,000 decisions.

A record carries no secret and no text of a user: evidence is what `signals.py` lets
through, conversations are told by a hash. docs/why.md describes it.

A `Transition` is the one place where cooldowns, verdicts and disabling of an account change,
and records it as it is made; at its end the account is put where it belongs. That a cooldown has
run out is no change: nothing happens then, and its record says until when it lasts. What became
of requests is recorded by `request_events.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from functools import partial
from hashlib import sha256
from typing import Protocol, Self

from msgspec import Struct
from msgspec.structs import force_setattr, replace

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import AccountVerdict, Cooldown, Endings, opened
from account_pool.core.members import Members
from account_pool.core.outcome import Cause, Outcome
from account_pool.core.state import AccountState, Cooldowns

#: Clients choose the names of models; longer ones are cut.
_MAX_TEXT_CHARS = 200
#: Of a reason: a host, what there was to say of it, and what helps, which must not be cut off.
_MAX_REASON_CHARS = 500
_TEXTS = (("model", _MAX_TEXT_CHARS), ("covers", _MAX_TEXT_CHARS), ("reason", _MAX_REASON_CHARS))


class Kind(StrEnum):
    """What was decided."""

    #: an account, or one model of it, rests until a deadline
    COOLDOWN = "cooldown"
    #: a cooldown has ended before its time
    RELEASE = "release"
    #: an account is out of use until something is done about it
    DISABLE = "disable"
    #: it is used again
    ENABLE = "enable"
    #: a refusal may be an account's own fault: all others are asked before it
    SUSPECT = "suspect"
    #: a request, or the conversation it is a part of, goes to another account
    MOVE = "move"
    #: a request is sent to the account that refused it once more
    RETRY = "retry"
    #: a request is held
    WAIT = "wait"
    #: a request is not served: its client is told of a limit
    REFUSAL = "refusal"
    #: an account that cools is asked whether it really does
    PROBE = "probe"
    #: an account has been silent for long, while another is idle
    SILENCE = "silence"


class By(StrEnum):
    """Who or what made a decision, or ended what was decided."""

    #: a request was refused upstream
    ANSWER = "a refusal"
    #: a message inside a WebSocket was a refusal
    SOCKET = "a message in a WebSocket"
    #: another account has served what this one refused
    WITNESS = "a comparison with other accounts"
    #: all accounts have refused the same request
    ALL = "a refusal of all accounts"
    #: an account of the same organisation, team or project was refused
    OWNER = "a refusal of an account of the same owner"
    #: no more is left of a window than its owner keeps
    RESERVE = "its reserve"
    #: nobody can serve a request now
    SHORTAGE = "a shortage"
    #: a request was answered well although its account should cool
    SUCCESS = "a good answer"
    PROBE = "a probe"
    #: the provider, asked what is left, shows room
    LOOK_UP = "a look-up"
    HAND = "hand"
    CREDENTIAL = "a new credential"
    CONFIG = "a new credential in accounts.yaml"
    REMOVAL = "the removal of the account"
    PROXY = "another proxy"
    RESTART = "an earlier run"
    CLOCK = "the clock, which was set or has slept"
    #: another cause with a later deadline
    LATER = "a later deadline"
    #: so many models of one account cool that one is let go
    ROOM = "room for others"
    TIME = "time"
    #: an account could be given to a request that waited
    ACCOUNT = "an account"
    CLIENT = "the client, which left"


class Decision(Struct, frozen=True, kw_only=True):
    """One decision. Times are monotonic seconds unless called `wall_`.

    Attributes:
        kind, at, by: what, when, and who or what made it.
        number, wall_at: set when it is recorded: from 1, and seconds since the epoch.
        provider: whose API.
        account: the one it is about; of a move the one that is left, of a wait or a
            refusal without an attempt the one that returns first. None: no certain one.
        to: of a move, retry: who is asked next.
        model: what a cooldown covers, or what a request asks for; None for all of the
            account, or unknown.
        cause: what an answer said; None if no answer said anything.
        reason: why, in our words, where no answer says it.
        effect: what *account* is in since: COOLDOWN, DISABLE or None.
        covers: the model that effect is about; None for all.
        until: when that cooldown ends; of a wait when it ends at the latest.
        told_s: of a refusal how long the client was told to wait, seconds.
        session: of a request: a hash that tells its conversation.
        ends: of a release: the number of the decision it ends.
        ended_at, released_by: when and by what it came to an end; None while it has not,
            or only time has ended it.
        times: how many refusals have said the same while it lasted.
    """

    kind: Kind
    at: float
    by: By
    provider: str
    number: int = 0
    wall_at: float = 0.0
    account: AccountKey | None = None
    to: AccountKey | None = None
    model: str | None = None
    cause: Cause | None = None
    reason: str = ""
    effect: Kind | None = None
    covers: str | None = None
    until: float | None = None
    told_s: float | None = None
    session: str | None = None
    ends: int | None = None
    ended_at: float | None = None
    released_by: By | None = None
    times: int = 1

    def __post_init__(self) -> None:
        # What a client has named stands in one line.
        for name, max_chars in _TEXTS:
            text = getattr(self, name)
            if text and not (len(text) <= max_chars and text.isprintable()):
                force_setattr(self, name, one_line(text, max_chars))

    @property
    def waited_s(self) -> float | None:
        """How long a request was held, seconds; None while it is, or for other kinds."""
        if self.kind is not Kind.WAIT or self.ended_at is None:
            return None
        return self.ended_at - self.at

    def is_over(self, now: float) -> bool:
        """Say whether a cooldown has come to its end, be it by time alone."""
        return self.ended_at is not None or (self.until is not None and self.until <= now)

    def as_dict(self, now: float, ahead_s: float = 0.0) -> dict[str, object]:
        """Return it for JSON; always the same keys. Times are seconds since the epoch.

        Keys: number, kind, at, by, provider, account, to, model, class, scope, signal
        (the evidence in a few words), unknown (only the status was understood), evidence
        (header values by name), reset_named (whether *until* was named by the provider),
        reason, effect, covers, until, told_s, session, ends, ended_at, released_by,
        waited_s, times. What is not known or does not apply is null.

        Args:
            ahead_s: what the clock that times are told by is ahead of our wall clock.
        """
        ended_at, released_by = self.ended_at, self.released_by
        if self.kind is Kind.COOLDOWN and ended_at is None and self.is_over(now):
            ended_at, released_by = self.until, By.TIME
        cause = self.cause
        wall = partial(self._wall, self.wall_at + ahead_s)
        return {
            "number": self.number,
            "kind": self.kind.value,
            "at": wall(self.at),
            "by": self.by.value,
            "provider": self.provider,
            "account": str(self.account) if self.account else None,
            "to": str(self.to) if self.to else None,
            "model": self.model,
            "class": cause.cls.value if cause else None,
            "scope": cause.scope.value if cause else None,
            "signal": cause.signal if cause else None,
            "unknown": cause.unknown if cause else None,
            "evidence": dict(cause.evidence) if cause else {},
            "reset_named": cause.hinted if cause else None,
            "reason": self.reason or None,
            "effect": self.effect.value if self.effect else None,
            "covers": self.covers,
            "until": wall(self.until),
            "told_s": self.told_s,
            "session": self.session,
            "ends": self.ends,
            "ended_at": wall(ended_at),
            "released_by": released_by.value if released_by else None,
            "waited_s": self.waited_s,
            "times": self.times,
        }

    def _wall(self, wall_at: float, at: float | None) -> float | None:
        return None if at is None else round(at + wall_at - self.at, 3)


def session_hash(session: str | None) -> str | None:
    """Return what tells a conversation from others without its id."""
    if session is None:
        return None
    return sha256(session.encode(errors="backslashreplace")).hexdigest()[:8]


def one_line(text: str, max_chars: int = _MAX_TEXT_CHARS) -> str:
    """Return *text* of a client in one line of bounded length: it goes to logs and pages."""
    if len(text) <= max_chars and text.isprintable():
        return text
    return "".join(c if c.isprintable() else "?" for c in text[:max_chars])


#: Decisions that are kept.
KEPT = 1000

#: What a decision that lasts is about.
_Subject = tuple[Kind, AccountKey | None, str | None]
_LASTING = frozenset({Kind.COOLDOWN, Kind.DISABLE, Kind.SUSPECT})


class HasClocks(Protocol):
    """Monotonic seconds, and seconds since the epoch."""

    now: Callable[[], float]
    wall_now: Callable[[], float]


class _NoClocks:
    now = wall_now = staticmethod(lambda: 0.0)


class Decisions:
    """The last decisions, the newest first.

    Attributes:
        made: how many there were, those that are no longer kept included.
        clocks: who has them: the service; their difference tells the time of day.
        failed: told what a listener has raised. The decision stands, whoever heard of it.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self.made = 0
        self.clocks: HasClocks = _NoClocks()
        self.failed: Callable[[Exception], object] = lambda _error: None
        self._kept = kept
        self._records: dict[int, Decision] = {}
        #: the cooldown and disabling records that were made last, by what they are about
        self._lasting: dict[_Subject, int] = {}
        self._listeners: list[Callable[[Decision], None]] = []

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Decision]:
        return reversed(self._records.values())

    def subscribe(self, listener: Callable[[Decision], None]) -> Callable[[], None]:
        """Call *listener* with every decision, and again (same number) when it changes.

        It changes when it ends before its time, or when another refusal says the same.
        *listener* must be quick. Returns the function that ends it.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def add(self, decision: Decision) -> Decision:
        """Number *decision* and keep it; the oldest goes."""
        self.made += 1
        # It is new, and nobody else has it: a copy would cost more than all the rest.
        force_setattr(decision, "number", self.made)
        ahead_s = self.clocks.wall_now() - self.clocks.now()
        force_setattr(decision, "wall_at", decision.at + ahead_s)
        self._records[decision.number] = decision
        if decision.kind in _LASTING:
            self._lasting[_subject(decision)] = decision.number
        if len(self._records) > self._kept:
            self._forget(self._records.pop(self.made - self._kept))
        self._tell(decision)
        return decision

    def update(self, decision: Decision) -> None:
        """Put *decision* in the place of the one with its number, if that is still kept."""
        if decision.number in self._records:
            self._records[decision.number] = decision
            if decision.ended_at is not None:
                self._forget(decision)
            self._tell(decision)

    def end(self, number: int, by: By, now: float) -> None:
        """What *number* decided has come to its end, if it is still kept."""
        decision = self._records.get(number)
        if decision is not None and decision.ended_at is None:
            self.update(replace(decision, ended_at=now, released_by=by))

    def lasting(
        self, kind: Kind, account: AccountKey, covers: str | None, now: float
    ) -> Decision | None:
        """Return the cooldown or disabling of *account* that is in force, if it is kept."""
        covers = None if covers is None else one_line(covers)
        number = self._lasting.get((kind, account, covers))
        decision = None if number is None else self._records.get(number)
        return None if decision is None or decision.is_over(now) else decision

    def all_lasting(self, account: AccountKey, now: float) -> list[Decision]:
        """Return every cooldown and disabling of *account* that is in force and kept."""
        of_account = [n for (_, about, _), n in self._lasting.items() if about == account]
        return [self._records[n] for n in of_account if not self._records[n].is_over(now)]

    def _forget(self, decision: Decision) -> None:
        """Nothing refers to *decision* as the one in force any more."""
        if self._lasting.get(subject := _subject(decision)) == decision.number:
            del self._lasting[subject]

    def _tell(self, decision: Decision) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(decision)
            except Exception as e:
                self.failed(e)


def _subject(decision: Decision) -> _Subject:
    return decision.kind, decision.account, decision.covers


# -- what changes an account

_REFUSALS = frozenset({By.ANSWER, By.SOCKET, By.OWNER, By.WITNESS})
#: What others know already, or the next response shows again.
_NOT_URGENT = frozenset({By.SUCCESS, By.PROBE, By.RESTART, By.PROXY, By.CLOCK})


def _any(_value: object) -> bool:
    return True


class HasAccounts(Protocol):
    """`Accounts`, as far as a change of one concerns them."""

    decisions: Decisions
    dirty: set[AccountKey]
    on_dirty: Callable[[], None]
    on_urgent: Callable[[], None]
    on_change: Callable[[str, float], None]

    @property
    def members(self) -> Mapping[str, Members]: ...


class Transition(Struct, eq=False):
    """A change of *state* at *now*, because of *by*: `with Transition(...) as change`.

    At its end the account is put where it belongs, to be saved, and waiting requests go on. Also
    where an error ends it midway: what has changed by then stands.

    Attributes:
        alone: no other account changes with it: waiting requests may go on at once.
    """

    accounts: HasAccounts
    state: AccountState
    by: By
    now: float
    alone: bool = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        accounts, key = self.accounts, self.state.key
        if self.by not in _NOT_URGENT:
            accounts.on_urgent()
        accounts.members[key.provider].place(self.state, self.now)
        accounts.dirty.add(key)
        accounts.on_dirty()
        if self.alone:
            accounts.on_change(key.provider, self.now)

    # -- cooldowns

    def cool(self, cooldown: Cooldown) -> None:
        """Let the account cool as *cooldown* says, in place of the one that covers the same."""
        state, covered = self.state, cooldown.model
        if covered in state.ramps:
            del state.ramps[covered]
        before = state.cooldowns.get(covered)
        state.cooldowns[covered] = cooldown
        if self.now < cooldown.until:
            self._lasts(Kind.COOLDOWN, cooldown)
        elif before is not None:
            self._released(before, self.by)

    def end_cooldowns(
        self,
        ended: Callable[[Cooldown], bool] = _any,
        *,
        among: Iterable[str | None] | None = None,
    ) -> list[Cooldown]:
        """Drop the cooldowns that *ended* says; return those that had not run out.

        Args:
            among: those of these models only.
        """
        known = self.state.cooldowns
        looked_at = known.values() if among is None else [known[model] for model in among]
        over = [cooldown for cooldown in looked_at if ended(cooldown)]
        for cooldown in over:
            self._drop(cooldown.model)
        active = [cooldown for cooldown in over if cooldown.active(self.now)]
        for cooldown in active:
            self._released(cooldown, self.by)
        return active

    def make_room(self, cooldown: Cooldown) -> None:
        """Drop *cooldown* for another: its record ends, and that is all that is said of it.

        With more models than are remembered this happens at each refusal.
        """
        self._drop(cooldown.model)
        self._ended(Kind.COOLDOWN, cooldown.model, By.ROOM)

    def _drop(self, model: str | None) -> None:
        del self.state.cooldowns[model]
        ramp = self.state.ramps.get(model)
        if ramp is not None and ramp.is_held:
            del self.state.ramps[model]

    # -- verdicts

    def suspect(self, outcome: Outcome, model: str | None) -> AccountVerdict:
        """Open the verdict that *outcome* to a request for *model* asks for."""
        before = self.state.verdicts
        verdicts = self.state.verdicts = opened(before, outcome, model, self.now)
        for about in before.keys() - verdicts.keys():
            self._ended(Kind.SUSPECT, about)
        verdict = verdicts[outcome.about(model)]
        if verdict != before.get(verdict.covered):
            self._lasts(Kind.SUSPECT, verdict)
        return verdict

    def end_verdicts(self, ended: Callable[[AccountVerdict], bool] = _any) -> None:
        """Drop the verdicts that *ended* says."""
        known = self.state.verdicts
        self.state.verdicts = {about: v for about, v in known.items() if not ended(v)}
        for about in known.keys() - self.state.verdicts.keys():
            self._ended(Kind.SUSPECT, about)

    def reopen(self, verdict: AccountVerdict) -> None:
        """Open *verdict* again, which another one has taken the place of."""
        self.state.verdicts[verdict.covered] = verdict
        self._lasts(Kind.SUSPECT, verdict)

    # -- being disabled

    def disable(self, cause: Cause, since: float) -> None:
        """Take the account out of use until something is done about *cause*."""
        if cause != self.state.disabled:
            self._enabled()
            self.accounts.decisions.add(
                _about(self.state.key, Kind.DISABLE, cause, self.by, self.now)
            )
        self.state.disabled, self.state.disabled_at = cause, since

    def enable(self) -> None:
        """End a disabling, by another proxy before now as well."""
        self.state.endings = self.state.endings._replace(disabling=self.now)
        self._enabled()

    def adopt_disabling(self, cause: Cause | None, since: float, endings: Endings) -> None:
        """Be disabled, or not (None), as elsewhere, where *endings* are known."""
        if cause is None:
            self._enabled()
        else:
            self.disable(cause, since)
        self.state.endings = endings

    def _enabled(self) -> None:
        cause, self.state.disabled = self.state.disabled, None
        if cause is not None:
            ends = self._ended(Kind.DISABLE, None)
            enabled = _about(self.state.key, Kind.ENABLE, cause, self.by, self.now, ends=ends)
            self.accounts.decisions.add(enabled)

    # -- all of it

    def adopt(self, cooldowns: Mapping[str | None, Cooldown]) -> None:
        """Take over the *cooldowns* that the account has elsewhere, in place of its own."""
        before = self.state.cooldowns
        self.state.cooldowns = Cooldowns.of(cooldowns)
        for model in {**before, **cooldowns}:
            was, cooldown = before.get(model), cooldowns.get(model)
            if was == cooldown:
                continue
            if cooldown is not None and cooldown.active(self.now):
                self._lasts(Kind.COOLDOWN, cooldown)
            elif was is not None:
                self._released(was, self.by)

    # -- records

    def _lasts(self, kind: Kind, what: Cooldown | AccountVerdict) -> None:
        """Record a cooldown or verdict that begins, or goes on."""
        standing = self.accounts.decisions.lasting(kind, self.state.key, what.covered, self.now)
        if standing is not None and _alike(standing.cause, what.cause):
            # Fifty requests that were refused at once, and a probe refused in the same way, are
            # one cooldown: its record has the latest values.
            times = standing.times + (self.by in _REFUSALS)
            changed = replace(standing, until=what.until, cause=what.cause, times=times)
            self.accounts.decisions.update(changed)
            return
        if standing is not None:
            self.accounts.decisions.end(standing.number, By.LATER, self.now)
        self.accounts.decisions.add(decision_of(self.state.key, kind, what, self.by, self.now))

    def _released(self, cooldown: Cooldown, by: By) -> None:
        if cooldown.active(self.now):
            ends = self._ended(Kind.COOLDOWN, cooldown.model, by)
            self.accounts.decisions.add(
                decision_of(self.state.key, Kind.RELEASE, cooldown, by, self.now, ends=ends)
            )

    def _ended(self, kind: Kind, covers: str | None, by: By | None = None) -> int | None:
        """End what is recorded of *covers*; return its number, None if it is not kept."""
        standing = self.accounts.decisions.lasting(kind, self.state.key, covers, self.now)
        if standing is None:
            return None
        self.accounts.decisions.end(standing.number, by or self.by, self.now)
        return standing.number


def decision_of(
    key: AccountKey,
    kind: Kind,
    what: Cooldown | AccountVerdict,
    by: By,
    now: float,
    *,
    ends: int | None = None,
) -> Decision:
    """Return the record of a cooldown or verdict on the account *key*; *ends*: of which one."""
    return _about(key, kind, what.cause, by, now, covers=what.covered, until=what.until, ends=ends)


def _about(
    key: AccountKey,
    kind: Kind,
    cause: Cause,
    by: By,
    now: float,
    *,
    covers: str | None = None,
    until: float | None = None,
    ends: int | None = None,
) -> Decision:
    return Decision(
        kind=kind,
        at=now,
        by=by,
        provider=key.provider,
        account=key,
        cause=cause,
        model=covers,
        covers=covers,
        until=until,
        ends=ends,
    )


def _alike(one: Cause | None, other: Cause) -> bool:
    return one is not None and (one.signal, one.cls, one.scope) == (
        other.signal,
        other.cls,
        other.scope,
    )
