"""What a request does next: its steps and phases, and when and how often it is sent again.

`attempts.py` decides for one request with these, and returns a `Step`. The rules, with their
reasons, are in docs/requests.md: a limit moves the request, a refused credential is renewed or
its account blamed, an overload is tried once more in place and then once elsewhere, and what
may have run is not sent again unless its owner wants that.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from msgspec import Struct

from account_pool.core.account import AccountKey
from account_pool.core.errors import NoUsableAccount
from account_pool.core.lease import Lease, Ticket
from account_pool.core.meaning import LazyPattern
from account_pool.core.outcome import Outcome
from account_pool.core.reset_hints import believable


class Attempt(Struct):
    """One request sent upstream, for comments and logs."""

    number: int
    key: AccountKey
    outcome: Outcome | None = None


class Send(Struct, frozen=True):
    """Send the request with this lease's credential."""

    lease: Lease
    #: use a new connection
    fresh: bool = False


class Wait(Struct, frozen=True):
    """Wait until *until* (monotonic seconds), or until *ticket* is called."""

    until: float
    #: the request's place among those that wait for an account. None: only time ends the wait.
    ticket: Ticket | None = None


class Refresh(Struct, frozen=True):
    """Renew the credential of this lease, then say whether it changed."""

    lease: Lease


class Deliver(Struct, frozen=True):
    """Deliver the provider's refusal to the client.

    Attributes:
        retry_after_s: seconds until an account returns; None: leave `Retry-After` as it is.
        again: some accounts were not asked: the client should try again.
    """

    retry_after_s: float | None = None
    again: bool = False


class Synthesize(Struct, frozen=True):
    """Make an error response: there is none of a provider to deliver.

    Attributes:
        status: 429 (limits), 502 (broken), 504 (silent) or 503 (no account can serve); 401
            (credentials), 402 (money), 403 (accounts) or 404 (model) if only the owner can
            help.
        message: for people; no secrets.
        retry_after_s: as in `Deliver`.
        like: the account with the refusal to imitate, if there is one.
        reason: *message* without the provider's name, for records that have it anyway.
        unreachable: the provider cannot be reached until the owner does something.

    `final`: only the owner can help, so trying again is no use.
    """

    status: int
    message: str
    retry_after_s: float | None = None
    like: AccountKey | None = None
    reason: str = ""
    unreachable: bool = False

    @property
    def final(self) -> bool:
        return self.unreachable or (400 <= self.status < 500 and self.status != 429)


Step = Send | Wait | Refresh | Deliver | Synthesize


class Phase(Enum):
    """Where a request stands; it decides which events are legal."""

    #: only `begin`
    NEW = "new"
    #: an attempt runs: `refused`, `broken` or `committed`
    SENT = "sent"
    #: no account can serve, or a pause before the same one is asked again: `resumed`
    WAITING = "waiting"
    #: `refreshed`
    REFRESHING = "refreshing"
    #: the client has its first byte: `finished`
    COMMITTED = "committed"
    #: nothing more
    OVER = "over"


PHASE_AFTER = {
    Send: Phase.SENT,
    Wait: Phase.WAITING,
    Refresh: Phase.REFRESHING,
    Deliver: Phase.OVER,
    Synthesize: Phase.OVER,
}


# -- our bounds


class Tries(Struct, eq=False):
    """What has come of attempts that did not serve a request.

    Attributes:
        refused: one was answered with a refusal.
        renewed: accounts whose credential was renewed for it.
        bare: 429s without evidence.
        overloads: refusals by servers that were overloaded, or failed.
        asked_another: another account was asked in place of one overloaded or out of reach.
        breaks: how attempts broke.
    """

    refused: bool = False
    renewed: frozenset[AccountKey] = frozenset()
    bare: int = 0
    overloads: int = 0
    asked_another: bool = False
    breaks: tuple[Broken, ...] = ()


def was_limited(history: Iterable[Attempt]) -> bool:
    """Say whether an account refused it that it does not blame.

    While others are limited, a refusal by an account's own fault is not what keeps the client
    from its response: told of a bad credential it would log out.
    """
    outcomes = [attempt.outcome for attempt in history]
    return not all(outcome is not None and outcome.blames_account for outcome in outcomes)


