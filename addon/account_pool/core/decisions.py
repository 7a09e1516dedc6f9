"""What was decided about accounts and requests, and why: the last 1,000 decisions.

A record carries no secret and no text of a user: evidence is what `signals.py` lets
through, conversations are told by a hash. docs/why.md describes it.

What becomes of accounts is recorded as it is made, by a `Transition` (`members.py`). That a
cooldown has run out is no change: nothing happens then, and its record says until when it lasts.

What became of a request, where it moved, how long it was held, why it ended, is recorded by
`RequestEvents`. An ordinary request that is sent, answered, or refused through its own fault
involves no decision of ours and has no record. It decides nothing: `attempts.py` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from functools import partial
from hashlib import sha256
from typing import Protocol, assert_never

from msgspec import Struct
from msgspec.structs import force_setattr, replace

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import AccountVerdict, Cooldown
from account_pool.core.errors import NoUsableAccount
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import Cause, Outcome, OutcomeClass
from account_pool.core.state import AccountState
from account_pool.core.steps import Attempt, Deliver, Refresh, Send, Step, Synthesize, Wait

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


def decision_of(
    key: AccountKey,
    kind: Kind,
    what: Cooldown | AccountVerdict | Cause,
    by: By,
    now: float,
    *,
    ends: int | None = None,
) -> Decision:
    """Return the record of *what* befalls the account *key*; *ends*: which record it ends."""
    if isinstance(what, Cause):
        cause, covers, until = what, None, None
    else:
        cause, covers, until = what.cause, what.covered, what.until
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


# -- what became of a request

#: Why a WebSocket is closed after its account reported a limit: another account can serve.
CLOSED = "closed so that its client opens another"
#: Why a refused request is not sent to another account although one could serve it.
NOT_KEPT = "not replayed: its body was streamed, not kept (over 64 MiB, or by another addon)"


class HasStates(Protocol):
    """`Accounts`, as far as records of requests concern them."""

    find: Callable[[AccountKey], AccountState | None]


class HasPool(Protocol):
    """`Pool`, likewise."""

    decisions: Decisions

    @property
    def accounts(self) -> HasStates: ...

    def shortage(
        self, facts: RequestFacts, *, now: float, only: AccountKey | None
    ) -> NoUsableAccount: ...


class RequestEvents(Struct, eq=False):
    """Records the decisions about one request.

    Attributes:
        pool, facts: the pool that keeps the records, and the request.
        wait: number of the record of its current wait, None if it is not held.
    """

    pool: HasPool
    facts: RequestFacts
    wait: int | None = None

    def decided(
        self,
        step: Step,
        history: Sequence[Attempt],
        nobody: NoUsableAccount | None,
        now: float,
        *,
        left: AccountKey | None,
        kept: bool,
    ) -> None:
        """Record what *step* decides.

        Args:
            history: its attempts; where it is sent, the last one is the one that begins.
            nobody: why nobody could serve it when that was asked last.
            left: where its conversation lived, which is taken elsewhere.
            kept: its body was kept, so that it could have been sent again.
        """
        last = history[-1] if history else None
        match step:
            case Send(lease):
                refused = history[-2] if len(history) > 1 else None
                came_from = refused.key if refused else left
                if came_from is not None:
                    self.sent(came_from, lease.key, refused.outcome if refused else None, now)
            case Wait():
                self.held(step, last, nobody, now)
            case Deliver() | Synthesize():
                self.given_up(step, last, nobody, now, kept=kept)
            case Refresh():
                pass
            case _:
                assert_never(step)

    def sent(
        self, came_from: AccountKey, to: AccountKey, refusal: Outcome | None, now: float
    ) -> None:
        """Record that the request, meant for *came_from*, goes to *to*.

        Args:
            refusal: how *came_from* refused it; None if it was not asked, because it cannot
                serve now.
        """
        kind = Kind.RETRY if to == came_from else Kind.MOVE
        if kind is Kind.RETRY and refusal is not None and refusal.cls is OutcomeClass.TRANSPORT:
            return  # a connection, not an account
        reason = "" if refusal is not None else self._why_not(came_from, now)
        self._record(kind, came_from, refusal, reason, now, to=to)

    def held(
        self, step: Wait, last: Attempt | None, nobody: NoUsableAccount | None, now: float
    ) -> None:
        """Record that it waits: to ask the last account again, or for any account."""
        if self.wait is not None:
            return
        until = step.until if step.ticket is None else step.ticket.give_up_at
        account = last.key if last else nobody.soonest if nobody else None
        reason = nobody.reason if nobody else ""
        refusal = last.outcome if last else None
        self.wait = self._record(Kind.WAIT, account, refusal, reason, now, until=until).number

    def probed(self, account: AccountKey, now: float) -> None:
        """Record that it probes *account*, which is on cooldown: no other account can serve."""
        self._record(Kind.PROBE, account, None, "", now)

    def silent(self, account: AccountKey, waited_s: float, now: float) -> None:
        """Record that *account* is silent while another is idle. It may run, so it stays."""
        reason = f"no answer for {waited_s:.0f} s while another account is idle; it may still run"
        self._record(Kind.SILENCE, account, None, reason, now)

    def wait_ended(self, by: By, now: float) -> None:
        """Record that its wait, if it is held, has ended because of *by*."""
        if self.wait is not None:
            self.pool.decisions.end(self.wait, by, now)
            self.wait = None

    def given_up(
        self,
        step: Deliver | Synthesize,
        last: Attempt | None,
        nobody: NoUsableAccount | None,
        now: float,
        *,
        kept: bool = True,
    ) -> None:
        """Record that its client gets a refusal, unless that is its own fault; see `decided`."""
        refusal = last.outcome if last else None
        if refusal is not None and refusal.cls is OutcomeClass.REQUEST_ERROR:
            return
        account = last.key if last else nobody.soonest if nobody else None
        reason = nobody.reason if nobody else ""
        if not reason and isinstance(step, Synthesize):
            reason = step.reason or step.message
        if not (reason or kept) and refusal is not None and refusal.replayable:
            reason = NOT_KEPT
        self._record(Kind.REFUSAL, account, refusal, reason, now, told_s=step.retry_after_s)

    def refused_inside(
        self, account: AccountKey, refusal: Outcome, now: float, *, closes: bool
    ) -> None:
        """Record a *refusal* inside its WebSocket, which we close because of it, or not."""
        reason = CLOSED if closes else ""
        self._record(Kind.REFUSAL, account, refusal, reason, now, by=By.SOCKET)

    def _record(
        self,
        kind: Kind,
        account: AccountKey | None,
        refusal: Outcome | None,
        reason: str,
        now: float,
        *,
        by: By | None = None,
        to: AccountKey | None = None,
        until: float | None = None,
        told_s: float | None = None,
    ) -> Decision:
        cooldown, disabled, verdict = self._standing(account, now)
        cause = (
            None if refusal is None else Cause.of(refusal, hinted=refusal.cooldown_s is not None)
        )
        effect: Kind | None = None
        lasting: Cooldown | AccountVerdict | None = None
        if disabled:
            effect = Kind.DISABLE
        elif cooldown:
            effect, lasting = Kind.COOLDOWN, cooldown
        elif verdict and refusal is not None:
            effect, lasting = Kind.SUSPECT, verdict
        if cause is None:
            cause = disabled or (cooldown.cause if cooldown else None)
        if until is None and lasting is not None:
            until = lasting.until
        return self.pool.decisions.add(
            Decision(
                kind=kind,
                at=now,
                by=by or (By.ANSWER if refusal is not None else By.SHORTAGE),
                provider=self.facts.provider,
                account=account,
                to=to,
                model=self.facts.model,
                cause=cause,
                reason=reason,
                effect=effect,
                covers=lasting.covered if lasting is not None else None,
                until=until,
                told_s=told_s,
                session=session_hash(self.facts.conversation.session),
            )
        )

    def _standing(
        self, account: AccountKey | None, now: float
    ) -> tuple[Cooldown | None, Cause | None, AccountVerdict | None]:
        """Return what holds for *account* and this request now.

        Its cooldown, why it is disabled, and its open verdict.
        """
        state = None if account is None else self.pool.accounts.find(account)
        if state is None:
            return None, None, None
        model = self.facts.model
        return state.cooldown_of(model, now), state.disabled, state.verdict_of(model)

    def _why_not(self, account: AccountKey, now: float) -> str:
        """Return why *account*, which was not asked, cannot serve; "" if its state says so."""
        cooldown, disabled, _ = self._standing(account, now)
        if cooldown or disabled:
            return ""
        if self.pool.accounts.find(account) is None:
            return "it is no longer in the pool"
        return self.pool.shortage(self.facts, now=now, only=account).reason
