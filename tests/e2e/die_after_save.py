"""A mitmproxy script: kills the proxy, as `kill -9` does, right after tokens were written.

Or, with `DIE_AFTER=claim` in its environment, after a login was claimed.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from account_pool.store.sqlite import SqliteTokens

DIE = "DIE_AFTER"


def load(_loader: object) -> None:
    """mitmproxy calls it; a test that imports this file for its path must live on."""
    name = os.environ.get(DIE, "save")
    done = getattr(SqliteTokens, name)

    def do_and_die(self: SqliteTokens, *args: Any, **how: Any) -> None:
        done(self, *args, **how)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(SqliteTokens, name, do_and_die)
