"""The accounts of all providers, and what changes them: their owner, people, other proxies.

An account changes by a `Transition` (`members.py`), which records what it does. What refusals
change comes from `health.py`, what requests count, and what responses say is left, from `pool.py`.
Times are monotonic seconds and passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import count
from math import inf

from account_pool.core.account import Account, AccountKey
from account_pool.core.cooldown import NEVER, Cooldown, Endings
from account_pool.core.credential import Credential, are_of_others, fingerprint
from account_pool.core.decisions import By, Decisions, Kind, decision_of
from account_pool.core.errors import DuplicateAccount, UnknownAccount
from account_pool.core.headroom import UNKNOWN, Window, reserved
from account_pool.core.members import Members, Transition
from account_pool.core.outcome import BENCHING, Cause, Outcome, OutcomeClass
from account_pool.core.permits import Permits
from account_pool.core.selection import POLICIES, SelectionPolicy
from account_pool.core.state import AccountState, Ramps

_BY_401 = BENCHING - {OutcomeClass.FORBIDDEN_ACCOUNT}


class _MembersByProvider(dict[str, Members]):
    """Those of a provider without accounts are made when they are asked for."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    def __missing__(self, provider: str) -> Members:
        members = self[provider] = Members(self._accounts.policy(), self._window_reset)
        return members

    def _window_reset(self, key: AccountKey, window: Window) -> None:
        self._accounts.on_reset(key, window)


