"""Which conversation a request is a part of: what real clients send, best first.

A header of the client, else a member of its body, else a hash of what stays the same all
along: system prompt and first message of the user. The headers were recorded from the
clients that are named beside them (docs/conversations.md). Ids that stand for a person, a
machine or an editor's window are no conversation and are not used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from hashlib import blake2b, sha256
from typing import Any

import msgspec

from account_pool.core.lease import NO_CONVERSATION, Conversation
from account_pool.providers.base import Body, RequestHead, body_from, body_of, is_websocket
from account_pool.providers.stored_objects import TOGETHER, StoredObjects, id_of, ids_in_request

#: Headers that name a conversation. Agents of one tool each have one of their own.
SESSION_HEADERS = (
    # Codex: one per agent; openai/codex `codex-rs/core/src/client.rs`
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

#: Ids that are kept as they are: anybody who may look at the proxy reads them. Others are
#: known by a hash: what is long, and what looks like a credential, which some tools send as
#: an id.
_ID = re.compile(
    r"(?!.*(?:(?<![A-Za-z0-9])(?:sk[-_]|gh[a-z]_|github_pat_|AIza|xai-|gsk_|ya29\.)|tid=|eyJ))"
    r"[ -~]{1,128}"
)
#: Beginning of the names that we give to conversations whose own must not be shown.
HASHED = "prefix-"
#: A text up to the product of these, bytes, is hashed as a whole; of a longer one so many
#: pieces of this length, evenly spread, and its end. Images are megabytes, and come each time.
_PIECES, _PIECE = 128, 2048
#: Requests up to this length, bytes, are in nobody's cache: no vendor caches prompts of less
#: than 1,024 tokens, https://platform.openai.com/docs/guides/prompt-caching,
#: https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching
UNCACHED_BYTES = 4096
#: Where the first messages are mostly to be found, bytes.
_FIRST_BYTES = 32768


def conversation(head: RequestHead, stored: StoredObjects | None = None) -> Conversation:
    """Say what a request is a part of; lists of models and the like are nothing's.

    Args:
        stored: what the API keeps for its accounts, if it keeps anything.
    """
    kept = stored is not None and stored.tail.search(head.path) is not None
    socket = "upgrade" in head.headers and is_websocket(head)
    if head.method != "POST" and not kept and not socket:
        return NO_CONVERSATION
    body = None if socket else body_of(head)
    session, parent = map(_known_as, _by_header(head))
    # Code Assist wraps the request of Gemini.
    asked = (body_from(body.request) if body is not None and body.request else None) or body
    begins = False
    if session is None and asked is not None and not kept:
        session = _known_as(_by_body(asked))
        if session is None and _has_prefix(head, asked):
            session = _prefix(asked)
            begins = session is not None and _begins(head, asked)
    together = kept and stored is not None and stored.together.search(head.path)
    return Conversation(
        session=session,
        parent=parent,
        named=ids_in_request(head, asked, stored),
        sticky=head.headers.get(TURN_STATE) or (TOGETHER if together else None),
        begins=begins,
    )


def copilot(head: RequestHead) -> Conversation:
    """The same, and whether a tool goes on by itself: only prompts of a user count.

    Its session tokens are known to the account alone that issued them.
    """
    found = conversation(head)
    tokens = tuple(value for name in COPILOT_TOKENS if (value := head.headers.get(name)))
    return found._replace(
        named=found.named + tokens,
        sticky=None,
        follow_up=head.headers.get("x-initiator", "").strip().lower() == "agent",
    )


#: microsoft/vscode-copilot-chat `autoChatEndpoint.ts`, `chatMLFetcher.ts`
COPILOT_TOKENS = ("copilot-session-token", "copilot-edits-session")


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


def _by_body(asked: Body) -> str | None:
    kept = id_of(asked.conversation) if asked.conversation else None
    for member in (asked.prompt_cache_key, asked.session_id, kept):
        if isinstance(member, str) and member:
            return member
    return _of_metadata(asked.metadata)


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


def _known_as(session: str | None) -> str | None:
    return None if session is None else known_as(session)


def known_as(session: str) -> str:
    """Return what the conversation with this id of the client is known by."""
    return session if _ID.fullmatch(session) else hashed(session)


def hashed(session: str) -> str:
    """Return what a conversation is known by whose id must not be shown."""
    return _digest([session])


# -- what stays the same all along


def _has_prefix(head: RequestHead, asked: Body) -> bool:
    """Say whether a body holds its conversation from the first message on.

    What continues a stored response does not. `input` is a conversation in the Responses and
    the Interactions API only: what is embedded or spoken is none.
    """
    if asked.previous_response_id or asked.previous_interaction_id:
        return False
    return not asked.input or "/responses" in head.path or "/interactions" in head.path


def _begins(head: RequestHead, asked: Body) -> bool:
    """Say whether nothing was answered yet, and all that was said is too short for a cache.

    Whoever says the same again begins anew: scripts send one short prompt many times.
    """
    if len(head.body) > UNCACHED_BYTES:
        return False
    turns = _decoded(asked.messages or asked.input or asked.contents)
    return not isinstance(turns, list) or all(_is_asked(turn) for turn in turns)


def _is_asked(turn: Any) -> bool:
    """Say whether *turn* is said before the first response."""
    if not isinstance(turn, dict):
        return False
    return _role(turn) in _BEFORE_ANSWERS


_BEFORE_ANSWERS = ("developer", "system", "user")


def _role(turn: dict[str, Any]) -> Any:
    """Return who speaks in *turn*, None where it is not a message.

    Gemini may leave the role out. Its Interactions API takes steps, and pieces of content
    for a single message; items of the Responses API without a role are no messages.
    """
    if "role" in turn:
        return turn["role"]
    return "user" if "parts" in turn or turn.get("type") in _OF_USER else None


_OF_USER = ("user_input", "text")


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
        found = _read_long_turns(turns)
        if found is None:
            found = _read_turns(str(raw, "utf-8", "replace"))
    return found or []


_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
#: How deep a long message is looked into: itself, its content, a part of that, an image in it,
#: the data of that.
_DEPTH = 5


def _read_long_turns(turns: msgspec.Raw) -> list[Any] | None:
    """Do as `_read_turns` without decoding long texts; None if they are not in order."""
    found = []
    try:
        for raw in _LIST.decode(turns):
            turn = _sampled(raw)
            if not isinstance(turn, dict):
                return None
            found.append(turn)
            if _role(turn) == "user":
                return found
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    return None


def _sampled(raw: msgspec.Raw, depth: int = _DEPTH) -> Any:
    """Return a value of JSON; for long texts in it their hash, as they are written."""
    text = memoryview(raw)
    if len(text) <= _FIRST_BYTES or not depth:
        return msgspec.json.decode(raw)
    match text[:1]:
        case b'"':
            return _sample(text)
        case b"[":
            return [_sampled(item, depth - 1) for item in _LIST.decode(raw)]
        case b"{":
            return {name: _sampled(x, depth - 1) for name, x in _OBJECT.decode(raw).items()}
    return msgspec.json.decode(raw)


def _sample(text: memoryview) -> str:
    """Return a hash of a long text, which is not decoded: of its length and pieces of it."""
    # Processors have instructions for this one: of 100 KB it takes a quarter of BLAKE2's time.
    digest = sha256(str(len(text)).encode(), usedforsecurity=False)
    if len(text) <= _PIECES * _PIECE:
        digest.update(text)
        return digest.hexdigest()
    for at in range(0, len(text), len(text) // _PIECES):
        digest.update(text[at : at + _PIECE])
    digest.update(text[-_PIECE:])
    return digest.hexdigest()


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
            if _role(turn) == "user":
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
    """Do as `_sampled`; None if *raw* is not in order."""
    try:
        return _sampled(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _digest(texts: Iterable[str]) -> str:
    """Return a short name for *texts*."""
    digest = blake2b(digest_size=16)
    for text in texts:
        digest.update(text.encode(errors="replace") + b"\0")
    return HASHED + digest.hexdigest()
