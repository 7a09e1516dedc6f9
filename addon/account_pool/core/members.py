"""The accounts of one provider, each where it belongs now.

Ready accounts stand in the selection policy, those whose place will change with time
have an alarm, the rest stand nowhere. Knows also whom requests have lately had to leave,
so that the next account is given them one by one (`ramp`).
"""

from __future__ import annotations

from math import inf

from sortedcontainers import SortedDict

from account_pool.core.cooldown import covers
from account_pool.core.ramp import RAMP_S, Ramp
from account_pool.core.selection import SelectionPolicy
from account_pool.core.state import AccountState

#: Models whose requests have lately had to move, remembered per provider.
MAX_SWITCHES = 128


class Members:
    """The accounts of one provider: by label, and in the order of the policy."""

    def __init__(self, policy: SelectionPolicy) -> None:
        self.by_label: dict[str, AccountState] = {}
        self.policy = policy
        self.alarms: SortedDict[tuple[float, int], AccountState] = SortedDict()
        #: what a cooldown has covered lately, and when it began: its requests go elsewhere
        self.switched: dict[str | None, float] = {}
        #: a request is out on an account that cools, to see whether it really does
        self.probing = False

    def place(self, state: AccountState, now: float) -> None:
        """Put *state* where it belongs now, and set the alarm for when that changes."""
        if state.picture.changes_at <= now:
            state.picture = state.picture.at(now)
        until = inf
        if state.enabled and state.credentials and not state.full:
            until = state.next_start_at
            if state.cooldowns:
                until = max(until, state.cooling_until(None, now))
        if until <= now:
            self.policy.add(state)
            self._set_alarm(state, self.policy.changes_at(state))
        else:
            self.policy.discard(state)
            self._set_alarm(state, until)

    def note_switch(self, covered: str | None, now: float) -> None:
        """Requests for *covered* (None: all) have to go to another account from now on."""
        recent = {c: at for c, at in self.switched.items() if now < at + RAMP_S and c != covered}
        if len(recent) == MAX_SWITCHES:
            del recent[next(iter(recent))]
        self.switched = {**recent, covered: now}

    def ramps_of(self, state: AccountState, model: str | None, now: float) -> tuple[Ramp, ...]:
        """Return the ramps a new request for *model* falls under, begun where they must be."""
        ramps = state.ramps = {c: r for c, r in state.ramps.items() if not r.over(now)}
        for covered, cooldown in state.cooldowns.items():
            # One that is over stays until a good answer: nothing is known of it yet.
            if covered not in ramps and cooldown.covers(model):
                ramps[covered] = Ramp.half_open(now)
        for covered, at in self.switched.items():
            if covered not in ramps and now < at + RAMP_S and covers(covered, model):
                ramps[covered] = Ramp.after_switch(now)
        return tuple(ramp for covered, ramp in ramps.items() if covers(covered, model))

    def unplace(self, state: AccountState) -> None:
        self.policy.discard(state)
        self._set_alarm(state, inf)

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
