"""A mitmproxy script: the machine has slept, right before a request that says for how long.

Of the clocks the pool compares, both go ahead as they do in a suspend; nothing else is
changed. With `asleep_bound` a connection is given up sooner that answers no PING.
"""

from __future__ import annotations

from mitmproxy import ctx

from account_pool.proxy import http2, waking

HEADER = "x-asleep-seconds"


class Asleep:
    def load(self, loader):
        loader.add_option("asleep_bound", str, str(http2.DEAD_S), "Bound for a PING, seconds.")
        self.seconds = 0.0

    def running(self):
        http2.DEAD_S = float(ctx.options.asleep_bound)
        ctx.master.addons.get("account_pool").service.clocks = self.clocks

    def clocks(self):
        up, wall = waking.clocks()
        return up + self.seconds, wall + self.seconds

    def requestheaders(self, flow):
        self.seconds += float(flow.request.headers.pop(HEADER, 0))


addons = [Asleep()]
