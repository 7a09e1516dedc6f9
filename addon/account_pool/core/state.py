"""What is known of one account while the proxy runs, and what follows from it.

Only values and questions: what responses, people and time change is in `transitions.py` and
`accounts.py`, what requests count in `pool.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from operator import attrgetter

from account_pool.core.account import Account, AccountKey
from account_pool.core.cooldown import Cause, Cooldown, covering, covers
from account_pool.core.credential import Credential
from account_pool.core.headroom import UNKNOWN, HeadroomSnapshot
from account_pool.core.ramp import Ramp
from account_pool.core.verdicts import AccountVerdict

Rank = tuple[float | str, ...]
_UNTIL = attrgetter("until")


@dataclass(slots=True, kw_only=True, eq=False)
class AccountState:
    """What the pool knows about an account while it runs.

    Attributes:
        account, key: what the owner wrote, and its name.
        position: order in which accounts were added; ties break by it.
        credentials: usable ones by kind; empty while none is known.
        problem: why there is no credential, for people; None if there is no problem.
        pending: a credential is still being fetched, so waiting may help.
        passing: it is tried for again: what it lacks one for is not for its owner to cure.
        doubtful: its credential may be over: it is asked after all others until it serves.
        in_flight: open leases.
        last_used: sequence number of the last lease, 0 if never used.
        passed_over: sequence number of a `next` that passed it over, 0 if none: it ranks
            behind its tier until it is given a request again.
        next_start_at: no request before this (min_interval), monotonic seconds.
        cooldowns: by model (None: whole account); kept after they end, for the streak.
        ramps: by what they cover, as cooldowns: how much it takes at once since it took over
            or came back; those that are over are dropped later.
        verdicts: refusals that may be its own fault, by what they are about (None: the
            whole account); those that are over are dropped later.
        served_at: when an answer was last good, monotonic seconds.
        refreshed_at: when its credential was last renewed because it was refused.
        probing: a request is out that probes it while others serve.
        probe_at: when it is to be probed next, monotonic seconds.
        departures: clients that left before the first byte of an answer.
        broken: requests whose connection broke before it.
        running: when each request under way began, by the id of its lease.
        disabled: why an operator must act; None while in use.
        disabled_at: since when, monotonic seconds.
        refused: fingerprint of the credentials that a 401 was about last; "" if none was.
        renewed_at: when its owner last wrote another credential, monotonic seconds.
        headroom: what is left of its allowances, as far as responses have reported it.
        forgotten_at: when a long window was forgotten last, because it was reset or by hand,
            monotonic seconds.
        asked_at: when it was given a request last, monotonic seconds.
        reserved: windows of which no more than its owner's reserve is left, as cooldowns.
        served: requests answered.
        source: fingerprint of how its credential was written down, and behind a slash whose
            it is, where that is known (`credential.identity`); "" if nobody said.
        in_flight_remote: requests in flight on other proxies, as far as is known.
        share: how many requests this proxy may have in flight, of `max_concurrent`, which it
            divides with others (`shares.py`); infinity where it does not.
        rank: the key it stands under in the selection policy; None while not ready.
        rows: its cooldowns as they were saved last, by model: the cooldown, by how much the
            clock of the store was ahead, and the row.
        wake_at: when to place it again, as time alone changes where it belongs.
        removed: it is no longer in the pool; a lease may still refer to it.
    """

    account: Account
    key: AccountKey
    position: int
    credentials: Mapping[str, Credential] = field(default_factory=dict)
    problem: str | None = None
    pending: bool = False
    passing: bool = False
    doubtful: bool = False
    in_flight: int = 0
    last_used: int = 0
    passed_over: int = 0
    next_start_at: float = -inf
    cooldowns: dict[str | None, Cooldown] = field(default_factory=dict)
    ramps: dict[str | None, Ramp] = field(default_factory=dict)
    departures: int = 0
    broken: int = 0
    running: dict[int, float] = field(default_factory=dict)
    probing: bool = False
    probe_at: float = inf
    verdicts: dict[str | None, AccountVerdict] = field(default_factory=dict)
    served_at: float = -inf
    refreshed_at: float = -inf
    disabled: Cause | None = None
    disabled_at: float = -inf
    refused: str = ""
    renewed_at: float = -inf
    headroom: HeadroomSnapshot = UNKNOWN
    forgotten_at: float = -inf
    asked_at: float = -inf
    reserved: tuple[Cooldown, ...] = ()
    served: int = 0
    source: str = ""
    in_flight_remote: int = 0
    share: float = inf
    rank: Rank | None = None
    rows: dict[str | None, tuple[Cooldown, float, Cooldown]] = field(default_factory=dict)
    wake_at: float = inf
    removed: bool = False

    @property
    def enabled(self) -> bool:
        return self.account.enabled and self.disabled is None

    @property
    def full(self) -> bool:
        limit = self.account.max_concurrent
        return limit is not None and self.in_flight >= min(limit, self.share)

    def holds(self) -> Iterable[Cooldown]:
        """Return its cooldowns, those that are over too, and what its reserve keeps back."""
        held = self.cooldowns.values()
        return (*held, *self.reserved) if self.reserved else held

    def is_ready(self, model: str | None, now: float) -> bool:
        """Say whether it may be given a request for *model* now, whose kind aside."""
        return (
            self.enabled
            and not self.full
            and self.next_start_at <= now
            and (not (self.cooldowns or self.reserved) or self.cooling_until(model, now) <= now)
        )

    def cooling_until(self, model: str | None, now: float) -> float:
        """Return until when (account, *model*) cools; a time not after *now* if it does not."""
        return max([c.until for c in _covering(self.holds(), model, now)], default=-inf)

    def cools_for(self, kind: str, model: str | None, now: float) -> float:
        """Return until when it cools for *model*; minus infinity if anything else may end that.

        It may be full beside, or lack a credential.
        """
        if self.full or kind not in self.credentials:
            return -inf
        return self.cooling_until(model, now)

    def is_used_up(self, model: str | None, now: float) -> bool:
        """Say whether nothing is left of a long window that a request for *model* falls under."""
        return bool(self.headroom.spent) and any(
            window.long and window.share <= 0.0 and covers(window.model, model)
            for window in self.headroom.at(now).windows.values()
        )

    def is_suspect(self, model: str | None) -> bool:
        """Say whether requests for *model* ask all others first.

        A verdict is open, or its credential is doubtful and has not served yet.
        """
        if self.doubtful or not self.verdicts:
            return self.doubtful
        return any(covers(covered, model) for covered in self.verdicts)

    def verdict_of(self, model: str | None) -> AccountVerdict | None:
        """Return the open verdict that makes it a suspect for *model*."""
        return next((v for c, v in self.verdicts.items() if covers(c, model)), None)

    def yields(self, model: str | None, now: float) -> bool:
        """Say whether it cools for *model* only as long as another account can serve."""
        causes = self._causes(model, now)
        if _covering(self.reserved, model, now):
            return False
        return bool(causes) and all(cause.yields for cause in causes)

    def is_benched(self, model: str | None, now: float) -> bool:
        """Say whether refusals that are its own fault are all it cools for."""
        causes = self._causes(model, now)
        return bool(causes) and all(cause.benches for cause in causes)

    def _causes(self, model: str | None, now: float) -> list[Cause]:
        return [c.cause for c in _covering(self.holds(), model, now)]

    def cooldown_of(self, model: str | None, now: float) -> Cooldown | None:
        """Return the active cooldown that covers (account, *model*) longest."""
        return max(_covering(self.holds(), model, now), key=_UNTIL, default=None)

    def next_probe_at(self, now: float) -> float:
        """Return when it is to be probed next while others serve; infinity: it is not."""
        return min([c.probe_at() for c in self.cooldowns.values() if now < c.until], default=inf)

    def is_due(self, model: str | None, now: float) -> bool:
        """Say whether a request for *model* may probe it now, while others serve."""
        cooling = _covering(self.holds(), model, now)
        return (
            bool(cooling)
            and self.enabled
            and not (self.probing or self.full or self.is_suspect(model))
            and self.next_start_at <= now
            and all(c.in_doubt for c in cooling)
            and not _covering(self.reserved, model, now)
            and max(cooling, key=_UNTIL).probe_at() <= now
        )

    def note_probe(self, model: str | None, now: float) -> None:
        """A request for *model* tries whether it really cools so long."""
        self.cooldowns = {
            covered: replace(c, probed_at=now) if c.active(now) and c.covers(model) else c
            for covered, c in self.cooldowns.items()
        }

    def ramps_admit(self, model: str | None, now: float) -> bool:
        """Say whether one more request for *model* may wait for its answer here."""
        return all(self.ramps[covered].admits(now) for covered in covering(self.ramps, model))

    def ramps_admit_at(self, model: str | None) -> float:
        """Return when time alone lets one more request for *model* go."""
        return max((self.ramps[c].admits_at() for c in covering(self.ramps, model)), default=-inf)

    def may_be_probed(self, model: str | None, now: float, soon_s: float) -> bool:
        """Say whether a request for *model* may try if this really cools so long.

        *soon_s*: cooldowns that end within so many seconds need no trying.
        """
        if _covering(self.reserved, model, now):
            return False
        cooling = _covering(self.cooldowns.values(), model, now)
        return (
            max([c.until for c in cooling], default=now) > now + soon_s
            and not self.full
            and self.next_start_at <= now
            and all(c.may_be_probed(now) for c in cooling)
        )


def _covering(cooldowns: Iterable[Cooldown], model: str | None, now: float) -> list[Cooldown]:
    """Return those of *cooldowns* that a request for *model* falls under now."""
    return [
        c
        for c in cooldowns
        if now < c.until
        and (
            c.model is None
            or c.model == model
            or (model is not None and "*" in c.model and covers(c.model, model))
        )
    ]
