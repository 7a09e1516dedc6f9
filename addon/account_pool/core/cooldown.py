"""That an account is left alone, until when, and when it is asked all the same.

A cooldown covers a whole account (`model is None`) or one model, family or feature of it. How
long it lasts is decided in `health.py`. Nothing here knows the clock, chance or a provider.

A refusal about a credential or an account may be the request's fault. It opens a *verdict*.
Another account that serves the same request is the witness: then the account is benched or
disabled. Until then, for ten minutes or until it serves, it is asked after all others
(docs/why.md); `health.py` applies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from math import inf, log2
from operator import attrgetter
from typing import NamedTuple, cast

from msgspec import Struct

from account_pool.core.outcome import BY_HAND, Cause, Outcome, OutcomeClass, Scope

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

    @property
    def confirmed(self) -> bool:
        """Say whether a header of the account's own window named the deadline."""
        return self.cause.hinted and any("reset" in name.lower() for name in self.cause.evidence)

    def probe_at(self) -> float:
        """Return when it is probed next although others serve; infinity: it is waited for."""
        length_s, elapsed_s = self.until - self.since, self.probed_at - self.since
        if length_s <= PROBED_FROM_S or not self.in_doubt:
            return inf
        if self.confirmed:
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
