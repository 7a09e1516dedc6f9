"""A mitmproxy script: the machine has slept, right before a request that says for how long.

Of the clocks the pool compares, both go ahead as they do in a suspend. Layers are woken
outermost first: by themselves they have no order, and this one asks the most. With
`asleep_bound` a connection is given up sooner that answers no PING.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

from mitmproxy import ctx, http
from mitmproxy.addonmanager import Loader

from account_pool.proxy import http2
from account_pool.proxy.service import CLOCKS, ClientLayer

HEADER = "x-asleep-seconds"


class OutermostFirst(weakref.WeakSet[ClientLayer]):
    def __iter__(self) -> Iterator[ClientLayer]:
        return iter(sorted(super().__iter__(), key=lambda layer: len(layer.context.layers)))


class Asleep:
    def load(self, loader: Loader) -> None:
        loader.add_option("asleep_bound", str, str(http2.DEAD_S), "Bound for a PING, seconds.")
        self.seconds = 0.0

    def running(self) -> None:
        http2.DEAD_S = float(ctx.options.asleep_bound)
        service = ctx.master.addons.get("account_pool").service
        service.suspends.clocks = tuple(self.ahead(clock) for clock in CLOCKS)
        service.layers = OutermostFirst(service.layers)

    def ahead(self, clock: Callable[[], float]) -> Callable[[], float]:
        return lambda: clock() + self.seconds

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        self.seconds += float(flow.request.headers.pop(HEADER, 0))


addons = [Asleep()]
