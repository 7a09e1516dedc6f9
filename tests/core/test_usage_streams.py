"""What a stream is asked for besides does not reach its client."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core import usage
from account_pool.core.usage import UsageFilter, with_usage


def chunk(**more: object) -> dict[str, object]:
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "gpt-5", **more}


def event(value: object, line: bytes = b"\n") -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + line * 2


WORDS = [
    chunk(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}])
    for text in ('Good "usage":null', ',"usage":null', "morning", '{"usage": {}}')
]
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
DONE = b"data: [DONE]\n\n"


def streams(line: bytes = b"\n", obfuscation: bool = False) -> tuple[bytes, bytes]:
    """A stream as it comes where it was asked for, and where it was not."""
    last = {"obfuscation": "x7"} if obfuscation else {}
    end = b"data: [DONE]" + line * 2
    plain = b": a comment" + line * 2 + b"".join(event({**w, **last}, line) for w in WORDS)
    asked = b": a comment" + line * 2
    asked += b"".join(event({**w, "usage": None, **last}, line) for w in WORDS)
    asked += event(chunk(choices=[], usage=USAGE), line)
    return asked + end, plain + end


@given(
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.lists(st.integers(min_value=0, max_value=2_000), max_size=12),
)
def test_however_it_comes_it_is_what_it_would_have_been(line, obfuscation, cuts):
    asked, plain = streams(line, obfuscation)
    taken = UsageFilter()
    places = [0, *sorted(min(cut, len(asked)) for cut in cuts), len(asked)]
    pieces = [asked[a:b] for a, b in pairwise(places)]
    assert b"".join(map(taken.feed, pieces)) + taken.end() == plain
    assert json.loads(taken.taken[5:])["usage"] == USAGE


@pytest.mark.parametrize(
    "stream",
    [
        streams()[1],
        event(chunk(choices=[{"delta": {"content": "x"}}], usage=USAGE)),
        event({"error": {"message": '"usage":null'}}),
        event({"usage": "many"}),
        event({"choices": "none", "usage": USAGE}),
        event({"choices": [], "nested": {"usage": None}}),
        event([]) + b'data: {"usage" is no JSON\n\n' + b"\xff\xfe\n\n",
        b'data: {"usage":null,\ndata: "choices":[]}\n\n',
        b'event: x\nid: 1\ndata: "usage"\n\n',
        b"no end",
        b"",
    ],
)
def test_what_is_not_the_answer_stays(stream):
    taken = UsageFilter()
    assert taken.feed(stream) + taken.end() == stream


def test_null_is_taken_wherever_it_stands():
    for text in (b'{"usage":null,"choices":[1]}', b'{"choices":[1], "usage": null}'):
        assert UsageFilter().feed(b"data: " + text + b"\n\n").count(b"usage") == 0
    inside = b'data: {"choices":[{"id":1,"usage":null}],"usage":null}\n\n'
    assert UsageFilter().feed(inside) == b'data: {"choices":[{"id":1,"usage":null}]}\n\n'


def test_an_event_without_end_is_not_held_for_ever(monkeypatch):
    monkeypatch.setattr(usage, "MAX_EVENT_BYTES", 100)
    taken = UsageFilter()
    assert taken.feed(b"data: " + b"x" * 200) == b"data: " + b"x" * 200
    assert taken.feed(event(chunk(choices=[], usage=USAGE))) != b""


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        ('{"stream":true}', '{"stream":true,"stream_options":{"include_usage":true}}'),
        (
            ' {"stream" : true, "messages":[{"stream_options":1}]}\n',
            ' {"stream" : true, "messages":[{"stream_options":1}]'
            ',"stream_options":{"include_usage":true}}\n',
        ),
        ('{"stream":false}', None),
        ("{}", None),
        ('{"stream":true,"stream_options":{"include_usage":false}}', None),
        ('{"stream":true,"stream_options":null}', None),
        ('{"stream":1}', None),
        ("[]", None),
        ("", None),
        ('{"stream":true', None),
    ],
)
def test_what_is_asked(body, sent):
    found = with_usage(body.encode())
    assert found == (None if sent is None else sent.encode())
    if found is not None:
        assert json.loads(found)["stream_options"] == {"include_usage": True}
