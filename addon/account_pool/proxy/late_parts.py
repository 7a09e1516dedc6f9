"""Notifications, look-ups and costs: made, and their modules imported, once they are wanted.

Most proxies start without an owner who wants them, and without rows that need a cost.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mitmproxy.options import Options
from msgspec import Struct

from account_pool.config.options import OptionValue
from account_pool.core.account import AccountKey
from account_pool.credentials.http import Http
from account_pool.proxy.fleet import SharedNotices
from account_pool.proxy.service import Service
from account_pool.supervision import tasks

if TYPE_CHECKING:
    from account_pool.proxy.look_ups import HeadroomLookUps
    from account_pool.proxy.notifier import Notifier
    from account_pool.proxy.pricing import Ask, Pricing

#: How long after the start rows are looked for that other proxies left without a cost, seconds.
OTHERS_ROWS_S = 600.0


class Needs(Struct, frozen=True):
    """What the parts ask.

    Attributes:
        http_of: returns what sends requests of our own, as the options say.
        ask_store: asks the store, as `Wiring` does.
        notices: returns what proxies on one store share, None before there is any.
        login_ends: returns when logins come to their own end, seconds since the epoch.
        is_vendors: says whether the accounts of a provider are at the vendor's own hosts.
    """

    http_of: Callable[[Options], Http]
    ask_store: Ask
    notices: Callable[[], SharedNotices | None]
    login_ends: Callable[[], Mapping[AccountKey, float]]
    is_vendors: Callable[[str], bool]


class LateParts:
    """The parts of one proxy.

    Attributes:
        is_first: this is the worker that acts where one of them has to.
        notifier: tells the owner when an account goes; None until that is wanted.
        look_ups: asks providers what idle accounts have left; None until that is wanted.
        pricing: puts into rows about requests what they cost; None until there are any.
    """

    def __init__(self, service: Service, needs: Needs) -> None:
        self.is_first = True
        self.notifier: Notifier | None = None
        self.look_ups: HeadroomLookUps | None = None
        self.pricing: Pricing | None = None
        self._service, self._needs = service, needs
        self._runs = False
        self._rows = asyncio.Event()
        self._waiting: asyncio.Task[object] | None = None
        service.rows_written = self._rows.set

    def use(self, values: Mapping[str, OptionValue], options: Options) -> None:
        """Do as *values* say, of the pool's options; *options* are mitmproxy's. Raises Wrong."""
        self._use_notifier(str(values["notify"]), options)
        self._use_prices(str(values["prices"]))
        self._use_look_ups(options, on=bool(values["look_up"]))

    def start(self) -> None:
        """Begin with those that are there. Needs the running loop."""
        self._runs = True
        if self.notifier is not None:
            self.notifier.start(self._needs.notices)
        if self.look_ups is not None:
            self.look_ups.start(self._needs.notices, self._needs.is_vendors)
        if self.pricing is not None:
            self.pricing.start(self._needs.ask_store)
        else:
            self._waiting = tasks.once("prices of requests", self._price_later)

    def stop(self) -> None:
        self._runs = False
        if self._waiting is not None:
            self._waiting.cancel()
        for part in (self.notifier, self.look_ups, self.pricing):
            if part is not None:
                part.stop()

    def _use_notifier(self, targets: str, options: Options) -> None:
        if self.notifier is None:
            if not targets.strip():
                return
            from account_pool.proxy.notifier import Notifier  # noqa: PLC0415 - see above

            self.notifier = Notifier(self._service, self._needs.http_of)
            self.notifier.is_first = self.is_first
            self.notifier.login_ends = self._needs.login_ends
            self._service.notify_targets = self.notifier.targets
            if self._runs:
                self.notifier.start(self._needs.notices)
        from account_pool.config.notify import read_targets  # noqa: PLC0415 - see above

        self.notifier.use(read_targets(targets), options)

    def _use_look_ups(self, options: Options, *, on: bool) -> None:
        if self.look_ups is None:
            if not on:
                return
            from account_pool.proxy.look_ups import HeadroomLookUps  # noqa: PLC0415 - see above

            self.look_ups = HeadroomLookUps(self._service, self._needs.http_of)
            self._service.look_ups = self.look_ups
            if self._runs:
                self.look_ups.start(self._needs.notices, self._needs.is_vendors)
        self.look_ups.use(options, on=on)

    def _use_prices(self, prices: str) -> None:
        if self.pricing is None and not prices.strip():
            return
        from account_pool.core.prices import Prices, read_prices  # noqa: PLC0415 - see above

        self._price().use(Prices(read_prices(prices)))

    def _price(self) -> Pricing:
        """Return what puts a cost into rows; from the first time on it does."""
        if self.pricing is None:
            from account_pool.proxy.pricing import Pricing  # noqa: PLC0415 - see above

            self.pricing = pricing = Pricing()
            pricing.is_first = self.is_first
            self._service.rows_written = pricing.look
            self._service.prices = lambda: pricing.prices
            if self._runs:
                pricing.start(self._needs.ask_store)
        return self.pricing

    async def _price_later(self) -> None:
        """Begin with prices once there are rows, or others may have left some."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OTHERS_ROWS_S):
                await self._rows.wait()
        # In a thread: requests go on meanwhile.
        await asyncio.to_thread(importlib.import_module, "account_pool.proxy.pricing")
        self._price().look()