class Accounts:
    """The accounts of all providers.

    Attributes:
        decisions: what was decided, and why.
        find: returns the state of one account, None if it is not here. Read only.
        policy: makes the selection policy of a provider.
        members: the accounts by provider, each where it belongs now.
        owners: whose limits the accounts run into.
        dirty: accounts that are no longer as they were saved; emptied by whoever
            saves them.
        sharing: `max_concurrent` is divided with other proxies (`shares.py`).
        proxies: how many there are, over which `min_interval` is spread.
        permits: how it returns to accounts carefully, with other proxies.
        starved: accounts that were full when nobody else could serve.
        on_dirty: called after every change of an account, but for turns and headroom.
        on_reset: called with an account and a window of it longer than an hour that was reset,
            as it was told last: what was left of it is lost.
        on_change: called with a provider, and now: waiting requests may go on.
        on_leaving: called with the state of an account that is about to be removed.
        on_removal: called with a provider: some may wait in vain from now on.
        on_urgent: called when what must not be lost was learnt: it would be refused again.
        on_short: called when a greater share may be had: at each request, while all is busy.
    """

    def __init__(self, strategy: str, chance: Callable[[], float]) -> None:
        """Raises KeyError for an unknown *strategy* (`selection.POLICIES`)."""
        self.policy: Callable[[], SelectionPolicy] = POLICIES[strategy]
        self.decisions = Decisions()
        self.members = _MembersByProvider(self)
        self.owners = Owners()
        self._prints = 0
        self.dirty: set[AccountKey] = set()
        self.sharing = False
        self.proxies = 1
        self.permits = Permits(self.members, chance)
        self.starved: set[AccountKey] = set()
        self.on_dirty: Callable[[], None] = lambda: None
        self.on_reset: Callable[[AccountKey, Window], None] = lambda _key, _window: None
        self.on_change: Callable[[str, float], None] = lambda _provider, _now: None
        self.on_leaving: Callable[[AccountState], None] = lambda _state: None
        self.on_removal: Callable[[str], None] = lambda _provider: None
        self.on_urgent: Callable[[], None] = lambda: None
        self.on_short: Callable[[], None] = lambda: None
        self._positions = count()
        self._by_key: dict[AccountKey, AccountState] = {}
        self.find: Callable[[AccountKey], AccountState | None] = self._by_key.get

    @property
    def fingerprint(self) -> str:
        """How many there are, and which: proxies with the same have accounts of the same names."""
        return f"{len(self._by_key)} {self._prints:016x}"

    # -- looking them up

    def __iter__(self) -> Iterator[AccountState]:
        """Yield all accounts, by provider, in the order they were added. Read only."""
        for members in self.members.values():
            yield from members.by_label.values()

    def of(self, provider: str | None = None) -> Iterator[AccountState]:
        """Yield the accounts of *provider*, or all, in the order they were added. Read only."""
        return iter(self if provider is None else self.members[provider].by_label.values())

    def providers(self) -> list[str]:
        """Names of the providers that have accounts."""
        return [provider for provider, m in self.members.items() if m.by_label]

    def get(self, key: AccountKey) -> AccountState:
        """The state of one account. Read only. Raises UnknownAccount."""
        state = self.find(key)
        if state is None:
            raise UnknownAccount(key, [str(s.key) for s in self])
        return state

    def is_only(self, key: AccountKey) -> bool:
        """Say whether *key* is the only account of its provider, or was until it was removed."""
        return self.members[key.provider].by_label.keys() <= {key.label}

    # -- what their owner writes

    def add(
        self,
        account: Account,
        credentials: Mapping[str, Credential] | None = None,
        *,
        now: float,
        pending: bool = False,
        source: str = "",
    ) -> AccountKey:
        """Take in *account*. Raises DuplicateAccount.

        Args:
            credentials: usable ones by kind.
            pending: a credential is on its way (an exchange, a command).
            source: fingerprint of how its credential was written down.
        """
        members = self.members[account.provider]
        if account.label in members.by_label:
            raise DuplicateAccount(account.key)
        state = AccountState(
            account=account,
            key=account.key,
            position=next(self._positions),
            credentials=dict(credentials or {}),
            pending=pending,
            source=source,
            share=0.0 if self.sharing else inf,
        )
        members.by_label[account.label] = self._by_key[state.key] = state
        self._prints ^= _print(state.key)
        members.failures.forget_refused()
        members.place(state, now)
        self.changed(state.key, now)
        return state.key

    def remove(self, key: AccountKey, *, now: float) -> Account:
        """Take *key* out. Its open leases end normally. Raises UnknownAccount."""
        state = self.get(key)
        self.on_leaving(state)
        members = self.members[key.provider]
        members.unplace(state)
        members.failures.bare.discard(key)
        del members.by_label[key.label], self._by_key[key]
        self._prints ^= _print(key)
        state.removed = True
        state.epoch += 1
        self.owners.forget(key)
        for decision in self.decisions.all_lasting(key, now):
            self.decisions.end(decision.number, By.REMOVAL, now)
        self.mark_dirty(key)
        # No request can go on for it, but some may wait in vain from now on.
        self.on_removal(key.provider)
        return state.account

    def replace(self, account: Account, *, now: float) -> None:
        """Take over what the owner of *account* wrote anew; all else about it stays.

        Cooldowns, credentials and open leases do. Raises UnknownAccount.
        """
        state = self.get(account.key)
        members = self.members[account.provider]
        # Where it stands follows from what was written before.
        members.unplace(state)
        if account.enabled and not state.account.enabled:
            state.pending = not state.credentials
        state.account = account
        members.failures.forget_refused()
        self.update_reserve(state, now)
        members.place(state, now)
        self.changed(account.key, now)

    def identified(self, key: AccountKey, who: str, *, now: float) -> bool:
        """Note whose the credential of *key* is (`credential.identity`).

        Returns whether it was another's before: what is known of that one is forgotten
        then, and the credential comes through `set_credentials`. Raises UnknownAccount.
        """
        state = self.get(key)
        if not who:
            return False
        written, _, known = state.source.partition("/")
        if who == known:
            return False
        source = f"{written}/{who}"
        if are_of_others(known, who):
            self.renewed(key, now=now, source=source, by=By.CREDENTIAL)
            return True
        state.source = source
        self.mark_dirty(key)
        return False

    def renewed(self, key: AccountKey, *, now: float, source: str = "", by: By = By.CONFIG) -> None:
        """Forget what responses said of the credential of *key*: it has another.

        The old one goes at once, the new one comes through `set_credentials`. What is
        still under way with the old one teaches nothing. Raises UnknownAccount.

        *source* is the fingerprint of how the new one was written down.
        """
        state = self.get(key)
        state.source = source
        self.owners.forget(key)
        with Transition(self, state, by, now) as change:
            state.credentials, state.refused, state.problem = {}, "", None
            state.doubtful = False
            state.pending = state.account.enabled
            _forget(self.members[key.provider], change)
            state.endings = NEVER
            state.epoch += 1
            state.served_at = state.refreshed_at = -inf

    def set_credentials(
        self,
        key: AccountKey,
        credentials: Mapping[str, Credential],
        *,
        now: float,
        problem: str | None = None,
        pending: bool = False,
        passing: bool = False,
    ) -> None:
        """Replace the credentials of *key*. Others than those refused end what a 401 led to.

        Args:
            problem: why there is none, for people.
            pending: one is still on its way, or tried for soon.
            passing: one is tried for, sooner or later: nobody has to act.

        Raises UnknownAccount.
        """
        state = self.get(key)
        members = self.members[key.provider]
        if state.credentials != credentials:
            # It may serve what all have refused.
            members.failures.forget_refused()
            state.served_at = -inf
            state.doubtful = any(one.doubtful for one in credentials.values())
        state.credentials = dict(credentials)
        state.problem, state.pending, state.passing = problem, pending, passing
        blamed = state.refused or state.disabled is not None
        if credentials and blamed and fingerprint(credentials) != state.refused:
            # Nothing is known of the credential that it has now.
            with Transition(self, state, By.CREDENTIAL, now) as change:
                state.refused = ""
                change.end_cooldowns(lambda cooldown: is_401(cooldown.cause))
                change.end_verdicts(lambda verdict: is_401(verdict.cause))
                if state.disabled and is_401(state.disabled):
                    change.enable()
            return
        members.place(state, now)
        self.on_dirty()  # and not dirty: nothing of this is saved
        self.on_change(key.provider, now)

    def set_strategy(self, strategy: str, *, now: float) -> None:
        """Change the selection policy. Raises KeyError for an unknown name."""
        if POLICIES[strategy] is self.policy:
            return  # whose turn it is stays as it is
        self.policy = POLICIES[strategy]
        for members in self.members.values():
            for state in members.by_label.values():
                members.unplace(state)
            members.policy = self.policy()
            for state in members.by_label.values():
                members.place(state, now)

    # -- what people say

    def clear_cooldown(self, key: AccountKey, *, now: float, by: By = By.HAND) -> list[Cooldown]:
        """End every cooldown and disabling of *key*; return the cooldowns ended.

        Raises UnknownAccount.
        """
        state = self.get(key)
        with Transition(self, state, by, now) as change:
            # Who says that it serves knows better than its last response.
            state.endings = Endings(now, now, now)
            return _forget(self.members[key.provider], change)

    def enable(self, key: AccountKey, *, now: float, by: By = By.HAND) -> None:
        """End the disabling of *key*, and its benches; limits stay.

        Raises UnknownAccount.
        """
        state = self.get(key)
        self.members[key.provider].failures.forget_refused()
        with Transition(self, state, by, now) as change:
            change.end_cooldowns(lambda cooldown: cooldown.cause.benches)
            change.end_verdicts()
            change.enable()
            state.endings = state.endings._replace(benches=now)

    # -- what other proxies know

    def set_in_flight_remote(self, in_flight: Mapping[AccountKey, int], *, now: float) -> None:
        """Note how many requests other proxies have in flight; none where *in_flight* has none.

        They count for who is least busy.
        """
        for state in self:
            requests = in_flight.get(state.key, 0)
            if requests != state.in_flight_remote:
                state.in_flight_remote = requests
                self.members[state.key.provider].place(state, now)
                self.on_change(state.key.provider, now)

    def set_shares(self, shares: Mapping[AccountKey, float], *, now: float) -> None:
        """Let as many requests be in flight here as *shares* says, of accounts with a limit.

        From the first call on an account has none until it is given one.
        """
        if not self.sharing and shares:
            self.sharing = True
            shares = {state.key: 0.0 for state in self} | dict(shares)
        for key, share in shares.items():
            state = self.get(key)
            if share != state.share:
                state.share = share
                if state.account.max_concurrent is not None:
                    self.members[key.provider].place(state, now)
                    self.on_change(key.provider, now)

    def note_share_used(self, state: AccountState, *, starved: bool = False) -> None:
        """*state* has become full, or was found so: a greater share may be had.

        *starved*: nobody else can serve.
        """
        limit = state.account.max_concurrent
        if not self.sharing or limit is None:
            return
        if starved:
            self.starved.add(state.key)
        if state.share < limit:
            self.on_short()
            self.mark_dirty(state.key)

    # -- how they change

    def changed(self, key: AccountKey, now: float) -> None:
        """Something about *key* may let waiting requests go on."""
        self.mark_dirty(key)
        self.on_change(key.provider, now)

    def mark_dirty(self, key: AccountKey) -> None:
        """*key* is no longer as it was saved."""
        self.dirty.add(key)
        self.on_dirty()

    def update_reserve(self, state: AccountState, now: float) -> None:
        """Work out anew what the reserve of *state* keeps back."""
        was = state.reserved
        if not (was or state.account.reserve):
            return
        state.reserved = reserved(state.account.reserve, state.headroom, now)
        known = {(cooldown.model, cooldown.until) for cooldown in was}
        for cooldown in state.reserved:
            if (cooldown.model, cooldown.until) not in known:
                decision = decision_of(state.key, Kind.COOLDOWN, cooldown, By.RESERVE, now)
                self.decisions.add(decision)