#: Longest pause before an overloaded account is tried once more, full jitter.
OVERLOAD_PAUSE_S = 1.0
#: Accounts a request asks that say 429 without evidence, and the pause between them.
BARE_TRIES = 4
BARE_PAUSE_S, BARE_JITTER_S = 0.05, 0.2
#: Pause before a server that refused a connection is tried again.
CONNECT_PAUSE_S = 0.25

#: How many times as long a request that goes on with begun work waits for its account.
#: Copilot counts a prompt of its user when it is sent to an account, not what follows it.
FOLLOW_UP_PATIENCE = 3.0

#: Longest body of a request that probes an account, bytes.
MAX_PROBE_BYTES = 256 * 1024

#: What the owner can do where nobody else can, by the status of the response.
REMEDIES = {
    401: "renew a credential, or add an account",
    402: "out of credit: pay, or add an account",
    403: "the provider does not serve them any more; add an account",
    404: "allow one of them the model, or add an account",
}


class Limits(Struct, frozen=True, kw_only=True):
    """Our own bounds on one request (docs/options.md).

    Attributes:
        max_attempts: requests sent upstream at most.
        max_wait_s: longest time a request is held while nobody can serve.
        patience_s: longest time worth waiting for the account a conversation lives on.
        retry_broken: send again although the first try may have run.
        max_waiting: requests that wait for an account at most, over all providers.
    """

    max_attempts: int = 10
    max_waiting: int = 1000
    max_wait_s: float = 30.0
    patience_s: float = 3.0
    retry_broken: bool = False


# -- refusals


def overload_pause_s(outcome: Outcome, limits: Limits, chance: float) -> float | None:
    """Return the pause before an overloaded account is tried once more; None: it is too long."""
    named = believable(outcome.cooldown_s)
    pause_s = chance * OVERLOAD_PAUSE_S if named is None else named
    return pause_s if pause_s <= max(limits.patience_s, OVERLOAD_PAUSE_S) else None


def unserved(
    provider: str, nobody: NoUsableAccount | None, retry_after_s: float | None
) -> Synthesize:
    """Return the response to a request that *nobody* can serve; None: it has tried too often."""
    reason = nobody.reason if nobody else "too many attempts"
    status = nobody.status if nobody else None
    if status is None:
        status = 429 if retry_after_s is not None else 503
    else:
        reason = f"{reason}: {REMEDIES[status]}"
    return Synthesize(
        status=status,
        message=f"{provider}: {reason}",
        reason=reason,
        retry_after_s=retry_after_s,
        like=nobody.like if nobody else None,
    )


# -- attempts that broke


class Broken(Enum):
    """How an attempt ended without a response."""

    #: no connection could be made: the request cannot have run
    CONNECT = "connect"
    #: nor will there be one: a certificate is not trusted, a proxy refuses. Wrong passwords
    #: are counted there, and lock their owner out
    UNREACHABLE = "unreachable"
    #: nor could it be asked for: this machine is short of something. Says nothing of an account
    SHORT = "short"
    #: a kept connection was closed, or the stream refused, before an answer
    STALE = "stale"
    #: the request was sent on a fresh connection: it may have run
    MAYBE_RAN = "maybe ran"
    #: the server said, or it is known, that the request did not run
    NOT_RUN = "not run"
    #: nothing came for long: it may have run
    SILENT = "silent"


#: Tries in all, by how they ended. Each of them avoids all connections that there were when
#: the one before it was sent; whoever refuses streams may do so on several in a row.
TRIES = {
    Broken.CONNECT: 2,
    Broken.UNREACHABLE: 1,
    Broken.SHORT: 2,
    Broken.STALE: 6,
    Broken.MAYBE_RAN: 2,
    Broken.NOT_RUN: 6,
    Broken.SILENT: 2,
}


#: In these ways it has run nowhere: it may be sent to another host, if an account has one.
NEVER_RAN = frozenset({Broken.CONNECT, Broken.STALE, Broken.NOT_RUN})


def try_again(how: Broken, tries: int, limits: Limits) -> bool:
    """Say whether a request that has broken *tries* times in this way may be sent again."""
    maybe_ran = how in (Broken.MAYBE_RAN, Broken.SILENT)
    return tries < TRIES[how] and (limits.retry_broken or not maybe_ran)


