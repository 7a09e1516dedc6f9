"""Hooks are called from a table.

mitmproxy walks over all addons for each hook, asks each whether it has that hook, and does
so once more for `update`. Which functions those are changes only with the addons: they
are looked up once, and again whenever an addon was added or removed, and every second, as
an addon may set a hook on itself at any time.

Functions are kept in groups, one for each addon of the chain with its children: an
exception in one skips the rest of its group, as in mitmproxy.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from mitmproxy import exceptions
from mitmproxy.addonmanager import AddonManager
from mitmproxy.hooks import Hook

from account_pool.proxy.fast.known import digest

#: Whose addons they are; that is where such errors have always been logged.
logger = logging.getLogger("mitmproxy.addonmanager")

#: Seconds for which a table serves.
TABLE_S = 1.0

Function = Callable[..., Any]
Group = tuple[Function, ...]

#: Sources that this stands in for: mitmproxy 11.0.2 to 12.3.1.
KNOWN = frozenset({"faddf672"})

#: What changes the addons.
_CHANGES = ("add", "remove", "clear", "register")


class Rest(NamedTuple):
    """A hook that has come to an awaitable.

    Attributes:
        awaitable: of the function that was called last.
        functions: those after it, of the same group.
        groups: those after that one.
    """

    awaitable: Awaitable[object]
    functions: Group
    groups: tuple[Group, ...]


class HookTable:
    """Stands in for the walk of one addon manager, from `install` to `uninstall`."""

    def __init__(self, manager: AddonManager) -> None:
        self._manager = manager
        self._groups: dict[str, tuple[Group, ...]] = {}
        self._until = 0.0
        self.is_installed = False

    def install(self) -> bool:
        """Serve from now on; False where mitmproxy is not as it is known."""
        if self.is_installed:
            return True
        if type(self._manager) is not AddonManager or not is_as_known():
            return False
        for name in _CHANGES:
            setattr(self._manager, name, self._forgetting(getattr(self._manager, name)))
        self._manager.trigger_event = self.trigger_event  # type: ignore[method-assign]
        self.is_installed = True
        return True

    def uninstall(self) -> None:
        """Leave the manager as it was."""
        if self.is_installed:
            for name in (*_CHANGES, "trigger_event"):
                vars(self._manager).pop(name, None)
            self._groups.clear()
        self.is_installed = False

    async def trigger_event(self, event: Hook) -> None:
        """Trigger *event* across all addons, as `AddonManager.trigger_event` does."""
        args = event.args()
        if (rest := start(self.groups(event), args)) is not None:
            await finish(rest, args)

    def groups(self, event: Hook) -> tuple[Group, ...]:
        """Return the functions for *event*, in their order."""
        now = time.monotonic()
        if now > self._until or not self.is_installed:  # then nobody says what changes
            self._groups, self._until = {}, now + TABLE_S
        groups = self._groups.get(event.name)
        if groups is None:
            found = (
                tuple([f for _, f in self._manager._iter_hooks(addon, event)])
                for addon in self._manager.chain
            )
            groups = self._groups[event.name] = tuple([group for group in found if group])
        return groups

    def _forgetting(self, change: Function) -> Function:
        def changed(*args: Any) -> Any:
            try:
                return change(*args)
            finally:
                self._groups.clear()

        return changed


def start(groups: tuple[Group, ...], args: Any) -> Rest | None:
    """Call the functions of *groups* until one returns an awaitable; None: all were called."""
    for at, group in enumerate(groups):
        try:
            for number, function in enumerate(group):
                result = function(*args)
                if result is not None and inspect.isawaitable(result):
                    return Rest(result, group[number + 1 :], groups[at + 1 :])
        except exceptions.AddonHalt:
            return None
        except exceptions.OptionsError:
            raise
        except Exception as error:
            _log(error)
    return None


async def finish(rest: Rest | None, args: Any) -> None:
    """Await what *rest* has come to, and call what is left."""
    while rest is not None:
        try:
            await rest.awaitable
            for function in rest.functions:
                result = function(*args)
                if result is not None and inspect.isawaitable(result):
                    await result
        except exceptions.AddonHalt:
            return
        except exceptions.OptionsError:
            raise
        except Exception as error:
            _log(error)
        rest = start(rest.groups, args)


def _log(error: Exception) -> None:
    """Log as mitmproxy's `safecall` does: with the addon's part of the traceback."""
    traceback = error.__traceback__
    assert traceback is not None
    logger.error(
        "Addon error: %s", error, exc_info=(type(error), error, traceback.tb_next or traceback)
    )


@functools.cache
def is_as_known() -> bool:
    """Say whether mitmproxy calls hooks in the way that this does."""
    manager = AddonManager
    source = digest(
        manager.trigger_event, manager.handle_lifecycle, manager.invoke_addon, manager._iter_hooks
    )
    return source in KNOWN
