"""Is a function of mitmproxy's or Python's the one that a step was written for?"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from operator import attrgetter
from types import FunctionType, ModuleType
from typing import Any

from mitmproxy.addonmanager import AddonManager
from mitmproxy.addons.asgiapp import WSGIApp
from mitmproxy.addons.maplocal import MapLocal
from mitmproxy.addons.onboarding import Onboarding
from mitmproxy.flow import Flow
from mitmproxy.hooks import Hook
from mitmproxy.http import Request
from mitmproxy.net.http import url
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.proxy.server import ConnectionHandler

#: Sources that these stand in for: mitmproxy 11.0.2 to 12.3.1; 11.0.2, and 12.0 to 12.3.1;
#: 11.0.2 to 12.3.1; Python 3.11, 3.12 and later.
KNOWN_WALKS = frozenset({"faddf672"})
KNOWN_HANDLERS = frozenset({"2bf6a723", "661de754"})
KNOWN_CONNECTIONS = frozenset({"f9faab6a"})
KNOWN_STREAMS = frozenset({"4c2f10e8", "6364270c"})
#: Hooks of addons that need not be called for each request: mitmproxy 11.0.2 to 12.3.1.
KNOWN_ONBOARDING = frozenset({"4cd6202a"})
KNOWN_MAP_LOCAL = frozenset({"8c3e9484"})

#: All that pool.py has of its own, wherever it is.
_OUR_SCRIPT = frozenset({"addon", "addons", "name"})

#: What a patch version of Python may word anew.
_DOCSTRING = re.compile(r'^\s*""".*?"""\n', re.DOTALL | re.MULTILINE)


@functools.cache
def digest(*functions: Callable[..., Any], docs: bool = True) -> str:
    """Return eight hexadecimal digits of SHA-256 of the source of *functions*; "" if unknown.

    Args:
        docs: their docstrings count too.

    A step compares it with those of the sources that it was written for. What other addons
    have put in their place has a source of its own, and one that they have wrapped has none.
    """
    if not all(map(_is_bare, functions)):
        return ""
    try:
        sources = [_source(inspect.unwrap(function)) for function in functions]
        if not docs:
            sources = [_DOCSTRING.sub("", source) for source in sources]
    except (OSError, TypeError):
        return ""
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:8]


def _source(function: FunctionType) -> str:
    """Return what `inspect.getsource` does, without a tokenizer, which takes ten times as long.

    Its last line of code is known; what is deeper than its first line may follow, and blanks.
    Raises OSError.
    """
    lines, first = inspect.findsource(function)
    ends = max(line for _, _, line in function.__code__.co_lines() if line)
    depth = _depth(lines[first])
    while ends < len(lines) and (not lines[ends].strip() or _depth(lines[ends]) > depth):
        ends += 1
    return "".join(lines[first:ends]).strip()


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_bare(function: Callable[..., Any]) -> bool:
    """Say whether *function* is one of Python's, with nothing of another package around it.

    `inspect` reads what was wrapped (`functools.wraps`), and not what is around it. mitmproxy
    has decorators of its own.
    """
    packages = set()
    at: Any = function
    while at is not None:
        if type(at) is not FunctionType:
            return False
        packages.add(str(at.__globals__.get("__name__")).partition(".")[0])
        at = getattr(at, "__wrapped__", None)
    return len(packages) == 1


# -- what handlers do


def knows_walk() -> bool:
    """Say whether mitmproxy calls hooks in the way that this does."""
    manager = AddonManager
    source = digest(
        manager.trigger_event, manager.handle_lifecycle, manager.invoke_addon, manager._iter_hooks
    )
    return source in KNOWN_WALKS


def handler_functions() -> tuple[Callable[..., Any], ...]:
    """Return what this stands in for, and what it builds on."""
    return (
        ConnectionHandler.server_event,
        ConnectionHandler.hook_task,
        ProxyConnectionHandler.handle_hook,
    )


def knows_handler() -> bool:
    """Say whether mitmproxy handles events in the way that this does."""
    return digest(*handler_functions(), Flow.wait_for_resume) in KNOWN_HANDLERS


@functools.cache
def argument_of(kind: Any) -> Callable[[Any], Any]:
    """Return what reads the one argument of hooks of this *kind*; mitmproxy looks for it anew."""
    (field,) = fields(kind)
    return attrgetter(field.name) if kind.args is Hook.args else _argument


def _argument(hook: Hook) -> Any:
    (data,) = hook.args()
    return data


def knows_reading() -> bool:
    """Say whether mitmproxy and asyncio read in the way that this does."""
    return digest(ConnectionHandler.handle_connection) in KNOWN_CONNECTIONS and knows_asyncio()


def knows_asyncio() -> bool:
    """Say whether this Python's asyncio reads in the way that this does."""
    reader: Any = asyncio.StreamReader
    functions = reader.read, reader._wait_for_data, reader.feed_data, reader._wakeup_waiter
    received = asyncio.StreamReaderProtocol.data_received
    return digest(*functions, received, docs=False) in KNOWN_STREAMS


# -- what addons do


def is_our_script(addon: object) -> bool:
    """Say whether *addon* is pool.py, as mitmproxy has loaded it."""
    if type(addon) is not ModuleType:
        return False
    return {name for name in vars(addon) if not name.startswith("__")} == _OUR_SCRIPT


def is_onboarding(addon: object, function: object) -> bool:
    """Say whether *function* is the hook that serves mitmproxy's own page to clients.

    It does nothing unless the host of its *addon* is in what names the host of a request.
    """
    if type(addon) is not Onboarding or {"request", "should_serve"} & {*vars(addon)}:
        return False
    names: Any = Request.host_header, Request.pretty_host
    source = digest(
        Onboarding.request,
        WSGIApp.request,
        Onboarding.should_serve,
        *(name.fget for name in names),
        url.parse_authority,
    )
    return function == addon.request and source in KNOWN_ONBOARDING


def is_map_local(addon: object, function: object) -> bool:
    """Say whether *function* is the hook that answers requests from files.

    It does nothing while its *addon* has no `replacements`.
    """
    if type(addon) is not MapLocal or "request" in vars(addon):
        return False
    return function == addon.request and digest(MapLocal.request) in KNOWN_MAP_LOCAL


def is_of_replays(addon: object, function: object) -> bool:
    """Say whether *function* is our own hook that sees to mitmproxy's replays.

    It does nothing unless a flow is replayed, or recorded responses are played back.
    """
    # By its name: its file imports this one.
    is_ours = type(addon).__module__ == "account_pool.proxy.addon"
    return is_ours and function == getattr(addon, "request", None)
