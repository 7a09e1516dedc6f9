"""Writes into rows about requests what they cost, a moment after they were written.

A task beside all else: rows that were not looked at are read from the store, and their cost
goes into them and into the sums of their day, both in one step and once, whichever proxy does
it. The list of prices is read in a process of its own (`price_child.py`), for models and hours
that were not asked for yet.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from account_pool.core.prices import LISTED_AS, Cost, Price, Prices, Rate
from account_pool.core.request_rows import RequestRow
from account_pool.store.store import StateStore, StoreError
from account_pool.supervision import tasks

logger = logging.getLogger(__name__)

#: How long after rows were written they are looked at, seconds: one look for many.
SETTLE_S = 0.3
#: How long a list that cannot be read is left alone, and how often is looked without a cause:
#: another proxy may have left rows. Seconds.
RETRY_S = 600.0
#: How long the list is left alone after it was read, seconds: a process takes some 0.3 s of a core
#: for it, and a client may ask one model after another.
READ_EVERY_S = 5.0
#: Rows that are looked at in one step.
AT_ONCE = 500
#: How long the process may take that reads the list, seconds.
CHILD_S = 60.0
#: Prices that are remembered at most. Clients choose the names of models.
MAX_KNOWN = 5_000
_HOUR_S = 3600

#: Asks the store; None: it cannot be used. Raises StoreError.
Ask = Callable[[Callable[[StateStore], Any]], Awaitable[Any]]
#: A row with its number.
Numbered = tuple[int, RequestRow]
#: Provider as the list names it, model, and the hour, seconds since the epoch.
Asked = tuple[str, str, int]


class NoList(Exception):
    """The list of prices cannot be read; the text says why."""


class Pricing:
    """Looks for rows without a cost.

    Attributes:
        prices: the owner's own.
        is_first: this is the worker that does it.
    """

    def __init__(
        self,
        ask_list: Callable[[Sequence[Asked]], Any] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.prices = Prices()
        self.is_first = True
        self._ask_list = ask_list or ask_child
        self._known: dict[Asked, Price | None] = {}
        self._source = ""
        self._due = asyncio.Event()
        self._again = True
        self._said = ""
        self._now = now
        #: until when the list is left alone, up to which row all that need it were met by then,
        #: and whether some do
        self._list_at = 0.0
        self._met = 0
        self._left = False
        self._task: asyncio.Task[None] | None = None

    def use(self, prices: Prices) -> None:
        """Take over the owner's prices: what had none is looked at again."""
        if prices.rules != self.prices.rules:
            self.prices, self._again = prices, True
            self._due.set()

    def look(self) -> None:
        """Rows were written."""
        self._due.set()

    def start(self, ask: Ask) -> None:
        """Begin. Needs a running event loop. *ask* asks the store, None: it cannot be used."""
        self._task = tasks.supervised("prices of requests", lambda: self._run(ask))

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self, ask: Ask) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.pause_s()):
                    await self._due.wait()
            await asyncio.sleep(SETTLE_S)
            self._due.clear()
            if self.is_first:
                # The store reports its own failures.
                with suppress(StoreError):
                    await self.round(ask)

    def pause_s(self) -> float:
        """Return how long there is nothing to look at unless rows are written, seconds."""
        if not (self._left and self.is_first):
            return RETRY_S
        return max(self._list_at - self._now(), 0.0)

    async def round(self, ask: Ask) -> None:
        """Look once at all rows that were not looked at. Raises StoreError."""
        if self._again and await ask(_reprice):
            self._again, self._met = False, 0
        after = self._met
        if self._now() >= self._list_at:
            after, self._left = 0, False
        known = len(self._known)
        while found := await ask(partial(_unpriced, after=after)):
            if costs := await self._costs(found):
                await ask(partial(_write, costs=costs))
            after = self._met = found[-1][0]
        if len(self._known) != known:
            self._list_at = max(self._list_at, self._now() + READ_EVERY_S)

    async def _costs(self, rows: Sequence[Numbered]) -> list[tuple[int, Cost]]:
        wanted = {n: self._wanted(row) for n, row in rows}
        missing = sorted({a for a in wanted.values() if a is not None and a not in self._known})
        if missing and self._now() >= self._list_at:
            try:
                await self._learn(missing)
            except NoList as error:
                # Once: it is tried again. What needs no list has its cost.
                self._list_at = self._now() + RETRY_S
                if str(error) != self._said:
                    self._said = str(error)
                    logger.warning(f"account-pool: prices cannot be read: {error}")
        costs = []
        for number, row in rows:
            asked = wanted[number]
            if asked is None or asked in self._known:
                listed = None if asked is None else self._known[asked]
                costs.append((number, self.prices.cost(row, listed, self._source)))
            else:
                self._left = True
        return costs

    def _wanted(self, row: RequestRow) -> Asked | None:
        """Return what to ask the list for; None: it is not needed, or would not help."""
        listed_as = LISTED_AS.get(row.provider)
        if listed_as is None or not row.model or row.input_tokens is None:
            return None
        if self.prices.of_model(row.account or row.provider, row.model) is not None:
            return None
        return listed_as, row.model, int(row.wall_at // _HOUR_S) * _HOUR_S

    async def _learn(self, asked: Sequence[Asked]) -> None:
        answer = await asyncio.to_thread(self._ask_list, asked)
        if len(self._known) + len(asked) > MAX_KNOWN:
            self._known.clear()
        try:
            self._source = f"genai-prices {answer['version']}"[:40]
            found = [_price(value) for value in answer["prices"]]
            self._known.update(zip(asked, found, strict=True))
        except (AttributeError, LookupError, TypeError, ValueError):
            raise NoList("genai-prices says something else than expected") from None


def _reprice(store: StateStore) -> bool:
    store.requests.reprice()
    return True


def _unpriced(store: StateStore, after: int) -> list[Numbered]:
    return store.requests.unpriced(after, AT_ONCE)


def _write(store: StateStore, costs: Sequence[tuple[int, Cost]]) -> None:
    store.requests.price(costs)


def ask_child(asked: Sequence[Asked]) -> Any:
    """Return what `price_child.py` answers to *asked*. Blocks. Raises NoList."""
    script = Path(__file__).with_name("price_child.py")
    try:
        # Without the directory of the script, whose modules have names of others.
        done = subprocess.run(  # noqa: S603 - our own script
            [sys.executable, "-P", str(script)],
            input=json.dumps(asked).encode(),
            capture_output=True,
            timeout=CHILD_S,
            check=False,
        )
        if done.returncode != 0:
            last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["?"]
            raise NoList(f"genai-prices cannot be used ({last[0][:200]})")
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise NoList("genai-prices takes too long") from None
    except (OSError, ValueError) as error:
        raise NoList(f"genai-prices cannot be started ({type(error).__name__})") from None


def _price(value: Any) -> Price | None:
    if value is None:
        return None
    rates = {name: _rate(value.get(name)) for name in Price._fields}
    sent, generated = rates["input"], rates["output"]
    if sent is None or generated is None:
        return None
    return Price(sent, generated, rates["cached"], rates["cache_write"])


def _rate(value: Any) -> Rate | None:
    return None if value is None else tuple((int(above), float(usd)) for above, usd in value)
