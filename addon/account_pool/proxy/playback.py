"""Recorded answers that mitmproxy plays back (`server_replay`): those that clients got, whole.

mitmproxy finds the answer to a request by the request's address and body. Of a dump of
ours it would give a client the first refused attempt, and the beginning of a long answer
as if it were all of it; and an address in which a credential was masked would not be found.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from mitmproxy import http

from account_pool.proxy import destination, shown
from account_pool.proxy.service import Service

logger = logging.getLogger(__name__)

#: Metadata of a flow that was looked at. It is a copy of its own, and never saved.
_SEEN = "pool.played_back"


def prepare(addon: Any, service: Service) -> None:
    """Have *addon*, mitmproxy's ServerPlayback, find what clients got for requests like theirs."""
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
    addon.load_flows([_as_it_comes(flow, service, answered=flow not in unfit) for flow in flows])


def _is_unfit(flow: http.HTTPFlow, ids: Collection[str]) -> bool:
    if shown.REFUSED in flow.metadata and flow.metadata.get("pool.flow") in ids:
        return True  # of its request there is the answer that the client got
    is_socket = flow.response is not None and flow.response.status_code == 101
    return is_socket or shown.TRUNCATED in flow.metadata


def _as_it_comes(flow: http.HTTPFlow, service: Service, *, answered: bool) -> http.HTTPFlow:
    """Return *flow* with its request as one like it will be when it comes: masked."""
    copy = flow.copy()
    copy.id = flow.id
    copy.metadata[_SEEN] = True
    if not answered:
        # mitmproxy passes it over; without any flow it would forget `server_replay_extra`.
        copy.response = None
    request = copy.request
    target = destination.of_request(request.pretty_host, request.port, request.scheme)
    service.mask(request, target)
    return copy
