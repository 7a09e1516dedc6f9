"""What the proxy measures of itself: plain counters and histograms, for /metrics.

Names the provider and the account, never a model or anything else that a client chooses.
Costs a few microseconds per request, and nothing per chunk.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from account_pool.core.attempts import Attempts
from account_pool.core.outcome import OutcomeClass

#: Upper bounds in seconds: how long vendors take to answer. Reasoning takes minutes.
UPSTREAM_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
#: What we do with a request, mostly tenths of a millisecond.
OVERHEAD_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5)
#: How long the head of an answer is held back: our own work, or up to `pool_gate`.
HELD_S = (0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
#: How long requests wait for an account, up to `pool_max_wait`.
WAIT_S = (0.01, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 300.0)


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


@dataclass(slots=True, eq=False)
class Timings:
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


@dataclass(slots=True, eq=False)
class Measured:
    """What was measured since the proxy started.

    Attributes:
        requests: requests of the pool that ended, by (provider, "served", "refused" or
            "left"): a client that leaves before the answer begins.
        attempts: requests sent upstream, by (account, class of the outcome or "left").
        failovers: attempts on another account than the one before, by provider.
        timings: by provider.
    """

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    attempts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failovers: Counter[str] = field(default_factory=Counter)
    timings: defaultdict[str, Timings] = field(default_factory=lambda: defaultdict(Timings))

    def ended(self, attempts: Attempts, *, left: bool) -> None:
        """Count a request that is over; *left*: its client did not wait for the end."""
        provider, history = attempts.facts.provider, attempts.history
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


class Stopwatch:
    """Times one request: what is our own part of it, and what is the provider's.

    Made when the request is complete.

    Attributes:
        elsewhere_s: what of the time so far is not our part: a connection opened, or an
            account or its credential was waited for.
    """

    __slots__ = (
        "_began_at",
        "_head_at",
        "_is_first",
        "_now",
        "_sent_at",
        "_timings",
        "elsewhere_s",
    )

    def __init__(self, timings: Timings, now: Callable[[], float]) -> None:
        self._timings = timings
        self._now = now
        self._began_at = now()
        self._is_first = True
        self._sent_at = self._head_at = 0.0
        self.elsewhere_s = 0.0

    def waited(self, seconds: float) -> None:
        """An account, or its credential, was waited for."""
        self.elsewhere_s += seconds
        self._timings.wait.observe(seconds)

    def sent(self) -> None:
        """An attempt was sent. What we added to the request is what came before the first."""
        self._sent_at = now = self._now()
        if self._is_first:
            self._is_first = False
            self._timings.overhead.observe(max(now - self._began_at - self.elsewhere_s, 0.0))

    def answered(self) -> None:
        """The head of an answer is here."""
        self._head_at = now = self._now()
        self._timings.head.observe(now - self._sent_at)

    def began(self) -> None:
        """The first byte of its body is here."""
        self._timings.first_byte.observe(self._now() - self._sent_at)

    def handed_on(self) -> None:
        """The answer is good, and its head goes to the client."""
        self._timings.held.observe(self._now() - self._head_at)
