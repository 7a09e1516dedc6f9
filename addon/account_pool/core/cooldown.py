"""When a refused account may be asked again, and why not before.

Decides deadlines from values; the pool keeps the results. A cooldown covers a whole
account (`model is None`) or one model, family or feature of it. Nothing here knows
the clock, chance or a provider.

A refusal about a credential or an account may be the request's fault. It opens a *verdict*.
Another account that serves the same request is the witness: then the account is benched or
disabled. Until then, for ten minutes or until it serves, it is asked after all others
(docs/why.md); `health.py` applies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from math import inf, isfinite, log2
from operator import attrgetter
from typing import NamedTuple, cast

from msgspec import Struct, field
from msgspec.structs import replace

from account_pool.core.outcome import BENCHING, Outcome, OutcomeClass, Scope

#: Longest wait that is believed. The longest real one known is a yearly plan.
MAX_HINT_S = 366 * 86400.0
#: Longest cooldown made of `pool_cooldown` doubled per streak.
MAX_DEFAULT_S = 1800.0
#: First pause after a 429 that says nothing about whose limit it is; doubles up to
#: `pool_cooldown`. A named reset of 0 s is taken for it: one request would otherwise spend
#: all its attempts on one account at once.
BARE_BACKOFF_S = 1.0
#: First and longest bench of an account for a refusal that is its own fault; doubles.
BENCH_S = 300.0
MAX_BENCH_S = 86400.0
#: Jitter: at most this share of the wait, and at most so many seconds.
JITTER_SHARE = 0.02
MAX_JITTER_S = 5.0
#: How often an account that cools is asked whether it really does, at most, seconds:
#: a wrong or outdated deadline heals itself.
PROBE_EVERY_S = 60.0
#: Cooldowns longer than this are probed while others serve, seconds.
PROBED_FROM_S = 3600.0
#: When the first probe of a deadline that was made up, or read from a sentence, comes after the
#: cooldown began; each next one comes after twice the time.
GUESSED_PROBE_S = 3600.0
#: The same for one that the account's own window named, and how often it is probed then: vendors
#: do reset early. The last probe comes within the last twentieth of the time.
CONFIRMED_PROBE_S, CONFIRMED_EVERY_S, LAST_SHARE = 4 * 3600.0, 86400.0, 0.05
#: How long a verdict stays open, seconds.
VERDICT_S = 600.0
#: Verdicts open at a time per account. Clients choose the names of models.
MAX_VERDICTS = 16
#: Stands for the models of a WebSocket, which its handshake does not name.
SOCKETS = "(websocket)"
#: The signal of a cooldown its owner set: nobody but him knows better.
BY_HAND = "by hand"


class Cause(Struct, frozen=True, kw_only=True):
    """Why an account cools or is disabled. Carries no secret and no user text.

    Attributes:
        signal: the evidence, as `Outcome.signal`.
        cls, scope: as classified.
        evidence: as `Outcome.evidence`.
        hinted: whether the deadline was named by the provider.
        unknown, money: as `Outcome.unknown` and `Outcome.money`.
    """

    signal: str
    cls: OutcomeClass
    scope: Scope
    evidence: Mapping[str, str] = field(default_factory=dict)
    hinted: bool = False
    unknown: bool = False
    money: bool = False

    @classmethod
    def of(cls, outcome: Outcome, *, hinted: bool) -> Cause:
        return cls(
            signal=outcome.signal,
            cls=outcome.cls,
            scope=outcome.scope,
            evidence=outcome.evidence,
            hinted=hinted,
            unknown=outcome.unknown,
            money=outcome.money,
        )

    @property
    def benches(self) -> bool:
        """Say whether an account is on the bench for it: not limited, but refused."""
        if self.signal == BY_HAND:
            return False
        return self.cls in BENCHING or (self.cls is OutcomeClass.QUOTA and self.unknown)

    @property
    def confirmed(self) -> bool:
        """Say whether a header of the account's own window named the deadline."""
        return self.hinted and any("reset" in name.lower() for name in self.evidence)

    @property
    def bare(self) -> bool:
        """Say whether it is a 429 that says nothing about whose limit it is."""
        return self.scope is Scope.NONE and self.signal != BY_HAND

    @property
    def yields(self) -> bool:
        """Say whether the account is asked all the same while no other can serve."""
        return self.benches or self.bare


