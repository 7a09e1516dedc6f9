"""How an attempt can end, where more is known of it than that its connection or stream broke."""

from __future__ import annotations

from mitmproxy.proxy.layers.http import ResponseProtocolError

from account_pool.proxy import compat


class _Ending(ResponseProtocolError):
    def __init__(self, stream_id: int, message: str) -> None:
        super().__init__(stream_id, message, compat.SERVER_ERROR)


class NotProcessed(_Ending):
    """The request did not leave, or its server said that it did not process it."""


class Withdrawn(_Ending):
    """The request did not leave, and shall not leave here: its account, say, was refused."""


class Silent(_Ending):
    """Nothing came for so long that nothing more is expected."""
