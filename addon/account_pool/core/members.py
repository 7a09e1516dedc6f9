"""The accounts of one provider, each where it belongs now.

Ready accounts stand in the selection policy, those whose place will change with time
have an alarm, the rest stand nowhere. Knows also whom requests have lately had to leave,
so that the next account is given them one by one (`ramp`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf

from sortedcontainers import SortedDict

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import covering
from account_pool.core.headroom import Window, reserved
from account_pool.core.ramp import RAMP_S, Ramp
from account_pool.core.recent_failures import RecentFailures
from account_pool.core.selection import SelectionPolicy
from account_pool.core.shortage import Shortage
from account_pool.core.state import AccountState

#: Models whose requests have lately had to move, remembered per provider.
MAX_SWITCHES = 128
#: Accounts that are looked at for one request that may probe: some are limited for other models.
MAX_DUE = 8


class Members:
    """The accounts of one provider: by label, and in the order of the policy."""

    def __init__(
        self, policy: SelectionPolicy, on_reset: Callable[[AccountKey, Window], None]
    ) -> None:
        self.by_label: dict[str, AccountState] = {}
        self.policy = policy
        #: called with a long window that was reset, as it was told last
        self.on_reset = on_reset
        #: those that are to be probed while others serve, by when
        self.probes: SortedDict[tuple[float, int], AccountState] = SortedDict()
        self.alarms: SortedDict[tuple[float, int], AccountState] = SortedDict()
        #: what a cooldown has covered lately, and when it began: its requests go elsewhere
        self.switched: dict[str | None, float] = {}
        #: why nobody could serve, by model, kind and who is not asked; until anything changes
        self.shortages: dict[tuple[str | None, str, frozenset[AccountKey]], Shortage] = {}
        #: a request is out on an account that cools, to see whether it really does
        self.probing = False
        self.failures = RecentFailures()

    def place(self, state: AccountState, now: float) -> None:
        """Put *state* where it belongs now, and set the alarm for when that changes."""
        if self.shortages:
            self.shortages.clear()
        if state.headroom.changes_at <= now:
            self.reset(state, now)
        if state.verdicts:
            state.verdicts = {c: v for c, v in state.verdicts.items() if v.active(now)}
        if state.cooldowns or state.probe_at < inf:
            self._set_probe(state, state.next_probe_at(now) if state.enabled else inf)
        until, account = inf, state.account
        # As `enabled` and `full` have it; every request comes here twice.
        if (
            account.enabled
            and state.disabled is None
            and state.credentials
            and not (account.max_concurrent is not None and state.full)
        ):
            until = state.next_start_at
            if state.cooldowns or state.reserved:
                until = max(until, state.cooling_until(None, now))
        if until <= now:
            self.policy.add(state)
            at = self.policy.changes_at(state)
            if state.verdicts:
                at = min(at, *(v.until for v in state.verdicts.values()))
            if at != state.wake_at:
                self._set_alarm(state, at)
        else:
            self.policy.discard(state)
            self._set_alarm(state, until)

    def reset(self, state: AccountState, now: float) -> None:
        """Forget what is no longer true of the windows of *state*, and say which were reset."""
        for window in state.headroom.windows.values():
            if window.reset_at <= now and window.long:
                state.forgotten_at = max(state.forgotten_at, window.reset_at)
                self.on_reset(state.key, window)
        state.headroom = state.headroom.at(now)
        kept = state.account.reserve
        state.reserved = reserved(kept, state.headroom, now) if kept else ()

    def note_switch(self, covered: str | None, now: float) -> None:
        """Requests for *covered* (None: all) have to go to another account from now on."""
        recent = {c: at for c, at in self.switched.items() if now < at + RAMP_S and c != covered}
        if len(recent) == MAX_SWITCHES:
            del recent[next(iter(recent))]
        self.switched = {**recent, covered: now}

    def ramps_of(self, state: AccountState, model: str | None, now: float) -> tuple[Ramp, ...]:
        """Return the ramps a new request for *model* falls under, begun where they must be."""
        ramps = state.ramps = {c: r for c, r in state.ramps.items() if not r.over(now)}
        for covered in covering(state.cooldowns, model):
            # One that is over stays until a good answer: nothing is known of it yet.
            if covered not in ramps:
                ramps[covered] = Ramp.half_open(now)
        for covered in covering(self.switched, model):
            if covered not in ramps and now < self.switched[covered] + RAMP_S:
                ramps[covered] = Ramp.after_switch(now)
        return tuple([ramps[covered] for covered in covering(ramps, model)])

    def unplace(self, state: AccountState) -> None:
        self.shortages.clear()
        self.policy.discard(state)
        self._set_alarm(state, inf)
        self._set_probe(state, inf)

    def due(self, model: str | None, now: float) -> Iterator[AccountState]:
        """Yield some accounts that a request for *model* may probe now, the latest first."""
        for (at, _), state in self.probes.items()[:MAX_DUE]:
            if at > now:
                return
            if state.is_due(model, now):
                yield state

    def _set_probe(self, state: AccountState, at: float) -> None:
        if at == state.probe_at:
            return
        if state.probe_at < inf:
            del self.probes[(state.probe_at, state.position)]
        if at < inf:
            self.probes[(at, state.position)] = state
        state.probe_at = at

    def _set_alarm(self, state: AccountState, at: float) -> None:
        """Have *state* placed again at *at*; infinity for never."""
        if at == state.wake_at:
            return
        if state.wake_at < inf:
            del self.alarms[(state.wake_at, state.position)]
        if at < inf:
            self.alarms[(at, state.position)] = state
        state.wake_at = at

    def wake(self, now: float) -> None:
        """Place whoever's time has come."""
        while self.alarms:
            (wake_at, _), state = self.alarms.peekitem(0)
            if wake_at > now:
                return
            self.place(state, now)


class Owners:
    """Whose limits each account runs into: an organisation, team or project, as responses said.

    Accounts of one owner share them. Nobody has to write that down.
    """

    __slots__ = ("_members", "_owner")

    def __init__(self) -> None:
        self._owner: dict[AccountKey, str] = {}
        self._members: dict[tuple[str, str], set[AccountKey]] = {}

    def learn(self, key: AccountKey, owner: str) -> None:
        """Note that *key* is one of *owner*'s."""
        if self._owner.get(key) != owner:
            self.forget(key)
            self._owner[key] = owner
            self._members.setdefault((key.provider, owner), set()).add(key)

    def forget(self, key: AccountKey) -> None:
        """*key* is gone, or has another credential."""
        owner = self._owner.pop(key, None)
        if owner is not None:
            members = self._members[key.provider, owner]
            members.discard(key)
            if not members:
                del self._members[key.provider, owner]

    def of(self, key: AccountKey) -> str | None:
        """Return the owner of *key*, None while no answer has named one."""
        return self._owner.get(key)

    def others(self, key: AccountKey) -> list[AccountKey]:
        """Return the other accounts of the owner of *key*, sorted."""
        owner = self._owner.get(key)
        if owner is None:
            return []
        return sorted(self._members[key.provider, owner] - {key})
