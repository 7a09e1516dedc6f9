"""How the proxies on a store return to an account as carefully together as one of them alone.

Each would send a first request of its own to an account that returns, and a growing number
to those that take over from a limited one. So:

- A cooldown holds the account back beyond its end. The first request that wants it then has
  its proxy ask the store for a *permit*, while it goes elsewhere or waits. Who gets the permit
  sends one request. The others go on when they hear how it went, or after a second, as one
  proxy does whose first request is not answered yet: so a proxy that dies, and a store that
  hangs, cost a second.
- What moves because another proxy was told of a limit is held back as well, and the number of
  requests grows more slowly: by this proxy's part of what is in flight.
- A far deadline that is due to be probed (`Cooldown.probe_at`) is probed with a permit only. The
  first request that could do it is served elsewhere, and has its proxy ask; a later one that
  comes while the proxy has the permit is the probe. Nothing hurries, so the permit is for a
  minute: a proxy that has it and no such request leaves it to the others then.

One proxy alone, or without its store, holds nothing back and asks nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf

from msgspec import Struct

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import Cooldown
from account_pool.core.members import Members
from account_pool.core.state import ALONE_S, STEP_S, AccountState, Ramp

#: How long nobody else gets a permit, seconds: as long as others wait at least.
PERMIT_S = ALONE_S
#: The same of a permit to probe, and for how long its holder may use it: when another gets it,
#: all have heard of a probe that began late, seconds.
PROBE_PERMIT_S, PROBE_USE_S = 60.0, 50.0
#: How soon one to probe is asked for again: by who did not get it, and by who had it and no
#: request that could use it, so that others have it in between; seconds.
ASK_AGAIN_S, HAD_AGAIN_S = 5.0, PROBE_PERMIT_S + 10.0
#: Permits of each kind that are asked for at once, as each is written. Of those to try what
#: returns, what is beyond goes on a second later.
MAX_ASKS = 32


class Permit(Struct, frozen=True):
    """Lets one proxy try an account first that returns, or probe it.

    Attributes:
        covered: what its cooldown is about, as there; of a probe None: it is of the account.
        probes: to probe it while it cools.
    """

    key: AccountKey
    covered: str | None = None
    probes: bool = False

    @property
    def name(self) -> str:
        """Its name in the store: in ASCII, as clients choose the names of models."""
        return f"probe {self.key}" if self.probes else f"return {self.key} {self.covered!a}"

    @property
    def lasts_s(self) -> float:
        """How long nobody else gets it, seconds."""
        return PROBE_PERMIT_S if self.probes else PERMIT_S


class _Probe(Struct, eq=False):
    """A probe that requests of this proxy could make; monotonic seconds.

    Attributes:
        state: the account.
        asked_at: when the permit was asked for last.
        ask_at: when it is asked for next.
        use_until: until when this proxy has it.
    """

    state: AccountState
    asked_at: float = -inf
    ask_at: float = -inf
    use_until: float = -inf


class Permits:
    """What one proxy holds back, and asks for.

    Args:
        members: the accounts by provider.
        chance: returns a number from 0 to 1: those who wait go on one after the other.

    Attributes:
        proxies: how many there are, this one too, as far as they can hear each other.
        on_change: called with a provider, and now: waiting requests may go on.
        on_ask: called when there is something to ask for.
    """

    def __init__(self, members: Mapping[str, Members], chance: Callable[[], float]) -> None:
        self._members, self._chance = members, chance
        self.proxies = 1
        self.on_change: Callable[[str, float], None] = lambda _provider, _now: None
        self.on_ask: Callable[[], None] = lambda: None
        self._wanted: dict[Permit, Ramp] = {}
        self._probes: dict[AccountKey, _Probe] = {}

    def share(self, proxies: int) -> None:
        """There are so many *proxies* from now on."""
        was, self.proxies = self.proxies, proxies
        if (was == 1) == (proxies == 1):
            return
        # No other proxy can have a permit that this one has, with or without the store.
        self._probes = {k: probe for k, probe in self._probes.items() if probe.use_until > -inf}
        for members in self._members.values():
            for state in members.by_label.values():
                for covered, cooldown in state.cooldowns.items():
                    ramp = state.ramps.get(covered)
                    if proxies > 1 and (ramp is None or ramp.is_held):
                        state.ramps.hold(cooldown.model)
                    elif ramp is not None and ramp.is_held:
                        del state.ramps[covered]
            members.shortages.clear()

    def slower(self, provider: str) -> float:
        """Return how many times as long the requests of this proxy take to grow by one."""
        mine = others = 0
        for state in self._members[provider].by_label.values():
            mine += state.in_flight
            others += state.in_flight_remote
        return min((mine + others) / mine if mine else 1.0 + others, self.proxies)

    # -- asking

    def want(self, state: AccountState, model: str | None, now: float, *, ask: bool) -> bool:
        """A request for *model* would go to *state*, which takes no more now.

        Args:
            ask: ask for the permits that it lacks.

        Return whether it is held back, and none has been asked for before.
        """
        held = False
        for covered in state.ramps.covering(model):
            ramp = state.ramps[covered]
            if ramp.opens_at == inf:
                held = True
                if ask:
                    ramp.slower = self.slower(state.key.provider)
                    ramp.opens_at = now + ALONE_S + self._chance() * STEP_S * ramp.slower
                    self._members[state.key.provider].shortages.clear()
                    if len(self._wanted) < MAX_ASKS:
                        self._wanted[Permit(state.key, covered)] = ramp
                        self.on_ask()
        return held

    def may_probe(self, state: AccountState, now: float) -> bool:
        """Say whether a request may probe *state*, which is due; the permit is used up then.

        Without it, it is asked for until somebody has probed the account.
        """
        if self.proxies == 1:
            return True
        probe = self._probes.get(state.key)
        if probe is not None and probe.state is state and now < probe.use_until:
            del self._probes[state.key]
            return True
        if probe is None and len(self._probes) < MAX_ASKS:
            self._probes[state.key] = _Probe(state)
            self.on_ask()
        return False

    def asks(self, now: float) -> Mapping[Permit, Ramp | None]:
        """Return what to ask the store for, once; with what `granted` lets begin."""
        wanted: dict[Permit, Ramp | None] = {**self._wanted}
        self._wanted = {}
        for key, probe in list(self._probes.items()):
            if probe.state.removed or probe.state.probe_at > now:
                del self._probes[key]  # it is gone, or somebody has probed it
            elif now >= probe.ask_at:
                probe.asked_at, probe.ask_at = now, now + ASK_AGAIN_S
                wanted[Permit(key, probes=True)] = None
        return wanted

    def granted(self, permits: Mapping[Permit, Ramp | None], now: float) -> None:
        """This proxy alone may try these."""
        for permit, ramp in permits.items():
            if ramp is not None:
                ramp.opens_at = min(ramp.opens_at, now)
                self._members[permit.key.provider].shortages.clear()
            elif (probe := self._probes.get(permit.key)) is not None:
                probe.use_until = probe.asked_at + PROBE_USE_S
                probe.ask_at = probe.asked_at + HAD_AGAIN_S
        for provider in {p.key.provider for p, ramp in permits.items() if ramp is not None}:
            self.on_change(provider, now)

    # -- hearing

    def told(
        self,
        state: AccountState,
        before: Mapping[str | None, Cooldown],
        now: float,
        slower: Callable[[str], float],
    ) -> None:
        """Another proxy has changed the cooldowns of *state*, which were those *before*.

        *slower*: as the method; it looks at all accounts, so of many changes only once.
        """
        if self.proxies == 1:
            return
        provider, after = state.key.provider, state.cooldowns
        for covered in {**before, **after}:
            was, cooldown = before.get(covered), after.get(covered)
            if cooldown is None:
                self._follow(state, covered, now, slower(provider))
            elif cooldown.active(now) and (was is None or was.until != cooldown.until):
                state.ramps.hold(cooldown.model)
                if was is None or not was.active(now):
                    self._members[provider].switched.note(covered, now, slower(provider))

    def _follow(self, state: AccountState, covered: str | None, now: float, slower: float) -> None:
        """*state* serves again: who is held back goes, one after the other."""
        ramp = state.ramps.get(covered)
        if ramp is not None and ramp.opens_at <= now and not ramp.is_held:
            ramp.grows_from = min(ramp.grows_from, now)
            return
        at = now + self._chance() * STEP_S * slower
        state.ramps.drop_over(now)
        state.ramps.put_last(covered, Ramp(at, slower=slower, opens_at=at))