class Endings(NamedTuple):
    """When each was last ended other than by time or a response, seconds; minus infinity: never.

    What began before is over, also where another proxy tells of it later. With its cooldowns
    it is forgotten what was left to an account.
    """

    disabling: float = -inf
    benches: float = -inf
    cooldowns: float = -inf

    def latest(self, other: Endings) -> Endings:
        """Return the later of each."""
        return self if self is other else Endings(*map(max, self, other))

    def moved(self, seconds: float) -> Endings:
        """Return them on a clock that is *seconds* ahead."""
        return self if self is NEVER else Endings(*(at + seconds for at in self))

    def since(self, before: Endings) -> Endings:
        """Return those that are not yet among *before*; never, for the others."""
        if self == before:
            return NEVER
        return Endings(*(at if at > was else -inf for at, was in zip(self, before, strict=True)))

    def ends(self, cooldown: Cooldown) -> bool:
        at = max(self.cooldowns, self.benches) if cooldown.cause.benches else self.cooldowns
        return cooldown.since < at


NEVER = Endings()


class Cooldown(Struct, frozen=True, kw_only=True):
    """A time in which an account, or one model of it, is not selected.

    Attributes:
        model: the model, or a glob such as `claude-opus-*`; None for the account.
        since, until: monotonic seconds; cooling exactly while `now < until`.
        streak: how many cooldowns followed each other without a success between.
        cause: the evidence.
        probed_at: when a request last tried whether it really lasts; never: minus infinity.
    """

    model: str | None
    since: float
    until: float
    streak: int
    cause: Cause
    probed_at: float = -inf

    #: *model*, as verdicts call it; read without a Python call
    covered = cast("str | None", property(attrgetter("model")))

    def active(self, now: float) -> bool:
        return now < self.until

    def overtook(self, started_at: float) -> bool:
        """Say whether an attempt started at *started_at* was under way when this began.

        Within the same instant it was, unless this held nobody back for any time.
        """
        return started_at < self.since or started_at == self.since < self.until

    def covers(self, model: str | None) -> bool:
        """Say whether a request for *model* falls under this cooldown."""
        return covers(self.model, model)

    def may_be_probed(self, now: float) -> bool:
        """Say whether it is time to see if the account really cools until `until`."""
        return self.in_doubt and now >= max(self.since, self.probed_at) + PROBE_EVERY_S

    @property
    def in_doubt(self) -> bool:
        """Say whether it may be wrong: not a sanction, nor what the owner set.

        A model that an account does not have is none: plans change, and models are opened.
        """
        cause = self.cause
        forbidden = cause.cls is OutcomeClass.FORBIDDEN_ACCOUNT and not cause.unknown
        return not (forbidden and cause.scope is not Scope.MODEL) and cause.signal != BY_HAND

    def probe_at(self) -> float:
        """Return when it is probed next although others serve; infinity: it is waited for."""
        length_s, elapsed_s = self.until - self.since, self.probed_at - self.since
        if length_s <= PROBED_FROM_S or not self.in_doubt:
            return inf
        if self.cause.confirmed:
            days = 0
            if elapsed_s >= CONFIRMED_PROBE_S:
                days = int((elapsed_s - CONFIRMED_PROBE_S) // CONFIRMED_EVERY_S) + 1
            at = self.since + CONFIRMED_PROBE_S + days * CONFIRMED_EVERY_S
            last = self.until - LAST_SHARE * length_s
            at = min(at, last) if self.probed_at < last else at
        else:
            doubled = 0
            if elapsed_s >= GUESSED_PROBE_S:
                doubled = int(log2(elapsed_s / GUESSED_PROBE_S)) + 1
            at = self.since + GUESSED_PROBE_S * 2.0**doubled
        return at if at < self.until else inf


def covers(covered: str | None, model: str | None) -> bool:
    """Say whether *model* falls under *covered*: a model, a glob, or None for all."""
    if covered is None:
        return True
    if model is None:
        return False
    return model == covered or ("*" in covered and fnmatchcase(model, covered))


def usable_hint(seconds: float | None) -> float | None:
    """Return *seconds* if it can be believed as a wait, else None (absurd or hostile)."""
    if seconds is None or not isfinite(seconds) or not 0 <= seconds <= MAX_HINT_S:
        return None
    return seconds


def default_wait(default_s: float, streak: int) -> float:
    """Return the wait when no reset was named: *default_s* doubled per streak, capped.

    A *default_s* above the cap is taken as the owner wrote it.
    """
    return max(default_s, min(default_s * 2.0 ** min(streak - 1, 32), MAX_DEFAULT_S))


def bare_wait(default_s: float, streak: int) -> float:
    """Return the pause after a 429 without evidence: 1 s doubled per streak, capped."""
    return min(BARE_BACKOFF_S * 2.0 ** min(streak - 1, 32), max(default_s, BARE_BACKOFF_S))


def bench_wait(streak: int) -> float:
    """Return how long a refused account is left alone: 5 min doubled per streak, capped."""
    return min(BENCH_S * 2.0 ** min(streak - 1, 32), MAX_BENCH_S)


def next_cooldown(
    previous: Cooldown | None,
    outcome: Outcome,
    *,
    model: str | None,
    now: float,
    started_at: float,
    default_s: float,
    chance: float,
    probe: bool = False,
) -> Cooldown:
    """Return the cooldown that follows from *outcome*.

    Args:
        previous: the last one of the same account and model, active or over, unless a
            success has come since.
        model: what it covers; None for the whole account.
        started_at: when the refused attempt was started. Attempts that were already
            running when the previous cooldown began say nothing new: they count once.
            Refusals without evidence have a streak of their own, and so have benches.
        default_s: `pool_cooldown`.
        chance: a random number from 0 to 1, for the jitter.
        probe: the refused attempt was our own question whether *previous* really lasts:
            only a reset that is named changes anything.

    A later, shorter hint never shortens a deadline.
    """
    hint = usable_hint(outcome.cooldown_s)
    new = Cause.of(outcome, hinted=hint is not None)
    if (
        previous is not None
        and previous.cause.benches
        and not new.yields
        and not previous.overtook(started_at)
    ):
        previous = None  # who is told of a limit is let in
    if probe and hint is None and previous is not None and previous.active(now):
        return previous
    concurrent = previous is not None and (probe or previous.overtook(started_at))
    streak = 1
    if previous is not None and _kind(previous.cause) == _kind(new):
        streak = previous.streak + (0 if concurrent else 1)
    wait = _wait(new, hint, streak, default_s)
    until = now + wait + min(wait * JITTER_SHARE, MAX_JITTER_S) * chance
    if previous is None or not previous.active(now):
        return Cooldown(model=model, since=now, until=until, streak=streak, cause=new)
    since = previous.since if concurrent else now
    if previous.until >= until:
        # Still cooling, and longer than that: the deadline that stands keeps its cause.
        return replace(previous, since=since, streak=max(streak, previous.streak))
    probed_at = previous.probed_at if probe else -inf
    return Cooldown(
        model=model, since=since, until=until, streak=streak, cause=new, probed_at=probed_at
    )


def _kind(cause: Cause) -> tuple[bool, bool]:
    return cause.benches, cause.bare


def _wait(cause: Cause, hint: float | None, streak: int, default_s: float) -> float:
    """Return how long an account is left alone for *cause*, seconds."""
    if hint:
        return hint if streak == 1 else max(hint, BARE_BACKOFF_S)
    if cause.benches:
        return bench_wait(streak)
    if hint == 0 or cause.bare:
        return bare_wait(default_s, streak)
    return default_wait(default_s, streak)


# -- whose fault a refusal is


class AccountVerdict(Struct):
    """An open question whether a refusal was the account's own fault.

    Attributes:
        covered: the model it is about; None for the whole account.
        since, until: monotonic seconds; open exactly while `now < until`.
        cause: the refusal.
        void: the refusal turned out to be the request's fault.
    """

    covered: str | None
    since: float
    until: float
    cause: Cause
    void: bool = False

    def active(self, now: float) -> bool:
        return now < self.until


def opened(
    verdicts: Mapping[str | None, AccountVerdict], outcome: Outcome, model: str | None, now: float
) -> dict[str | None, AccountVerdict]:
    """Return *verdicts* with the one that *outcome* opens, or opens anew; the oldest goes."""
    about = outcome.about(model)
    kept = {c: v for c, v in verdicts.items() if v.active(now) and c != about}
    if len(kept) >= MAX_VERDICTS:
        del kept[min(kept, key=lambda covers: kept[covers].since)]
    kept[about] = AccountVerdict(about, now, now + VERDICT_S, Cause.of(outcome, hinted=False))
    return kept
