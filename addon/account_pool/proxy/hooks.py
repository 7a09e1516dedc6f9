"""The one hook of our own: a stream waits, has a credential renewed, or wants an answer.

Defined in the package and not in `pool.py`: a reload of the script would define it
twice. A plain failover needs no hook: each is a walk over every addon.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from mitmproxy.proxy.commands import StartHook

from account_pool.admin.request import AdminRequest, AdminResponse
from account_pool.core.steps import Refresh, Wait
from account_pool.providers.base import LocalAnswer


@dataclass(slots=True, eq=False)
class Pause:
    """What a stream waits for.

    Attributes:
        step: a wait, a refresh, the name of a provider whose local answer is wanted, or a
            request to the proxy itself.
        refreshed: set by the addon: the credential has changed; None: its renewal goes on.
        answer: set by the addon: the local answer.
        reply: set by the addon: the answer to a request to the proxy itself.
        taken: set by the addon that does it.
        failed: set by the addon: the error that ended the pause.
        woken: ends a wait at once: the client has left, or the pool has changed.
    """

    step: Wait | Refresh | str | AdminRequest
    refreshed: bool | None = False
    answer: LocalAnswer | None = None
    reply: AdminResponse | None = None
    taken: bool = False
    failed: Exception | None = None
    woken: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class PoolPauseHook(StartHook):
    """Fired when a request cannot go on at once."""

    pause: Pause
