"""mitmproxy's two replays: of a request (client replay), and of recorded responses (server replay).

A flow that is sent again from mitmweb, mitmproxy or a dump takes a lease like any other
request. Replay builds a plain HTTP layer without asking for ours, and a credential never goes
onto a flow. So the request is sent by a layer of ours, of a copy that nothing else sees, and
the response is put on the replayed flow. Needs no port of the proxy: `mitmdump -nC` works.

Of recorded flows, clients get the responses that clients got, complete. mitmproxy finds the
response to a request by the request's address and body. Of a dump of ours it would return the
first refused attempt, and the beginning of a long response as if it were all of it; and an
address in which a credential was masked would not be found.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Collection, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from mitmproxy import ctx, http

from account_pool.providers.base import Provider
from account_pool.proxy import error_response, flow_view, pooled_request
from account_pool.proxy.service import Service

logger = logging.getLogger(__name__)

_FAILED = "the replay failed; see the proxy's log"
_REPLAYED_BY_ITSELF = (
    "a refused attempt of a request in the same dump; it is replayed there, not here"
)
_MOVED = "another addon changed where this request goes"
#: Metadata of a recorded flow that `prepare_playback` has seen. It is a copy, and never saved.
_SEEN = "pool.played_back"


class Replays:
    """Serves requests that are sent again. An addon, and the last one.

    So `map_local` and `server_replay` may answer a request first, `modify_body` and scripts may
    change it, as they do with a request that is not replayed.
    """

    name = "account_pool_replays"

    def __init__(self, service: Service) -> None:
        self._service = service
        self._before: WeakKeyDictionary[http.HTTPFlow, Sequence[Provider]]
        self._before = WeakKeyDictionary()

    def begin(self, flow: http.HTTPFlow) -> None:
        """Note where *flow* goes, before other addons may change that."""
        if _is_replayed(flow) and (providers := _providers(flow.request, self._service)):
            self._before[flow] = providers

    def request(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        # Not `async`: that would cost every request.
        providers = self._before.pop(flow, None) if self._before else None
        if not providers or not _is_replayed(flow):
            return None
        if _providers(flow.request, self._service) != providers:
            # As with one that is not replayed (`PooledRequest.misdirected`).
            flow.response = error_response.local(providers[0].refusal(421, _MOVED, None))
            return None
        return answer(flow, self._service)


def _is_replayed(flow: http.HTTPFlow) -> bool:
    """Return whether *flow* is replayed, and not answered yet."""
    return bool(flow.is_replay == "request" and flow.live and not flow.response and not flow.error)


def _providers(request: http.Request, service: Service) -> Sequence[Provider]:
    target = pooled_request.of_request(request.pretty_host, request.port, request.scheme)
    return service.recognizer.hosts.find(target.name, target.port)


async def answer(flow: http.HTTPFlow, service: Service) -> None:
    """Set the response of a replayed *flow* if its host is the pool's."""
    providers = _providers(flow.request, service)
    if not providers:
        return
    if flow.metadata.get(flow_view.REFUSED) and ctx.options.client_replay:
        flow.response = error_response.local(providers[0].refusal(409, _REPLAYED_BY_ITSELF, None))
        return
    try:
        # Only this depends on mitmproxy's own replay, which another version may lack.
        from account_pool.proxy.replay_handler import Replay  # noqa: PLC0415 - may fail

        replay = Replay(flow, service)
        flow.response = await replay.answered()
    except Exception as e:
        # Whatever is wrong: without a response mitmproxy would send the placeholder.
        logger.warning(f"{providers[0].name}: the replay failed ({type(e).__name__})")
        flow.response = error_response.local(providers[0].refusal(502, _FAILED, None))
        return
    _show(flow, replay.flow)


def _show(flow: http.HTTPFlow, sent: http.HTTPFlow) -> None:
    """Let *flow* show how its replay went: *sent* is the copy that was."""
    flow.request.headers.fields = sent.request.headers.fields
    flow.request.data.path = sent.request.data.path
    flow.server_conn = sent.server_conn
    if flow.metadata.pop(flow_view.REFUSED, False):
        flow.marked = ""
    for name in (flow_view.TRUNCATED, "pool.attempt", "pool.flow"):
        flow.metadata.pop(name, None)
    flow_view.comment(flow, sent.comment)
    flow.metadata.update(sent.metadata)


# -- recorded responses


def prepare_playback(addon: Any, service: Service) -> None:
    """Make *addon*, mitmproxy's ServerPlayback, return the responses that clients got."""
    recorded = getattr(addon, "flowmap", None)
    if not recorded:
        return
    flows = [flow for alike in recorded.values() for flow in alike]
    if all(_SEEN in flow.metadata for flow in flows):
        return
    ids = {flow.id for flow in flows}
    unfit = [flow for flow in flows if _is_unfit(flow, ids)]
    if unfit:
        logger.warning(
            f"account-pool: server_replay: {len(unfit)} of {len(flows)} recorded answers are not "
            "played back: refused attempts, WebSockets, and those not kept whole"
        )
    addon.load_flows([_masked_copy(flow, service, answered=flow not in unfit) for flow in flows])


def _is_unfit(flow: http.HTTPFlow, ids: Collection[str]) -> bool:
    if flow_view.REFUSED in flow.metadata and flow.metadata.get("pool.flow") in ids:
        return True  # the response that its client got is recorded too
    is_socket = flow.response is not None and flow.response.status_code == 101
    return is_socket or flow_view.TRUNCATED in flow.metadata


def _masked_copy(flow: http.HTTPFlow, service: Service, *, answered: bool) -> http.HTTPFlow:
    """Return a copy of *flow* whose request is masked, as a request like it will be."""
    copy = flow.copy()
    copy.id = flow.id
    copy.metadata[_SEEN] = True
    if not answered:
        # mitmproxy skips it; without any flow it would forget `server_replay_extra`.
        copy.response = None
    request = copy.request
    target = pooled_request.of_request(request.pretty_host, request.port, request.scheme)
    service.recognizer.mask(request, target)
    return copy
