"""A mitmproxy script: logs what is restored, runs commands, and kills the proxy on demand.

With `DIE_AFTER_COOLDOWN=provider/label` in its environment the proxy is killed, as `kill -9`
does, right after a cooldown of that account was written. `GET http://pool.test/COMMAND/ARGUMENT`
through the proxy runs a command and answers its result.
"""

from __future__ import annotations

import logging
import os
import signal
from typing import Any

from mitmproxy import ctx, http
from mitmproxy.log import ALERT

from account_pool.core import snapshot
from account_pool.core.snapshot import PoolSnapshot
from account_pool.store.sqlite_state import SqliteState

logger = logging.getLogger(__name__)

HOST = "pool.test"
DIE = "DIE_AFTER_COOLDOWN"

exchange = SqliteState.exchange
restore = snapshot.restore


def exchange_and_die(self: SqliteState, *what: Any, **when: Any) -> PoolSnapshot:
    saved = exchange(self, *what, **when)
    if any(account.cooldowns and str(account.key) == os.environ[DIE] for account in saved.accounts):
        os.kill(os.getpid(), signal.SIGKILL)
    return saved


def restore_and_tell(accounts: Any, kept: PoolSnapshot, **when: Any) -> None:
    restore(accounts, kept, **when)
    for account in kept.accounts:
        cooldowns = len(account.cooldowns)
        logger.log(ALERT, f"restored {account.key} with {cooldowns} cooldowns")


def load(_loader: object) -> None:
    """mitmproxy calls it; a test that imports this file for its path must live on."""
    snapshot.restore = restore_and_tell
    if DIE in os.environ:
        SqliteState.exchange = exchange_and_die  # type: ignore[method-assign]  # on purpose


def request(flow: http.HTTPFlow) -> None:
    if flow.request.host == HOST:
        command, *argument = flow.request.path[1:].split("/", 1)
        said = ctx.master.commands.call(command, *argument) or ""
        text = said if isinstance(said, str) else "\n".join(said)
        flow.response = http.Response.make(200, text, {"content-type": "text/plain"})
