"""The pool: who serves a request. Selecting accounts, leasing them, and waiting for them.

An account is *ready* when it is enabled, holds a credential, does not cool as a whole,
is not full and may start a request (min_interval). Ready accounts stand in the
selection policy, those whose place will change with time have an alarm, the rest stand
nowhere (`members`), so a choice costs the same with three accounts and with ten thousand.
One that takes over from a limited account, or returns, is given requests one by one
(`state.Ramp`). Requests that cannot be served wait in a line (`lease`).

Times are monotonic seconds and passed in; chance is passed in. Not thread-safe: one event
loop calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from itertools import count
from math import inf

from account_pool.core.account import AccountKey
from account_pool.core.accounts import Accounts
from account_pool.core.errors import LeaseAlreadyReturned, NoUsableAccount
from account_pool.core.headroom import Window
from account_pool.core.health import PassiveHealth
from account_pool.core.lease import Admission, Lease, RequestFacts, Ticket, shortage
from account_pool.core.members import Members, RecentFailures
from account_pool.core.outcome import Outcome, OutcomeClass
from account_pool.core.selection import has_few_left
from account_pool.core.state import AccountState

#: Accounts without a permit that are passed over for one that needs none.
MAX_HELD = 64
#: Accounts with few requests left that are passed over for one that has room.
MAX_SHORT = 8
#: Why nobody could serve is remembered for so many kinds of requests.
MAX_SHORTAGES = 64


class Pool:
    """Leases accounts to requests.

    Args:
        strategy: name of a selection policy (`selection.POLICIES`).
        default_cooldown_s: cooldown when no reset is named (`pool_cooldown`).
        chance: returns a number from 0 to 1; adds a little jitter to deadlines.

    Attributes:
        accounts: the accounts of all providers.
        health: what responses teach about them.
        decisions: what was decided, and why.
        admission: who waits for an account.
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
        self.admission = Admission()
        self.accounts = Accounts(strategy, chance)
        self.accounts.on_change = self.accounts.permits.on_change = self._let_go_on
        self.accounts.on_removal = self.admission.call_all
        self.decisions = self.accounts.decisions
        self.health = PassiveHealth(
            accounts=self.accounts, default_cooldown_s=default_cooldown_s, chance=chance
        )
        self.seek: Callable[[str], bool] = lambda _provider: False
        self._members = self.accounts.members
        self._sequence = count(1)

    def __repr__(self) -> str:
        parts = [
            f"{provider}: {len(m.by_label)} accounts, "
            f"{sum(s.in_flight for s in m.by_label.values())} in flight"
            for provider, m in self._members.items()
            if m.by_label
        ]
        return f"<Pool {' | '.join(parts) or 'empty'}>"

    # -- choosing

    def pick(
        self,
        facts: RequestFacts,
        *,
        now: float,
        avoid: Collection[AccountKey] = (),
        only: AccountKey | None = None,
        heed_ramps: bool = True,
    ) -> AccountState | None:
        """Return the account that would serve *facts* now, or None. Changes no turn.

        Args:
            only: no other will do.
            heed_ramps: leave alone accounts that have as many requests as they may.
        """
        members = self._members[facts.provider]
        if members.alarms:
            members.wake(now)
        model, kind = facts.model, facts.kind
        ranked = members.policy.ranked_for(model, now)
        if only is not None:
            one = members.by_label.get(only.label)
            ranked = iter((one,) if one is not None and one.is_ready(model, now) else ())
        short: list[AccountState] = []
        held = 0
        for state in ranked:
            # What is left to ask depends on the request. Accounts whose ramps are full are
            # walked past: they are no more than there are requests without an answer.
            if (
                kind in state.credentials
                and (not (models := state.account.models).globs or models.allows(model))
                and state.key not in avoid
            ):
                if state.ramps and heed_ramps and not state.ramps_admit(model, now):
                    if self.accounts.permits.proxies > 1:
                        held += self.accounts.permits.want(state, model, now, ask=not held)
                        if held > MAX_HELD:
                            return state
                    continue
                # Whoever is about to reach a limit gets no more while another has room, so that
                # what is in flight then is not refused.
                if not (state.headroom.windows and has_few_left(state, model, now)):
                    return state
                short.append(state)
                if only is not None or len(short) == MAX_SHORT:
                    break
        return short[0] if short else None

    def shortage(
        self,
        facts: RequestFacts,
        *,
        now: float,
        avoid: Collection[AccountKey] = (),
        only: AccountKey | None = None,
    ) -> NoUsableAccount:
        """Say why nobody serves *facts* now, and who returns when. Looks at every account.

        Until something changes: where nobody can serve, many ask, and ask again.

        *only*: at this one alone.
        """
        members = self._members[facts.provider]
        one = None if only is None else members.by_label.get(only.label)
        asked = members.by_label.values() if only is None else (one,) if one else ()
        if self.accounts.sharing:
            for state in asked:
                if state.full and state.account.models.allows(facts.model):
                    self.accounts.note_share_used(state, starved=True)
        if only is not None:
            error = shortage(asked, facts, now=now, avoid=avoid).error()
            if only == facts.only:  # else it is where the request is best served
                error.reason += f", as only {only} may serve this"
            return error
        what = facts.model, facts.kind, frozenset(avoid)
        known = members.shortages.get(what)
        if known is None or now >= known.holds_until:
            if len(members.shortages) >= MAX_SHORTAGES:
                members.shortages.clear()
            known = shortage(asked, facts, now=now, avoid=avoid)
            members.shortages[what] = known
        return known.error()

    def next(self, provider: str, *, now: float) -> AccountKey | None:
        """Pass over the account that would be chosen now; return who comes then.

        None when nobody is available. With round-robin this ends the account's turn;
        with the others it ranks behind its tier until it is given a request again, which
        happens when no other can serve or all have been passed over since.
        """
        members = self._members[provider]
        members.wake(now)
        first = next(members.policy.ranked(), None)
        if first is None:
            return None
        members.policy.skipped(first)
        first.passed_over = next(self._sequence)
        members.place(first, now)
        chosen = next(members.policy.ranked(), None)
        return chosen.key if chosen else None

    # -- leases

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
        if only is None:
            self._members[facts.provider].policy.chosen(state)
        return self._lease(state, facts, now)

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
        state = self.pick(facts, now=now, avoid=avoid, only=only, heed_ramps=False)
        members = self._members[facts.provider]
        if state is not None:
            if only is None:
                members.policy.chosen(state)
            return self._lease(state, facts, now)
        nobody = self.shortage(facts, now=now, avoid=avoid, only=only)
        if nobody.last_resort is not None and (first or nobody.retry_at is None):
            state = members.by_label[nobody.last_resort.label]
            return self._lease(state, facts, now, last_resort=True)
        if members.probing or nobody.soonest is None:
            return None
        state = members.by_label[nobody.soonest.label]
        if not state.may_be_probed(facts.model, now, soon_s):
            return None
        members.probing = True
        self._note_probe(state, facts.model, now)
        return self._lease(state, facts, now, probe=True)

    def acquire_probe(self, facts: RequestFacts, *, now: float) -> Lease | None:
        """Hold an account to see if it really cools so long; None where there is none to probe.

        Only while another account can serve *facts*: a refusal is replayed there. For requests
        that begin a conversation, can be sent again, and are short.
        """
        members = self._members[facts.provider]
        if not members.probes:
            return None
        for state in members.due(facts.model, now):
            if facts.kind not in state.credentials:
                continue
            if not state.account.models.allows(facts.model):
                continue
            if self.pick(facts, now=now, avoid=(state.key,)) is None:
                return None
            if not self.accounts.permits.may_probe(state, now):
                continue
            state.probing = True
            self._note_probe(state, facts.model, now)
            return self._lease(state, facts, now, probe=True)
        return None

    def _note_probe(self, state: AccountState, model: str | None, now: float) -> None:
        state.note_probe(model, now)
        if self.accounts.permits.proxies > 1:
            self.accounts.on_urgent()  # others would ask it as well

    def renew(self, lease: Lease, *, now: float) -> Lease | None:
        """Swap *lease* for one on the same account with the credential it holds now.

        It keeps its place among the requests in flight, and is no new turn. None when
        the account is gone, disabled, cooling or holds no credential of the kind. *lease*
        is returned either way, or LeaseAlreadyReturned is raised.
        """
        facts, state = lease.facts, lease.state
        if (
            lease.returned
            or state.removed
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
        renewed = self._start(state, facts, now, probe=lease.probe, last_resort=lease.last_resort)
        renewed.ramps = ramps
        return renewed

    def answered(self, lease: Lease, *, now: float) -> None:
        """The response to *lease* is good and begins: what it proves is believed at once.

        It may stream for minutes, while the lease counts in flight.
        """
        if lease.returned or lease.answered:
            return
        lease.answered = True
        others_may_go = bool(lease.ramps or lease.probe) and self._end_care(lease, now, good=True)
        state = lease.state
        if state.removed:
            return
        members = self._members[lease.key.provider]
        failures, model = members.failures, lease.facts.model
        began_at = now if lease.began_at is None else lease.began_at
        first_bytes = failures.first_bytes.get(model) or failures.new_samples(model)
        first_bytes.append(began_at - lease.started_at)
        if failures.refused or failures.by_request or failures.address_limited_until > -inf:
            failures.served(lease)
        if lease.epoch == state.epoch:
            state.served_at = now
            if state.cooldowns or state.verdicts:
                failures.bare.discard(state.key)
                self.health.disprove(lease, now)
            if state.doubtful:
                state.doubtful, state.problem = False, None
                members.place(state, now)
                others_may_go = True
        if others_may_go and lease.key.provider in self.admission.waiting:
            self._let_go_on(lease.key.provider, now)

    def release(self, lease: Lease, outcome: Outcome | None, *, now: float) -> None:
        """Give *lease* back and learn from its *outcome* (None: it says nothing).

        Raises LeaseAlreadyReturned the second time.
        """
        if lease.returned:
            raise LeaseAlreadyReturned(f"the lease on {lease.key} was returned before")
        is_good = outcome is not None and outcome.cls is OutcomeClass.OK
        if is_good and not lease.answered:
            self.answered(lease, now=now)
        lease.returned = True
        if lease.ramps or lease.probe:
            self._end_care(lease, now, good=False)
        state = lease.state
        if state.removed:
            return
        if state.in_flight > state.share:
            self.accounts.note_share_used(state)  # another waits for it
        state.in_flight -= 1
        state.running.pop(id(lease), None)
        if is_good:
            state.served += lease.epoch == state.epoch
        elif outcome is not None and self.health.learn(lease, outcome, now=now):
            return
        provider = lease.key.provider
        self._place(state, self._members[provider], now)
        # `Accounts.mark_dirty`, without a call: each request comes here.
        self.accounts.dirty.add(lease.key)
        self.accounts.on_dirty()
        if provider in self.admission.waiting:
            self._let_go_on(provider, now)

    def observe_headroom(
        self,
        key: AccountKey,
        windows: Iterable[Window],
        *,
        now: float,
        lease: Lease | None = None,
    ) -> None:
        """Note what *key* has left: a response has told of *windows*. Raises UnknownAccount.

        Args:
            lease: of the request that was answered. If the account has got another
                credential since, was removed, or is another one of this name, nothing is
                learnt.
        """
        state = self.accounts.get(key) if lease is None else lease.state
        if lease is not None and lease.epoch != lease.state.epoch:
            return
        members = self._members[key.provider]
        if state.headroom.changes_at <= now and (over := state.headroom.resets(now)):
            members.note_resets(state, over)
        was, state.headroom = state.headroom, state.headroom.updated(windows, now)
        kept = bool(state.reserved or state.account.reserve)
        if kept:
            self.accounts.update_reserve(state, now)
        # Reported by every response; mostly no account changes its place for it.
        if kept or members.policy.by_headroom or was.spent or state.headroom.spent:
            members.place(state, now)
        self.accounts.dirty.add(key)

    def _lease(
        self,
        state: AccountState,
        facts: RequestFacts,
        now: float,
        *,
        probe: bool = False,
        last_resort: bool = False,
    ) -> Lease:
        members = self._members[facts.provider]
        state.in_flight += 1
        self.accounts.dirty.add(state.key)
        state.last_used, state.asked_at = next(self._sequence), now
        # It ranks with its tier again.
        moved, state.passed_over = state.passed_over > 0, 0
        lease = self._start(state, facts, now, probe=probe, last_resort=last_resort)
        if state.cooldowns or state.ramps or members.switched:
            lease.ramps = state.count_in(facts.model, members.switched, now)
        if moved:
            members.place(state, now)
        return lease

    def _start(
        self,
        state: AccountState,
        facts: RequestFacts,
        now: float,
        *,
        probe: bool,
        last_resort: bool,
    ) -> Lease:
        """Note the start of a request on *state*, which counts it in flight already."""
        members = self._members[facts.provider]
        if state.account.min_interval_s:
            state.next_start_at = now + state.account.min_interval_s * self.accounts.proxies
        self._place(state, members, now)
        if state.account.max_concurrent is not None and state.full:
            self.accounts.note_share_used(state)
        lease = Lease(
            account=state.account,
            key=state.key,
            state=state,
            credential=state.credentials[facts.kind],
            facts=facts,
            started_at=now,
            epoch=state.epoch,
            probe=probe,
            last_resort=last_resort,
        )
        state.running[id(lease)] = now
        return lease

    def _place(self, state: AccountState, members: Members, now: float) -> None:
        """Put *state* where it belongs after a request began or ended, if that may be elsewhere.

        Mostly it is not: nothing speaks against it, and its rank does not depend on requests.
        Why nobody could serve is another matter then, where that is remembered.
        """
        account = state.account
        if (
            state.rank is None
            or members.policy.by_use
            or account.max_concurrent is not None
            or account.min_interval_s
            or state.cooldowns
            or state.verdicts
            or state.reserved
            or state.headroom.spent_changes_at <= now
            or (state.headroom.changes_at <= now and state.headroom.resets(now))
            or members.shortages
        ):
            members.place(state, now)

    def _end_care(self, lease: Lease, now: float, *, good: bool) -> bool:
        """*lease* has its response, or ends without; return whether others may go on for it."""
        ramps, lease.ramps = lease.ramps, ()
        for ramp in ramps:
            ramp.done(good=good, now=now)
            self._members[lease.key.provider].shortages.clear()
        ends_probe = lease.probe and (good or not lease.answered)
        if ends_probe:
            self._members[lease.key.provider].probing = lease.state.probing = False
        return bool(ramps) or ends_probe

    # -- what it knows of one request

    def failures(self, provider: str) -> RecentFailures:
        """Return what requests to *provider* have lately met."""
        return self._members[provider].failures

    def is_quiet(self, provider: str) -> bool:
        """Say whether nothing speaks against any account of *provider*, or for one to probe.

        Then nobody was tried since all refused, nobody is troubled, and no probe is due.
        """
        members = self._members[provider]
        failures = members.failures
        return not (
            members.probes
            or failures.refused
            or failures.by_model
            or failures.by_request
            or failures.address_limited_until > -inf
        )

    # -- waiting

    def admit(self, provider: str, *, now: float) -> None:
        """Give those who wait what they can use now, the oldest first."""
        if provider in self.admission.waiting:
            self.admission.admit(provider, lambda ticket: self._serve(ticket, now))

    def _serve(self, ticket: Ticket, now: float) -> Lease | None:
        facts, avoid, home = ticket.facts, ticket.avoid, ticket.home
        state = None
        if home is not None and ticket.only is None:
            state = self.pick(facts, now=now, avoid=avoid, only=home)
        if state is None or state.is_suspect(facts.model):
            state = self.pick(facts, now=now, avoid=avoid, only=ticket.only)
            if state is not None and ticket.only is None:
                self._members[facts.provider].policy.chosen(state)
        return None if state is None else self._lease(state, facts, now)

    def _let_go_on(self, provider: str, now: float) -> None:
        """Admit whom we can; call those whose wait has become shorter, or vain."""
        if provider not in self.admission.waiting:
            return
        self.admit(provider, now=now)
        for line in self.admission.lines(provider):
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
