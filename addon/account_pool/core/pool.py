"""The pool: who may serve a request. The only mutable state of the core.

Selecting, returning, cooling, disabling, adding and removing accounts. Times are
monotonic seconds and passed in; chance is passed in. Not thread-safe: one event loop
calls it.

An account is *ready* when it is enabled, holds a credential, does not cool as a whole,
is not full and may start a request (min_interval). Ready accounts stand in the
selection policy, those whose place will change with time have an alarm, the rest stand
nowhere, so a choice costs the same with three accounts and with ten thousand. One that
takes over from a limited account, or returns, is given requests one by one (`ramp`). Who
cannot be served waits in a line (`admission`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from math import inf
from typing import NamedTuple

from account_pool.core import account_events, snapshot
from account_pool.core.account import Account, AccountKey
from account_pool.core.account_events import AccountStanding
from account_pool.core.admission import Admission, Ticket
from account_pool.core.cooldown import BENCHING, Cause, Cooldown, covers, next_cooldown
from account_pool.core.credential import Credential, are_of_others, fingerprint
from account_pool.core.decisions import By, Decisions
from account_pool.core.errors import (
    DuplicateAccount,
    LeaseAlreadyReturned,
    NoUsableAccount,
    UnknownAccount,
)
from account_pool.core.headroom import UNKNOWN, Window, reserved
from account_pool.core.lease import Lease, RequestFacts
from account_pool.core.members import Members, Owners
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.ramp import Ramp
from account_pool.core.selection import POLICIES
from account_pool.core.shortage import shortage
from account_pool.core.snapshot import PoolSnapshot
from account_pool.core.state import AccountState
from account_pool.core.trouble import FirstBytes
from account_pool.core.verdicts import (
    ADDRESS_LIMITED_S,
    Suspect,
    covered,
    is_about_account,
    opened,
)

_COOLING = (OutcomeClass.RATE_LIMIT, OutcomeClass.QUOTA)
_BY_401 = BENCHING - {OutcomeClass.FORBIDDEN_ACCOUNT}


#: Cooldowns kept per account. Clients choose the names of models, so there must be a
#: bound; no provider has so many models.
MAX_COOLDOWNS = 128
#: How long a credential that has served, or was renewed, is not renewed again, seconds.
FRESH_S = 60.0


class Pool:
    """The accounts of all providers.

    Args:
        strategy: name of a selection policy (`selection.POLICIES`).
        default_cooldown_s: cooldown when no reset is named (`pool_cooldown`).
        chance: returns a number from 0 to 1; adds a little jitter to deadlines.

    Attributes:
        decisions: what was decided, and why.
        dirty: accounts that are no longer as they were saved; emptied by whoever
            saves them.
        on_reset: called with an account and a window of it longer than an hour that was reset,
            as it was told last: what was left of it is lost.
        seek: called with a provider of which nobody can serve: looks for credentials that
            could not be read, and returns whether there are new ones.
    """

    def __init__(
        self,
        *,
        strategy: str = "round-robin",
        default_cooldown_s: float = 300.0,
        chance: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.default_cooldown_s = default_cooldown_s
        self._policy = POLICIES[strategy]
        self._chance = chance
        self._members: dict[str, Members] = {}
        self._sequence = count(1)
        self._positions = count()
        self._listeners: list[Callable[[], None]] = []
        self._owners = Owners()
        self._admission = Admission()
        self._first_bytes = FirstBytes()
        self.dirty: set[AccountKey] = set()
        self.seek: Callable[[str], bool] = lambda _provider: False
        self.on_reset: Callable[[AccountKey, Window], None] = lambda _key, _window: None
        self.decisions = Decisions()
        #: one of those has learnt what must not be lost, or it would be refused again
        self.urgent = False

    def __repr__(self) -> str:
        parts = [
            f"{provider}: {len(m.by_label)} accounts, "
            f"{sum(s.in_flight for s in m.by_label.values())} in flight"
            for provider, m in self._members.items()
        ]
        return f"<Pool {' | '.join(parts) or 'empty'}>"

    # -- members

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
        members = self._members.get(account.provider)
        if members is None:
            members = self._members[account.provider] = Members(self._policy(), self._window_reset)
        if account.label in members.by_label:
            raise DuplicateAccount(account.key)
        state = AccountState(
            account=account,
            key=account.key,
            position=next(self._positions),
            credentials=dict(credentials or {}),
            pending=pending,
            source=source,
        )
        members.by_label[account.label] = state
        members.refused.clear()
        members.place(state, now)
        self._changed(state.key, now)
        return state.key

    def remove(self, key: AccountKey, *, now: float) -> Account:
        """Take *key* out. Its open leases end in peace. Raises UnknownAccount."""
        state = self._state(key)
        members = self._members[key.provider]
        members.unplace(state)
        members.bare.discard(key)
        del members.by_label[key.label]
        self._owners.forget(key)
        account_events.removed(self.decisions, key, now)
        self._tell(key)
        # Nobody can go on for it, but some may wait in vain from now on.
        self._admission.call_all(key.provider)
        return state.account

    def replace(self, account: Account, *, now: float) -> None:
        """Take over what the owner of *account* wrote anew; all else about it stays.

        Cooldowns, credentials and open leases do. Raises UnknownAccount.
        """
        state = self._state(account.key)
        members = self._members[account.provider]
        # Where it stands follows from what was written before.
        members.unplace(state)
        if account.enabled and not state.account.enabled:
            state.pending = not state.credentials
        state.account = account
        members.refused.clear()
        self._reserve(state, now)
        members.place(state, now)
        self._changed(account.key, now)

    def identified(self, key: AccountKey, who: str, *, now: float) -> bool:
        """Note whose the credential of *key* is (`credential.identity`).

        Returns whether it was another's before: what is known of that one is forgotten
        then, and the credential comes through `set_credentials`. Raises UnknownAccount.
        """
        state = self._state(key)
        written, _, known = state.source.partition("/")
        if who in ("", known):
            return False
        source = f"{written}/{who}"
        if are_of_others(known, who):
            self.renewed(key, now=now, source=source, by=By.CREDENTIAL)
            return True
        state.source = source
        self._tell(key)
        return False

    def renewed(self, key: AccountKey, *, now: float, source: str = "", by: By = By.CONFIG) -> None:
        """Forget what answers said of the credential of *key*: it has another.

        The old one goes at once, the new one comes through `set_credentials`. What is
        still under way with the old one teaches nothing. Raises UnknownAccount.

        *source* is the fingerprint of how the new one was written down.
        """
        state = self._state(key)
        state.source = source
        self._owners.forget(key)
        members = self._members[key.provider]
        members.refused.clear()
        members.bare.discard(key)
        with self._changing(state, by, now):
            state.credentials, state.refused, state.problem = {}, "", None
            state.doubtful = False
            state.pending = state.account.enabled
            state.cooldowns, state.ramps, state.verdicts, state.disabled = {}, {}, {}, None
            state.headroom, state.reserved, state.untold_at = UNKNOWN, (), now
            state.renewed_at = now
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
        state = self._state(key)
        members = self._members[key.provider]
        if state.credentials != credentials:
            # It may serve what all have refused.
            members.refused.clear()
            state.served_at = -inf
            state.doubtful = any(one.doubtful for one in credentials.values())
        state.credentials = dict(credentials)
        blamed = state.refused or state.disabled is not None
        if credentials and blamed and fingerprint(credentials) != state.refused:
            self._forgive_401(state, now)
        state.problem, state.pending, state.passing = problem, pending, passing
        members.place(state, now)
        self._changed(key, now)

    def _forgive_401(self, state: AccountState, now: float) -> None:
        """Nothing is known of the credential that *state* has now."""
        with self._changing(state, By.CREDENTIAL, now):
            state.refused = ""
            if state.disabled and _is_401(state.disabled):
                state.disabled = None
            state.cooldowns = {m: c for m, c in state.cooldowns.items() if not _is_401(c.cause)}
            state.verdicts = {m: v for m, v in state.verdicts.items() if not _is_401(v.cause)}

    def set_strategy(self, strategy: str, *, now: float) -> None:
        """Change the selection policy. Raises KeyError for an unknown name."""
        self._policy = POLICIES[strategy]
        for members in self._members.values():
            for state in members.by_label.values():
                members.unplace(state)
            members.policy = self._policy()
            for state in members.by_label.values():
                members.place(state, now)

    def set_in_flight_remote(self, in_flight: Mapping[AccountKey, int], *, now: float) -> None:
        """Note how many requests other proxies have in flight; none where *in_flight* has none.

        They count for max_concurrent and for who is least busy.
        """
        for state in self.accounts():
            requests = in_flight.get(state.key, 0)
            if requests == state.in_flight_remote:
                continue
            state.in_flight_remote = requests
            self._members[state.key.provider].place(state, now)
            self._let_go_on(state.key.provider, now)

    def providers(self) -> list[str]:
        """Names of the providers that have accounts."""
        return [provider for provider, m in self._members.items() if m.by_label]

    def accounts(self, provider: str | None = None) -> Iterable[AccountState]:
        """The accounts, all or of one provider, in the order they were added. Read only."""
        for name, members in self._members.items():
            if provider is None or provider == name:
                yield from members.by_label.values()

    def get(self, key: AccountKey) -> AccountState:
        """The state of one account. Read only. Raises UnknownAccount."""
        return self._state(key)

    # -- leases

    def pick(
        self,
        facts: RequestFacts,
        *,
        now: float,
        avoid: Collection[AccountKey] = (),
        only: AccountKey | None = None,
    ) -> AccountState | None:
        """Return the account that would serve *facts* now, or None. Changes no turn.

        *only*: no other will do.
        """
        return self._pick(facts, now, avoid, only, heed_ramps=True)

    def _pick(
        self,
        facts: RequestFacts,
        now: float,
        avoid: Collection[AccountKey],
        only: AccountKey | None,
        *,
        heed_ramps: bool,
    ) -> AccountState | None:
        members = self._members.get(facts.provider)
        if members is None:
            return None
        if members.alarms:
            members.wake(now)
        model, kind = facts.model, facts.kind
        ranked = members.policy.ranked_for(model, now)
        if only is not None:
            one = members.by_label.get(only.label)
            ranked = iter((one,) if one is not None and one.is_ready(model, now) else ())
        for state in ranked:
            # What is left to ask depends on the request. Accounts whose ramps are full are
            # walked past: they are no more than there are requests without an answer.
            if state.ramps and heed_ramps and not state.ramps_admit(model, now):
                continue
            if (
                kind in state.credentials
                and (not (models := state.account.models).globs or models.allows(model))
                and state.key not in avoid
            ):
                return state
        return None

    def acquire(
        self,
        facts: RequestFacts,
        *,
        now: float,
        avoid: Collection[AccountKey] = (),
        only: AccountKey | None = None,
    ) -> Lease:
        """Choose an account and hold it. Every lease must come back through `release`.

        Nobody who waits is overtaken: what they can use is given to them first.

        Args:
            avoid: accounts not to be asked again by this request.
            only: the one account that will do; its turn in the policy is not used up.

        Raises NoUsableAccount, which knows when the next one returns.
        """
        self.admit(facts.provider, now=now)
        state = self.pick(facts, now=now, avoid=avoid, only=only)
        if state is None and self.seek(facts.provider):
            state = self.pick(facts, now=now, avoid=avoid, only=only)
        if state is None:
            raise self.shortage(facts, now=now, avoid=avoid, only=only)
        return self._lease(state, facts, now, chosen=only is None)

    def acquire_anyway(
        self,
        facts: RequestFacts,
        *,
        now: float,
        avoid: Collection[AccountKey] = (),
        only: AccountKey | None = None,
        soon_s: float = 0.0,
        first: bool = True,
    ) -> Lease | None:
        """Hold an account the pool would rather leave alone now; None if there is none.

        For requests that would be refused otherwise: one that has waited for a ramp as
        long as it may, for our caution must not cost an answer; one that no account has
        been asked about, or none but what is on the bench can be, asks there; and, one at
        a time and once a minute, one that tries the account that returns first, so that a
        wrong deadline heals itself.

        Args:
            soon_s: cooldowns that end within so many seconds are waited for, not tried.
            first: the request was not sent yet.
        """
        state = self._pick(facts, now, avoid, only, heed_ramps=False)
        if state is not None:
            return self._lease(state, facts, now, chosen=only is None)
        members = self._members.get(facts.provider)
        nobody = self.shortage(facts, now=now, avoid=avoid, only=only)
        if members is None:
            return None
        if nobody.last_resort is not None and (first or nobody.retry_at is None):
            state = members.by_label[nobody.last_resort.label]
            return self._lease(state, facts, now, chosen=False, last_resort=True)
        if members.probing or nobody.soonest is None:
            return None
        state = members.by_label[nobody.soonest.label]
        if not state.may_be_probed(facts.model, now, soon_s):
            return None
        members.probing = True
        state.note_probe(facts.model, now)
        return self._lease(state, facts, now, chosen=False, probe=True)

    def acquire_probe(self, facts: RequestFacts, *, now: float) -> Lease | None:
        """Hold an account to see if it really cools so long; None where there is none to probe.

        Only while another account can serve *facts*: a refusal is replayed there. For requests
        that begin a conversation, can be sent again, and are short (design.md section 7).
        """
        members = self._members.get(facts.provider)
        if members is None or not members.probes:
            return None
        for state in members.due(facts.model, now):
            if facts.kind not in state.credentials:
                continue
            if not state.account.models.allows(facts.model):
                continue
            if self.pick(facts, now=now, avoid=(state.key,)) is None:
                return None
            state.probing = True
            state.note_probe(facts.model, now)
            return self._lease(state, facts, now, chosen=False, probe=True)
        return None

    def renew(self, lease: Lease, *, now: float) -> Lease | None:
        """Swap *lease* for one on the same account with the credential it holds now.

        It keeps its place among the requests in flight, and is no new turn. None when
        the account is gone, disabled, cooling or holds no credential of the kind. *lease*
        is returned either way, or LeaseAlreadyReturned is raised.
        """
        facts = lease.facts
        state = self._find(lease.key)
        if (
            lease.returned
            or state is None
            or state.position != lease.position
            or not state.enabled
            or facts.kind not in state.credentials
            or (
                state.cooling_until(facts.model, now) > now
                and not (lease.probe or (lease.last_resort and state.yields(facts.model, now)))
            )
        ):
            self.release(lease, None, now=now)
            return None
        lease.returned = True
        state.running.pop(id(lease), None)
        ramps, lease.ramps = lease.ramps, ()
        return self._start(
            state, facts, now, ramps, probe=lease.probe, last_resort=lease.last_resort
        )

    def answered(self, lease: Lease, *, now: float) -> None:
        """The answer to *lease* is good and begins: what it proves is believed at once.

        It may stream for minutes, while the lease counts in flight.
        """
        if lease.returned or lease.answered:
            return
        lease.answered = True
        others_may_go = self._end_care(lease, now, good=True)
        state = self._find(lease.key)
        if state is None or state.position != lease.position:
            return
        state.served_at = now
        members = self._members[lease.key.provider]
        if members.refused or members.trouble.by_request or members.address_limited_until > -inf:
            members.served(_what(lease.facts), lease.started_at)
        began_at = now if lease.began_at is None else lease.began_at
        self._first_bytes.note(lease.key.provider, lease.facts.model, began_at - lease.started_at)
        if state.cooldowns or state.verdicts:
            members.bare.discard(state.key)
            self._clear_disproved(state, lease, now)
            others_may_go = True
        if state.doubtful:
            state.doubtful, state.problem = False, None
            self._members[lease.key.provider].place(state, now)
            others_may_go = True
        if others_may_go:
            self._changed(lease.key, now)

    def release(self, lease: Lease, outcome: Outcome | None, *, now: float) -> None:
        """Give *lease* back and learn from its *outcome* (None: it says nothing).

        Raises LeaseAlreadyReturned the second time.
        """
        if lease.returned:
            raise LeaseAlreadyReturned(f"the lease on {lease.key} was returned before")
        if outcome is not None and outcome.cls is OutcomeClass.OK:
            self.answered(lease, now=now)
        lease.returned = True
        self._end_care(lease, now, good=False)
        state = self._find(lease.key)
        if state is None or state.position != lease.position:
            return  # removed while it was out
        state.in_flight -= 1
        state.running.pop(id(lease), None)
        learns = outcome is not None and lease.started_at >= state.renewed_at
        if outcome is None or not learns or not self._learn(state, outcome, lease, now):
            self._members[lease.key.provider].place(state, now)
            self._changed(lease.key, now)

    def _lease(
        self,
        state: AccountState,
        facts: RequestFacts,
        now: float,
        *,
        chosen: bool,
        probe: bool = False,
        last_resort: bool = False,
    ) -> Lease:
        members = self._members[facts.provider]
        state.in_flight += 1
        self.dirty.add(state.key)
        state.last_used, state.asked_at = next(self._sequence), now
        state.passed_over = 0
        ramps: tuple[Ramp, ...] = ()
        if state.cooldowns or state.ramps or members.switched:
            ramps = members.ramps_of(state, facts.model, now)
            for ramp in ramps:
                ramp.sent()
        return self._start(
            state, facts, now, ramps, chosen=chosen, probe=probe, last_resort=last_resort
        )

    def _start(
        self,
        state: AccountState,
        facts: RequestFacts,
        now: float,
        ramps: tuple[Ramp, ...],
        *,
        probe: bool,
        last_resort: bool,
        chosen: bool = False,
    ) -> Lease:
        """Note the start of a request on *state*, which counts it in flight already."""
        members = self._members[facts.provider]
        if state.account.min_interval_s:
            state.next_start_at = now + state.account.min_interval_s
        if chosen:
            members.policy.chosen(state)
        members.place(state, now)
        lease = Lease(
            account=state.account,
            key=state.key,
            position=state.position,
            credential=state.credentials[facts.kind],
            facts=facts,
            started_at=now,
            ramps=ramps,
            probe=probe,
            last_resort=last_resort,
        )
        state.running[id(lease)] = now
        return lease

    def _end_care(self, lease: Lease, now: float, *, good: bool) -> bool:
        """*lease* has its answer, or ends without; return whether others may go on for it."""
        ramps, lease.ramps = lease.ramps, ()
        for ramp in ramps:
            ramp.done(good=good, now=now)
        ends_probe = lease.probe and (good or not lease.answered)
        if ends_probe:
            self._members[lease.key.provider].probing = False
            if (state := self._find(lease.key)) is not None:
                state.probing = False
        return bool(ramps) or ends_probe

    # -- what does not answer

    def troubled(self, facts: RequestFacts, *, now: float) -> frozenset[AccountKey]:
        """Return the accounts that *facts* should not begin on while another can serve."""
        members = self._members.get(facts.provider)
        if members is None:
            return frozenset()
        found: frozenset[AccountKey] = frozenset()
        trouble = members.trouble
        if trouble.by_model or trouble.by_request:
            found = trouble.avoided(_what(facts), facts.model, now)
        # One account is asked then: one that has not said it yet, while there is one.
        return found | members.bare if now < members.address_limited_until else found

    def is_used_up(self, key: AccountKey, facts: RequestFacts, *, now: float) -> bool:
        """Say whether nothing is left of a long window of *key* that *facts* fall under."""
        state = self._find(key)
        if state is None or not state.headroom.spent:
            return False
        return any(
            window.long and window.share <= 0.0 and covers(window.model, facts.model)
            for window in state.headroom.at(now).windows.values()
        )

    def note_overloaded(self, lease: Lease, *, now: float) -> None:
        """The account of *lease* is overloaded for its model, or its server fails."""
        self._members[lease.key.provider].trouble.overloaded(lease.key, lease.facts.model, now)

    def note_broken(self, lease: Lease, *, now: float, of_account: bool = True) -> None:
        """The connection of *lease* broke before an answer, and its client was told.

        Unless the way is barred to every account, its conversation begins elsewhere next.
        """
        if of_account:
            self._members[lease.key.provider].trouble.left(_what(lease.facts), lease.key, now)
        if (state := self._find(lease.key)) is not None:
            state.broken += 1

    def departed(self, lease: Lease, *, now: float) -> None:
        """The client of *lease* left before its answer began.

        After a long silence its conversation begins elsewhere next; a person who stops
        waiting moves nothing.
        """
        if (state := self._find(lease.key)) is not None:
            state.departures += 1
        if self.is_silent(lease, now=now):
            self._members[lease.key.provider].trouble.left(_what(lease.facts), lease.key, now)

    def is_silent(self, lease: Lease, *, now: float) -> bool:
        """Say whether nothing of an answer to *lease* has come for much longer than is usual."""
        if lease.began_at is not None:
            return False
        silence_s = now - lease.started_at
        return silence_s > self._first_bytes.silence_s(lease.key.provider, lease.facts.model)

    # -- waiting

    def may_wait(self, facts: RequestFacts, max_waiting: int) -> bool:
        """Say whether there is room for one more request that waits."""
        return self._admission.has_room(facts.body_bytes, max_waiting)

    def wait(self, ticket: Ticket, retry_at: float | None) -> float:
        """Let *ticket* wait in its line; return when it should look again by itself.

        Args:
            retry_at: when the first account returns (`NoUsableAccount`); the first of a
                line looks then, the others when they are called or give up.
        """
        first = self._admission.join(ticket)
        ticket.look_at = ticket.give_up_at
        if first and retry_at is not None:
            ticket.look_at = min(retry_at, ticket.give_up_at)
        return ticket.look_at

    def stop_waiting(self, ticket: Ticket) -> Lease | None:
        """*ticket* leaves its line; return what it was given while it waited, if anything.

        A lease that is not taken must be released.
        """
        self._admission.leave(ticket)
        lease, ticket.lease = ticket.lease, None
        return lease

    def admit(self, provider: str, *, now: float) -> None:
        """Give those who wait what they can use now, the oldest first."""
        if provider in self._admission.waiting:
            self._admission.admit(provider, lambda ticket: self._serve(ticket, now))

    def _serve(self, ticket: Ticket, now: float) -> Lease | None:
        facts, avoid, home = ticket.facts, ticket.avoid, ticket.home
        state, chosen = None, False
        if home is not None and ticket.only is None:
            state = self.pick(facts, now=now, avoid=avoid, only=home)
        if state is None or state.is_suspect(facts.model):
            state = self.pick(facts, now=now, avoid=avoid, only=ticket.only)
            chosen = ticket.only is None
        return None if state is None else self._lease(state, facts, now, chosen=chosen)

    def _let_go_on(self, provider: str, now: float) -> None:
        """Admit whom we can; call those whose wait has become shorter, or vain."""
        if provider not in self._admission.waiting:
            return
        self.admit(provider, now=now)
        for line in self._admission.lines(provider):
            first = line[0]
            nobody = self.shortage(first.facts, now=now, avoid=first.avoid, only=first.only)
            retry_at = inf if nobody.retry_at is None else nobody.retry_at
            if retry_at < first.look_at:
                first.call()
            if nobody.may_change:
                continue
            for ticket in line:
                if ticket.give_up_at < retry_at:
                    ticket.call()

    # -- what answers teach

    def mark_cooldown(
        self,
        key: AccountKey,
        outcome: Outcome,
        *,
        now: float,
        model: str | None = None,
        started_at: float | None = None,
        probe: bool = False,
        by: By = By.ANSWER,
    ) -> Cooldown:
        """Let *key* cool as far and as long as *outcome* says. Raises UnknownAccount.

        Args:
            model: the model of the request, for outcomes whose scope is a model and
                that name none themselves. A MODEL scope without any model is believed
                for the whole account: there is nothing narrower to cool.
            started_at: when the refused attempt began; default now.
            probe: it was one we made although the account cooled.
            by: who or what says so.
        """
        state = self._state(key)
        if outcome.owner:
            self._owners.learn(key, outcome.owner)
        if outcome.shared:
            for other in self._owners.others(key):
                shared = self._state(other)
                self._cool(shared, outcome, now, model, started_at, probe=probe, by=By.OWNER)
        cooldown = self._cool(state, outcome, now, model, started_at, probe=probe, by=by)
        if not probe:
            # Nothing was sent there for long: nobody has to go elsewhere.
            self._members[key.provider].note_switch(cooldown.model, now)
        self._let_go_on(key.provider, now)
        return cooldown

    def _cool(
        self,
        state: AccountState,
        outcome: Outcome,
        now: float,
        model: str | None,
        started_at: float | None,
        *,
        probe: bool,
        by: By,
    ) -> Cooldown:
        was = AccountStanding.of(state)
        covered = (outcome.model or model) if outcome.scope is Scope.MODEL else None
        cooldown = next_cooldown(
            state.cooldowns.get(covered),
            outcome,
            model=covered,
            now=now,
            started_at=now if started_at is None else started_at,
            default_s=self.default_cooldown_s,
            chance=self._chance(),
            probe=probe,
        )
        if len(state.cooldowns) >= MAX_COOLDOWNS and covered not in state.cooldowns:
            _forget_some(state, now)
            account_events.record(self.decisions, state, was, By.ROOM, now)
            was = AccountStanding.of(state)
        state.cooldowns[covered] = cooldown
        if cooldown.cause.bare:
            self._members[state.key.provider].bare.add(state.key)
        account_events.refused(self.decisions, state, was, covered, by=by, now=now)
        state.ramps.pop(covered, None)
        self._members[state.key.provider].place(state, now)
        self.urgent = True
        self._tell(state.key)
        return cooldown

    def mark_failure(
        self,
        key: AccountKey,
        outcome: Outcome,
        *,
        now: float,
        model: str | None = None,
        credential: Credential | None = None,
        probe: bool = False,
        by: By = By.ANSWER,
    ) -> None:
        """Bench or disable *key* for a refusal that is its own fault: a witness has shown it.

        What is known of one model cools that model; what was not understood benches
        (account, *model*), and the account once a second model was refused so; anything
        else disables. Outcomes that do not blame the account change nothing. Raises
        UnknownAccount.

        Args:
            credential: the one that was refused. If the account has got another since,
                a 401 says nothing about it.
            probe: as in `mark_cooldown`.
            by: who or what says so.
        """
        state = self._state(key)
        if not is_about_account(outcome) or _is_outdated(state, outcome, credential):
            return
        _note_refused(state, outcome)
        about = covered(outcome, model)
        if outcome.unknown or outcome.scope is Scope.MODEL:
            with self._changing(state, by, now):
                state.verdicts.pop(about, None)
            # Without its name nothing is known to be missing, least of all the account.
            if about is not None:
                scope = Scope.ACCOUNT if _fails_whole(state, about, outcome) else Scope.MODEL
                benched = replace(outcome, scope=scope)
                self.mark_cooldown(key, benched, now=now, model=about, probe=probe, by=by)
            return
        with self._changing(state, by, now):
            state.verdicts.pop(about, None)
            state.disabled, state.disabled_at = Cause.of(outcome, hinted=False), now

    # -- whose fault a refusal is (`verdicts`)

    def suspect(
        self,
        lease: Lease,
        outcome: Outcome,
        *,
        now: float,
        model: str | None = None,
        by: By = By.ANSWER,
    ) -> Suspect:
        """Open a verdict on the account of *lease*: others are asked before it meanwhile.

        Args:
            model: that was asked for, if it is another than that of the request.
            by: who or what says so.
        """
        model = model or lease.facts.model
        suspect = Suspect(lease, outcome, model)
        state = self._find(lease.key)
        if state is None or _is_outdated(state, outcome, lease.credential):
            return suspect
        _note_refused(state, outcome)
        about = covered(outcome, model)
        if about is None and outcome.scope is Scope.MODEL:
            return suspect  # nobody knows which
        suspect.before = state.verdicts.get(about)
        with self._changing(state, by, now):
            state.verdicts = opened(state.verdicts, outcome, model, now)
        suspect.verdict = state.verdicts[about]
        return suspect

    def acquit(self, suspect: Suspect, *, now: float) -> None:
        """It was the request's fault: the account stands as it did before."""
        state, verdict = self._find(suspect.lease.key), suspect.verdict
        if verdict is None:
            return
        # Another request may have opened its own since, and would bring this one back.
        verdict.void = True
        if state is None or state.verdicts.get(verdict.covered) is not verdict:
            return
        with self._changing(state, By.ALL, now):
            del state.verdicts[verdict.covered]
            if suspect.before is not None and not suspect.before.void:
                state.verdicts[verdict.covered] = suspect.before

    def bench_named(self, suspect: Suspect, *, now: float) -> None:
        """Bench the account without a witness, if a code said that its credential is refused."""
        outcome, lease = suspect.outcome, suspect.lease
        if outcome.names_credential and suspect.verdict is not None:
            with suppress(UnknownAccount):
                self.mark_cooldown(
                    lease.key,
                    outcome,
                    now=now,
                    model=suspect.model,
                    started_at=lease.started_at,
                    probe=lease.probe or lease.last_resort,
                )

    def convict(self, suspect: Suspect, *, now: float) -> None:
        """Another account has served what the account refused."""
        lease = suspect.lease
        if suspect.verdict is not None:
            # It may have been removed since: then there is nothing to bench.
            with suppress(UnknownAccount):
                self.mark_failure(
                    lease.key,
                    suspect.outcome,
                    now=now,
                    model=suspect.model,
                    credential=lease.credential,
                    probe=lease.probe,
                    by=By.WITNESS,
                )

    def may_renew(self, lease: Lease, *, now: float) -> bool:
        """Say whether the credential of *lease*, which was refused, is worth renewing.

        Not one that served, or was renewed, a moment ago.
        """
        state = self._find(lease.key)
        return state is None or now >= max(state.served_at, state.refreshed_at) + FRESH_S

    def note_renewed(self, key: AccountKey, *, now: float) -> None:
        """The credential of *key* was renewed because it was refused."""
        state = self._find(key)
        if state is not None:
            state.refreshed_at = now

    def note_refused_by_all(self, facts: RequestFacts, *, now: float) -> None:
        """All accounts have refused *facts*: for a while only one is asked."""
        self._members[facts.provider].refused.note(_what(facts), now)

    def note_unknown_model(self, facts: RequestFacts, *, now: float) -> None:
        """Nobody knew the model of *facts*: for a while only one account is asked for it."""
        self._members[facts.provider].refused.note(_Model(facts.model), now)

    def cools_until(self, key: AccountKey, facts: RequestFacts, *, now: float) -> float:
        """Return until when *key* cools for *facts*; -infinity if anything else may end that.

        It may be full beside, or lack a credential.
        """
        state = self._find(key)
        if state is None or state.full or facts.kind not in state.credentials:
            return -inf
        return state.cooling_until(facts.model, now)

    def is_quiet(self, provider: str) -> bool:
        """Say whether nothing speaks against any account of *provider*, or for one to probe.

        Then nobody was tried since all refused, nobody is troubled, and no probe is due.
        """
        members = self._members.get(provider)
        return members is None or not (
            members.refused
            or members.probes
            or members.trouble.by_model
            or members.trouble.by_request
            or members.address_limited_until > -inf
        )

    def tried_since(
        self, facts: RequestFacts, *, now: float, missing_model: bool = False
    ) -> deque[AccountKey] | None:
        """Return whom *facts* were tried on since all refused them; None if they did not lately.

        Whoever tries another adds it.

        Args:
            missing_model: nobody knew their model.
        """
        members = self._members.get(facts.provider)
        if members is None or not members.refused:
            return None
        return members.refused.find(_Model(facts.model) if missing_model else _what(facts), now)

    def note_address_limited(self, provider: str, *, now: float) -> None:
        """All who were asked said 429 without evidence: it is taken for the address's limit."""
        members = self._members[provider]
        members.address_limited_at = now
        members.address_limited_until = now + ADDRESS_LIMITED_S

    def is_address_limited(self, provider: str, *, now: float) -> bool:
        """Say whether a 429 without evidence is taken for the address's limit now."""
        members = self._members.get(provider)
        return members is not None and now < members.address_limited_until

    # -- what else answers tell

    def is_alone(self, key: AccountKey) -> bool:
        """Say whether *key* is the only account of its provider, or was until it was removed."""
        members = self._members.get(key.provider)
        return members is None or members.by_label.keys() <= {key.label}

    def learn_owner(self, key: AccountKey, owner: str) -> None:
        """Note whose limits *key* runs into; its owner's other accounts share them."""
        if self._find(key) is not None:
            self._owners.learn(key, owner)
            self.dirty.add(key)

    def owner_of(self, key: AccountKey) -> str | None:
        """Return the owner answers named for *key*, None if none did."""
        return self._owners.of(key)

    def observe_headroom(
        self,
        key: AccountKey,
        windows: Iterable[Window],
        *,
        now: float,
        lease: Lease | None = None,
    ) -> None:
        """Note what *key* has left: an answer has told of *windows*. Raises UnknownAccount.

        Args:
            lease: of the request that was answered. If the account has got another
                credential since, was removed, or is another one of this name, nothing is
                learnt.
        """
        state = self._state(key) if lease is None else self._find(key)
        if state is None:
            return
        if lease is not None and (
            lease.position != state.position or lease.started_at < state.renewed_at
        ):
            return
        members = self._members[key.provider]
        if state.headroom.changes_at <= now:
            members.reset(state, now)
        was, state.headroom = state.headroom, state.headroom.updated(windows, now)
        kept = self._reserve(state, now)
        # Told by every answer; mostly it changes nobody's place.
        if kept or members.policy.by_headroom or was.spent or state.headroom.spent:
            members.place(state, now)
        self.dirty.add(key)

    def clear_cooldown(self, key: AccountKey, *, now: float) -> list[Cooldown]:
        """End every cooldown and disabling of *key* by hand; return the cooldowns ended.

        Raises UnknownAccount.
        """
        state = self._state(key)
        ended = [c for c in state.cooldowns.values() if c.active(now)]
        members = self._members[key.provider]
        members.refused.clear()
        members.bare.discard(key)
        with self._changing(state, By.HAND, now):
            state.cooldowns, state.ramps, state.verdicts, state.disabled = {}, {}, {}, None
            # Who says that it serves knows better than its last answer.
            state.headroom, state.reserved, state.untold_at = UNKNOWN, (), now
        return ended

    def next(self, provider: str, *, now: float) -> AccountKey | None:
        """Pass over the account that would be chosen now; return who comes then.

        None when nobody is available. With round-robin this ends the account's turn;
        with the others it ranks behind its tier until it is given a request again, which
        happens when no other can serve or all have been passed over since.
        """
        members = self._members.get(provider)
        if members is None:
            return None
        members.wake(now)
        first = next(members.policy.ranked(), None)
        if first is None:
            return None
        members.policy.skipped(first)
        first.passed_over = next(self._sequence)
        members.place(first, now)
        chosen = next(members.policy.ranked(), None)
        return chosen.key if chosen else None

    def enable(self, key: AccountKey, *, now: float) -> None:
        """End the disabling of *key* by hand, and its benches; limits stay.

        Raises UnknownAccount.
        """
        state = self._state(key)
        self._members[key.provider].refused.clear()
        with self._changing(state, By.HAND, now):
            state.verdicts, state.disabled = {}, None
            state.cooldowns = {m: c for m, c in state.cooldowns.items() if not c.cause.benches}

    # -- over a restart

    def snapshot(
        self, keys: Iterable[AccountKey] | None = None, *, now: float, wall_now: float
    ) -> PoolSnapshot:
        """Return what is to be kept of the accounts *keys*, those that are here; None: of all.

        Args:
            wall_now: *now* in seconds since the epoch: what is kept outlives our clock.
        """
        wanted = [state.key for state in self.accounts()] if keys is None else keys
        states = [state for key in wanted if (state := self._find(key)) is not None]
        return PoolSnapshot(
            accounts=tuple(
                snapshot.of_state(state, self._owners.of(state.key), wall_now - now)
                for state in states
            ),
            wall_at=wall_now,
        )

    def restore(
        self, kept: PoolSnapshot, *, now: float, wall_now: float, by: By = By.RESTART
    ) -> None:
        """Put the accounts of *kept* back into the state they were in; others are ignored.

        Leases, credentials and what their owner wrote stay as they are.

        Args:
            by: who or what kept it.
        """
        behind = snapshot.behind(kept, wall_now) - now
        for account in kept.accounts:
            state = self._find(account.key)
            if state is None:
                continue
            self._owners.forget(account.key)
            if account.owner is not None:
                self._owners.learn(account.key, account.owner)
            was = AccountStanding.of(state)
            snapshot.into_state(account, state, behind, now)
            self._reserve(state, now)
            account_events.record(self.decisions, state, was, by, now)
            self._members[account.key.provider].place(state, now)
            self._changed(account.key, now)

    # -- questions

    def shortage(
        self,
        facts: RequestFacts,
        *,
        now: float,
        avoid: Collection[AccountKey] = (),
        only: AccountKey | None = None,
    ) -> NoUsableAccount:
        """Say why nobody serves *facts* now, and who returns when. Looks at every account.

        *only*: at this one alone.
        """
        members = self._members.get(facts.provider)
        by_label = members.by_label if members else {}
        asked = by_label if only is None else {only.label} & by_label.keys()
        return shortage((by_label[label] for label in asked), facts, now=now, avoid=avoid)

    def summary(self, provider: str | None = None, *, now: float) -> dict[str, int]:
        """Count accounts: total, available, cooling_down, disabled, in_flight.

        `available` can be given a request now; `cooling_down` cools as a whole. An
        account that does neither and is not disabled is full, between two starts
        (min_interval) or without a credential.
        """
        states = list(self.accounts(provider))
        cooling = [s for s in states if s.enabled and s.cooling_until(None, now) > now]
        available = sum(
            s.enabled
            and bool(s.credentials)
            and not s.full
            and s.next_start_at <= now
            and s.cooling_until(None, now) <= now
            for s in states
        )
        return {
            "total": len(states),
            "available": available,
            "cooling_down": len(cooling),
            "disabled": sum(not s.enabled for s in states),
            "in_flight": sum(s.in_flight for s in states),
        }

    def health(self) -> dict[str, int]:
        """Return size (accounts) and busy (accounts with a request in flight)."""
        states = list(self.accounts())
        return {"size": len(states), "busy": sum(s.in_flight > 0 for s in states)}

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call *listener* after every change of an account, but for turns and headroom.

        Returns the function that ends it.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # -- inside

    def _learn(self, state: AccountState, outcome: Outcome, lease: Lease, now: float) -> bool:
        """Learn from *outcome*; say whether *state* has got its place for it, and all know."""
        model = lease.facts.model
        if outcome.cls is OutcomeClass.OK:
            state.served += 1
        elif is_about_account(outcome):
            self.suspect(lease, outcome, now=now)
        elif outcome.cls in _COOLING:
            self.mark_cooldown(
                state.key,
                outcome,
                now=now,
                model=model,
                started_at=lease.started_at,
                probe=lease.probe or lease.last_resort,
            )
            return True
        return False

    def _reserve(self, state: AccountState, now: float) -> bool:
        """Work out anew what the reserve of *state* keeps back; say if it has or had any."""
        was = state.reserved
        if not (was or state.account.reserve):
            return False
        state.reserved = reserved(state.account.reserve, state.headroom, now)
        account_events.reserved(self.decisions, state, was, now)
        return bool(was or state.reserved)

    def _window_reset(self, key: AccountKey, window: Window) -> None:
        self.on_reset(key, window)

    def _clear_disproved(self, state: AccountState, lease: Lease, now: float) -> None:
        """End the cooldowns and verdicts that the good answer to *lease* disproves.

        Only what began before this attempt: a success that was already under way when the
        limit hit says nothing about the limit.
        """
        started_at, model = lease.started_at, lease.facts.model
        was = AccountStanding.of(state)
        state.cooldowns = {
            covered: c
            for covered, c in state.cooldowns.items()
            if c.overtook(started_at) or not c.covers(model)
        }
        state.verdicts = {
            covered: v
            for covered, v in state.verdicts.items()
            if started_at < v.since or not covers(covered, model)
        }
        by = By.PROBE if lease.probe else By.SUCCESS
        account_events.record(self.decisions, state, was, by, now)
        self._members[state.key.provider].place(state, now)

    def _find(self, key: AccountKey) -> AccountState | None:
        members = self._members.get(key.provider)
        return members.by_label.get(key.label) if members else None

    def _state(self, key: AccountKey) -> AccountState:
        state = self._find(key)
        if state is None:
            raise UnknownAccount(key, [str(s.key) for s in self.accounts()])
        return state

    @contextmanager
    def _changing(self, state: AccountState, by: By, now: float) -> Iterator[None]:
        """Record what *state* becomes, because of *by*, and put it where it belongs then."""
        was = AccountStanding.of(state)
        yield
        account_events.record(self.decisions, state, was, by, now)
        self.urgent = True
        self._members[state.key.provider].place(state, now)
        self._changed(state.key, now)

    def _changed(self, key: AccountKey, now: float) -> None:
        """Something about *key* may let waiting requests go on."""
        self._tell(key)
        if key.provider in self._admission.waiting:
            self._let_go_on(key.provider, now)

    def _tell(self, key: AccountKey) -> None:
        self.dirty.add(key)
        for listener in tuple(self._listeners):
            listener()


