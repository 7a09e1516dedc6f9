"""Records what became of a request: where it moved, how long it was held, why it ended.

An ordinary request that is sent, answered, or refused through its own fault involves no
decision of ours and has no record. Decides nothing: `attempts.py` does, and calls this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from msgspec import Struct

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import AccountVerdict, Cooldown
from account_pool.core.decisions import By, Decision, Kind, session_hash
from account_pool.core.errors import NoUsableAccount
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import Cause, Outcome, OutcomeClass
from account_pool.core.pool import Pool
from account_pool.core.steps import Attempt, Deliver, Refresh, Send, Step, Synthesize, Wait

#: Why a WebSocket is closed after its account reported a limit: another account can serve.
CLOSED = "closed so that its client opens another"
#: Why a refused request is not sent to another account although one could serve it.
NOT_KEPT = "not replayed: its body was streamed, not kept (over 64 MiB, or by another addon)"


class RequestEvents(Struct, eq=False):
    """Records the decisions about one request.

    Attributes:
        pool, facts: the pool that keeps the records, and the request.
        wait: number of the record of its current wait, None if it is not held.
    """

    pool: Pool
    facts: RequestFacts
    wait: int | None = None

    def decided(
        self,
        step: Step,
        history: Sequence[Attempt],
        nobody: NoUsableAccount | None,
        now: float,
        *,
        left: AccountKey | None,
        kept: bool,
    ) -> None:
        """Record what *step* decides.

        Args:
            history: its attempts; where it is sent, the last one is the one that begins.
            nobody: why nobody could serve it when that was asked last.
            left: where its conversation lived, which is taken elsewhere.
            kept: its body was kept, so that it could have been sent again.
        """
        last = history[-1] if history else None
        match step:
            case Send(lease):
                refused = history[-2] if len(history) > 1 else None
                came_from = refused.key if refused else left
                if came_from is not None:
                    self.sent(came_from, lease.key, refused.outcome if refused else None, now)
            case Wait():
                self.held(step, last, nobody, now)
            case Deliver() | Synthesize():
                self.given_up(step, last, nobody, now, kept=kept)
            case Refresh():
                pass
            case _:
                assert_never(step)

    def sent(
        self, came_from: AccountKey, to: AccountKey, refusal: Outcome | None, now: float
    ) -> None:
        """Record that the request, meant for *came_from*, goes to *to*.

        Args:
            refusal: how *came_from* refused it; None if it was not asked, because it cannot
                serve now.
        """
        kind = Kind.RETRY if to == came_from else Kind.MOVE
        if kind is Kind.RETRY and refusal is not None and refusal.cls is OutcomeClass.TRANSPORT:
            return  # a connection, not an account
        reason = "" if refusal is not None else self._why_not(came_from, now)
        self._record(kind, came_from, refusal, reason, now, to=to)

    def held(
        self, step: Wait, last: Attempt | None, nobody: NoUsableAccount | None, now: float
    ) -> None:
        """Record that it waits: to ask the last account again, or for any account."""
        if self.wait is not None:
            return
        until = step.until if step.ticket is None else step.ticket.give_up_at
        account = last.key if last else nobody.soonest if nobody else None
        reason = nobody.reason if nobody else ""
        refusal = last.outcome if last else None
        self.wait = self._record(Kind.WAIT, account, refusal, reason, now, until=until).number

    def probed(self, account: AccountKey, now: float) -> None:
        """Record that it probes *account*, which is on cooldown: no other account can serve."""
        self._record(Kind.PROBE, account, None, "", now)

    def silent(self, account: AccountKey, waited_s: float, now: float) -> None:
        """Record that *account* is silent while another is idle. It may run, so it stays."""
        reason = f"no answer for {waited_s:.0f} s while another account is idle; it may still run"
        self._record(Kind.SILENCE, account, None, reason, now)

    def wait_ended(self, by: By, now: float) -> None:
        """Record that its wait, if it is held, has ended because of *by*."""
        if self.wait is not None:
            self.pool.decisions.end(self.wait, by, now)
            self.wait = None

    def given_up(
        self,
        step: Deliver | Synthesize,
        last: Attempt | None,
        nobody: NoUsableAccount | None,
        now: float,
        *,
        kept: bool = True,
    ) -> None:
        """Record that its client gets a refusal, unless that is the request's own fault.

        Args:
            kept: its body was kept, so that it could have been sent again.
        """
        refusal = last.outcome if last else None
        if refusal is not None and refusal.cls is OutcomeClass.REQUEST_ERROR:
            return
        account = last.key if last else nobody.soonest if nobody else None
        reason = nobody.reason if nobody else ""
        if not reason and isinstance(step, Synthesize):
            reason = step.reason or step.message
        if not (reason or kept) and refusal is not None and refusal.replayable:
            reason = NOT_KEPT
        self._record(Kind.REFUSAL, account, refusal, reason, now, told_s=step.retry_after_s)

    def refused_inside(
        self, account: AccountKey, refusal: Outcome, now: float, *, closes: bool
    ) -> None:
        """Record a *refusal* inside its WebSocket, which we close because of it, or not."""
        reason = CLOSED if closes else ""
        self._record(Kind.REFUSAL, account, refusal, reason, now, by=By.SOCKET)

    def _record(
        self,
        kind: Kind,
        account: AccountKey | None,
        refusal: Outcome | None,
        reason: str,
        now: float,
        *,
        by: By | None = None,
        to: AccountKey | None = None,
        until: float | None = None,
        told_s: float | None = None,
    ) -> Decision:
        cooldown, disabled, verdict = self._standing(account, now)
        cause = (
            None if refusal is None else Cause.of(refusal, hinted=refusal.cooldown_s is not None)
        )
        effect: Kind | None = None
        lasting: Cooldown | AccountVerdict | None = None
        if disabled:
            effect = Kind.DISABLE
        elif cooldown:
            effect, lasting = Kind.COOLDOWN, cooldown
        elif verdict and refusal is not None:
            effect, lasting = Kind.SUSPECT, verdict
        if cause is None:
            cause = disabled or (cooldown.cause if cooldown else None)
        if until is None and lasting is not None:
            until = lasting.until
        return self.pool.decisions.add(
            Decision(
                kind=kind,
                at=now,
                by=by or (By.ANSWER if refusal is not None else By.SHORTAGE),
                provider=self.facts.provider,
                account=account,
                to=to,
                model=self.facts.model,
                cause=cause,
                reason=reason,
                effect=effect,
                covers=lasting.covered if lasting is not None else None,
                until=until,
                told_s=told_s,
                session=session_hash(self.facts.conversation.session),
            )
        )

    def _standing(
        self, account: AccountKey | None, now: float
    ) -> tuple[Cooldown | None, Cause | None, AccountVerdict | None]:
        """Return what holds for *account* and this request now.

        Its cooldown, why it is disabled, and its open verdict.
        """
        state = None if account is None else self.pool.accounts.find(account)
        if state is None:
            return None, None, None
        model = self.facts.model
        return state.cooldown_of(model, now), state.disabled, state.verdict_of(model)

    def _why_not(self, account: AccountKey, now: float) -> str:
        """Return why *account*, which was not asked, cannot serve; "" if its state says so."""
        cooldown, disabled, _ = self._standing(account, now)
        if cooldown or disabled:
            return ""
        if self.pool.accounts.find(account) is None:
            return "it is no longer in the pool"
        return self.pool.shortage(self.facts, now=now, only=account).reason
