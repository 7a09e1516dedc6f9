"""How much of the pool's traffic the view of a front end keeps; mitmproxy itself keeps all.

Only flows of the pool that ended here are removed, oldest first; never one that a person has
marked, intercepted or in focus, nor flows of other hosts or of a file that was opened.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from mitmproxy import http

from account_pool.proxy import flow_view
from account_pool.supervision import log_and_continue

if TYPE_CHECKING:
    from account_pool.proxy.service import Service

#: The bodies and messages of the flows that are kept, together, in bytes.
MAX_BYTES = 64 * 1024 * 1024
#: The messages of an open WebSocket, in bytes; the last two are always kept.
MAX_SOCKET_BYTES = 8 * 1024 * 1024
#: How many old flows that must stay are skipped for each flow that ends.
_MAX_LOOKS = 64


class ViewRetention:
    """Removes old flows of the pool from the view of mitmweb or mitmproxy.

    Keeps `Settings.view_kept` of them, and `MAX_BYTES`.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        #: bytes of those that ended, by id, oldest first
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._bytes = 0

    def ended(self, flow: http.HTTPFlow, view: Any) -> None:
        """Count *flow*, which has ended or is a refused attempt, and remove others from *view*."""
        if self._service.settings.view_kept and is_of_pool(flow):
            with log_and_continue:
                self._forget(flow.id)
                self._sizes[flow.id] = size = size_of(flow)
                self._bytes += size
                self._drop(view, self._service.settings.view_kept)

    def _drop(self, view: Any, kept: int) -> None:
        looks = 0
        while len(self._sizes) > kept or self._bytes > MAX_BYTES:
            oldest = next(iter(self._sizes))
            if len(self._sizes) == 1 or looks == _MAX_LOOKS:
                return
            flow = view.get_by_id(oldest)
            if flow is not None and must_stay(flow, view):
                self._sizes.move_to_end(oldest)
                looks += 1
                continue
            self._forget(oldest)
            if flow is not None:
                view.remove([flow])

    def _forget(self, flow_id: str) -> None:
        self._bytes -= self._sizes.pop(flow_id, 0)


def is_of_pool(flow: http.HTTPFlow) -> bool:
    """Return whether *flow* was served by the pool, or is an attempt that was refused."""
    return "pool.account" in flow.metadata or flow_view.REFUSED in flow.metadata


def must_stay(flow: http.HTTPFlow, view: Any) -> bool:
    """Return whether a person works with *flow*, or it has not ended."""
    if flow.live or flow.intercepted or getattr(view.focus, "flow", None) is flow:
        return True
    return bool(flow.marked) and flow.marked != flow_view.MARK


def size_of(flow: http.HTTPFlow) -> int:
    """Return the bytes of the bodies and messages of *flow*."""
    size = len(flow.request.raw_content or b"")
    if flow.response is not None:
        size += len(flow.response.raw_content or b"")
    if flow.websocket is not None:
        size += sum(len(message.content) for message in flow.websocket.messages)
    return size


class MessageRetention:
    """Bounds the messages that the flow of an open WebSocket keeps."""

    def __init__(self) -> None:
        self._bytes = 0

    def added(self, flow: http.HTTPFlow) -> None:
        """Count the last message of *flow*, and remove the oldest if there are too many."""
        assert flow.websocket is not None
        messages = flow.websocket.messages
        self._bytes += len(messages[-1].content)
        gone = 0
        while self._bytes > MAX_SOCKET_BYTES and len(messages) - gone > 2:
            self._bytes -= len(messages[gone].content)
            gone += 1
        if gone:
            del messages[:gone]
            if not flow.metadata.get(flow_view.TRUNCATED):
                flow.metadata[flow_view.TRUNCATED] = True
                note = f"only the last messages are kept ({MAX_SOCKET_BYTES // 1024**2} MiB)"
                said = flow.metadata.get(flow_view.COMMENT)
                flow_view.comment(flow, f"{said}; {note}" if said else note)
