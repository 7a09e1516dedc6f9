"""A flow replayed from mitmweb, mitmproxy or a dump takes a lease like any other request.

Replay builds a plain HTTP layer without asking for ours, and a credential never goes onto
a flow. So the request is sent by a layer of ours, which nobody but this file sees, and its
answer is put on the flow that was replayed. Needs no port of the proxy: `mitmdump -nC` works.
"""

from __future__ import annotations

import logging

from mitmproxy import ctx, http

from account_pool.proxy import delivery, destination, shown
from account_pool.proxy.service import Service

logger = logging.getLogger(__name__)

_FAILED = "the replay failed; see the proxy's log"
_REPLAYED_BY_ITSELF = (
    "a refused attempt of a request in the same dump; it is replayed there, not here"
)


async def answer(flow: http.HTTPFlow, service: Service) -> None:
    """Set the response of a replayed *flow* if its host is the pool's."""
    request = flow.request
    target = destination.of_request(request.pretty_host, request.port, request.scheme)
    providers = service.hosts.find(target.name, target.port)
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