class Owners(dict[AccountKey, str]):
    """Whose limits each account runs into: an organisation, team or project, as responses said.

    Accounts of one owner share them. Nobody has to write that down. Changed by `learn` and
    `forget` only.
    """

    __slots__ = ("_members",)

    def __init__(self) -> None:
        self._members: dict[tuple[str, str], set[AccountKey]] = {}

    def learn(self, key: AccountKey, owner: str) -> None:
        """Note that *key* is one of *owner*'s."""
        if self.get(key) != owner:
            self.forget(key)
            self[key] = owner
            self._members.setdefault((key.provider, owner), set()).add(key)

    def forget(self, key: AccountKey) -> None:
        """*key* is gone, or has another credential."""
        owner = self.pop(key, None)
        if owner is not None:
            members = self._members[key.provider, owner]
            members.discard(key)
            if not members:
                del self._members[key.provider, owner]

    def others(self, key: AccountKey) -> list[AccountKey]:
        """Return the other accounts of the owner of *key*, sorted."""
        owner = self.get(key)
        return [] if owner is None else sorted(self._members[key.provider, owner] - {key})


def is_401(cause: Cause | Outcome) -> bool:
    """Say whether *cause* is a refusal of a credential: another one ends it."""
    return cause.cls in _BY_401


def summary(states: Iterable[AccountState], *, now: float) -> dict[str, int]:
    """Count *states*: total, available, cooling_down, disabled, in_flight.

    `available` can be given a request now; `cooling_down` cools as a whole. An
    account that does neither and is not disabled is full, between two starts
    (min_interval) or without a credential.
    """
    states = list(states)
    return {
        "total": len(states),
        "available": sum(s.is_ready(None, now) and bool(s.credentials) for s in states),
        "cooling_down": sum(s.enabled and s.cooling_until(None, now) > now for s in states),
        "disabled": sum(not s.enabled for s in states),
        "in_flight": sum(s.in_flight for s in states),
    }


def occupancy(states: Iterable[AccountState]) -> dict[str, int]:
    """Return size (accounts) and busy (accounts with a request in flight)."""
    in_flight = [state.in_flight for state in states]
    return {"size": len(in_flight), "busy": sum(n > 0 for n in in_flight)}


def _print(key: AccountKey) -> int:
    """Return a number for *key*; those of several are joined by xor, in any order."""
    return int.from_bytes(sha256(str(key).encode(errors="replace")).digest()[:8])


def _forget(members: Members, change: Transition) -> list[Cooldown]:
    """Forget what responses have said; return the cooldowns that this ends."""
    state = change.state
    members.failures.forget_refused(state.key)
    ended = change.end_cooldowns()
    change.end_verdicts()
    change.enable()
    state.ramps = Ramps()
    state.headroom, state.reserved, state.forgotten_at = UNKNOWN, (), change.now
    return ended
