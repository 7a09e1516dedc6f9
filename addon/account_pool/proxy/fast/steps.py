"""Which of the shorter ways are in use."""

from __future__ import annotations

import logging
from collections.abc import Collection

from mitmproxy.addonmanager import AddonManager

from account_pool.config.options import FAST_STEPS
from account_pool.proxy.fast import direct, inline, relay, short
from account_pool.proxy.fast.table import HookTable

logger = logging.getLogger(__name__)


class Steps:
    """Puts the steps that were chosen into an addon manager, and into the handlers of clients."""

    def __init__(self, manager: AddonManager) -> None:
        self._table = HookTable(manager)
        self._said = ""
        self.used: frozenset[str] = frozenset()

    def use(self, chosen: Collection[str]) -> None:
        """Use those of *chosen* that mitmproxy allows. Connected clients stay as they are."""
        used = set()
        if "table" not in chosen:
            self._table.uninstall()
        elif self._table.install():
            used.add("table")
            if "inline" in chosen and inline.is_as_known():
                used.add("inline")
                if "direct" in chosen and direct.is_as_known():
                    used.add("direct")
                    if "short" in chosen and short.is_as_known():
                        used.add("short")
                        if "relay" in chosen and relay.is_as_known():
                            used.add("relay")
        self.used = frozenset(used)
        line = ", ".join(name for name in FAST_STEPS if name in used) or "none"
        if line != self._said:
            self._said = line
            logger.debug("account-pool: shorter ways through mitmproxy in use: %s", line)

    def take(self, handler: object) -> bool:
        """Handle the events of one client, from the first on. Returns whether that is done."""
        if "inline" not in self.used or not self._table.is_installed:
            return False
        queue = inline.put_into(handler, self._table)
        if queue is not None and "direct" in self.used:
            direct.put_into(queue)
            queue.may_shorten = "short" in self.used and short.is_as_known()
        return queue is not None
