"""Hooks are called from a table.

mitmproxy walks over all addons for each hook, asks each whether it has that hook, and does
so once more for `update`. What its own addons and ours answer changes only with the
addons: it is looked up once, again whenever an addon came or went, and every second, as
anybody may have set a hook on one of them. Addons of others may change at any time, by
what they do in a hook: they are asked each time, by mitmproxy's own way of asking.

Functions come in groups, one for each addon of the chain with its children: an exception
in one skips the rest of its group, as in mitmproxy.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

from mitmproxy import exceptions
from mitmproxy.addonmanager import AddonManager
from mitmproxy.hooks import Hook

from account_pool.proxy.fast.known import digest, is_our_script

#: Whose addons they are; that is where such errors have always been logged.
logger = logging.getLogger("mitmproxy.addonmanager")

#: Seconds for which a table serves.
TABLE_S = 1.0

Function = Callable[..., Any]
Group = Iterable[Function]

#: Sources that this stands in for: mitmproxy 11.0.2 to 12.3.1.
KNOWN = frozenset({"faddf672"})

#: What takes part in a walk. Where another addon has put something in its place, it stays.
_WALK = ("trigger_event", "handle_lifecycle", "invoke_addon", "_iter_hooks")


_NOTHING: Iterator[Function] = iter(())


class Rest(NamedTuple):
    """A hook that has come to an awaitable.

    Attributes:
        awaitable: of the function that was called last.
        functions: those after it, of the same group.
        groups: those after that one.
    """

    awaitable: Awaitable[object]
    functions: Iterator[Function] = iter(())
    groups: Iterator[Group] = iter(())


class _Asked:
    """An addon with its children that may change at any time."""

    __slots__ = ("_addon", "_event", "_manager")

    def __init__(self, manager: AddonManager, addon: object, event: Hook) -> None:
        self._manager, self._addon = manager, addon
        # Of the same name, without the flow that it is about.
        self._event = object.__new__(type(event))

    def __iter__(self) -> Iterator[Function]:
        return (function for _, function in self._manager._iter_hooks(self._addon, self._event))


class _Mixed:
    """An addon that does not change, some of whose children may."""

    __slots__ = ("_parts",)

    def __init__(self, parts: list[Group]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[Function]:
        return itertools.chain.from_iterable(self._parts)


class _Late:
    """Addons that were added since the table was made, in the middle of a walk."""

    __slots__ = ("_chain", "_event", "_known", "_manager")

    def __init__(self, manager: AddonManager, event: Hook) -> None:
        self._manager, self._chain, self._known = manager, manager.chain, len(manager.chain)
        self._event = object.__new__(type(event))

    def __iter__(self) -> Iterator[Function]:
        if len(self._chain) == self._known:
            return _NOTHING
        late = itertools.islice(self._chain, self._known, None)
        return itertools.chain.from_iterable(_Asked(self._manager, x, self._event) for x in late)


class HookTable:
    """Stands in for the walk of one addon manager, from `install` to `uninstall`."""

    def __init__(self, manager: AddonManager) -> None:
        self._manager = manager
        self._chain: list[object] = []
        self._length = self._names = 0
        self._until = 0.0
        self._groups: dict[str, tuple[Group, ...]] = {}

    def install(self) -> bool:
        """Serve from now on; False where mitmproxy is not as it is known."""
        if self.is_installed:
            return True
        manager = self._manager
        if type(manager) is not AddonManager or not is_as_known() or {*_WALK} & {*vars(manager)}:
            return False
        manager.trigger_event = self.trigger_event  # type: ignore[method-assign]
        return True

    def uninstall(self) -> None:
        """Leave the manager as it was."""
        if vars(self._manager).get("trigger_event") == self.trigger_event:
            del self._manager.trigger_event

    @property
    def is_installed(self) -> bool:
        """Whether hooks come here, and nothing of somebody else's is in between."""
        own = vars(self._manager)
        return own.get("trigger_event") == self.trigger_event and not {*_WALK[1:]} & {*own}

    async def trigger_event(self, event: Hook) -> None:
        """Trigger *event* across all addons, as `AddonManager.trigger_event` does."""
        args = event.args()
        if (rest := start(self.walk(event), args)) is not None:
            await finish(rest, args)

    def walk(self, event: Hook) -> Iterator[Group]:
        """Return the functions for *event* in their order, those added meanwhile as well."""
        manager = self._manager
        # Each way in which mitmproxy adds or removes an addon changes one of the first three.
        if (
            manager.chain is not self._chain
            or len(self._chain) != self._length
            or len(manager.lookup) != self._names
            or time.monotonic() > self._until
        ):
            self._chain, self._until = manager.chain, time.monotonic() + TABLE_S
            self._length, self._names = len(self._chain), len(manager.lookup)
            self._groups = {}
        groups = self._groups.get(event.name)
        if groups is None:
            found = [group for addon in self._chain if (group := self._group(addon, event))]
            groups = self._groups[event.name] = (*found, _Late(manager, event))
        return iter(groups)

    def _group(self, addon: object, event: Hook) -> Group:
        try:
            function = getattr(addon, event.name, None)
            if not _is_known(addon) or (function and not callable(function)):
                return _Asked(self._manager, addon, event)
            own = (function,) if function else ()
            below = [self._group(child, event) for child in getattr(addon, "addons", ())]
        except Exception:
            return _Asked(self._manager, addon, event)  # It comes again where it counts.
        if all(isinstance(group, tuple) for group in below):
            return tuple(itertools.chain(own, *below))
        return _Mixed([own, *below])


def _is_known(addon: object) -> bool:
    """Say whether *addon* is of a kind that does not change its hooks while it serves."""
    if type(addon) is ModuleType:
        return is_our_script(addon)
    return type(addon).__module__.startswith(("mitmproxy.", "account_pool."))


def start(groups: Iterator[Group], args: Any) -> Rest | None:
    """Call the functions of *groups* until one returns an awaitable; None: all were called."""
    for group in groups:
        functions = iter(group)
        try:
            for function in functions:
                result = function(*args)
                if result is not None and inspect.isawaitable(result):
                    return Rest(result, functions, groups)
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


def is_as_known() -> bool:
    """Say whether mitmproxy calls hooks in the way that this does."""
    manager = AddonManager
    source = digest(
        manager.trigger_event, manager.handle_lifecycle, manager.invoke_addon, manager._iter_hooks
    )
    return source in KNOWN
