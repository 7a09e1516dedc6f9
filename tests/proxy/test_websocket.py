"""What the frames of a WebSocket say of limits."""

from __future__ import annotations

import json

import pytest

from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.providers import openai
from account_pool.proxy.websocket import WebsocketReader

CREATE = b'{"type":"response.create","model":"gpt-6","input":[]}'
LIMITED = json.dumps(
    {
        "type": "error",
        "status": 429,
        "error": {"type": "requests", "code": "rate_limit_exceeded", "message": "..."},
        "headers": {"retry-after": "12"},
    }
).encode()


def reader() -> WebsocketReader:
    socket = WebsocketReader(openai.PROVIDER)
    socket.client_said(CREATE)
    return socket


def test_a_limit_is_read_with_the_headers_inside_the_frame():
    socket = reader()
    assert socket.server_said(b'{"type":"response.created","response":{}}', 0.0) is None
    outcome = socket.server_said(LIMITED, 0.0)
    assert outcome is not None
    assert (outcome.cls, outcome.scope, outcome.cooldown_s) == (
        OutcomeClass.RATE_LIMIT,
        Scope.MODEL,
        12.0,
    )
    assert (socket.model, socket.answered) == ("gpt-6", False)


def test_a_turn_ends_where_the_next_begins():
    socket = reader()
    socket.server_said(b'{"type":"response.output_text.delta","delta":"x"}', 0.0)
    assert socket.answered
    # Audio, pings and the like are no new turn.
    socket.client_said(b'{"type":"input_audio_buffer.append","audio":"..."}')
    assert socket.answered
    socket.client_said(b'{"type":"response.create"}')
    assert (socket.answered, socket.model) == (False, "gpt-6")


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xff\xfe",
        b"not json",
        b"[" * 10_000,
        b'{"type":"response.output_text.delta","delta":"error 429 rate_limit_exceeded"}',
        b'{"type":"error","status":400,"error":{"type":"invalid_request_error"}}',
        b'{"type":"error","status":500,"error":{"message":"oops"}}',
    ],
)
def test_what_says_nothing_against_the_account(frame):
    socket = reader()
    assert socket.server_said(frame, 0.0) is None
    socket.client_said(frame)


def test_a_limit_in_the_middle_of_an_answer_is_still_read():
    socket = reader()
    socket.server_said(b'{"type":"response.output_text.delta","delta":"x"}', 0.0)
    assert socket.server_said(LIMITED, 0.0) is not None
    assert socket.answered
