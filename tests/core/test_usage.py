"""What answers say they took: documents and streams of each vendor, whole and in pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core.usage import END_BYTES, Usage, of_answer, of_frame


def document(**members: Any) -> bytes:
    return json.dumps(members).encode()


def stream(*events: dict[str, Any], end: bytes = b"", line: bytes = b"\n") -> bytes:
    """An event stream; events with a type are named by it, as Anthropic and OpenAI do."""
    text = bytearray()
    for event in events:
        if "type" in event:
            text += b"event: " + event["type"].encode() + line
        text += b"data: " + json.dumps(event, separators=(",", ":")).encode() + line + line
    return bytes(text + end)


DONE = b"data: [DONE]\n\n"
CHAT = {
    "prompt_tokens": 120,
    "completion_tokens": 30,
    "total_tokens": 150,
    "prompt_tokens_details": {"cached_tokens": 100, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": 0},
}
RESPONSES = {
    "input_tokens": 120,
    "input_tokens_details": {"cached_tokens": 100},
    "output_tokens": 30,
    "output_tokens_details": {"reasoning_tokens": 20},
    "total_tokens": 150,
}
ANTHROPIC = {
    "input_tokens": 5,
    "cache_creation_input_tokens": 15,
    "cache_read_input_tokens": 100,
    "cache_creation": {"ephemeral_5m_input_tokens": 15, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 30,
    "service_tier": "standard",
}
GEMINI = {
    "promptTokenCount": 120,
    "cachedContentTokenCount": 100,
    "candidatesTokenCount": 10,
    "thoughtsTokenCount": 20,
    "totalTokenCount": 150,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 120}],
}
INTERACTION = {
    "total_input_tokens": 120,
    "total_cached_tokens": 100,
    "total_output_tokens": 10,
    "total_thought_tokens": 20,
    "total_tokens": 150,
    "input_tokens_by_modality": [{"modality": "text", "tokens": 120}],
}
COHERE = {
    "billed_units": {"input_tokens": 7, "output_tokens": 30},
    "tokens": {"input_tokens": 120, "output_tokens": 30},
    "cached_tokens": 100,
}
DELTA = {"choices": [{"index": 0, "delta": {"content": "hi"}}], "usage": None}
ALL = Usage(120, 100, 30, 20)
PLAIN = Usage(120, 100, 30)
CACHED = PLAIN._replace(cache_write_tokens=15)
STARTED = {**ANTHROPIC, "output_tokens": 1}
MESSAGE_START = {"type": "message_start", "message": {"id": "msg_1", "usage": STARTED}}
MESSAGE_DELTA = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 30}}
TEXT_DELTA = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}}

# The dialects and their sources are in core/usage.py.
ANSWERS = {
    "chat": (document(id="c", choices=[{}], usage=CHAT), ALL),
    "chat, usage before the answer (Mistral)": (document(usage=CHAT, choices=[{}]), ALL),
    "chat stream": (stream(DELTA, DELTA, {"choices": [], "usage": CHAT}, end=DONE), ALL),
    "chat stream, CRLF": (
        stream(DELTA, {"choices": [], "usage": CHAT}, line=b"\r\n", end=DONE),
        ALL,
    ),
    "chat stream, usage in every chunk (xAI)": (
        stream({**DELTA, "usage": {**CHAT, "completion_tokens": 1}}, {**DELTA, "usage": CHAT}),
        ALL,
    ),
    "chat stream, nobody asked": (stream(DELTA, DELTA, end=DONE), None),
    "reasoning beside the completion (xAI)": (
        document(choices=[], usage={**CHAT, "completion_tokens": 10}),
        ALL,
    ),
    "cache told as hits (DeepSeek)": (
        document(
            usage={
                "prompt_tokens": 120,
                "completion_tokens": 30,
                "total_tokens": 150,
                "prompt_cache_hit_tokens": 100,
                "prompt_cache_miss_tokens": 20,
            }
        ),
        PLAIN,
    ),
    "x_groq": (
        stream(DELTA, {"choices": [{}], "x_groq": {"id": "r", "usage": CHAT}}, end=DONE),
        ALL,
    ),
    "cost beside tokens (OpenRouter)": (
        document(usage={**CHAT, "cost": 0.0014, "is_byok": False, "cost_details": {"x": None}}),
        ALL,
    ),
    "embeddings": (
        document(data=[], usage={"prompt_tokens": 9, "total_tokens": 9}),
        Usage(9),
    ),
    "responses": (document(status="completed", output=[], usage=RESPONSES, metadata={}), ALL),
    "responses in the background": (document(status="queued", usage=None), None),
    "responses stream": (
        stream(
            {"type": "response.created", "response": {"usage": None}},
            {"type": "response.output_text.delta", "delta": "hi"},
            {"type": "response.completed", "response": {"usage": RESPONSES, "user": None}},
        ),
        ALL,
    ),
    "messages": (document(type="message", content=[], usage=ANTHROPIC), CACHED),
    "messages stream": (stream(MESSAGE_START, TEXT_DELTA, MESSAGE_DELTA), CACHED),
    "messages stream, all of it at the end": (
        stream(
            {
                "type": "message_start",
                "message": {"usage": {"input_tokens": 0, "output_tokens": 0}},
            },
            {**MESSAGE_DELTA, "usage": ANTHROPIC},
        ),
        CACHED,
    ),
    "messages stream that was cut off": (
        stream(MESSAGE_START, TEXT_DELTA),
        Usage(120, 100, 1, 0, 15),
    ),
    "generateContent": (document(candidates=[{}], usageMetadata=GEMINI), ALL),
    "generateContent, pretty": (
        json.dumps([{"usageMetadata": {}}, {"usageMetadata": GEMINI}], indent=2).encode(),
        ALL,
    ),
    "streamGenerateContent": (
        stream({"usageMetadata": {"promptTokenCount": 120}}, {"usageMetadata": GEMINI}),
        ALL,
    ),
    "streamGenerateContent that was cut off": (
        stream({"usageMetadata": {"promptTokenCount": 120, "totalTokenCount": 120}}),
        Usage(120),
    ),
    "tool prompts count as input": (
        document(usageMetadata={"promptTokenCount": 100, "toolUsePromptTokenCount": 20}),
        Usage(120),
    ),
    "code assist": (stream({"response": {"usageMetadata": GEMINI}, "traceId": "t"}), ALL),
    "interactions": (document(id="v1_a", usage=INTERACTION), ALL),
    "interactions stream": (
        stream({"event_type": "interaction.completed", "interaction": {"usage": INTERACTION}}),
        ALL,
    ),
    "cohere": (document(message={}, usage=COHERE), PLAIN),
    "cohere stream": (
        stream({"type": "message-end", "delta": {"usage": COHERE}}),
        PLAIN,
    ),
    "cohere v1": (
        document(text="hi", meta={"api_version": {"version": "1"}, **COHERE}),
        PLAIN,
    ),
    "cohere embed": (document(meta={"billed_units": {"input_tokens": 9.0}}), Usage(9)),
}

NOTHING = {
    "empty": b"",
    "not JSON": b"<html>usage</html>",
    "another meta": document(meta={"version": 1}),
    "names only": document(data=["usage", "usageMetadata", '"usage": {"prompt_tokens": 5}']),
    "a count of tokens to come": document(input_tokens=2095),
    "words": document(usage={"prompt_tokens": "many", "completion_tokens": True}),
    "absurd": document(usage={"prompt_tokens": -5, "completion_tokens": 10**12}),
    "no number": b'{"usage":{"prompt_tokens":NaN,"completion_tokens":Infinity}}',
    "cut off": b'{"usage":{"prompt_tokens":12',
    "nested": b'{"usage":' + b'{"a":' * 5000,
    "not UTF-8": b'{"usage":{"\xff":1}}',
}


@pytest.mark.parametrize(("body", "usage"), ANSWERS.values(), ids=ANSWERS.keys())
def test_answers(body, usage):
    assert of_answer(body) == usage


@pytest.mark.parametrize("body", NOTHING.values(), ids=NOTHING.keys())
def test_what_tells_nothing(body):
    assert of_answer(body) is None
    assert of_frame(body) is None


@given(st.sampled_from(sorted(ANSWERS)), st.data())
def test_wherever_the_copy_ends_and_the_tail_begins(name, data):
    body, usage = ANSWERS[name]
    # The first event is always in the copy, which holds a MiB.
    first = body.index(b"\n\n") if b'"message_start"' in body else 0
    split = data.draw(st.integers(first, len(body)))
    # The tail begins with the end of the copy: 64 KiB are kept.
    assert of_answer(body[:split], body) == usage


@given(st.sampled_from(sorted(ANSWERS)), st.data())
def test_an_answer_that_is_cut_off_tells_no_more_than_the_whole(name, data):
    body, usage = ANSWERS[name]
    told = of_answer(body[: data.draw(st.integers(0, len(body)))])
    if told is not None:
        assert usage is not None
        assert all(part <= whole for part, whole in zip(told, usage, strict=True))


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_nothing_is_raised(body, tail):
    for text in (body, b'{"usage":' + body, b'{"usage":{"prompt_tokens":1,' + body):
        of_answer(text, tail)
        of_frame(text)


@given(st.text())
def test_a_model_that_writes_about_usage_is_not_believed(text):
    lie = text + '"usage":{"prompt_tokens":1,"completion_tokens":1}' + text
    said = {"choices": [{"delta": {"content": lie}}]}
    assert of_answer(stream(said)) is None
    assert of_answer(stream(said, {"choices": [], "usage": CHAT}, said)) == ALL


def test_an_answer_full_of_beginnings_takes_no_time():
    assert of_answer(b'"usage":{"a":' * 100_000) is None


def test_arguments_of_a_tool_are_not_believed():
    content = [{"type": "tool_use", "input": {"usage": {"input_tokens": 10**6}}}]
    assert of_answer(document(content=content, usage=ANTHROPIC)) == CACHED


@pytest.mark.parametrize("size", [END_BYTES, 20 * END_BYTES])
def test_long_answers(size):
    words = b"x" * size
    # The end of `response.completed` comes long after its beginning, which may be lost.
    completed = b'"output":"%s","usage":%s,"user":null}}' % (words, json.dumps(RESPONSES).encode())
    assert of_answer(words + completed) == ALL
    assert of_answer(words, completed[-END_BYTES:]) == ALL
    opening = stream(MESSAGE_START)
    assert of_answer(opening + words, words + stream(MESSAGE_DELTA)) == CACHED
    assert of_answer(document(usage=CHAT, choices=[words.decode()])) == ALL


def test_frames():
    completed = {"type": "response.completed", "response": {"usage": RESPONSES}}
    assert of_frame(json.dumps(completed).encode()) == ALL
    created = {"type": "response.created", "response": {"usage": None}}
    assert of_frame(json.dumps(created).encode()) is None
    assert of_frame(b'{"type":"response.output_text.delta","delta":"hi"}') is None
