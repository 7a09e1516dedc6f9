"""Which requests run, and what is measured: how each ended, histograms, a day of headroom.

Names the provider and the account, never a model or anything else that a client chooses.
Costs a few microseconds per request, and nothing per chunk.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, auto
from itertools import pairwise
from typing import NamedTuple

from msgspec import Struct, field

from account_pool.core import reactions
from account_pool.core.attempts import Attempts
from account_pool.core.decisions import Decision
from account_pool.core.headroom import tightest_window
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import OutcomeClass
from account_pool.core.state import AccountState
from account_pool.core.steps import Attempt
from account_pool.core.usage import CountKey, Usage

#: Upper bounds in seconds: how long vendors take to answer. Reasoning takes minutes.
UPSTREAM_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
#: What we do with a request, mostly tenths of a millisecond.
OVERHEAD_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5)
#: How long the head of an answer is held back: our own work, or up to `pool_gate`.
HELD_S = (0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
#: How long requests wait for an account, up to `pool_max_wait`.
WAIT_S = (0.01, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 300.0)
#: How old news of other proxies are: they are pushed, or looked for once a second.
LAG_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

#: Requests that wait to be written at most; the store may hang, or be unusable for long.
MAX_WAITING = 5_000


class Mark(Enum):
    """How far a request has come. With it goes when, monotonic seconds, or how long, seconds."""

    #: it was complete: when
    BEGAN = auto()
    #: an account, or its credential, was waited for: how long
    WAITED = auto()
    #: a connection was opened: how long
    OPENED = auto()
    #: an attempt was sent: when, as all that follows
    SENT = auto()
    #: the head of an answer came
    HEAD = auto()
    #: the first byte of its body came
    FIRST_BYTE = auto()
    #: it is good, and its head goes to the client
    HANDED_ON = auto()


#: Those of one request. Noted as it goes, and reduced when it is over.
Marks = list[tuple[Mark, float]]


class Ended(NamedTuple):
    """What a request leaves behind. Times are monotonic seconds unless called `wall_`.

    Attributes:
        facts, history, marks: of its attempts; nothing changes them any more.
        at, wall_at: when it ended.
        http_status: of the response its client got; None for none, and for a turn of a WebSocket.
        whole: the answer came to its end, if there was one.
        usage: what it took, as far as that was told.
        counted: as what `Usages` has counted it; None: not at all.
        status: how it ended (`request_rows.Status`), where that is known; None: the rest says it.
    """

    facts: RequestFacts
    history: Sequence[Attempt]
    marks: Marks
    at: float
    wall_at: float
    http_status: int | None
    whole: bool
    usage: Usage | None = None
    counted: CountKey | None = None
    status: str | None = None


class ServedAs(NamedTuple):
    """What a good response was counted as.

    Attributes:
        whole: it came to its end.
        usage: what it took, as far as it told.
        counted: day, account and model; None: not at all.
    """

    whole: bool
    usage: Usage | None = None
    counted: CountKey | None = None


NOT_COUNTED = ServedAs(whole=True)


class RequestLog(Struct, eq=False):
    """The requests that have ended and are not written yet.

    Attributes:
        kept_days: how long rows are kept; 0: none is made.
        changed: called after each; quick, raises nothing.
        full: called when the first is not kept because too many wait.
        waiting: those requests.
        lost: how many were not kept since `take` because too many waited.
        also: told of each, too, whether or not rows are kept; quick, raises nothing.
    """

    kept_days: int = 30
    changed: Callable[[], object] = lambda: None
    full: Callable[[], object] = lambda: None
    waiting: list[Ended] = field(default_factory=list)
    lost: int = 0
    also: Callable[[Ended], object] | None = None

    def add(self, ended: Ended) -> None:
        """Keep *ended*, unless rows are not wanted or too many wait."""
        if self.also is not None:
            self.also(ended)
        if not self.kept_days:
            return
        if len(self.waiting) >= MAX_WAITING:
            self.lost += 1
            if self.lost == 1:
                self.full()
            return
        self.waiting.append(ended)
        self.changed()

    def take(self) -> list[Ended]:
        """Return what waits, which is then whoever's who takes it."""
        taken, self.waiting = self.waiting, []
        return taken


