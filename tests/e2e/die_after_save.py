"""A mitmproxy script: kills the proxy, as `kill -9` does, right after tokens were written."""

from __future__ import annotations

import os
import signal

from account_pool.store.sqlite import SqliteTokens

save = SqliteTokens.save


def save_and_die(self, family, tokens, **how) -> None:
    save(self, family, tokens, **how)
    os.kill(os.getpid(), signal.SIGKILL)


def load(_loader) -> None:
    """mitmproxy calls it; a test that imports this file for its path must live on."""
    SqliteTokens.save = save_and_die
