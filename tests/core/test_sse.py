"""The event parser against the WHATWG rules, and the first-event gate."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core.sse import EventParser, Gate, StreamEvent, StreamVerdict, Verdict, gate_shape


def events(*chunks: bytes, **options: int) -> list[StreamEvent]:
    parser = EventParser(**options)
    found = [event for chunk in chunks for event in parser.feed(chunk)]
    return found + parser.end()


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\n", [(None, "a")]),
        (b"data:a\n\n", [(None, "a")]),
        (b"data:  a\n\n", [(None, " a")]),  # one space only
        (b"data: a\r\n\r\n", [(None, "a")]),
        (b"data: a\r\rdata: b\r\r", [(None, "a"), (None, "b")]),
        (b"data: a\ndata: b\n\n", [(None, "a\nb")]),
        (b"data\n\n", [(None, "")]),
        (b"event: error\ndata: x\n\n", [("error", "x")]),
        (b"event: ping\n\ndata: x\n\n", [(None, "x")]),  # no data: no event, name gone
        (b": keep-alive\n\n: OPENROUTER PROCESSING\n\ndata: x\n\n", [(None, "x")]),
        (b"id: 1\nretry: 5\nfoo: bar\ndata: x\n\n", [(None, "x")]),
        (b"\xef\xbb\xbfdata: x\n\n", [(None, "x")]),
        (b"data: \xef\xbb\xbf\n\n", [(None, "\ufeff")]),  # only at the very start
        (b"data: caf\xc3\xa9 \xf0\x9f\x98\x80\n\n", [(None, "café 😀")]),
        (b"data: \xff\n\n", [(None, "\ufffd")]),
        (b"\n\n\n\n", []),
        (b"", []),
        (b"data: cut off", [(None, "cut off")]),  # the end of the stream ends it
        (b"data: a\n\ndata: b\n", [(None, "a"), (None, "b")]),
        (b"dat: a\n\n", []),
    ],
)
def test_parser(stream: bytes, expected: list[tuple[str | None, str]]) -> None:
    assert [(event.name, event.data) for event in events(stream)] == expected


def test_an_oversized_event_is_dropped_and_reading_goes_on() -> None:
    stream = b"data: " + b"x" * 100 + b"\n\ndata: ok\n\n"
    assert events(stream, max_event_bytes=50) == [StreamEvent(None, "ok")]


def test_an_endless_line_is_not_kept() -> None:
    parser = EventParser(max_event_bytes=1000)
    for _ in range(1000):
        parser.feed(b"x" * 1000)
    assert len(parser._line) <= 1000


LINES = st.sampled_from(
    [
        *(b"data: caf\xc3\xa9", b"data", b"data:", b"event: error", b"event:", b": comment"),
        *(b"", b"", b"id: 3", b"\xef\xbb\xbfdata: x", b"data: {}", b"data: " + b"y" * 40),
    ]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(LINES, ENDS), max_size=30), st.data(), st.sampled_from([30, 10**6]))
def test_any_chunking_gives_the_same_events(
    lines: list[tuple[bytes, bytes]], data: st.DataObject, bound: int
) -> None:
    stream = b"".join(line + end for line, end in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert events(*chunks, max_event_bytes=bound) == events(stream, max_event_bytes=bound)


@given(st.lists(st.binary(), max_size=5))
def test_parser_is_total(chunks: list[bytes]) -> None:
    events(*chunks, max_event_bytes=20)


# -- the gate


def judge(name: str | None, value: Any) -> Verdict:
    """Judge by what the value asks for, for these tests."""
    if name == "error":
        return Verdict.REFUSE
    if not isinstance(value, dict):
        return Verdict.COMMIT
    if value.get("error"):
        return Verdict.REFUSE
    return Verdict.CONTINUE if value.get("wait") else Verdict.COMMIT


def gate(shape: Any = "sse", **bounds: int) -> Gate:
    return Gate(judge, shape, **bounds)


COMMIT = StreamVerdict(Verdict.COMMIT)
WAIT = b'data: {"wait":1}\n\n'
REFUSAL = StreamVerdict(Verdict.REFUSE, {"error": {"code": 429}})


def test_first_meaningful_event_commits() -> None:
    assert gate().feed(b'data: {"x":1}\n\n') == COMMIT


def test_a_refusal_after_quiet_events_is_seen() -> None:
    g = gate()
    assert g.feed(b": hello\n\n" + WAIT) is None
    assert g.feed(b'event: error\ndata: {"error":') is None
    assert g.feed(b'{"code":429}}\n') is None
    assert g.feed(b"\n") == StreamVerdict(Verdict.REFUSE, {"error": {"code": 429}}, "error")


def test_data_that_is_not_json_is_judged_as_none_and_kept_as_text() -> None:
    assert gate().feed(b"data: [DONE]\n\n") == COMMIT
    assert gate().feed(b"event: error\ndata: limited\n\n") == StreamVerdict(
        Verdict.REFUSE, "limited", "error"
    )


def test_bounds_commit() -> None:
    assert gate(max_events=3).feed(WAIT * 2) is None
    assert gate(max_events=3).feed(WAIT * 3) == COMMIT
    assert gate(max_events=3).feed(WAIT * 9) == COMMIT
    assert gate(max_bytes=100).feed(b": comment\n\n" * 9) is None
    assert gate(max_bytes=100).feed(b": comment\n\n" * 10) == COMMIT
    assert gate().expired() == COMMIT


def test_comments_are_no_events() -> None:
    assert gate(max_events=1).feed(b": comment\n\n" * 20) is None


def test_a_refusal_in_a_chunk_beyond_the_bound_is_seen() -> None:
    chunk = b'data: {"error":{"code":429}}\n\n' + b"data: x\n\n" * 100
    assert gate(max_bytes=100).feed(chunk) == REFUSAL


def test_only_what_is_needed_is_parsed() -> None:
    seen = []
    g = Gate(lambda _name, value: seen.append(value) or Verdict.COMMIT, "sse")
    g.feed(b"data: 1\n\n" * 1000)
    assert seen == [1]


def test_end_decides_by_what_there_is() -> None:
    assert gate().end() == COMMIT
    g = gate()
    g.feed(WAIT)
    assert g.end() == COMMIT
    g = gate()
    g.feed(b'data: {"error":{"code":429}}')
    assert g.end() == REFUSAL


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":{"code":429}}', REFUSAL),
        (b'\n\n {"error" : {"code":429}}\r\n', REFUSAL),
        (b'{"id":"x","error":null}', COMMIT),
        (b'{"text":"\\"error\\":{}"}', COMMIT),
        (b'{"text":"an \\"error\\" in a string","wait":1}', COMMIT),
        (b"{}", COMMIT),
        (b"[]", COMMIT),
        (b"[1,2]", COMMIT),
        (b"null", COMMIT),
        (b"", COMMIT),
        (b"<html>", COMMIT),
        (b'{"error":{"code":429}', COMMIT),  # cut off: no JSON, the client will see it
        (b'[{"error":{"code":429}}]', REFUSAL),
        (b'[{"wait":[1,{"a":"]}"}]},\n{"error":{"code":429}}', REFUSAL),
        (b'[{"x":"{\\"error\\":1}"},{"error":{"code":429}}]', COMMIT),
    ],
)
def test_json(body: bytes, expected: StreamVerdict) -> None:
    g = gate("json")
    assert (g.feed(body) or g.end()) == expected
    g = gate("json")
    pieces = [g.feed(body[i : i + 1]) for i in range(len(body))]
    assert next((d for d in pieces if d), None) or g.end() == expected


@pytest.mark.parametrize("shape", ["sse", "text"])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error":{"code":429}}', REFUSAL),
        (b'\xef\xbb\xbf\r\n {\n "error": {\n  "code": 429\n }\n}\n', REFUSAL),
        (b'{"id":"x","error":null}', COMMIT),
        (b'{"error":{"code":429}', COMMIT),  # cut off
    ],
)
def test_an_object_that_no_type_announces(shape: Any, body: bytes, expected: StreamVerdict) -> None:
    g = gate(shape)
    assert (g.feed(body) or g.end()) == expected
    g = gate(shape)
    pieces = [g.feed(body[i : i + 1]) for i in range(len(body))]
    assert next((d for d in pieces if d), None) or g.end() == expected


@pytest.mark.parametrize("text", [b"Hello", b"[1]", b'"{', b"\n\n<p>", b"data: {}"])
def test_a_text_that_is_no_object_is_handed_over_at_once(text: bytes) -> None:
    assert gate("text").feed(text) == COMMIT


@pytest.mark.parametrize("shape", ["sse", "json", "text"])
def test_of_objects_one_a_line_the_first_decides(shape: Any) -> None:
    g = gate(shape)
    assert g.feed(b'{"event":"begin",') is None
    assert g.feed(b'"id":1}\n') == COMMIT
    # Whole lines are held while they may be an error's beginning, and nothing is read twice.
    g = gate(shape)
    assert g.feed(b'{"error":{"code":429}}\n{"event":"end"}\n') == REFUSAL


def test_an_array_is_judged_item_by_item() -> None:
    g = gate("json")
    assert g.feed(b'[{"wait":1}\n') is None
    assert g.feed(b',{"candidates":[') is None
    assert g.feed(b'{"a":"\\') is None
    assert g.feed(b'"}]}"}]') is None
    assert g.feed(b"}") == COMMIT


def test_a_large_object_is_handed_over() -> None:
    assert gate("json", max_bytes=1000).feed(b'{"error":"' + b"x" * 1000) == COMMIT


def test_deep_nesting_is_survived() -> None:
    deep = b"[" * 30_000 + b"]" * 30_000
    g = gate("json", max_bytes=10**6)
    assert (g.feed(b'{"error":' + deep + b"}") or g.end()) == COMMIT
    g = gate()
    assert g.feed(b"data: " + deep[:60_000] + b"\n\n") == COMMIT


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(max_size=4), JSON), max_size=5), st.data())
def test_array_items_are_found_however_they_are_cut(items: list[Any], data: st.DataObject) -> None:
    seen: list[Any] = []
    g = Gate(lambda _name, value: seen.append(value) or Verdict.CONTINUE, "json")
    body = json.dumps(items, ensure_ascii=data.draw(st.booleans())).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=9)))
    for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True):
        g.feed(body[a:b])
    assert seen == items


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        (b"<!DOCTYPE html>\n<title>Log in</title>", Verdict.REFUSE),
        (b"\xef\xbb\xbf\r\n <HTML lang=en>", Verdict.REFUSE),
        (b"<p>a paragraph</p>", Verdict.COMMIT),
        (b"<htmlish>", Verdict.COMMIT),
        (b'data: {"a": 1}\n\n', Verdict.COMMIT),
        (b"", Verdict.COMMIT),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_page_is_known_by_its_beginning(body: bytes, verdict: Verdict, size: int) -> None:
    g = gate("html")
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    decided = next((found for piece in pieces if (found := g.feed(piece))), None) or g.end()
    assert decided.verdict is verdict


@given(
    st.sampled_from(["sse", "json", "html", "text"]), st.lists(st.binary(max_size=40), max_size=5)
)
def test_gate_is_total(shape: Any, chunks: list[bytes]) -> None:
    g = gate(shape)
    for chunk in chunks:
        if g.feed(chunk):
            return
    g.end()


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("text/event-stream", "sse"),
        ("Text/Event-Stream; charset=utf-8", "sse"),
        ("application/json", "json"),
        ("application/json;charset=utf-8", "json"),
        ("application/problem+json", "json"),
        ("Text/HTML; charset=utf-8", "html"),
        ("application/xhtml+xml", "html"),
        ("audio/mpeg", None),
        ("text/plain; charset=utf-8", "text"),
        ("application/x-ndjson", "text"),
        ("application/vnd.amazon.eventstream", None),
        ("", "text"),
    ],
)
def test_gate_shape(content_type: str, expected: str | None) -> None:
    assert gate_shape(content_type) == expected
