"""What became of a request, as decisions: where it moved, how long it was held, why it ended.

That an ordinary request is sent, answered, or refused by its own fault is no decision of
ours and has no record. Decides nothing: `attempts.py` does, and tells it here.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import Cause, Cooldown
from account_pool.core.decision import By, Decision, Kind, session_hash
from account_pool.core.errors import NoUsableAccount, UnknownAccount
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import Outcome, OutcomeClass
from account_pool.core.pool import Pool
from account_pool.core.steps import Answer, Attempt, Deliver, Wait
from account_pool.core.verdicts import Verdict

#: Why a WebSocket whose limit was told ends: another account can serve its client.
CLOSED = "closed so that its client opens another"
#: Why a refused request is not sent to another account although one could serve it.
NOT_KEPT = "not replayed: its body was streamed, not kept (over 64 MiB, or by another addon)"


@dataclass(slots=True, eq=False)
class Story:
    """Records the decisions about one request.

    Attributes:
        pool, facts: who keeps the records, and what is asked for.
        wait: number of the wait under way, None if it is not held.
    """

    pool: Pool
    facts: RequestFacts
    wait: int | None = None

    def sent(
        self, came_from: AccountKey, to: AccountKey, refusal: Outcome | None, now: float
    ) -> None:
        """It was to be served by *came_from*, and goes to *to*.

        Args:
            refusal: what *came_from* said; None if it was not asked, because it cannot
                serve now.
        """
        kind = Kind.RETRY if to == came_from else Kind.MOVE
        if kind is Kind.RETRY and refusal is not None and refusal.cls is OutcomeClass.TRANSPORT:
            return  # a connection, not an account
        reason = "" if refusal is not None else self._why_not(came_from, now)
        self._add(kind, came_from, refusal, reason, now, to=to)

    def held(
        self, step: Wait, last: Attempt | None, nobody: NoUsableAccount | None, now: float
    ) -> None:
        """It waits: for time to pass before the last account is asked again, or for an account."""
        if self.wait is not None:
            return
        until = step.until if step.ticket is None else step.ticket.give_up_at
        account = last.key if last else nobody.soonest if nobody else None
        reason = nobody.reason if nobody else ""
        refusal = last.outcome if last else None
        self.wait = self._add(Kind.WAIT, account, refusal, reason, now, until=until).number

    def probes(self, account: AccountKey, now: float) -> None:
        """It asks *account*, which cools, whether it really does: nobody else can serve."""
        self._add(Kind.PROBE, account, None, "", now)

    def silent(self, account: AccountKey, waited_s: float, now: float) -> None:
        """*account* has not answered for so long, and another is idle. It may run: it stays."""
        reason = f"no answer for {waited_s:.0f} s while another account is idle; it may still run"
        self._add(Kind.SILENCE, account, None, reason, now)

    def goes_on(self, by: By, now: float) -> None:
        """The wait under way, if there is one, is over because of *by*."""
        if self.wait is not None:
            self.pool.decisions.end(self.wait, by, now)
            self.wait = None

    def given_up(
        self,
        step: Deliver | Answer,
        last: Attempt | None,
        nobody: NoUsableAccount | None,
        now: float,
        *,
        kept: bool = True,
    ) -> None:
        """Its client is given a refusal. One that is the request's own fault is no news.

        Args:
            kept: its body was kept, so that it could have been sent again.
        """
        refusal = last.outcome if last else None
        if refusal is not None and refusal.cls is OutcomeClass.REQUEST_ERROR:
            return
        account = last.key if last else nobody.soonest if nobody else None
        reason = nobody.reason if nobody else ""
        if not reason and isinstance(step, Answer):
            reason = step.reason or step.message
        if not (reason or kept) and refusal is not None and refusal.replayable:
            reason = NOT_KEPT
        self._add(Kind.REFUSAL, account, refusal, reason, now, told_s=step.retry_after_s)

    def told_inside(
        self, account: AccountKey, refusal: Outcome, now: float, *, closes: bool
    ) -> None:
        """A message inside its WebSocket was *refusal*, upon which we close it, or not."""
        reason = CLOSED if closes else ""
        self._add(Kind.REFUSAL, account, refusal, reason, now, by=By.SOCKET)

    def _add(
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
        lasting: Cooldown | Verdict | None = None
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
    ) -> tuple[Cooldown | None, Cause | None, Verdict | None]:
        """Return what *account* is in now for what is asked.

        Its cooldown, why it is disabled, and the verdict that is open on it.
        """
        if account is not None:
            with suppress(UnknownAccount):
                state, model = self.pool.get(account), self.facts.model
                return state.cooldown_of(model, now), state.disabled, state.verdict_of(model)
        return None, None, None

    def _why_not(self, account: AccountKey, now: float) -> str:
        """Say why *account*, which was not asked, cannot serve where no cooldown says it."""
        cooldown, disabled, _ = self._standing(account, now)
        if cooldown or disabled:
            return ""
        if all(state.key != account for state in self.pool.accounts(account.provider)):
            return "it is no longer in the pool"
        return self.pool.shortage(self.facts, now=now, only=account).reason