def connect_pause_s(how: Broken, chance: float) -> float | None:
    """Return the pause before it is sent again; None: at once, on a new connection."""
    return CONNECT_PAUSE_S * (0.5 + chance) if how in (Broken.CONNECT, Broken.SHORT) else None


def is_of_account(how: Broken) -> bool:
    """Say whether another account may have more luck: not if the way is barred to all."""
    return how not in (Broken.UNREACHABLE, Broken.SHORT)


def broken_off(key: AccountKey, how: Broken, reason: str) -> Synthesize:
    """Return the response to a request whose attempt on *key* broke, and is not sent again."""
    if how is Broken.SILENT:
        reason = f"no answer ({reason})" if reason else "no answer"
    elif (is_of_account(how) and how is not Broken.CONNECT) or not reason:
        reason = "the upstream connection broke" + (f" ({reason})" if reason else "")
    return Synthesize(
        status=504 if how is Broken.SILENT else 502,
        message=f"{key}: {reason}",
        reason=reason,
        unreachable=how is Broken.UNREACHABLE,
    )


#: A kept HTTP/1.1 connection that the server closes so soon after a request was sent was
#: closed before it arrived: what is on the way needs a round trip, work takes longer.
STALE_WITHIN_S = 0.5
#: That a connection is no more, in mitmproxy's words and ours. What follows a colon may be
#: the server's.
_CLOSED = LazyPattern(r"(?:[\w/]+ ){1,3}(?:closed|ended|disconnected)\b")


def how_broken(message: str, *, kept: bool, answered: bool, after_s: float) -> Broken:
    """Say whether a request whose attempt broke may have run.

    Args:
        message: mitmproxy's, which names what the peer did.
        kept: it went out on a connection that was used before, or idle.
        answered: something of an answer had come.
        after_s: seconds since it was sent.

    Only what the server closed can have been closed before the request arrived. A stream that
    is reset was there: only REFUSED_STREAM says that it was not processed (RFC 9113, 8.7).
    Whatever cannot be read is an answer.
    """
    if "REFUSED_STREAM" in message:
        return Broken.STALE
    closed = _CLOSED.match(message) is not None
    if kept and not answered and closed and after_s < STALE_WITHIN_S:
        return Broken.STALE
    return Broken.MAYBE_RAN


#: What another try would not change, in mitmproxy's words (11.0 to 12.3). Of what a proxy on
#: the way says, the statuses that speak of a moment are left out: 408, 425, 429, 5xx.
_FOR_GOOD = LazyPattern(
    r"refused HTTP CONNECT request: (?!408|425|429)[1-4]\d\d\b"
    r"|Certificate verify failed"
    r"|cannot agree on a TLS version"
    r"|does not speak TLS"
)
#: What this process, or this machine, has no more of (EMFILE, ENFILE), as systems say it.
_SHORT = LazyPattern(r"Too many open files|\[Errno 2[34]\]")


def how_unconnected(message: str) -> Broken:
    """Say why there is no connection, and so whether another try may bring one.

    Args:
        message: mitmproxy's, which names what is in the way.
    """
    if _SHORT.search(message):
        return Broken.SHORT
    return Broken.UNREACHABLE if _FOR_GOOD.search(message) else Broken.CONNECT


#: What its owner can do about it, by what the message holds.
_REMEDIES = (
    (
        LazyPattern(r"verify failed.*(self.signed|unable to (get|verify)|issuer)"),
        "if a company's own CA signs here, name it in SSL_CERT_FILE (account-pool run and "
        "serve) or with ssl_verify_upstream_trusted_ca",
    ),
    (LazyPattern("refused HTTP CONNECT request: 407"), "see the option upstream_auth"),
    (LazyPattern("agree on a TLS version"), "see the option tls_version_server_min"),
    (_SHORT, "raise the limit of open files with ulimit -n"),
)


def remedy(message: str) -> str | None:
    """Return what helps where there is no connection because of *message*, if it is known."""
    return next((text for pattern, text in _REMEDIES if pattern.search(message)), None)
