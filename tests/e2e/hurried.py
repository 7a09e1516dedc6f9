"""A mitmproxy script: a refresh is slow at once, and a proxy that stops waits for none."""

from __future__ import annotations

from account_pool.credentials import refreshable_token
from account_pool.proxy import draining


class Hurried:
    # Not when it is imported: tests do that for its path.
    def load(self, _loader: object) -> None:
        refreshable_token.SLOW_S = 0.0
        draining.ANSWER_S = 0.0


addons = [Hurried()]
