"""Which conversation a request is a part of: what real clients send, best first.

A header of the client, else a member of its body, else a hash of what stays the same all
along: system prompt and first message of the user. What was measured of the clients is
in clients.md, section 3; providers.md names the ids of each API. Ids that stand for a
person, a machine or an editor's window are no conversation and are not used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any

import msgspec

from account_pool.core.lease import NO_CONVERSATION, Conversation
from account_pool.providers.base import RequestHead
from account_pool.providers.heads import Body, body_from, body_of, is_websocket

#: Headers that name a conversation. Agents of one tool each have one of their own.
SESSION_HEADERS = (
    # Codex: one per agent; providers.md, section 3
    "thread-id",
    "conversation_id",
    # Codex and opencode; the second in older ones
    "session-id",
    "session_id",
    # Claude Code; https://code.claude.com/docs
    "x-claude-code-session-id",
    # Copilot CLI
    "x-client-session-id",
    # opencode, and others that follow it
    "x-session-id",
    "x-session-affinity",
)
#: Names one agent of several in a session of Claude Code.
_AGENT = "x-claude-code-agent-id"
#: Names what an agent of Codex was started from.
_PARENT = "x-codex-parent-thread-id"
#: A token by which a turn stays on one server; a turn goes on without it.
TURN_STATE = "x-codex-turn-state"

#: Longest id that is kept as it is.
_MAX_ID = 128
#: How much of either end of a long text is hashed.
_SAMPLE = 4096
#: Where the first messages are mostly to be found, bytes.
_FIRST_BYTES = 32768


def conversation(head: RequestHead) -> Conversation:
    """Say what a request is a part of; lists of models and the like are nothing's."""
    socket = head.method != "POST"
    if socket and not is_websocket(head):
        return NO_CONVERSATION
    session, parent = _by_header(head)
    body = None if socket else body_of(head)
    if session is None and body is not None:
        session = _by_body(head, body)
    return Conversation(
        session=_bounded(session),
        parent=_bounded(parent),
        named=_named(body) if body is not None else (),
        sticky=head.headers.get(TURN_STATE),
    )


def copilot(head: RequestHead) -> Conversation:
    """The same, and whether a tool goes on by itself: only prompts of a user count.

    Its session tokens are known to the account alone that issued them.
    """
    found = conversation(head)
    tokens = tuple(value for name in COPILOT_TOKENS if (value := head.headers.get(name)))
    return Conversation(
        session=found.session,
        parent=found.parent,
        named=found.named + tokens,
        follow_up=head.headers.get("x-initiator", "").strip().lower() == "agent",
    )


#: providers.md, section 1.6
COPILOT_TOKENS = ("copilot-session-token", "copilot-edits-session")


# -- ids that only their account knows


def _named(body: Body) -> tuple[str, ...]:
    """Return the ids a body names; most bodies name none."""
    members = (body.previous_response_id, body.conversation, body.container, body.cachedContent)
    named = [thing for member in members if member and (thing := _id(member))]
    if body.request:
        inner = body_from(body.request)
        if inner is not None and (thing := _id(inner.cachedContent)):
            named.append(thing)
    return tuple(named)


def _id(member: Any) -> str | None:
    """Return an id that is given as it is, or as the member `id` of an object."""
    if isinstance(member, dict):
        member = member.get("id")
    return member if isinstance(member, str) and member else None


class _Created(msgspec.Struct):
    """The object an answer is, or the one its first event speaks of."""

    id: Any = None
    conversation: Any = None
    container: Any = None
    response: msgspec.Raw = msgspec.Raw(b"")


_CREATED = msgspec.json.Decoder(_Created)
_DATA = re.compile(rb"^data:\s*(\{.*\})\s*$", re.MULTILINE)


def made(head: RequestHead, opening: Callable[[], bytes]) -> tuple[str, ...]:
    """Return the ids of a stored answer, its conversation and its container.

    OpenAI's Responses API; what is not stored (`store: false`) cannot be named again but
    inside a WebSocket. Anthropic names a container in an answer that does not stream.
    """
    if not head.path.endswith("/responses"):
        return _container(opening()) if head.path.endswith("/v1/messages") else ()
    body = body_of(head)
    if body is None or body.store is False:
        return ()
    text = opening()
    event = _DATA.search(text)
    created = _created(event[1] if event else text)
    if created is not None and created.response:
        created = _created(created.response)
    if created is None:
        return ()
    things = (_id(created.id), _id(created.conversation))
    return tuple(thing for thing in things if thing)


def _container(text: bytes) -> tuple[str, ...]:
    # Most answers have none: nothing is read then.
    created = _created(text) if b'"container"' in text else None
    thing = _id(created.container) if created is not None else None
    return () if thing is None else (thing,)


