"""What is reloaded while requests are under way: accounts.yaml, and pool.py itself.

A valid accounts.yaml replaces what was there; one with a mistake changes nothing. Nothing is
interrupted: accounts that stay keep their cooldowns, credentials and requests in flight. What
was learnt of a credential goes with it.

The file that serves is searched for until one serves, and followed then: it stays the one,
also when another comes that the search would prefer, until the proxy starts again or
`pool_accounts` is set to something else. A `./accounts.yaml` that the search found must be
confirmed again after every change: a `git pull` may have brought a `command:`.

mitmproxy watches pool.py and runs it again when it was written: it ends the addons it had
(`done`), takes new ones from the file and starts those, all before anything else happens. So an
addon that was ended waits for a moment, and goes on with its state if the file asks for it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mitmproxy import ctx, exceptions
from mitmproxy.log import ALERT
from msgspec import Struct
from msgspec.structs import replace

from account_pool.admin.http import ApiError
from account_pool.config import accounts_file
from account_pool.config.accounts_file import Found, skip_line
from account_pool.config.configuration import Config, from_environment
from account_pool.config.problems import ConfigError, Problem
from account_pool.core.account import AccountKey
from account_pool.filesystem import expanded, reason_of
from account_pool.proxy.process import without_collections
from account_pool.proxy.wiring import Changes, Wiring
from account_pool.store.pool_state import database_path
from account_pool.store.store import StoreError
from account_pool.supervision import begun, settled, tasks

if TYPE_CHECKING:
    from mitmproxy.master import Master

    from account_pool.admin.actions import Actions

logger = logging.getLogger(__name__)

#: How often the file is looked at, in seconds.
LOOK_S = 2.0
#: How soon accounts that could not be taken over are read again, in seconds: the reason may have
#: been the disk, the state database or another file.
RETRY_S = 60.0
#: How long the start waits for the accounts, what reads them again, and a command, which keeps
#: everybody meanwhile; seconds. A disk that was spun down takes some, a share may never answer.
START_S, READ_S, BY_HAND_S = 30.0, 30.0, 5.0
#: Changes when a file is written: time in ns, size, number; None while it is not there.
Stamp = tuple[int, int, int] | None

#: Why the accounts cannot be read again; the text is for people.
RELOAD_ERRORS = (ConfigError, StoreError, exceptions.OptionsError, OSError)

_HANGS = (
    "the accounts file cannot be looked at: the disk or share that it is on does not answer; "
    "the accounts stay as they are until it does"
)
_NOT_TAKEN = "has errors; the accounts stay as they were"

Addon = TypeVar("Addon")


class Reloader:
    """Reads the accounts, and reads them again: when their file was written, or by hand.

    Files are read in threads, some slowly: of readings that overlap, the one that began last
    counts.

    Attributes:
        file: the accounts file that serves.
        added: where accounts are written that it cannot hold; None before the first reading.
        watcher: what notices that the file was written; None before `watch`.
    """

    def __init__(self, wiring: Wiring) -> None:
        self.file = SourceFile(os.environ)
        self.added: AddedFile | None = None
        self.watcher: Watcher | None = None
        self._wiring = wiring
        #: removed by hand, and still in a file that must not be changed
        self._left_out: set[AccountKey] = set()
        #: readings that began, and the latest of those that are over
        self._readings = self._read = 0
        #: a reading that was not over in time
        self._hung: Future[Config] | None = None
        #: the error of the reading that is tried again, which need not be logged twice
        self._logged = ""

    @without_collections()
    def load(self) -> Config:
        """Read the accounts. Blocks. Raises one of RELOAD_ERRORS."""
        confdir = expanded(ctx.options.confdir)
        try:
            # mitmproxy does so too late: once it listens, and with a traceback.
            confdir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:
            raise exceptions.OptionsError(
                f"confdir: {confdir} is not a directory; name another"
            ) from None
        except OSError as e:
            raise exceptions.OptionsError(
                f"confdir: {confdir} cannot be made ({reason_of(e)}); name another"
            ) from None
        loaded = self.file.load() or from_environment(
            os.environ,
            github_token=ctx.options.pool_github_token or None,
            account_type=ctx.options.pool_account_type,
            directories=(Path.cwd(), expanded(ctx.options.confdir)),
        )
        if self.added is None:
            state = str(self._wiring.values(loaded.options)["state"])
            self.added = AddedFile(database_path(state, ctx.options.confdir))
        if self.added.known is not None:
            loaded = accounts_file.with_added(loaded, self.added.known, os.environ)
        return self._wiring.sharing_known(loaded)

    def read(self, wait_s: float) -> Config:
        """Do so in a thread, which is waited for so many seconds. Raises one of RELOAD_ERRORS."""
        asked = self._ask()
        wait([asked], wait_s)
        return self._answered(asked)

    async def _read_soon(self) -> Config:
        """Do the same without keeping anybody. Raises one of RELOAD_ERRORS."""
        asked = self._ask()
        with suppress(Exception):  # `_answered` raises it
            await settled(asked, READ_S)
        return self._answered(asked)

    def _ask(self) -> Future[Config]:
        # One that hangs is enough: each keeps a thread.
        if self._hung is not None and not self._hung.done():
            raise self._hangs
        return begun(self.load)

    def _answered(self, asked: Future[Config]) -> Config:
        if asked.done():
            return asked.result()
        self._hung = asked
        gc.enable()  # which `load` may have turned off until it is over
        raise self._hangs

    @property
    def _hangs(self) -> ConfigError:
        named = ctx.options.pool_accounts or os.environ.get(accounts_file.VARIABLE)
        path = self.file.path or (expanded(named) if named else accounts_file.own_file())
        wrong = "it was not read in time"
        remedy = "check the disk or share that it is on"
        return ConfigError([Problem(path, None, "", wrong, remedy)])

    def watch(self) -> asyncio.Task[None]:
        """Take the accounts over whenever the file is written."""
        self.watcher = Watcher(self.file.stamps, self.reload_in_background, self.file.read)
        return tasks.supervised("watching the accounts file", self.watcher.run)

    def reload(self) -> Changes:
        """Read the accounts again and take them over. Blocks. Raises one of RELOAD_ERRORS."""
        self._left_out.clear()
        number = self._begin()
        try:
            loaded = self.read(BY_HAND_S)
            self._is_newest(number)
            return self._wiring.take_over(loaded)
        except RELOAD_ERRORS:
            self._try_again(number)
            raise

    async def reload_in_background(self) -> None:
        """Do the same in a thread, and log the result; what fails is tried again."""
        logged, self._logged = self._logged, ""
        self._left_out.clear()
        number = self._begin()
        try:
            loaded = await self._read_soon()
            if not self._is_newest(number):
                return
            changes = self._wiring.take_over(self._without_left_out(loaded))
        except RELOAD_ERRORS as e:
            if not self._is_newest(number):
                return
            asyncio.get_running_loop().call_later(RETRY_S, self._try_again, number, str(e))
            if str(e) == logged:
                return
            for line in str(e).splitlines():
                logger.warning(f"account-pool: {line}")
            logger.log(ALERT, f"account-pool: {self.file} {_NOT_TAKEN}")
        else:
            logger.log(ALERT, f"account-pool: {self.file} reloaded: {changes}")

    # -- by hand

    def actions(self) -> Actions:
        """Return what changes the pool by hand."""
        from account_pool.admin.actions import AccountsFiles, Actions  # noqa: PLC0415 - see admin/server.py

        def files() -> AccountsFiles:
            assert self.added is not None
            return AccountsFiles(self.file.target, self.added.path, self.added.name, os.environ)

        service, wiring = self._wiring.service, self._wiring
        return Actions(service, files, lambda: wiring.known, self.read_written, self.remove)

    def add(self, entry: Mapping[str, object]) -> str:
        """Add an account; return what was done. Raises ApiError, or one of RELOAD_ERRORS."""
        actions = self.actions()
        key = actions.new_key(entry)
        where = actions.write(entry)
        number = self._begin()
        self._take_over_written(self.read(BY_HAND_S), number)
        return f"{actions.added(key, where).key} was added ({where})"

    def remove(self, key: AccountKey) -> None:
        """Take an account out of the pool. Raises UnknownAccount.

        It returns, if a file still has it, when that was edited, or by `reload`.
        """
        self._wiring.remove(key)
        # What is being read at this moment must not bring it back.
        self._left_out.add(key)

    async def read_written(self) -> None:
        """Take over what was just written to a file. Raises ApiError."""
        number = self._begin()
        try:
            self._take_over_written(await self._read_soon(), number)
        except RELOAD_ERRORS as e:
            if self._is_newest(number):
                wrong = f"the accounts cannot be reloaded: {e}"
                raise ApiError(409, "not_taken", wrong) from None

    def close(self) -> None:
        if self.added is not None:
            self.added.close()

    # -- inside

    def _take_over_written(self, loaded: Config, number: int) -> None:
        if not self._is_newest(number):
            return
        read = self.file.read
        self._wiring.take_over(self._without_left_out(loaded))
        if self.watcher is not None:
            self.watcher.seen = read

    def _try_again(self, number: int, logged: str = "") -> None:
        """Have the watcher do what the reading *number* could not, unless another has begun.

        *logged*: the error, where it was logged.
        """
        if number == self._readings and self.watcher is not None:
            self._logged = logged
            self.watcher.seen = None

    def _without_left_out(self, loaded: Config) -> Config:
        left = [e for e in loaded.accounts if e.account.key not in self._left_out]
        return replace(loaded, accounts=tuple(left))

    def _begin(self) -> int:
        """Return the number of a reading that begins."""
        self._readings += 1
        return self._readings

    def _is_newest(self, number: int) -> bool:
        """End the reading *number*; return whether none that began later is over."""
        if number < self._read:
            return False
        self._read = number
        return True


class Watcher:
    """Notices that files were written. A look every two seconds needs no library.

    Args:
        look: returns what changes when they are written. Blocks.
        written: called after each change.
        seen: what *look* returned before they were read: what was written in between is
            noticed, too.
    """

    def __init__(
        self,
        look: Callable[[], object],
        written: Callable[[], Awaitable[None]],
        seen: object,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._look = look
        self._written = written
        self._sleep = sleep
        self.seen = seen

    async def _found(self) -> object:
        # A home directory may be on the network.
        looked = begun(self._look)
        try:
            return await settled(looked, READ_S)
        except TimeoutError:
            if looked.done():
                raise
            logger.warning(f"account-pool: {_HANGS}")
        found = await settled(looked, None)
        logger.warning("account-pool: the accounts file answers again")
        return found

    async def run(self) -> None:
        """Look at the files until cancelled."""
        while True:
            await self._sleep(LOOK_S)
            found = await self._found()
            if found != self.seen:
                # Before they are read: what is written meanwhile is noticed the next time.
                before, self.seen = self.seen, found
                try:
                    await self._written()
                except BaseException:
                    if self.seen is found:
                        self.seen = before  # they are read once this task is started again
                    raise


# -- the file that serves


class SourceFile(Struct, eq=False):
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
        line = skip_line(found.skipped) if found.skipped else ""
        if line and line != self._skipped:
            logger.warning(f"account-pool: {line}")
        self._skipped = line


def _stamps(found: Found) -> Sequence[tuple[Path, Stamp]]:
    files = [found.target]
    if found.path is None and (local := accounts_file.local_file()) is not None:
        files.append(local)
    if found.confirm or found.path is None:
        files.append(accounts_file.trust_store())
    return [(path, stamp_of(path)) for path in files]


def stamp_of(path: Path) -> Stamp:
    """Return what changes when the file is written."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    # The times of a pipe change when it is read, and what was in it is gone then.
    is_pipe = stat.S_ISFIFO(found.st_mode)
    return 0 if is_pipe else found.st_mtime_ns, found.st_size, found.st_ino


class AddedFile:
    """Where accounts are written that accounts.yaml cannot hold.

    Beside the state database; without one, in a folder that is deleted when the proxy ends.
    """

    def __init__(self, database: Path | None) -> None:
        self._folder: Path | None = None
        self.name = "memory" if database is None else "store"
        #: None until one is needed
        self.known = database and accounts_file.beside(database)

    @property
    def path(self) -> Path:
        """The file, there or not; its folder is."""
        if self.known is None:
            self._folder = Path(tempfile.mkdtemp(prefix="account-pool-"))
            self.known = self._folder / "accounts.yaml"
        self.known.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.known

    def close(self) -> None:
        """Delete the folder that no other run of the proxy reads."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


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