class Histogram:
    """How often values fell between bounds.

    Attributes:
        bounds: upper bounds, included, ascending; above the last is infinity.
        counts: how many values are in each, the last for infinity; not cumulative.
        sum: of all values.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count *value*."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


class Timings(Struct, eq=False):
    """How long things take with one provider, in seconds.

    Attributes:
        head: from a request sent upstream to the head of its answer.
        first_byte: the same to the first byte of a JSON or streamed body.
        overhead: from a complete request to the moment it is sent: what we add, without
            waits and without opening a connection.
        held: from the head of a good answer to the moment it is handed on; the vendor's
            first event is awaited in it.
        wait: for an account, or for its credential.
    """

    head: Histogram = field(default_factory=lambda: Histogram(UPSTREAM_S))
    first_byte: Histogram = field(default_factory=lambda: Histogram(UPSTREAM_S))
    overhead: Histogram = field(default_factory=lambda: Histogram(OVERHEAD_S))
    held: Histogram = field(default_factory=lambda: Histogram(HELD_S))
    wait: Histogram = field(default_factory=lambda: Histogram(WAIT_S))


class Measured(Struct, eq=False):
    """What was measured since the proxy started.

    Attributes:
        requests: requests of the pool that ended, by (provider, "served", "refused" or
            "left"): a client that leaves before the answer begins.
        attempts: requests sent upstream, by (account, class of the outcome or "left").
        failovers: attempts on another account than the one before, by provider.
        timings: by provider.
        lag: from what another proxy has written to the moment it is known here.
    """

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    attempts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failovers: Counter[str] = field(default_factory=Counter)
    timings: defaultdict[str, Timings] = field(default_factory=lambda: defaultdict(Timings))
    lag: Histogram = field(default_factory=lambda: Histogram(LAG_S))

    def ended(self, attempts: Attempts, marks: Marks, *, left: bool) -> None:
        """Count a request that is over; *left*: its client did not wait for the end."""
        provider, history = attempts.facts.provider, attempts.history
        reduce(marks, self.timings[provider])
        for attempt in history:
            outcome = "left" if attempt.outcome is None else attempt.outcome.cls.value
            self.attempts[str(attempt.key), outcome] += 1
        if len(history) > 1:
            moves = (before.key != after.key for before, after in pairwise(history))
            self.failovers[provider] += sum(moves)
        last = history[-1].outcome if history else None
        if last is not None and last.cls is OutcomeClass.OK:
            result = "served"
        else:
            result = "left" if left else "refused"
        self.requests[provider, result] += 1


def reduce(marks: Iterable[tuple[Mark, float]], timings: Timings) -> None:
    """Count in *timings* what the marks of a request say, which are in the order of time."""
    began_at = sent_at = head_at = elsewhere_s = 0.0
    is_first = True
    for mark, at in marks:
        match mark:
            case Mark.BEGAN:
                began_at = at
            case Mark.WAITED:
                elsewhere_s += at
                timings.wait.observe(at)
            case Mark.OPENED:
                elsewhere_s += at
            case Mark.SENT:
                if is_first:
                    # What we added to the request is what came before the first attempt.
                    timings.overhead.observe(max(at - began_at - elsewhere_s, 0.0))
                sent_at, is_first = at, False
            case Mark.HEAD:
                timings.head.observe(at - sent_at)
                head_at = at
            case Mark.FIRST_BYTE:
                timings.first_byte.observe(at - sent_at)
            case Mark.HANDED_ON:
                timings.held.observe(at - head_at)


#: How long a request whose client has gone waits for the event that says so, seconds.
GONE_S = 5.0


class Running(Struct, eq=False):
    """The requests of one proxy that run, by client, and what each leaves when it ends.

    Attributes:
        log: is told of each that has ended.
        measured: the same.
        failed: called with an error in either, which keeps no request.
    """

    log: RequestLog
    measured: Measured
    failed: Callable[[Exception], object]
    #: by client, so that none outlives it
    _of: dict[str, dict[Attempts, Marks]] = field(default_factory=dict)
    #: of clients that have gone, whose own event is still to say what came of it
    _gone: dict[Attempts, tuple[Marks, float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def begin(self, client: str, attempts: Attempts, now: float) -> Marks:
        """Note that a request of *client* runs. Return its marks."""
        marks = self._of.setdefault(client, {})[attempts] = [(Mark.BEGAN, now)]
        return marks

    def look(self, now: float, wall_now: float) -> None:
        """Let them notice how long they have waited."""
        for running in list(self._of.values()):
            for attempts in list(running):
                reactions.silent(attempts, now)
        for attempts, (marks, gone_at) in list(self._gone.items()):
            if now - gone_at > GONE_S:
                del self._gone[attempts]
                facts, history = attempts.facts, attempts.history
                self.log.add(Ended(facts, history, marks, now, wall_now, None, whole=True))

    def end(
        self,
        client: str,
        attempts: Attempts,
        now: float,
        wall_now: float,
        *,
        status: int | None = None,
        served_as: ServedAs = NOT_COUNTED,
        left: bool = False,
    ) -> None:
        """They have ended.

        Args:
            status: of the response that the client got; None: it got none.
            served_as: what it was counted as.
            left: its client did not wait for it.
        """
        running = self._of.get(client, {})
        marks, is_gone = running.pop(attempts, None), False
        if marks is None:
            if (gone := self._gone.pop(attempts, None)) is None:
                return
            marks, is_gone = gone[0], True  # it was measured when its client went
        elif not running:
            del self._of[client]
        facts, history = attempts.facts, attempts.history
        try:
            self.log.add(Ended(facts, history, marks, now, wall_now, status, *served_as))
            if not is_gone:
                self.measured.ended(attempts, marks, left=left)
        except Exception as e:
            self.failed(e)

    def client_gone(self, client: str, now: float) -> None:
        """A safety net: whatever *client* still holds comes back."""
        for attempts, marks in self._of.pop(client, {}).items():
            self._gone[attempts] = marks, now
            try:  # the others come back whatever becomes of this one
                attempts.left(now)
            except Exception as e:
                self.failed(e)
            try:
                self.measured.ended(attempts, marks, left=True)
            except Exception as e:
                self.failed(e)


class DecisionCounter(Struct, eq=False):
    """Counts decisions since the proxy started.

    Attributes:
        counts: decisions by (provider, kind).
    """

    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)
    _last: int = 0

    def note(self, decision: Decision) -> None:
        """Count *decision*, unless it was counted before and has only changed since."""
        if decision.number > self._last:
            self._last = decision.number
            self.counts[decision.provider, decision.kind.value] += 1


# -- what each provider's accounts had left, over the last 24 hours, for a chart

#: How often what accounts have left is noted, and for how long it is kept, seconds.
EVERY_S, KEPT_S = 300.0, 86_400.0


class Sample(Struct, frozen=True):
    """One moment.

    Attributes:
        wall_at: seconds since the epoch.
        left: by provider, the share that the tightest window of its best account had left, 0 to
            1; 0 while none can serve. None of a provider that reports no window.
    """

    wall_at: float
    left: Mapping[str, float]


class HeadroomHistory:
    """The samples, oldest first; in memory only."""

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=int(KEPT_S / EVERY_S))
        self._due_at = 0.0

    def note(self, states: Iterable[AccountState], now: float, wall_now: float) -> None:
        """Take a sample of *states* if it is time for one; *now* is monotonic seconds."""
        if now < self._due_at:
            return
        self._due_at = now + EVERY_S
        left: dict[str, float] = {}
        for state in states:
            share = share_left(state, now)
            if share is not None:
                provider = state.account.provider
                left[provider] = max(share, left.get(provider, 0.0))
        self.samples.append(Sample(wall_now, left))


def share_left(state: AccountState, now: float) -> float | None:
    """Return what *state* can still serve, 0 to 1; None if no window is known."""
    tightest = tightest_window(state.headroom.at(now).windows.values(), now)
    if tightest is None:
        return None
    serves = state.enabled and state.cooling_until(None, now) <= now
    return tightest.share if serves else 0.0
