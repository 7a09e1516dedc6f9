"""A proxy that stops waits for the answer of a token server, but not for ever."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any, cast

import pytest
from tests.patience import PATIENCE_S

from account_pool.credentials.http import Http, HttpFailed, HttpResponse
from account_pool.credentials.token_endpoint import Stop, post_with

ANSWER = HttpResponse(status=200, headers={}, body=b"{}")


class Server:
    """Stands for `Http`: stops the proxy while it is asked, and answers when told to."""

    def __init__(self, stop: Stop, by: float, *, leaves: bool, answers: bool) -> None:
        self.stop, self.by, self.leaves, self.answers = stop, by, leaves, answers

    async def ask(self, *_: Any, sending: Any, **how: Any) -> HttpResponse:
        if self.leaves:
            sending()
        self.stop.by = self.by
        if self.answers:
            return ANSWER
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.Event().wait()
        raise AssertionError("nobody gave up")


def ask(by: float, *, leaves: bool = True, answers: bool = False) -> HttpResponse:
    stop = Stop()
    server = Server(stop, by, leaves=leaves, answers=answers)
    return post_with(cast(Http, server), stop)("https://x.test/", {}, b"", lambda: None)


def test_an_answer_that_comes_in_time_counts() -> None:
    assert ask(math.inf, answers=True) == ANSWER
    assert ask(0.0, answers=True) == ANSWER


def test_one_that_does_not_is_not_waited_for() -> None:
    by = time.monotonic() + 0.3
    with pytest.raises(HttpFailed, match="shutting down") as failed:
        ask(by)
    assert failed.value.sent
    assert time.monotonic() >= by


def test_what_has_not_left_is_not_waited_for() -> None:
    with pytest.raises(HttpFailed, match="shutting down") as failed:
        ask(math.inf, leaves=False)
    assert not failed.value.sent
