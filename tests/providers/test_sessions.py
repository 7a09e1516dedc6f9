"""Which conversation a request is a part of: recorded shapes of real clients, and garbage."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core.lease import NO_CONVERSATION, Conversation
from account_pool.providers import copilot, openai, registry, sessions
from account_pool.providers.base import RequestHead

SYSTEM = {"role": "system", "content": "You are a tool."}
HELLO = {"role": "user", "content": "Hello?"}


def head(
    body: Any = None, *, path: str = "/v1/chat/completions", method: str = "POST", **headers: str
) -> RequestHead:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    content = body if isinstance(body, bytes) else b"" if body is None else _json(body)
    return RequestHead(method=method, host="api", port=443, path=path, headers=named, body=content)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def session(*args: Any, **kwargs: Any) -> str | None:
    return sessions.conversation(head(*args, **kwargs)).session


CLAUDE_USER = {"device_id": "d", "account_uuid": "", "session_id": "1b2c3d4e-0000"}

#: body, headers, session
NAMED = {
    # as recorded from these clients
    "claude code": ({}, {"x_claude_code_session_id": "c-1"}, "c-1"),
    "codex": ({"prompt_cache_key": "t-1"}, {"session_id": "s-1", "thread_id": "t-1"}, "t-1"),
    "copilot cli": ({}, {"x_client_session_id": "v-1", "x_interaction_id": "i"}, "v-1"),
    "opencode": ({}, {"x_session_id": "o-1", "x_session_affinity": "o-1"}, "o-1"),
    "gemini cli, login": ({"request": {"session_id": "g-1", "contents": []}}, {}, "g-1"),
    # a body where no header tells
    "prompt cache key": ({"prompt_cache_key": "k-1", "messages": [HELLO]}, {}, "k-1"),
    "conversation of OpenAI": ({"conversation": {"id": "conv_1"}, "input": "Hi"}, {}, "conv_1"),
    "openrouter": ({"session_id": "r-1", "messages": [HELLO]}, {}, "r-1"),
    "old claude code": (
        {"metadata": {"user_id": "user_ab_account_cd_session_1b2c3d4e-0000"}},
        {},
        "1b2c3d4e-0000",
    ),
    "newer claude code": (
        {"metadata": {"user_id": _json(CLAUDE_USER).decode()}},
        {},
        "1b2c3d4e-0000",
    ),
    "metadata in plain words": ({"metadata": {"conversation_id": "m-1"}}, {}, "m-1"),
    # what is no conversation
    "a person": ({"user": "u-1", "metadata": {"user_id": "u-1"}}, {}, None),
    "a window of an editor": ({}, {"vscode_sessionid": "w-1"}, None),
    "one request": ({}, {"x_client_request_id": "q-1"}, None),
    "an embedding": ({"input": "Hello?"}, {}, None),
    "garbage": (b"{nonsense", {}, None),
    "a list": ([1], {}, None),
    "no user": ({"messages": [SYSTEM]}, {}, None),
}


@pytest.mark.parametrize(("body", "headers", "expected"), NAMED.values(), ids=NAMED.keys())
def test_the_ids_of_clients(body: Any, headers: dict[str, str], expected: str | None) -> None:
    assert session(body, **headers) == expected


def test_a_list_of_models_is_no_part_of_a_conversation() -> None:
    assert sessions.conversation(head(method="GET", x_session_id="s")) == NO_CONVERSATION


def test_the_socket_of_a_conversation_is_a_part_of_it() -> None:
    found = sessions.conversation(head(method="GET", upgrade="websocket", thread_id="t"))
    assert found.session == "t"


def test_an_id_of_any_length_is_kept_short() -> None:
    assert len(session({}, x_session_id="x" * 5000) or "") < 64


@pytest.mark.parametrize(
    "key",
    [
        *("sk-fake-1111", "user:sk-fake-1111", "ghp_fake1111", "gsk_fake1111", "AIzafake1111"),
        *("eyJmYWtlIjoxfQ.e30.x", "tid=fake;exp=1", "Bearer sk-fake-1111", "two\nlines", "e\u0301"),
    ],
)
def test_what_may_be_a_credential_is_known_by_a_hash(key: str) -> None:
    found = [
        session({}, x_session_id=key),
        session({"prompt_cache_key": key}),
        session({"metadata": {"session_id": key}}),
    ]
    assert len(set(found)) == 1
    assert str(found[0]).startswith("prefix-")
    assert key not in str(found[0])


@pytest.mark.parametrize("name", ["task-1", "risk_7", "0198c1d2-7f3e-7000-8000-3f5e6a7b8c9d"])
def test_an_id_is_kept_as_its_tool_shows_it(name: str) -> None:
    assert session({}, x_session_id=name) == name


def test_agents_of_one_session_are_conversations_of_their_own() -> None:
    claude = sessions.conversation(
        head({}, x_claude_code_session_id="s", x_claude_code_agent_id="a")
    )
    assert claude == Conversation(session="s/a", parent="s")
    codex = sessions.conversation(head({}, thread_id="t", x_codex_parent_thread_id="p"))
    assert codex == Conversation(session="t", parent="p")
    alone = sessions.conversation(head({}, thread_id="t", x_codex_parent_thread_id="t"))
    assert alone == Conversation(session="t")


# -- the stable prefix


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages), **more}


ANSWER = {"role": "assistant", "content": "Hello!"}
AGAIN = {"role": "user", "content": "And now?"}
BLOCKS = {"role": "user", "content": [{"type": "text", "text": "Hello?"}]}
MARKED = {
    "role": "user",
    "content": [{"type": "text", "text": "Hello?", "cache_control": {"type": "ephemeral"}}],
}
IMAGE = {"type": "image", "source": {"data": "AAAA"}}


@pytest.mark.parametrize(
    "later",
    [
        chat(SYSTEM, HELLO, ANSWER, AGAIN),
        # compaction drops or sums up what came between
        chat(SYSTEM, HELLO, {"role": "assistant", "content": "(summary)"}, AGAIN),
        # the mark for the cache moves on, and some clients send blocks then
        chat(SYSTEM, BLOCKS, ANSWER, AGAIN),
        chat(SYSTEM, MARKED),
        # other models and settings of the same conversation
        chat(SYSTEM, HELLO, ANSWER, AGAIN, model="other", temperature=1),
    ],
)
def test_the_prefix_stays_through_a_conversation(later: Any) -> None:
    assert session(chat(SYSTEM, HELLO)) == session(later)


@pytest.mark.parametrize(
    "other",
    [
        chat(SYSTEM, AGAIN),
        chat({"role": "system", "content": "You are another agent."}, HELLO),
        chat(HELLO),
        chat(SYSTEM, {"role": "user", "content": [IMAGE]}),
        chat(SYSTEM, {"role": "user", "content": "Hello?" * 5000}),
    ],
)
def test_another_prefix_is_another_conversation(other: Any) -> None:
    found = session(other)
    assert found is not None
    assert found != session(chat(SYSTEM, HELLO))


def test_the_prefix_in_every_dialect() -> None:
    text = "You are a tool."
    found = {
        session({"system": text, "messages": [HELLO]}, path="/v1/messages"),
        session({"system": [{"type": "text", "text": text}], "messages": [MARKED]}),
        session({"instructions": text, "input": "Hello?"}, path="/v1/responses"),
        session({"instructions": text, "input": [BLOCKS, ANSWER]}, path="/v1/responses"),
        session(
            {
                "systemInstruction": {"parts": [{"text": text}]},
                "contents": [{"role": "user", "parts": [{"text": "Hello?"}]}],
            }
        ),
        session(
            {
                "request": {
                    "systemInstruction": {"parts": [{"text": text}]},
                    "contents": [{"parts": [{"text": "Hello?"}]}],
                }
            }
        ),
        session(chat(SYSTEM, HELLO)),
    }
    assert len(found) == 1
    assert None not in found


def test_a_first_message_longer_than_what_is_looked_at_first() -> None:
    long = {"role": "user", "content": "Hé" * 40_000}
    assert session(chat(long)) == session(chat(long, ANSWER, AGAIN))
    assert session(chat(long)) != session(chat({"role": "user", "content": "Hé" * 40_001}))


def test_it_is_the_same_however_it_is_wrapped_and_not_decoded(monkeypatch) -> None:
    def scan(text: str, at: int) -> None:
        assert len(text) <= sessions._FIRST_BYTES
        raise ValueError

    monkeypatch.setattr(sessions, "_SCAN", scan)
    text = 'H\u00e9\n"' * 40_000
    part = {"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}
    named = {
        session(chat(SYSTEM, {"role": "user", "content": content}, *more))
        for content in (text, [part], [part | {"cache_control": None}])
        for more in ((), (ANSWER, AGAIN))
    }
    assert len(named) == 1
    assert None not in named
    other = {"role": "user", "content": [part | {"text": text + "."}]}
    assert session(chat(SYSTEM, other)) not in named


def _image(filling: str, size: int = 90_000) -> dict[str, Any]:
    """An image of *size* bytes that begins and ends as all of its kind do."""
    data = f"{'A' * 5000}{filling * (size // len(filling))}"[:size] + "=" * 5000
    return {"type": "image", "source": {"type": "base64", "media_type": "image/bmp", "data": data}}


def _said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


FORM = "Fill in the form. " * 1000


@pytest.mark.parametrize(
    ("content", "other"),
    [
        (f"{FORM} for customer 12345. {FORM}", f"{FORM} for customer 12346. {FORM}"),
        ([_said(FORM), _said("12345"), _said(FORM)], [_said(FORM), _said("12346"), _said(FORM)]),
        ([_image("ab")], [_image("cd")]),
        ([_image("ab", 4_000_000)], [_image("cd", 4_000_000)]),
        (
            [_image("ab"), _image("ab"), _said(FORM)],
            [_image("ab"), _image("ab", 91_000), _said(FORM)],
        ),
    ],
    ids=["a number in a form", "in parts", "an image", "a large one", "the second of two"],
)
def test_what_differs_in_the_middle_only_is_another_conversation(content: Any, other: Any) -> None:
    one, two = (chat(SYSTEM, {"role": "user", "content": said}) for said in (content, other))
    assert session(one) == session(one)
    assert session(one) != session(two)
    if isinstance(content, str):
        responses = [{"instructions": "Be.", "input": said} for said in (content, other)]
        assert len({session(body, path="/v1/responses") for body in responses}) == 2
        systems = [{"system": said, "messages": [HELLO]} for said in (content, other)]
        assert len({session(body, path="/v1/messages") for body in systems}) == 2


@pytest.mark.parametrize(
    "messages",
    [
        [["nested"] * 10_000, HELLO],
        [{"role": "user", "content": [[[[["x" * 70_000]]]]]}],
        [{"role": "system", "content": "x" * 40_000}, 1],
    ],
    ids=["no message", "deep", "no turn of a user"],
)
def test_long_messages_of_odd_shapes(messages: Any) -> None:
    found = session(chat(*messages))
    assert (found is None) == (messages[-1] in (1, HELLO))


def test_what_continues_a_stored_answer_has_no_prefix() -> None:
    found = sessions.conversation(
        head({"previous_response_id": "resp_1", "input": "Hi"}, path="/v1/responses")
    )
    assert found == Conversation(named=("resp_1",))
    found = sessions.conversation(
        head({"previous_interaction_id": "v1_a", "input": "Hi"}, path="/v1beta/interactions")
    )
    assert found == Conversation(named=("v1_a",))


PROMPT = {"contents": [{"parts": [{"text": "Hello?"}]}]}
LONG = "Hello? " * 1000


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (chat(SYSTEM, HELLO), "/v1/chat/completions"),
        # what a tool puts before the prompt
        (chat({"role": "developer", "content": "Be."}, HELLO, AGAIN), "/v1/chat/completions"),
        ({"system": "You are a tool.", "messages": [MARKED]}, "/v1/messages"),
        ({"input": "Hello?"}, "/v1/responses"),
        ({"input": "Hello?"}, "/v1beta/interactions"),
        ({"input": [{"type": "text", "text": "Hello?"}]}, "/v1beta/interactions"),
        ({"input": [{"type": "user_input", "content": []}]}, "/v1beta/interactions"),
        ({"input": [HELLO]}, "/v1/responses"),
        (PROMPT, "/v1beta/models/m:generateContent"),
        ({"request": PROMPT}, "/v1internal:generateContent"),
    ],
)
def test_a_short_opening_begins_a_conversation(body: Any, path: str) -> None:
    found = sessions.conversation(head(body, path=path))
    assert found.begins
    assert found.session is not None
    assert not sessions.conversation(head(body, path=path, x_session_id="s")).begins


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (chat(SYSTEM, HELLO, ANSWER, AGAIN), "/v1/chat/completions"),
        (chat(HELLO, {"role": "tool", "content": "7"}), "/v1/chat/completions"),
        ({"input": [HELLO, {"type": "function_call", "call_id": "c"}]}, "/v1/responses"),
        (
            {"contents": [*PROMPT["contents"], {"role": "model", "parts": []}]},
            "/v1beta/models/m:generateContent",
        ),
        # There is a cache to lose.
        (chat(SYSTEM, {"role": "user", "content": LONG}), "/v1/chat/completions"),
        (chat(HELLO, tools=[{"description": LONG}]), "/v1/chat/completions"),
        # The client names it.
        (chat(HELLO, prompt_cache_key="k"), "/v1/chat/completions"),
    ],
)
def test_what_goes_on_or_is_long_does_not(body: Any, path: str) -> None:
    found = sessions.conversation(head(body, path=path))
    assert not found.begins
    assert found.session is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["role", "content", "text", "id"]), inner)
    ),
    max_leaves=8,
)
MEMBERS = st.sampled_from(
    [
        "messages",
        "input",
        "contents",
        "system",
        "metadata",
        "request",
        "conversation",
        "container",
        "prompt_cache_key",
        "previous_response_id",
        "previous_interaction_id",
        "agent",
        "environment",
        "model",
        "cachedContent",
        "systemInstruction",
    ]
)


# Drawing takes long on a busy machine; what is tested does not.
@given(body=st.binary() | st.dictionaries(MEMBERS, JSON).map(_json))
def test_garbage_fails_nobody(body: bytes) -> None:
    for path in ("/v1/responses", "/v1/messages"):
        request = head(body, path=path)
        sessions.conversation(request)
        copilot.conversation(request)
        sessions.ids_in_response(request, lambda: body, {}, openai.STORED)


# -- ids that only their account knows


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"previous_response_id": "resp_1"}, ("resp_1",)),
        ({"conversation": "conv_1"}, ("conv_1",)),
        ({"conversation": {"id": "conv_1"}, "container": "cntr_1"}, ("conv_1", "cntr_1")),
        ({"container": {"id": "container_1"}, "messages": [HELLO]}, ("container_1",)),
        ({"cachedContent": "cachedContents/1"}, ("cachedContents/1",)),
        ({"request": {"cachedContent": "cachedContents/1"}}, ("cachedContents/1",)),
        ({"previous_response_id": None, "messages": [HELLO]}, ()),
        ({"previous_response_id": 7, "conversation": []}, ()),
    ],
)
def test_ids_a_request_names(body: Any, named: tuple[str, ...]) -> None:
    assert sessions.conversation(head(body)).named == named


STORED = {"id": "resp_1", "object": "response", "output": [{"id": "msg_1"}]}
CREATED = {"type": "response.created", "sequence_number": 0, "response": STORED}


@pytest.mark.parametrize(
    ("path", "asked", "answer", "made"),
    [
        ("/v1/responses", {}, _json(STORED), ("resp_1",)),
        (
            "/openai/v1/responses",
            {"store": True},
            _json({**STORED, "conversation": {"id": "conv_1"}}),
            ("resp_1", "conv_1"),
        ),
        (
            "/responses",
            {},
            b"event: response.created\ndata: " + _json(CREATED) + b"\n\ndata: {",
            ("resp_1",),
        ),
        ("/v1/responses", {"store": False}, _json(STORED), ()),
        ("/v1/responses", {}, b'data: {"cut', ()),
        ("/v1/chat/completions", {}, _json({"id": "chatcmpl-1"}), ()),
        (
            "/v1/messages",
            {},
            _json({"id": "msg_1", "container": {"id": "container_1"}}),
            ("container_1",),
        ),
        ("/v1/messages", {}, _json({"id": "msg_1", "container": None}), ()),
    ],
)
def test_ids_an_answer_made(path: str, asked: Any, answer: bytes, made: tuple[str, ...]) -> None:
    assert sessions.ids_in_response(head(asked, path=path), lambda: answer, {}) == made


def test_copilot_tells_a_prompt_from_what_follows_it_and_who_issued_its_tokens() -> None:
    user = copilot.conversation(head({}, x_initiator="user", copilot_edits_session="e"))
    agent = copilot.conversation(head({}, x_initiator="agent", x_client_session_id="s"))
    assert user == Conversation(named=("e",))
    assert agent == Conversation(session="s", follow_up=True)


def test_codex_returns_the_state_of_a_turn() -> None:
    assert sessions.conversation(head({}, x_codex_turn_state="t")).sticky == "t"


def test_every_provider_knows_its_conversations() -> None:
    for provider in registry.BUILT_IN.values():
        assert provider.conversation(head({}, x_session_id="s")).session == "s", provider.name
