"""Tokens that are forgotten at the end of the process."""

from __future__ import annotations

import threading
from collections.abc import Callable

from account_pool.store.tokens import Tokens


class MemoryTokens:
    """A `TokenStore` for `pool_state=memory:`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: dict[str, Tokens] = {}
        self._claims: dict[str, tuple[str, float]] = {}

    def load(self, family: str) -> Tokens | None:
        with self._lock:
            return self._tokens.get(family)

    def save(self, family: str, tokens: Tokens) -> None:
        with self._lock:
            self._tokens[family] = tokens

    def claim(
        self, family: str, owner: str, *, clock: Callable[[], float], lasts_s: float
    ) -> float | None:
        with self._lock:
            now = clock()
            holder, until = self._claims.get(family, (owner, now))
            # One that ends later than any could was made before the clock was set back.
            if holder != owner and now < until <= now + lasts_s:
                return None
            self._claims[family] = (owner, now + lasts_s)
            return now + lasts_s

    def release(self, family: str, owner: str) -> None:
        with self._lock:
            if self._claims.get(family, ("", 0.0))[0] == owner:
                del self._claims[family]

    def close(self) -> None:
        """Nothing is open."""
