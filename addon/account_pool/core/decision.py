"""A decision about an account or a request, and why it was made.

A record carries no secret and no text of a user: evidence is what `signals.py` lets
through, conversations are told by a hash. docs/why.md describes it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import Cause

#: Clients choose the names of models; longer ones are cut.
_MAX_TEXT_CHARS = 200
#: Of a reason: a host, what there was to say of it, and what helps, which must not be cut off.
_MAX_REASON_CHARS = 500


class Kind(StrEnum):
    """What was decided."""

    #: an account, or one model of it, rests until a deadline
    COOLDOWN = "cooldown"
    #: a cooldown has ended before its time
    RELEASE = "release"
    #: an account is out of use until something is done about it
    DISABLE = "disable"
    #: it is used again
    ENABLE = "enable"
    #: a refusal may be an account's own fault: all others are asked before it
    SUSPECT = "suspect"
    #: a request, or the conversation it is a part of, goes to another account
    MOVE = "move"
    #: a request is sent to the account that refused it once more
    RETRY = "retry"
    #: a request is held
    WAIT = "wait"
    #: a request is not served: its client is told of a limit
    REFUSAL = "refusal"
    #: an account that cools is asked whether it really does
    PROBE = "probe"
    #: an account has been silent for long, while another is idle
    SILENCE = "silence"


class By(StrEnum):
    """Who or what made a decision, or ended what was decided."""

    #: a request was refused upstream
    ANSWER = "a refusal"
    #: a message inside a WebSocket was a refusal
    SOCKET = "a message in a WebSocket"
    #: another account has served what this one refused
    WITNESS = "a comparison with other accounts"
    #: all accounts have refused the same request
    ALL = "a refusal of all accounts"
    #: an account of the same organisation, team or project was refused
    OWNER = "a refusal of an account of the same owner"
    #: no more is left of a window than its owner keeps
    RESERVE = "its reserve"
    #: nobody can serve a request now
    SHORTAGE = "a shortage"
    #: a request was answered well although its account should cool
    SUCCESS = "a good answer"
    PROBE = "a probe"
    HAND = "hand"
    CREDENTIAL = "a new credential"
    CONFIG = "a new credential in accounts.yaml"
    REMOVAL = "the removal of the account"
    PROXY = "another proxy"
    RESTART = "an earlier run"
    CLOCK = "the clock, which was set or has slept"
    #: another cause with a later deadline
    LATER = "a later deadline"
    #: so many models of one account cool that one is let go
    ROOM = "room for others"
    TIME = "time"
    #: an account could be given to a request that waited
    ACCOUNT = "an account"
    CLIENT = "the client, which left"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision. Times are monotonic seconds unless called `wall_`.

    Attributes:
        kind, at, by: what, when, and who or what made it.
        number, wall_at: set when it is recorded: from 1, and seconds since the epoch.
        provider: whose API.
        account: the one it is about; of a move the one that is left, of a wait or a
            refusal without an attempt the one that returns first. None: no certain one.
        to: of a move, retry: who is asked next.
        model: what a cooldown covers, or what a request asks for; None for all of the
            account, or unknown.
        cause: what an answer said; None if no answer said anything.
        reason: why, in our words, where no answer says it.
        effect: what *account* is in since: COOLDOWN, DISABLE or None.
        covers: the model that effect is about; None for all.
        until: when that cooldown ends; of a wait when it ends at the latest.
        told_s: of a refusal how long the client was told to wait, seconds.
        session: of a request: a hash that tells its conversation.
        ends: of a release: the number of the decision it ends.
        ended_at, released_by: when and by what it came to an end; None while it has not,
            or only time has ended it.
        times: how many refusals have said the same while it lasted.
    """

    kind: Kind
    at: float
    by: By
    provider: str
    number: int = 0
    wall_at: float = 0.0
    account: AccountKey | None = None
    to: AccountKey | None = None
    model: str | None = None
    cause: Cause | None = None
    reason: str = ""
    effect: Kind | None = None
    covers: str | None = None
    until: float | None = None
    told_s: float | None = None
    session: str | None = None
    ends: int | None = None
    ended_at: float | None = None
    released_by: By | None = None
    times: int = 1

    @property
    def waited_s(self) -> float | None:
        """How long a request was held, seconds; None while it is, or for other kinds."""
        if self.kind is not Kind.WAIT or self.ended_at is None:
            return None
        return self.ended_at - self.at

    def recorded(self, number: int, wall_at: float) -> Decision:
        """Return it as record *number*, with what a client has named in one line."""
        return replace(
            self,
            number=number,
            wall_at=wall_at,
            model=None if self.model is None else one_line(self.model),
            covers=None if self.covers is None else one_line(self.covers),
            reason=one_line(self.reason, _MAX_REASON_CHARS),
        )

    def is_over(self, now: float) -> bool:
        """Say whether a cooldown has come to its end, be it by time alone."""
        return self.ended_at is not None or (self.until is not None and self.until <= now)

    def as_dict(self, now: float) -> dict[str, object]:
        """Return it for JSON; always the same keys. Times are seconds since the epoch.

        Keys: number, kind, at, by, provider, account, to, model, class, scope, signal
        (the evidence in a few words), unknown (only the status was understood), evidence
        (header values by name), reset_named (whether *until* was named by the provider),
        reason, effect, covers, until, told_s, session, ends, ended_at, released_by,
        waited_s, times. What is not known or does not apply is null.
        """
        ended_at, released_by = self.ended_at, self.released_by
        if self.kind is Kind.COOLDOWN and ended_at is None and self.is_over(now):
            ended_at, released_by = self.until, By.TIME
        cause = self.cause
        return {
            "number": self.number,
            "kind": self.kind.value,
            "at": self._wall(self.at),
            "by": self.by.value,
            "provider": self.provider,
            "account": str(self.account) if self.account else None,
            "to": str(self.to) if self.to else None,
            "model": self.model,
            "class": cause.cls.value if cause else None,
            "scope": cause.scope.value if cause else None,
            "signal": cause.signal if cause else None,
            "unknown": cause.unknown if cause else None,
            "evidence": dict(cause.evidence) if cause else {},
            "reset_named": cause.hinted if cause else None,
            "reason": self.reason or None,
            "effect": self.effect.value if self.effect else None,
            "covers": self.covers,
            "until": self._wall(self.until),
            "told_s": self.told_s,
            "session": self.session,
            "ends": self.ends,
            "ended_at": self._wall(ended_at),
            "released_by": released_by.value if released_by else None,
            "waited_s": self.waited_s,
            "times": self.times,
        }

    def _wall(self, at: float | None) -> float | None:
        return None if at is None else round(at + self.wall_at - self.at, 3)


def session_hash(session: str | None) -> str | None:
    """Return what tells a conversation from others without its id."""
    if session is None:
        return None
    return sha256(session.encode(errors="backslashreplace")).hexdigest()[:8]


def one_line(text: str, max_chars: int = _MAX_TEXT_CHARS) -> str:
    """Return *text* of a client in one line of bounded length: it goes to logs and pages."""
    if len(text) <= max_chars and text.isprintable():
        return text
    return "".join(c if c.isprintable() else "?" for c in text[:max_chars])
