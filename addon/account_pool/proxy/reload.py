"""Takes over accounts.yaml when it changes, while requests are under way.

What is right replaces what was there; a file with a mistake changes nothing. Nothing is
interrupted: cooldowns, credentials and the requests in flight of accounts that stay are
kept. What answers said of a credential goes with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from account_pool.config import AccountEntry
from account_pool.core.account import AccountKey
from account_pool.credentials.written import mark
from account_pool.proxy.service import Service

#: How often the file is looked at, in seconds.
LOOK_S = 2.0

#: What tells that a file was written: time in ns, size, number; None while it is not there.
Stamp = tuple[int, int, int] | None


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
    source = {entry.account.key: mark(entry) for entry in entries}
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
    """Notices that a file was written. No library: a look every two seconds is enough."""

    def __init__(
        self,
        path: Callable[[], Path],
        written: Callable[[], Awaitable[None]],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Take the path, which may change, and what to do. The file as it is now is known."""
        self._path = path
        self._written = written
        self._sleep = sleep
        self._seen: tuple[Path, Stamp]
        self.note()

    def note(self) -> None:
        """The file as it is now is known: we have written it ourselves."""
        path = self._path()
        self._seen = (path, stamp_of(path))

    async def run(self) -> None:
        """Look at the file for ever."""
        while True:
            await self._sleep(LOOK_S)
            # A home directory may be on the network.
            path = self._path()
            found = (path, await asyncio.to_thread(stamp_of, path))
            if found != self._seen:
                # Before it is read: what is written meanwhile is noticed the next time.
                self._seen = found
                await self._written()


def stamp_of(path: Path) -> Stamp:
    """Return what changes when the file is written."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
