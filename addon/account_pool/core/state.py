"""What is known of one account while the proxy runs, and what follows from it.

What is known by model is kept so that a hundred models cost no more than one (`ByModel`).
Cooldowns, verdicts and disabling are changed by a `Transition` (`members.py`), what requests
count by `pool.py`.

The herd of an account that became limited would throttle the next one as well: where it
goes, concurrency starts at one and grows (docs/storms.md). The same holds for an account
that returns from a cooldown, where one request tries first: both have a `Ramp`. Counted are
requests nobody has answered yet: an answer's head tells whether there is a limit, its
body may stream for minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import compress
from math import inf
from operator import attrgetter, is_not
from typing import Generic, Self, TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from account_pool.core.account import Account, AccountKey
from account_pool.core.cooldown import (
    NEVER,
    PROBED_FROM_S,
    AccountVerdict,
    Cooldown,
    Endings,
    covers,
)
from account_pool.core.credential import Credential
from account_pool.core.headroom import UNKNOWN, HeadroomSnapshot, Key, Window
from account_pool.core.outcome import Cause

Rank = tuple[float | str, ...]
Name = TypeVar("Name")
Value = TypeVar("Value")
Row = TypeVar("Row")
_UNTIL = attrgetter("until")

#: Time in which concurrency grows by one, seconds, also when nobody has answered.
STEP_S = 0.25
#: Longest time an account is treated with care, seconds.
RAMP_S = 30.0
#: How long the first request after a cooldown is alone while it is not answered, seconds.
#: Refusals come at once; a good answer may take as long as the model thinks.
ALONE_S = 1.0
#: Ramps of an account from which on none that is held back keeps those behind it.
MAX_RAMPS = 256
#: Models whose requests have lately had to move, remembered per provider.
MAX_SWITCHES = 128


class ByModel(dict[str | None, Value]):
    """Values by what they cover: a model, a glob of models, or None for all.

    Clients choose the names of models, so there may be a hundred: those that cover one are
    found without a look at the others. Changed by item only (`x[model] = `, `del x[model]`);
    made by `of`, or empty: every account has two, which cost nothing until they are used.
    """

    _globs: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str | None, Value]) -> Self:
        found: Self = cls()
        for name, value in values.items():
            found[name] = value
        return found

    def __setitem__(self, covered: str | None, value: Value) -> None:
        if covered is not None and "*" in covered and covered not in self:
            self._globs += (covered,)
        super().__setitem__(covered, value)

    def __delitem__(self, covered: str | None) -> None:
        super().__delitem__(covered)
        if covered in self._globs:
            self._globs = tuple(glob for glob in self._globs if glob != covered)

    def covering(self, model: str | None) -> list[str | None]:
        """Return what is here that *model* falls under."""
        found: list[str | None] = [None] if None in self else []
        if model is not None:
            # A name with a star is a glob that covers itself.
            if model in self and model not in self._globs:
                found.append(model)
            found += [glob for glob in self._globs if covers(glob, model)]
        return found

    def put_last(self, covered: str | None, value: Value) -> None:
        """Set it, as the newest."""
        if covered in self:
            del self[covered]
        self[covered] = value

    def drop_first(self, over: Callable[[Value], bool]) -> None:
        """Drop the oldest, up to the first that *over* does not say."""
        while self:
            first = next(iter(self))
            if not over(self[first]):
                return
            del self[first]


class Cooldowns(ByModel["Cooldown"]):
    """The cooldowns of one account, those that are over too."""

    _probe_at: float | None = None

    def __setitem__(self, covered: str | None, cooldown: Cooldown) -> None:
        gone = self.get(covered)
        super().__setitem__(covered, cooldown)
        self._forget_probe(gone)
        # Others are not probed.
        if self._probe_at is not None and cooldown.until - cooldown.since > PROBED_FROM_S:
            self._probe_at = min(self._probe_at, cooldown.probe_at())

    def __delitem__(self, covered: str | None) -> None:
        self._forget_probe(self[covered])
        super().__delitem__(covered)

    def _forget_probe(self, gone: Cooldown | None) -> None:
        """Look for the first again if it may have been that of *gone*; most have none."""
        if gone is not None and gone.probe_at() < inf:
            self._probe_at = None

    def next_probe_at(self, now: float) -> float:
        """Return when the first is to be probed while others serve; infinity: none is."""
        # Until that moment the one it is of goes on, and none comes before it.
        if self._probe_at is None or self._probe_at <= now:
            self._probe_at = min(
                [c.probe_at() for c in self.values() if now < c.until], default=inf
            )
        return self._probe_at

    def cooling(self, model: str | None, now: float) -> list[Cooldown]:
        """Return those that a request for *model* falls under now."""
        found = [self[covered] for covered in self.covering(model)]
        return [cooldown for cooldown in found if now < cooldown.until]


def replaced(values: Mapping[Name, Value], before: Mapping[Name, Value]) -> list[Name]:
    """Return the names whose value is another object than *before*, or was not there.

    An account may have a hundred, of which one has changed: it takes no step of Python for each.
    """
    return list(compress(values, map(is_not, values.values(), map(before.get, values))))


class Rows(Generic[Name, Value, Row]):
    """What was made of values: made anew only of one that is another object.

    Whoever compares what was made finds the same object, and need not look into it.
    """

    __slots__ = ("_rows", "_values")

    def __init__(self) -> None:
        self._values: dict[Name, Value] = {}
        self._rows: dict[Name, Row] = {}

    def of(self, values: Mapping[Name, Value], make: Callable[[Value], Row]) -> Mapping[Name, Row]:
        """Return what *make* makes of *values*; all others are forgotten."""
        new = replaced(values, self._values)
        if new or len(self._values) != len(values):
            rows = self._rows | {name: make(values[name]) for name in new}
            if len(rows) > len(values):
                for name in self._values.keys() - values.keys():
                    del rows[name]
            self._values, self._rows = dict(values), rows
        return self._rows


class Ramp(Struct, eq=False):
    """The growing number of requests that may wait for their answers at once.

    Attributes:
        grows_from: when time began, or begins, to add to it, monotonic seconds.
        answered: good answers so far, each of which added one.
        unanswered: requests sent under it whose answers have not begun.
        slower: how many times as long it takes to grow by one.
        opens_at: nobody is sent before, monotonic seconds; infinity: it is not known yet.
    """

    grows_from: float
    answered: int = 0
    unanswered: int = 0
    slower: float = 1.0
    opens_at: float = -inf

    @classmethod
    def after_switch(cls, now: float, slower: float = 1.0) -> Ramp:
        """Return that of an account which takes over from one that became limited."""
        return cls(now, slower=slower)

    @classmethod
    def half_open(cls, now: float) -> Ramp:
        """Return that of an account which returns: one request tries, then it grows."""
        return cls(now + ALONE_S)

    @classmethod
    def held(cls) -> Ramp:
        """Return that of an account which cools: nobody tries without a permit (`permits.py`)."""
        return cls(inf, opens_at=inf)

    @property
    def is_held(self) -> bool:
        return self.grows_from == inf

    def begin(self, now: float) -> None:
        """Somebody tries, if this was held back so far."""
        if self.is_held:
            self.grows_from, self.opens_at = now + ALONE_S, -inf

    def allowed(self, now: float) -> int:
        """Return how many requests may be unanswered at *now*."""
        # Rounded up a little: at the moment `admits_at` names, the step is made.
        steps = (
            int((now - self.grows_from) / (STEP_S * self.slower) + 1e-4)
            if now > self.grows_from
            else 0
        )
        return 1 + self.answered + steps

    def admits(self, now: float) -> bool:
        """Say whether one more request may be sent."""
        return self.opens_at <= now and (
            self.unanswered <= self.answered
            or self.unanswered < self.allowed(now)
            or self.over(now)
        )

    def admits_at(self) -> float:
        """Return when time alone lets one more request go; minus infinity if it may now."""
        missing = self.unanswered - self.answered
        if missing <= 0:
            return self.opens_at
        return max(self.grows_from + min(missing * STEP_S * self.slower, RAMP_S), self.opens_at)

    def over(self, now: float) -> bool:
        return now >= self.grows_from + RAMP_S

    def sent(self) -> None:
        """One more request waits for its answer."""
        self.unanswered += 1

    def done(self, *, good: bool, now: float) -> None:
        """One of them has its answer, or ended without; *good*: it was no refusal."""
        self.unanswered -= 1
        if good:
            self.answered += 1
            # Whoever tried first has come through: the others may follow.
            self.grows_from = min(self.grows_from, now)


class Ramps(ByModel[Ramp]):
    """The ramps of one account, by what they cover, the newest last."""

    def hold(self, covered: str | None) -> None:
        """A cooldown has begun: nobody tries without a permit when it is over."""
        self.put_last(covered, Ramp.held())

    def drop_over(self, now: float) -> None:
        """Forget those that are over; of more than MAX_RAMPS some a call later."""
        # Begun one after the other, they end so, but for a second: another is over already.
        self.drop_first(lambda ramp: ramp.over(now))
        if len(self) > MAX_RAMPS:
            first = next(iter(self))
            if self[first].is_held:  # it will end after those that are behind it
                self.put_last(first, self[first])


class Switch(Struct, frozen=True):
    """Requests had to go elsewhere.

    Attributes:
        at: since when, monotonic seconds.
        slower: as that of the ramps of those who take over.
    """

    at: float
    slower: float


class Switches(ByModel[Switch]):
    """What cooldowns have covered lately: its requests go elsewhere."""

    def note(self, covered: str | None, now: float, slower: float) -> None:
        """Requests for *covered* (None: all) have to go to another account from now on.

        *slower*: as that of the ramps of those who take over.
        """
        self.drop_first(lambda switch: switch.at + RAMP_S <= now)
        self.put_last(covered, Switch(now, slower))
        if len(self) > MAX_SWITCHES:
            del self[next(iter(self))]


class SavedRows(Struct, eq=False):
    """What was saved last of an account, for a store whose clock was *ahead*, seconds."""

    ahead: float
    cooldowns: Rows[str | None, Cooldown, Cooldown] = field(default_factory=Rows)
    windows: Rows[Key, Window, Window] = field(default_factory=Rows)


class AccountState(Struct, kw_only=True, eq=False):
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
        endings: what was ended other than by time or a response, monotonic seconds.
        refused: fingerprint of the credentials that a 401 was about last; "" if none was.
        epoch: one more each time its owner writes another credential, and when it is removed.
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
        saved: its cooldowns and windows as they were saved last; None if there were none.
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
    cooldowns: Cooldowns = field(default_factory=Cooldowns)
    ramps: Ramps = field(default_factory=Ramps)
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
    endings: Endings = NEVER
    refused: str = ""
    epoch: int = 0
    headroom: HeadroomSnapshot = UNKNOWN
    forgotten_at: float = -inf
    asked_at: float = -inf
    reserved: tuple[Cooldown, ...] = ()
    served: int = 0
    source: str = ""
    in_flight_remote: int = 0
    share: float = inf
    rank: Rank | None = None
    saved: SavedRows | None = None
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
        return max([c.until for c in self._cooling(model, now)], default=-inf)

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
        if self._reserved(model, now):
            return False
        return bool(causes) and all(cause.yields for cause in causes)

    def is_benched(self, model: str | None, now: float) -> bool:
        """Say whether refusals that are its own fault are all it cools for."""
        causes = self._causes(model, now)
        return bool(causes) and all(cause.benches for cause in causes)

    def _causes(self, model: str | None, now: float) -> list[Cause]:
        return [c.cause for c in self._cooling(model, now)]

    def cooldown_of(self, model: str | None, now: float) -> Cooldown | None:
        """Return the active cooldown that covers (account, *model*) longest."""
        return max(self._cooling(model, now), key=_UNTIL, default=None)

    def is_due(self, model: str | None, now: float) -> bool:
        """Say whether a request for *model* may probe it now, while others serve."""
        cooling = self._cooling(model, now)
        return (
            bool(cooling)
            and self.enabled
            and not (self.probing or self.full or self.is_suspect(model))
            and self.next_start_at <= now
            and all(c.in_doubt for c in cooling)
            and not self._reserved(model, now)
            and max(cooling, key=_UNTIL).probe_at() <= now
        )

    def note_probe(self, model: str | None, now: float) -> None:
        """A request for *model* tries whether it really cools so long."""
        for cooldown in self.cooldowns.cooling(model, now):
            self.cooldowns[cooldown.model] = replace(cooldown, probed_at=now)

    def count_in(self, model: str | None, switched: Switches, now: float) -> tuple[Ramp, ...]:
        """Count one more request for *model*; return the ramps it falls under.

        They begin where they must: the account returns, or takes over from one that *switched*.
        """
        ramps = self.ramps
        ramps.drop_over(now)
        # A cooldown that is over stays until a good answer: nothing is known of it yet.
        for covered in self.cooldowns.covering(model):
            if covered not in ramps or ramps[covered].over(now):
                ramps.put_last(covered, Ramp.half_open(now))
        for covered in switched.covering(model):
            known = covered in ramps and not ramps[covered].over(now)
            switch = switched[covered]
            if not known and now < switch.at + RAMP_S:
                ramps.put_last(covered, Ramp.after_switch(now, switch.slower))
        found = [ramps[covered] for covered in ramps.covering(model)]
        for ramp in found:
            ramp.begin(now)
        counted = [ramp for ramp in found if not ramp.over(now)]
        for ramp in counted:
            ramp.sent()
        return tuple(counted)

    def ramps_admit(self, model: str | None, now: float) -> bool:
        """Say whether one more request for *model* may wait for its answer here."""
        return all(self.ramps[covered].admits(now) for covered in self.ramps.covering(model))

    def ramps_admit_at(self, model: str | None) -> float:
        """Return when time alone lets one more request for *model* go."""
        return max((self.ramps[c].admits_at() for c in self.ramps.covering(model)), default=-inf)

    def may_be_probed(self, model: str | None, now: float, soon_s: float) -> bool:
        """Say whether a request for *model* may try if this really cools so long.

        *soon_s*: cooldowns that end within so many seconds need no trying.
        """
        if self._reserved(model, now):
            return False
        cooling = self.cooldowns.cooling(model, now)
        return (
            max([c.until for c in cooling], default=now) > now + soon_s
            and not self.full
            and self.next_start_at <= now
            and all(c.may_be_probed(now) for c in cooling)
        )

    def _cooling(self, model: str | None, now: float) -> list[Cooldown]:
        """Return what keeps it from serving *model* now."""
        cooling = self.cooldowns.cooling(model, now) if self.cooldowns else []
        return cooling + self._reserved(model, now) if self.reserved else cooling

    def _reserved(self, model: str | None, now: float) -> list[Cooldown]:
        """Return what its reserve keeps back of *model* now."""
        return [c for c in self.reserved if now < c.until and c.covers(model)]
