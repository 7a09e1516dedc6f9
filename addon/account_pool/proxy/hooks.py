"""The one hook of our own: a stream asks for its turn, for a wait, or for a refresh.

Defined in the package and not in `pool.py`: a reload of the script would define it
twice. Yielding it also lets the HTTP/1 connection of a refused attempt reset itself
before it is used again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from mitmproxy.proxy.commands import StartHook

from account_pool.core.attempts import Refresh, Wait
from account_pool.providers.base import LocalAnswer


@dataclass(slots=True, eq=False)
class Turn:
    """What a stream waits for.

    Attributes:
        step: a wait, a refresh, the name of a provider whose local answer is wanted, or
            None for the turn alone.
        refreshed: set by the addon: the credential has changed.
        answer: set by the addon: the local answer.
        abandoned: set when the client has left; ends a wait at once.
    """

    step: Wait | Refresh | str | None = None
    refreshed: bool = False
    answer: LocalAnswer | None = None
    abandoned: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class PoolTurnHook(StartHook):
    """Fired between two attempts of one request."""

    turn: Turn
