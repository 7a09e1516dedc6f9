"""A flow replayed from mitmweb, mitmproxy or a dump takes a lease like any other request.

Replay builds a plain HTTP layer without asking for ours, and a credential never goes onto
a flow. So the request is sent by a layer of ours, which nobody but this file sees, and its
answer is put on the flow that was replayed. Needs no port of the proxy: `mitmdump -nC` works.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Sequence
from weakref import WeakKeyDictionary

from mitmproxy import ctx, http

from account_pool.providers.base import Provider
from account_pool.proxy import delivery, destination, shown
from account_pool.proxy.service import Service

logger = logging.getLogger(__name__)

_FAILED = "the replay failed; see the proxy's log"
_REPLAYED_BY_ITSELF = (
    "a refused attempt of a request in the same dump; it is replayed there, not here"
)
_MOVED = "another addon changed where this request goes"


class Replays:
    """An addon that comes after every other: what those make of a request counts.

    `map_local` and `server_replay` may answer it, `modify_body` and scripts may change it,
    as they do with a request that is not replayed.
    """

    name = "account_pool_replays"

    def __init__(self, service: Service) -> None:
        self._service = service
        self._before: WeakKeyDictionary[http.HTTPFlow, Sequence[Provider]]
        self._before = WeakKeyDictionary()

    def begin(self, flow: http.HTTPFlow) -> None:
        """Note where *flow* goes, before others may change that."""
        if _is_replayed(flow) and (providers := _providers(flow.request, self._service)):
            self._before[flow] = providers

    def request(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        # Not `async`: that would cost every request.
        providers = self._before.pop(flow, None) if self._before else None
        if not providers or not _is_replayed(flow):
            return None
        if _providers(flow.request, self._service) != providers:
            # As with one that is not replayed (`Call.misdirected`).
            flow.response = delivery.local(providers[0].refusal(421, _MOVED, None))
            return None
        return answer(flow, self._service)


def _is_replayed(flow: http.HTTPFlow) -> bool:
    """Say whether somebody replays *flow*, and nobody has answered it yet."""
    return bool(flow.is_replay == "request" and flow.live and not flow.response and not flow.error)


def _providers(request: http.Request, service: Service) -> Sequence[Provider]:
    target = destination.of_request(request.pretty_host, request.port, request.scheme)
    return service.hosts.find(target.name, target.port)


async def answer(flow: http.HTTPFlow, service: Service) -> None:
    """Set the response of a replayed *flow* if its host is the pool's."""
    providers = _providers(flow.request, service)
    if not providers:
        return
    if flow.metadata.get(shown.REFUSED) and ctx.options.client_replay:
        flow.response = delivery.local(providers[0].refusal(409, _REPLAYED_BY_ITSELF, None))
        return
    try:
        # Stands on mitmproxy's own replay, and nothing else here does.
        from account_pool.proxy.replay_handler import Replay  # noqa: PLC0415 - may fail

        replay = Replay(flow, service)
        flow.response = await replay.answered()
    except Exception as e:
        # Whatever went wrong: without a response mitmproxy would send the placeholder.
        logger.warning(f"{providers[0].name}: the replay failed ({type(e).__name__})")
        flow.response = delivery.local(providers[0].refusal(502, _FAILED, None))
        return
    _show(flow, replay.flow)


def _show(flow: http.HTTPFlow, sent: http.HTTPFlow) -> None:
    """Let *flow* show how its replay went, which was *sent* in its place."""
    flow.request.headers.fields = sent.request.headers.fields
    flow.request.data.path = sent.request.data.path
    flow.server_conn = sent.server_conn
    if flow.metadata.pop(shown.REFUSED, False):
        flow.marked = ""
    for name in (shown.TRUNCATED, "pool.attempt", "pool.flow"):
        flow.metadata.pop(name, None)
    shown.comment(flow, sent.comment)
    flow.metadata.update(sent.metadata)