def _what(facts: RequestFacts) -> Hashable:
    """Return what tells a request that all refused from others."""
    session = facts.conversation.session
    return session or facts.path, facts.model, session is None


class _Model(NamedTuple):
    """A model that nobody has, in whatever request."""

    name: str | None


def _is_401(cause: Cause | Outcome) -> bool:
    return cause.cls in _BY_401


def _is_outdated(state: AccountState, outcome: Outcome, credential: Credential | None) -> bool:
    """Say whether *outcome* is about a credential that *state* does not have any more."""
    held = state.credentials.values()
    return _is_401(outcome) and credential is not None and credential not in held


def _note_refused(state: AccountState, outcome: Outcome) -> None:
    """Remember which credentials a 401 was about: others end what it leads to."""
    if _is_401(outcome):
        state.refused = fingerprint(state.credentials)


def _fails_whole(state: AccountState, about: str, outcome: Outcome) -> bool:
    """Say whether *outcome*, which was not understood, is the second of its kind in a row.

    It was refused for another model than *about*, and has not served since.
    """
    return outcome.unknown and any(
        c.cause.benches and c.cause.unknown and c.model != about and c.since > state.served_at
        for c in state.cooldowns.values()
    )


def _forget_some(state: AccountState, now: float) -> None:
    """Drop what is over, or else the model that returns first."""
    kept = {model: c for model, c in state.cooldowns.items() if model is None or c.active(now)}
    if len(kept) >= MAX_COOLDOWNS:
        soonest = min((c for c in kept.values() if c.model is not None), key=lambda c: c.until)
        del kept[soonest.model]
    state.cooldowns = kept
