"""Ways to spread requests over accounts: three naive ones, and the real core."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import assert_never

from account_pool.core import reactions
from account_pool.core.account import Account
from account_pool.core.attempts import Attempts
from account_pool.core.credential import Credential, Secret
from account_pool.core.lease import Conversation, RequestFacts
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.pool import Pool
from account_pool.core.sessions import Pins, Sessions, session_lease_of
from account_pool.core.steps import Deliver, Limits, Refresh, Send, Step, Synthesize, Wait
from benchmarks.storm.clock import Clock
from benchmarks.storm.fleet import (
    ANSWERED_S,
    REFUSED_S,
    SLEEP_S,
    STREAMED_S,
    ScriptedAccount,
    Served,
    Told,
)

_PROVIDER = "openai"


class Naive:
    """Asks one account after the other until one answers; remembers no limit.

    Args:
        choose: returns the account to ask first, given the number of the request; None:
            all ask the same one until it refuses, then all ask the next.
    """

    def __init__(
        self,
        clock: Clock,
        chance: Random,
        accounts: list[ScriptedAccount],
        choose: Callable[[int], int] | None,
    ) -> None:
        self._clock, self._chance, self._accounts = clock, chance, accounts
        self._choose = choose
        self._asked = 0
        self._current = 0

    def ask(self, conversation: int, served: Served, told: Told) -> None:
        self._asked += 1
        first = self._current if self._choose is None else self._choose(self._asked)
        self._try(first, len(self._accounts), served, told)

    def _try(self, at: int, left: int, served: Served, told: Told) -> None:
        clock, account = self._clock, self._accounts[at % len(self._accounts)]
        refusal = account.ask(clock.now)
        sent_at = clock.now
        if refusal is None:
            takes_s = self._chance.uniform(*ANSWERED_S) + self._chance.uniform(*STREAMED_S)
            clock.after(takes_s, lambda: served(account.name, sent_at))
            return

        def refused() -> None:
            if self._choose is None and self._current == at:
                self._current = (at + 1) % len(self._accounts)
            if left == 1:
                told(refusal[0])
            elif self._choose is None:
                self._try(self._current, left - 1, served, told)
            else:
                self._try(at + 1, left - 1, served, told)

        clock.after(self._chance.uniform(*REFUSED_S), refused)


class Pooled:
    """The real core, driven as the proxy drives it."""

    def __init__(
        self, clock: Clock, chance: Random, accounts: list[ScriptedAccount], strategy: str
    ) -> None:
        self._clock, self._chance = clock, chance
        self._accounts = {account.name: account for account in accounts}
        self.pool = Pool(strategy=strategy, chance=chance.random)
        self._sessions, self._pins = Sessions(), Pins()
        for account in accounts:
            credential = Credential(kind="key", secret=Secret(f"sk-fake-{account.name}"))
            added = Account(provider=_PROVIDER, label=account.name)
            self.pool.accounts.add(added, {"key": credential}, now=0.0)

    def ask(self, conversation: int, served: Served, told: Told) -> None:
        facts = RequestFacts(
            provider=_PROVIDER,
            kind="key",
            model="model",
            conversation=Conversation(session=f"conversation-{conversation}"),
        )
        now = self._clock.now
        attempts = Attempts(
            pool=self.pool,
            facts=facts,
            limits=Limits(),
            chance=self._chance.random,
            session=session_lease_of(facts, self._sessions, self._pins, now),
        )
        self._perform(attempts, attempts.begin(now), served, told)

    def _perform(self, attempts: Attempts, step: Step, served: Served, told: Told) -> None:
        match step:
            case Send():
                self._send(attempts, step, served, told)
            case Wait():
                self._wait(attempts, step, served, told)
            case Deliver() | Synthesize():
                told(SLEEP_S[1] if step.retry_after_s is None else step.retry_after_s)
            case Refresh():
                raise AssertionError("credentials are not refused here")
            case _:
                assert_never(step)

    def _send(self, attempts: Attempts, step: Send, served: Served, told: Told) -> None:
        clock, name, sent_at = self._clock, step.lease.key.label, self._clock.now
        refusal = self._accounts[name].ask(sent_at)

        def refused() -> None:
            assert refusal is not None
            wait_s, long = refusal
            outcome = Outcome(
                cls=OutcomeClass.QUOTA if long else OutcomeClass.RATE_LIMIT,
                scope=Scope.ACCOUNT,
                cooldown_s=max(wait_s - (clock.now - sent_at), 0.0),
                replayable=True,
            )
            self._perform(attempts, reactions.refused(attempts, outcome, clock.now), served, told)

        def committed() -> None:
            attempts.committed(clock.now)
            clock.after(self._chance.uniform(*STREAMED_S), finished)

        def finished() -> None:
            attempts.finished(clock.now)
            served(name, sent_at)

        if refusal is None:
            clock.after(self._chance.uniform(*ANSWERED_S), committed)
        else:
            clock.after(self._chance.uniform(*REFUSED_S), refused)

    def _wait(self, attempts: Attempts, step: Wait, served: Served, told: Told) -> None:
        over = False

        def resume() -> None:
            nonlocal over
            if not over:
                over = True
                self._perform(attempts, attempts.resumed(self._clock.now), served, told)

        if step.ticket is not None:
            step.ticket.when_called(lambda: self._clock.after(0.0, resume))
        self._clock.at(step.until, resume)
