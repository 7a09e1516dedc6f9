"""Which accounts file this proxy serves from: searched for until one serves, then followed.

A file that serves stays the one, also when another comes that the search would prefer,
until the proxy starts again or `pool_accounts` is set to something else. A `./accounts.yaml`
that the search found must be confirmed again after every change: a `git pull` may have
brought a `command:`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mitmproxy import ctx

from account_pool.config import accounts_file
from account_pool.config.accounts_file import Found, Why, skip_line
from account_pool.config.values import Config

logger = logging.getLogger(__name__)

#: What tells that a file was written: time in ns, size, number; None while it is not there.
Stamp = tuple[int, int, int] | None


@dataclass(slots=True, eq=False)
class SourceFile:
    """The accounts file of a proxy.

    Attributes:
        environ: where the search looks, and accounts find their variables.
        found: what serves; None until the first accounts were read.
        read: what `stamps` told just before they were read last.
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
        """Return what changes when there is something to be read again. Blocks."""
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
