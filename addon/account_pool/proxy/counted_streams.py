"""Chat streams that are asked for their usage (`pool_count_streams`), at the edge.

How the question is put, and its answer taken out again, is `core/usage.py`.
"""

from __future__ import annotations

import logging

from mitmproxy import http
from mitmproxy.connection import Client

from account_pool.core.decisions import one_line
from account_pool.core.sse import gate_shape
from account_pool.core.usage import UsageFilter, with_usage
from account_pool.providers.base import RequestHead

logger = logging.getLogger(__name__)

#: Where streams are asked.
HOST, PATH = "api.openai.com", "/v1/chat/completions"
#: What a refusal names that is about the question.
_NAMED = b"stream_options"
#: Models that are remembered which take none. Clients choose the names.
_MAX_MODELS = 1000


class CountedStreams:
    """Which models are asked, of all requests of one proxy."""

    def __init__(self) -> None:
        self._not_asked: set[str | None] = set()

    def ask(self, request: http.Request, host: str, head: RequestHead, model: str | None) -> bool:
        """Have *request*, the copy that goes to *host*, ask for its usage; say if it does."""
        if (
            host != HOST
            or (head.method, head.path) != ("POST", PATH)
            or "content-encoding" in head.headers
            or model in self._not_asked
        ):
            return False
        body = with_usage(request.data.content or b"")
        if body is None:
            return False
        request.data.content = body
        if "content-length" in request.headers:
            request.headers["content-length"] = str(len(body))
        if "accept-encoding" in request.headers:
            # Out of what is compressed nothing could be taken.
            request.headers["accept-encoding"] = "identity"
        return True

    def is_refused(self, status: int, body: bytes, model: str | None) -> bool:
        """Say whether a refusal is about the question; *model* is not asked any more then."""
        if status != 400 or _NAMED not in body:
            return False
        if len(self._not_asked) >= _MAX_MODELS:
            self._not_asked.clear()
        self._not_asked.add(model)
        logger.info(
            f"account-pool: {one_line(model or '-')} takes no stream_options: its streams are not "
            "counted"
        )
        return True


def filter_of(response: http.Response, client: Client) -> UsageFilter | None:
    """Return what takes the answer out of *response*, None where there can be none."""
    headers = response.headers
    is_stream = gate_shape(headers.get("content-type", "")) == "sse"
    if response.status_code != 200 or not is_stream or headers.get("content-encoding"):
        return None
    if headers.pop("content-length", None) is not None and client.alpn != b"h2":
        headers["transfer-encoding"] = "chunked"
    return UsageFilter()
