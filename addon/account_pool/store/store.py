"""What a store keeps over a restart: its two halves as protocols, and how they fail.

A store has two halves, because they are used in two ways. The tokens of logins are asked for
by any thread and are safe on the disk when they are saved; only pools with such logins need
them. The state of the pool is written by one thread, beside the event loop. A store over the
network, for several machines, implements `Store` (docs/state.md says how).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from account_pool.core.account import AccountKey
from account_pool.core.claims import Claim, Taken
from account_pool.core.credential import Secret
from account_pool.core.decision_history import LoggedDecision
from account_pool.core.request_rows import RequestRow
from account_pool.core.shares import Ask, Share
from account_pool.core.snapshot import AccountSnapshot, PoolSnapshot
from account_pool.core.usage import Counted

if TYPE_CHECKING:
    from account_pool.core.fleet import AboutProxy, ProxyRow
    from account_pool.core.notifications import Subject, Verdict
    from account_pool.core.prices import Cost


class StoreError(Exception):
    """The store cannot be read or written; the text names the file and the remedy."""


class DamagedError(StoreError):
    """What it holds makes no sense; *wrong* is what is wrong, without the remedy."""

    def __init__(self, wrong: str, remedy: str) -> None:
        super().__init__(f"{wrong}; {remedy}")
        self.wrong = wrong


class FullError(StoreError):
    """There is no room for more, on the disk or in the quota of its user."""


class UnfitError(StoreError):
    """A value cannot be written, whatever is tried; the rest can."""


class KeptError(StoreError):
    """It cannot be saved now; it is safe where it is, and is saved as soon as that can be done."""


class MovedError(StoreError):
    """What it held was taken away or is older than what we know: open it anew.

    All that this proxy knows is written then.
    """


# -- the tokens of logins
#
# A family is all tokens that descend from one login: each refresh replaces its tokens by new
# ones, and the old refresh token is then worth nothing. So the newest are the login.


class Tokens(Struct, frozen=True, kw_only=True):
    """The tokens of a login at one time. Times are wall clock, seconds since the epoch.

    Attributes:
        access: goes on the wire; None when only a refresh token was written down.
        refresh: gets the next ones, once.
        expires_at: when *access* ends; None if that is not known.
        refreshed_at: when they were got; None for those that were written down.
        companions: what the server said of the account beside them.
    """

    access: Secret | None
    refresh: Secret
    expires_at: float | None = None
    refreshed_at: float | None = None
    companions: Mapping[str, str] = field(default_factory=dict)

    def shifted(self, seconds: float) -> Tokens:
        """Return them with the times of another clock, which is so many *seconds* ahead."""
        if not seconds:
            return self
        ends, got = self.expires_at, self.refreshed_at
        return replace(
            self,
            expires_at=None if ends is None else round(ends + seconds, 3),
            refreshed_at=None if got is None else round(got + seconds, 3),
        )


class TokenStore(Protocol):
    """Keeps the newest tokens of each family, for all proxies that share the store.

    Its methods block and may be called from any thread. All raise StoreError. Who may
    refresh is decided in `agreed.py`, by the store's own clock and in one atomic step.
    """

    def load(self, family: str) -> Tokens | None:
        """Return the newest tokens of *family*, None if it was never refreshed."""

    def claim(self, family: str, owner: str, *, token: Secret, is_over: bool) -> Claim | Taken:
        """Let *owner* (`Process.owner`) alone refresh *family* with *token*, or say who does.

        *is_over*: the access token is worth nothing any more. The claim of a process that is
        known to be dead has ended.
        """

    def sending(self, family: str, fence: int, token: Secret) -> bool:
        """Note that *token* leaves now; False: it must not, the claim has ended."""

    def save(
        self, family: str, tokens: Tokens, *, replaces: Secret | None = None, fence: int = 0
    ) -> bool:
        """Keep *tokens* as the newest. They survive whatever happens after the return.

        *replaces* is the refresh token they were got for, by the claim *fence*. False, and
        nothing is done, when the store has the tokens of another refresh by now.
        """

    def release(self, family: str, fence: int, *, unknown: bool = False) -> None:
        """End the claim with this number. *unknown*: its token was sent, and not answered."""

    def keep(self) -> None:
        """Have all that is known here in the store, also when its file was removed."""

    def close(self) -> None:
        """Close the file."""


# -- the state of a pool
#
# A proxy sends the store what it knows, and gets back the merged state of all proxies
# (`core/snapshot.py` merges). Everything goes in one `exchange`, which is done as a whole or
# not at all: a compare-and-swap in one round trip. `changed` is a cheap query for what others
# have done. What a proxy has in flight is a lease that ends by itself once the proxy is gone.

#: How often a proxy sends a heartbeat (`StateStore.beat`), seconds.
BEAT_S = 5.0
#: How long a proxy counts as running after a heartbeat, seconds. After that it is dead, or
#: hangs.
GRACE_S = 15.0

#: A row of a table: key, account as `provider/label`, last use in seconds since the epoch.
Row = tuple[str, str, float]


class TableChanges(Struct, frozen=True):
    """Changes of a table.

    Attributes:
        rows: rows that are new or changed.
        gone: keys to be removed, with the last use that this proxy knows: a row that another
            has used since stays.
    """

    rows: Collection[Row] = ()
    gone: Mapping[str, float] = {}


class News(Struct, frozen=True, kw_only=True):
    """What other proxies have done since the last query.

    Attributes:
        accounts: accounts that may have changed: exchange them.
        lines: rows that are new or changed, by table.
        gone: keys that were removed, by table, with the last use known of them.
        in_flight_remote: requests in flight on all other proxies, by account; None: as before.
        wrote_at: when the newest of it was written, on the clock of the store; None: unknown.
        proxies: ids of the other proxies (`Process.owner`); None: as before.
    """

    accounts: Collection[AccountKey] = frozenset()
    gone: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    lines: Mapping[str, list[Row]] = field(default_factory=dict)
    in_flight_remote: Mapping[AccountKey, int] | None = None
    shares: Mapping[AccountKey, Mapping[str, Share]] | None = None
    proxies: Collection[str] | None = None
    wrote_at: float | None = None


class Numbered(NamedTuple):
    """Identifies a batch of counts, which is added once however often it is sent.

    *number* grows with each batch of the process *proxy*.
    """

    proxy: str
    number: int


class RequestQuery(NamedTuple):
    """Which requests are asked for, *limit* at most.

    Attributes:
        from_at, to_at: those that began in between, seconds since the epoch, *to_at* excluded.
        account: `provider/label`, or a provider.
        since: those with a larger number: of these the oldest.
        before: those with a smaller number.
    """

    from_at: float | None = None
    to_at: float | None = None
    account: str | None = None
    model: str | None = None
    tool: str | None = None
    status: str | None = None
    since: int | None = None
    before: int | None = None
    limit: int = 100


class RequestPage(NamedTuple):
    """Rows of requests with their numbers, the newest first.

    *last* is the largest number given out so far.
    """

    rows: list[tuple[int, RequestRow]]
    last: int


class RequestSums(Struct, frozen=True):
    """What was counted of requests.

    Attributes:
        key: day (2026-08-01) or hour (2026-08-01T13:00:00Z), account, model and tool.
        amounts: by name, as `usage_totals` counts them.
    """

    key: tuple[str, str, str, str]
    amounts: Mapping[str, float]


class RequestBucket(Struct, frozen=True):
    """What the requests were like that began within one step.

    Attributes:
        step: its number, from 0.
        amounts: by name: requests, ok, refused, aborted, failovers, waited, wait_s, tokens of each
            kind, cost_usd.
        duration_s, first_byte_s: of good answers, the median and the 95th percentile.
    """

    step: int
    amounts: Mapping[str, float]
    duration_s: tuple[float, float] | None
    first_byte_s: tuple[float, float] | None


class RequestAnswers(Protocol):
    """Answers questions about requests that have ended. All raise StoreError."""

    def read(self, query: RequestQuery) -> RequestPage:
        """Return rows about requests, the newest first. From any thread, and beside writes."""

    def sums(self, query: RequestQuery, *, by_hour: bool) -> list[RequestSums]:
        """Return what was counted of requests by day or hour, account, model and tool.

        From any thread, and beside writes.
        """

    def series(self, query: RequestQuery, step_s: float) -> list[RequestBucket]:
        """Return what requests were like in each *step_s* seconds that any began in.

        From any thread, and beside writes.
        """


class RequestStore(RequestAnswers, Protocol):
    """Keeps rows about requests that have ended; `StateStore.exchange` adds them.

    All raise StoreError.
    """

    def known(self, rows: Sequence[RequestRow]) -> RequestAnswers:
        """Return what answers the same without the store, and is quick.

        From what was read of it before, and those of *rows* that were not. From any thread.
        """

    def unpriced(self, after: int, limit: int) -> list[tuple[int, RequestRow]]:
        """Return rows that nobody has looked for a price of, with a number above *after*.

        From any thread, and beside writes.
        """

    def price(self, costs: Sequence[tuple[int, Cost]]) -> None:
        """Put costs, by number, into rows that have none, and into the sums of their day.

        From any thread. What another proxy has done meanwhile is not done again.
        """

    def reprice(self) -> None:
        """Have rows looked at again of which no price was known. From any thread."""

    def prune(self, kept_s: float, *, wall_now: float) -> bool:
        """Delete rows about requests older than *kept_s*; return whether more are to go."""


class DecisionPage(NamedTuple):
    """What has changed in the log of decisions.

    Attributes:
        log: names the log: another one begins with other numbers.
        upto: the number of its last change.
        rows: decisions that are new or changed, with their numbers.
    """

    log: str
    upto: int
    rows: list[tuple[int, LoggedDecision]]


class DecisionLog(Protocol):
    """Keeps the last decisions of all proxies, `core.decisions.KEPT` of them.

    Both methods may be called from any thread, and repeated. Both raise StoreError.
    """

    def add(self, new: Sequence[LoggedDecision], changed: Sequence[LoggedDecision]) -> str:
        """Number decisions that are *new* and keep them, and put *changed* ones in their place.

        Return the name of the log. One of *new* that is there already is changed; one of
        *changed* that is not there any more is left out.
        """

    def read(self, after: int) -> DecisionPage:
        """Return what has changed after the change *after*; 0: all there is."""


class NoticeStore(Protocol):
    """Keeps what the proxies have told their owner of, and whose turn something is.

    Called by the thread that calls `StateStore`. All raise StoreError.
    """

    def note(
        self, begun: Collection[Subject], ended: Collection[Subject], *, wall_now: float
    ) -> dict[Subject, Verdict]:
        """Decide by `core.notifications.note` what this proxy tells, in one atomic step."""

    def take_turn(self, name: str, every_s: float, *, wall_now: float) -> bool:
        """Say whether nobody has taken the turn *name* for *every_s* seconds; it is taken then."""

    def noted(self) -> list[Subject]:
        """Return the conditions that were told and are not over."""


class StateStore(Protocol):
    """Keeps what a pool has learnt.

    Its methods block, and are called by one thread at a time. All raise StoreError, or
    DamagedError if the stored data makes no sense; nothing is changed then.

    Tables: "sessions" (the account that a conversation is bound to) and "pins" (the account
    that issued an id).
    """

    @property
    def requests(self) -> RequestStore:
        """Rows about requests that have ended."""

    @property
    def notices(self) -> NoticeStore:
        """What the proxies have told their owner of."""

    @property
    def decisions(self) -> DecisionLog:
        """What the proxies have decided."""

    def exchange(
        self,
        mine: Iterable[AccountSnapshot],
        gone: Collection[AccountKey] = (),
        *,
        wall_now: float,
        lines: Mapping[str, TableChanges] | None = None,
        counts: Mapping[str, Counted] | None = None,
        batch: Numbered | None = None,
        in_flight: Mapping[AccountKey, int] | None = None,
        requests: Sequence[RequestRow] = (),
        urgent: bool = False,
    ) -> PoolSnapshot:
        """Merge *mine* with what is stored, store the result and return it.

        Args:
            gone: accounts that this proxy no longer has, or has again. What is stored of them
                stays, for other proxies and for when they come back.
            lines: changes by table; of two rows with one key the one used later stays.
            counts: amounts to be added, by name.
            batch: the number of counts and requests, so that a write with an unknown result can
                be repeated.
            in_flight: requests of this proxy, for accounts where their number has changed.
            requests: rows about requests that have ended, to be added.
            urgent: other proxies are to know at once, and not when they look next (`listen`).

        `wall_at` of the result is the time of the last write before this one.
        """

    def now(self) -> float | None:
        """Return the time on the clock that all proxies share; None: that is the wall clock.

        All times that are passed in or stored are times of this clock.
        """

    def listen(self, wake: Callable[[], None]) -> None:
        """Have *wake* called, from any thread, when another proxy has written what is urgent.

        Until `close`. A call may be lost, or come for nothing: `changed` tells what there is,
        and is called once a second anyway. A store that cannot notify does nothing.
        """

    def changed(self, *, wall_now: float) -> News:
        """Return what others have done since the last call. Cheap if that is nothing."""

    def beat(
        self,
        in_flight: Mapping[AccountKey, int],
        *,
        wall_now: float,
        about: AboutProxy | None = None,
    ) -> bool:
        """Send a heartbeat with the requests in flight, and forget proxies that stopped theirs.

        Call it every BEAT_S seconds. What a proxy had in flight, and its shares, end GRACE_S
        after its last one. Return whether this one counted as running: else it holds no share.

        *about* is what it says of itself; None: as before.
        """

    def proxies(self, *, wall_now: float) -> list[ProxyRow]:
        """Return who is on the store, this one too if it has sent a heartbeat.

        Those that have stopped theirs are in it for `core.fleet.SHOWN_S`; those that were closed
        are not. A row that cannot be read is one of a proxy of which nothing is known.
        """

    def forget(self, proxies: Collection[str]) -> None:
        """Forget what the proxies with these ids have said; they do not run any more."""

    def share(self, asks: Mapping[AccountKey, Ask], *, wall_now: float) -> dict[AccountKey, Share]:
        """Hold of each account what `core.shares.grant` says, and return that.

        One transaction: all that is held of an account is never above its limit. Where that
        changes what others may hold, they are notified as of what is urgent.
        """

    def reap(self, proxies: Collection[str]) -> None:
        """Forget the proxies with these ids: they are known to be dead."""

    def read_table(self, table: str) -> list[Row]:
        """Return all rows of *table*, least recently used first."""

    def read_counts(self, name: str) -> Counted:
        """Return the sums over all proxies under *name*."""

    def sweep(self, present: Iterable[AccountKey], *, wall_now: float) -> None:
        """Delete what is too old to be used; the accounts *present* are in use."""

    def close(self) -> None:
        """Close the file; this proxy is gone for the others."""


# -- both


class Store(Protocol):
    """What `pool_state` names.

    Attributes:
        durable: it is there after the end of the process.
        kind: what it is, for people: "file", "memory", the name of a server.
        server: its host and port, for people; "": it is on this machine.
        pool: the name of the pool there; "": it has none.
    """

    durable: bool
    kind: str
    server: str
    pool: str

    def tokens(self) -> TokenStore:
        """Open the half that keeps logins. Raises StoreError."""

    def state(self) -> StateStore:
        """Open the half that keeps what the pool has learnt. Raises StoreError."""

    def put_aside(self) -> str | None:
        """Move what is damaged out of the way, so that `state` begins anew.

        Return where it is now; None: another proxy has done it. Raises StoreError when it
        has to stay.
        """
