"""Sends the request for new tokens, from a thread, and reads on for as long as it is worth it.

Once the request has left, the refresh token may be spent: the answer is worth waiting for,
for minutes. A proxy that stops waits for it a little longer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from account_pool.core.claims import ANSWER_S
from account_pool.credentials.http import Http, HttpAnswer, HttpFailed

#: Seconds until the request has left; less than the claim lasts (core/claims.py).
CONNECT_S = 15.0
#: How often is looked whether it stops, in seconds.
LOOK_S = 0.1

#: Sends (url, headers, body) and returns the answer; the last is called when the request is
#: about to leave. Raises HttpFailed, and what that raises.
Post = Callable[[str, dict[str, str], bytes, Callable[[], None]], HttpAnswer]


@dataclass(slots=True)
class Stop:
    """Whether the proxy ends; for several threads.

    Attributes:
        by: until when an answer is waited for then, seconds of `time.monotonic`.
    """

    by: float | None = None

    @property
    def is_set(self) -> bool:
        return self.by is not None


def post_with(
    http: Http, stop: Stop, *, connect_s: float = CONNECT_S, answer_s: float = ANSWER_S
) -> Post:
    """Return a `Post` that blocks its thread while *http* asks, until *stop* at most."""

    async def ask(
        url: str, headers: dict[str, str], content: bytes, sending: Callable[[], None]
    ) -> HttpAnswer:
        left = False

        def leaves() -> None:
            nonlocal left
            sending()
            left = True

        asking = asyncio.create_task(
            http.ask(
                "POST",
                url,
                headers=headers,
                content=content,
                timeout_s=connect_s,
                answer_s=answer_s,
                sending=leaves,
            )
        )
        while not (await asyncio.wait({asking}, timeout=LOOK_S))[0]:
            # What has not left is not worth waiting for.
            if stop.by is not None and (not left or time.monotonic() >= stop.by):
                asking.cancel()
                raise HttpFailed("the proxy is shutting down", sent=left)
        return asking.result()

    def post(
        url: str, headers: dict[str, str], content: bytes, sending: Callable[[], None]
    ) -> HttpAnswer:
        # A loop of its own: that of the proxy must be free to stop meanwhile.
        return asyncio.run(ask(url, headers, content, sending))

    return post
