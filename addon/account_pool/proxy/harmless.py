"""What only looks on must not harm a request: an error in it goes to the log, not further."""

from __future__ import annotations

import logging
from types import TracebackType

from account_pool.supervision import where

logger = logging.getLogger(__name__)


class Harmless:
    """`with harmless:` ends what fails inside. The log tells of each place once.

    What every request passes catches by itself and calls `tell`: that is two calls less.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __enter__(self) -> None:
        """Nothing is held."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        self.tell(error)
        return True

    def tell(self, error: Exception) -> None:
        """Tell the log of *error*, unless it did."""
        if (text := where(error)) not in self._told:
            self._told.add(text)
            logger.error(f"account-pool: {text}; the request continues without it")


harmless = Harmless()