def _created(text: bytes | msgspec.Raw) -> _Created | None:
    try:
        return _CREATED.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


# -- the client's own ids


def _by_header(head: RequestHead) -> tuple[str | None, str | None]:
    """Return the conversation and its parent, None where no header tells."""
    headers = head.headers
    parent = headers.get(_PARENT)
    for name in SESSION_HEADERS:
        if session := headers.get(name):
            if agent := headers.get(_AGENT):
                return f"{session}/{agent}", session
            return session, parent if parent != session else None
    return parent, None


def _by_body(head: RequestHead, body: Body) -> str | None:
    for member in (body.prompt_cache_key, body.session_id, _id(body.conversation)):
        if isinstance(member, str) and member:
            return member
    if body.request:
        # Code Assist wraps the request of Gemini.
        inner = body_from(body.request)
        if inner is None:
            return None
        return inner.session_id if isinstance(inner.session_id, str) else _prefix(inner)
    if session := _of_metadata(body.metadata):
        return session
    # What continues a stored answer does not begin with the first message. `input` is one
    # in the Responses API only: what is embedded or spoken is no conversation.
    continues = body.previous_response_id or (body.input and "/responses" not in head.path)
    return None if continues else _prefix(body)


# Claude Code: user_<hex>_account_<uuid>_session_<uuid>, newer ones the text of an object.
_USER_ID = re.compile(r'(?:_session_|"session_id"\s*:\s*")(?P<id>[\w-]{8,})')


def _of_metadata(metadata: msgspec.Raw) -> str | None:
    """Return the conversation `metadata` names: that of Claude Code, or in plain words."""
    if not metadata:
        return None
    value = _decoded(metadata)
    if not isinstance(value, dict):
        return None
    if isinstance(user := value.get("user_id"), str) and (found := _USER_ID.search(user)):
        return found["id"]
    for name in ("session_id", "conversation_id", "thread_id"):
        if isinstance(member := value.get(name), str) and member:
            return member
    return None


def _bounded(session: str | None) -> str | None:
    if session is None or len(session) <= _MAX_ID:
        return session
    return _digest([session])


# -- what stays the same all along


def _prefix(body: Body) -> str | None:
    """Return the hash of system prompt and first message of the user, None without one.

    What a tool drops or sums up later is not in it, nor are marks for the cache, which
    move from turn to turn.
    """
    turns = body.messages or body.input or body.contents
    first = _until_user(turns) if turns else []
    if not first:
        return None
    systems = (body.system, body.instructions, body.systemInstruction, body.system_instruction)
    texts = [_text(_decoded(system)) for system in systems if system]
    return _digest([*texts, *(_text(turn) for turn in first)])


def _until_user(turns: msgspec.Raw) -> list[Any]:
    """Return the turns up to the first of the user, without reading those after it."""
    raw = memoryview(turns)
    text = str(raw[:_FIRST_BYTES], "utf-8", "replace")
    if text.startswith('"'):
        # The Responses API takes a text as well.
        return [_decoded(turns)]
    found = _read_turns(text)
    if found is None and len(raw) > _FIRST_BYTES:
        found = _read_turns(str(raw, "utf-8", "replace"))
    return found or []


_SCAN = json.JSONDecoder(strict=False).raw_decode


def _read_turns(text: str) -> list[Any] | None:
    """Return the turns up to the first of the user, None if *text* does not hold them."""
    found, at = [], 1
    try:
        while True:
            while text[at] in " ,\n\r\t":
                at += 1
            turn, at = _SCAN(text, at)
            if not isinstance(turn, dict):
                return None
            found.append(turn)
            # Gemini may leave the role out; items of the Responses API that have none are
            # no messages.
            if turn.get("role", "user" if "parts" in turn else None) == "user":
                return found
    except (ValueError, IndexError, RecursionError):
        return None


def _text(value: Any) -> str:
    """Return the text of a message, however it is wrapped; what is none as it is written."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_text(item) for item in value)
    if isinstance(value, dict):
        for name in ("text", "content", "parts"):
            if name in value:
                return _text(value[name])
        value = {name: member for name, member in value.items() if name != "cache_control"}
    return json.dumps(value)


def _decoded(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _digest(texts: Iterable[str]) -> str:
    """Return a short name for *texts*; of long ones, length and both ends."""
    digest = blake2b(digest_size=16)
    for text in texts:
        if len(text) > 2 * _SAMPLE:
            sampled = f"{len(text)}\0{text[:_SAMPLE]}\0{text[-_SAMPLE:]}"
        else:
            sampled = text
        digest.update(sampled.encode(errors="replace") + b"\0")
    return f"prefix-{digest.hexdigest()}"
