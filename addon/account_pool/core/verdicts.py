"""Whose fault is a refusal: the account's, or the request's? What is known until that shows.

A refusal about a credential or an account opens a *verdict*. Another account that serves
the same request is the witness: then the account is benched or disabled. Until then, for
ten minutes or until it serves, it is asked after all others (docs/why.md).

Decides from values and the times it is given; `health.py` applies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from account_pool.core.cooldown import BENCHING, Cause
from account_pool.core.outcome import Outcome, OutcomeClass, Scope

#: How long a verdict stays open, seconds.
VERDICT_S = 600.0
#: Verdicts open at a time per account. Clients choose the names of models.
MAX_VERDICTS = 16


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
