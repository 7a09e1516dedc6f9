"""Takes over accounts.yaml when it changes, while requests are under way.

What is right replaces what was there; a file with a mistake changes nothing. Nothing is
interrupted: cooldowns, credentials and the requests in flight of accounts that stay are
kept. What answers said of a credential goes with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass

from account_pool.core.account import AccountKey
from account_pool.credentials.entry import AccountEntry
from account_pool.credentials.source_fingerprint import fingerprint
from account_pool.proxy.service import Service

#: How often the file is looked at, in seconds.
LOOK_S = 2.0


@dataclass(frozen=True, slots=True)
class Changes:
    """What a reload did to the pool. Prints as a line for the log."""

    added: tuple[AccountKey, ...] = ()
    removed: tuple[AccountKey, ...] = ()
    changed: tuple[AccountKey, ...] = ()
    renewed: tuple[AccountKey, ...] = ()

    def __str__(self) -> str:
        parts = [
            f"{verb} {', '.join(map(str, keys))}"
            for verb, keys in (
                ("added", self.added),
                ("removed", self.removed),
                ("changed", self.changed),
                ("new credential for", self.renewed),
            )
            if keys
        ]
        return "; ".join(parts) or "no account changed"


def update_pool(
    service: Service, entries: Iterable[AccountEntry], renewed: Collection[AccountKey] = ()
) -> Changes:
    """Make the accounts of *service* those of *entries*.

    *renewed* are those whose entry leads to another credential than it did.
    """
    pool, now = service.pool, service.now()
    entries = list(entries)
    before = {state.key: state.account for state in pool.accounts()}
    source = {entry.account.key: fingerprint(entry) for entry in entries}
    wanted = {entry.account.key: entry.account for entry in entries}
    removed = tuple(key for key in before if key not in wanted)
    added = tuple(key for key in wanted if key not in before)
    changed = tuple(
        key for key, account in wanted.items() if key in before and before[key] != account
    )
    for key in removed:
        pool.remove(key, now=now)
        service.forget(key)
    for key in changed:
        pool.replace(wanted[key], now=now)
    others = tuple(key for key in renewed if key in wanted and key in before)
    for key in others:
        pool.renewed(key, now=now, source=source[key])
        service.forget(key)
    for key in added:
        pool.add(wanted[key], now=now, pending=wanted[key].enabled, source=source[key])
    return Changes(added, removed, changed, others)


class Watcher:
    """Notices that files were written. No library: a look every two seconds is enough."""

    def __init__(
        self,
        look: Callable[[], object],
        written: Callable[[], Awaitable[None]],
        seen: object,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Take what tells that they were written, what to do then, and what it told before.

        *seen* is from before they were read: what was written in between is noticed, too.
        """
        self._look = look
        self._written = written
        self._sleep = sleep
        self.seen = seen

    async def run(self) -> None:
        """Look at the files for ever."""
        while True:
            await self._sleep(LOOK_S)
            # A home directory may be on the network.
            found = await asyncio.to_thread(self._look)
            if found != self.seen:
                # Before they are read: what is written meanwhile is noticed the next time.
                before, self.seen = self.seen, found
                try:
                    await self._written()
                except BaseException:
                    if self.seen is found:
                        self.seen = before  # they are read again once this has begun anew
                    raise
