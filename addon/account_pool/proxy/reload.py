"""What is reloaded while requests are under way: accounts.yaml, and pool.py itself.

A valid accounts.yaml replaces what was there; one with a mistake changes nothing. Nothing is
interrupted: accounts that stay keep their cooldowns, credentials and requests in flight. What
was learnt of a credential goes with it.

The file that serves is searched for until one serves, and followed then: it stays the one,
also when another comes that the search would prefer, until the proxy starts again or
`pool_accounts` is set to something else. A `./accounts.yaml` that the search found must be
confirmed again after every change: a `git pull` may have brought a `command:`.

mitmproxy watches pool.py and runs it anew when it was written: it ends the addons it had
(`done`), asks the file for others and starts those, all before anything else happens. So an
addon that ends waits for a moment whether it is wanted again: it keeps all that it knows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mitmproxy import ctx

from account_pool.config import accounts_file
from account_pool.config.accounts_file import Found, Why, skip_line
from account_pool.config.values import Config
from account_pool.core.account import AccountKey
from account_pool.credentials.sources import AccountEntry
from account_pool.proxy.service import Service

if TYPE_CHECKING:
    from mitmproxy.master import Master

logger = logging.getLogger(__name__)

#: How often the file is looked at, in seconds.
LOOK_S = 2.0
#: Changes when a file is written: time in ns, size, number; None while it is not there.
Stamp = tuple[int, int, int] | None

Addon = TypeVar("Addon")


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
    before = {state.key: state.account for state in pool.accounts}
    source = {entry.account.key: entry.fingerprint() for entry in entries}
    wanted = {entry.account.key: entry.account for entry in entries}
    removed = tuple(key for key in before if key not in wanted)
    added = tuple(key for key in wanted if key not in before)
    changed = tuple(
        key for key, account in wanted.items() if key in before and before[key] != account
    )
    for key in removed:
        pool.accounts.remove(key, now=now)
        service.forget(key)
    for key in changed:
        pool.accounts.replace(wanted[key], now=now)
    others = tuple(key for key in renewed if key in wanted and key in before)
    for key in others:
        pool.accounts.renewed(key, now=now, source=source[key])
        service.forget(key)
    for key in added:
        pool.accounts.add(wanted[key], now=now, pending=wanted[key].enabled, source=source[key])
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


# -- the file that serves


@dataclass(slots=True, eq=False)
class SourceFile:
    """The accounts file of a proxy.

    Attributes:
        environ: where the search looks, and accounts find their variables.
        found: what serves; None until the first accounts were read.
        read: what `stamps` returned just before they were read last.
    """

    environ: Mapping[str, str]
    found: Found | None = None
    read: Sequence[tuple[Path, Stamp]] = ()
    _option: str = ""
    _tried: Path | None = None
    _skipped: str = ""

    def look(self) -> Found:
        """Return what serves now, or would. Blocks."""
        option = str(ctx.options.pool_accounts)
        if self.found is not None and self.found.path is not None and option == self._option:
            return self.found
        return accounts_file.find(option, accounts_file.OPTION, self.environ)

    def load(self) -> Config | None:
        """Read the file, and follow it from now on; None where there is none.

        Raises ConfigError.
        """
        option, found = str(ctx.options.pool_accounts), self.look()
        self._tried, self.read = found.path, _stamps(found)
        self._note_skipped(found)
        loaded = None if found.path is None else accounts_file.load_found(found, self.environ)
        self.found, self._option = found, option
        return loaded

    @property
    def target(self) -> Path:
        """Where accounts are written that are added."""
        return (self.found or self.look()).target

    @property
    def path(self) -> Path | None:
        """The file that serves; None while the accounts are those of the environment."""
        return self.found.path if self.found else None

    def stamps(self) -> Sequence[tuple[Path, Stamp]]:
        """Return what changes when there is something to read again. Blocks."""
        return _stamps(self.look())

    def __str__(self) -> str:
        """Name what `load` read last, or could not."""
        return "the environment" if self._tried is None else accounts_file.shown(self._tried)

    def _note_skipped(self, found: Found) -> None:
        line = skip_line(found.skipped, accounts_file.command()) if found.skipped else ""
        if line and line != self._skipped:
            logger.warning(f"account-pool: {line}")
        self._skipped = line


def _stamps(found: Found) -> Sequence[tuple[Path, Stamp]]:
    files = [found.target]
    if found.why is Why.NONE and (local := accounts_file.local_file()) is not None:
        files.append(local)
    if found.confirm or found.why is Why.NONE:
        files.append(accounts_file.trust_store())
    return [(path, stamp_of(path)) for path in files]


def stamp_of(path: Path) -> Stamp:
    """Return what changes when the file is written."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


# -- pool.py

#: Addons that mitmproxy has dropped, with their master and what ends them.
_dropped: list[tuple[object, Master, Callable[[], None]]] = []


def end_unless_reloaded(addon: object, end: Callable[[], None]) -> None:
    """Call *end* soon for *addon*, which was dropped, unless `carried_over` returns it before."""
    if ctx.master.should_exit.is_set():
        end()
        return
    left = (addon, ctx.master, end)
    _dropped.append(left)
    asyncio.get_running_loop().call_soon(_end, left)


def carried_over(kind: type[Addon]) -> Addon | None:
    """Return the addon of *kind* that was just dropped and now goes on; None if there is none."""
    for left in _dropped:
        addon, master, _ = left
        if master is ctx.master and isinstance(addon, kind):
            _dropped.remove(left)
            return addon
    return None


def _end(left: tuple[object, Master, Callable[[], None]]) -> None:
    if left in _dropped:
        _dropped.remove(left)
        left[2]()
