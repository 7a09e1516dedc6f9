"""Whose fault is a refusal: the account's, or the request's? What is known until that shows.

A refusal about a credential or an account opens a *verdict*. Another account that serves
the same request is the witness: then the account is benched or disabled. Until then, for
ten minutes or until it serves, it is asked after all others. What all accounts refused is
the request's own fault, and for a minute costs one attempt (design.md section 7).

Decides from values and the times it is given; the pool keeps the results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import BENCHING, Cause
from account_pool.core.lease import Lease
from account_pool.core.outcome import Outcome, OutcomeClass, Scope

#: How long a verdict stays open, seconds.
VERDICT_S = 600.0
#: Verdicts open at a time per account. Clients choose the names of models.
MAX_VERDICTS = 16
#: How long what all accounts refused is delivered after one attempt, seconds.
REFUSED_BY_ALL_S = 60.0
#: Requests, and models nobody has, that are remembered so, per provider.
MAX_REFUSED = 512
#: Accounts asked meanwhile that are remembered, so that a client's retries ask others.
MAX_ASKED = 16
#: How long a 429 without evidence from all who were asked is taken for a limit of the
#: address, seconds: other requests try one account only.
ADDRESS_LIMITED_S = 30.0


@dataclass(slots=True)
class AccountVerdict:
    """An open question whether a refusal was the account's own fault.

    Attributes:
        covered: the model it is about; None for the whole account.
        since, until: monotonic seconds; open exactly while `now < until`.
        cause: the refusal.
        void: the refusal turned out to be the request's fault.
    """

    covered: str | None
    since: float
    until: float
    cause: Cause
    void: bool = False

    def active(self, now: float) -> bool:
        return now < self.until


@dataclass(slots=True, eq=False)
class Suspect:
    """A refusal of one request that may be the fault of the account of *lease*.

    Attributes:
        model: what was asked for.
        verdict: the one it opened; None if the account is gone, or has got another
            credential since.
        before: the one that was open before.
    """

    lease: Lease
    outcome: Outcome
    model: str | None
    verdict: AccountVerdict | None = None
    before: AccountVerdict | None = None


def is_about_account(outcome: Outcome) -> bool:
    """Say whether *outcome* blames the account or its credential, so that a witness is needed.

    A 402 that says nothing else is one; a limit that is known speaks for itself.
    """
    if outcome.cls in BENCHING:
        return True
    return outcome.cls is OutcomeClass.QUOTA and outcome.unknown


def covered(outcome: Outcome, model: str | None) -> str | None:
    """Return what *outcome* to a request for *model* is about; None for the whole account.

    What was not understood is believed of that model only.
    """
    if outcome.scope is Scope.MODEL or outcome.unknown:
        return outcome.model or model
    return None


def opened(
    verdicts: Mapping[str | None, AccountVerdict], outcome: Outcome, model: str | None, now: float
) -> dict[str | None, AccountVerdict]:
    """Return *verdicts* with the one that *outcome* opens, or opens anew; the oldest goes."""
    about = covered(outcome, model)
    kept = {c: v for c, v in verdicts.items() if v.active(now) and c != about}
    if len(kept) >= MAX_VERDICTS:
        del kept[min(kept, key=lambda covers: kept[covers].since)]
    kept[about] = AccountVerdict(about, now, now + VERDICT_S, Cause.of(outcome, hinted=False))
    return kept


@dataclass(slots=True)
class _Refused:
    """Something that all accounts refused, and whom it was tried on since."""

    until: float
    asked: deque[AccountKey] = field(default_factory=lambda: deque(maxlen=MAX_ASKED))


class RefusedByAll(dict[Hashable, _Refused]):
    """What all accounts of one provider refused a short while ago.

    Cleared when another account, or another credential, may serve it.
    """

    def note(self, what: Hashable, now: float) -> None:
        """All accounts have refused *what*."""
        self.pop(what, None)
        if len(self) >= MAX_REFUSED:
            del self[next(iter(self))]
        self[what] = _Refused(now + REFUSED_BY_ALL_S)

    def find(self, what: Hashable, now: float) -> deque[AccountKey] | None:
        """Return whom *what* was tried on since all refused it; None if they did not lately.

        Whoever tries another adds it.
        """
        known = self.get(what)
        return known.asked if known is not None and now < known.until else None

    def drop(self, what: Hashable) -> None:
        """An account serves *what*."""
        self.pop(what, None)
