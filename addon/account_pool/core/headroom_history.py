"""What each provider's accounts had left, over the last 24 hours, for a chart."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from account_pool.core.headroom import tightest_window
from account_pool.core.state import AccountState

#: How often it is noted, and for how long it is kept, seconds.
EVERY_S, KEPT_S = 300.0, 86_400.0


class Sample(NamedTuple):
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
