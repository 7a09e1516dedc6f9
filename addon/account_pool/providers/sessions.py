"""What ties a request to one account: the conversation it is a part of, the objects it names.

A conversation is known by what real clients send, best first: a header, else a member of the
body, else a hash of what stays the same all along, system prompt and first message of the user.
The headers were recorded from the clients that are named beside them (docs/conversations.md).
Ids that stand for a person, a machine or an editor's window are no conversation and are not used.

Stored responses, files, batches and the like are known only to the account that created them.
A request names such an object in its path, its query or its body. The response that created
it has its id, and so do lists. `core/sessions.py` keeps what is whose.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b, sha256
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
from msgspec import Struct

from account_pool.core.json_values import NOT_READ, text_in
from account_pool.core.lease import NO_CONVERSATION, Conversation
from account_pool.core.meaning import LazyPattern
from account_pool.providers.base import Body, RequestHead, body_from, is_websocket

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
_ID = LazyPattern(
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
    body = None if socket else head.json
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
_USER_ID = LazyPattern(r'(?:_session_|"session_id"\s*:\s*")(?P<id>[\w-]{8,})')


def _of_metadata(metadata: msgspec.Raw) -> str | None:
    """Return the conversation `metadata` names: that of Claude Code, or in plain words."""
    if not metadata:
        return None
    value = _decoded(metadata)
    if not isinstance(value, dict):
        return None
    if isinstance(user := value.get("user_id"), str) and (found := _USER_ID.search(user)):
        return found["id"]
    named = (text_in(value.get(name)) for name in ("session_id", "conversation_id", "thread_id"))
    return next(filter(None, named), None)


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
    return not isinstance(turns, list) or all(
        isinstance(turn, dict) and _role(turn) in _BEFORE_ANSWERS for turn in turns
    )


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
#: In one walk over what may be megabytes.
_TURNS = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
#: How deep a long message is looked into: itself, its content, a part of that, an image in it,
#: the data of that.
_DEPTH = 5


def _read_long_turns(turns: msgspec.Raw) -> list[Any] | None:
    """Do as `_read_turns` without decoding long texts; None if they are not in order."""
    found = []
    try:
        for members in _TURNS.decode(turns):
            turn = {name: _sampled(member, _DEPTH - 1) for name, member in members.items()}
            found.append(turn)
            if _role(turn) == "user":
                return found
    except NOT_READ:
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
    except NOT_READ:
        return None


def _digest(texts: Iterable[str]) -> str:
    """Return a short name for *texts*."""
    digest = blake2b(digest_size=16)
    for text in texts:
        digest.update(text.encode(errors="replace") + b"\0")
    return HASHED + digest.hexdigest()


#: Stands for all objects that are kept together: the account that created the last one
#: creates the next.
TOGETHER = "(things)"
#: Maximum number of ids learnt from one response: a page of a list has 100 of them.
MAX_IDS = 200


class StoredObjects(Struct, frozen=True):
    """Where an API keeps the objects that its accounts created.

    Attributes:
        path: matches the paths of all of them.
        tail: found in them below any prefix, which requests to a gateway may have;
            distinguishes pooled requests for objects from inference.
        together: found in the paths of objects of which one request may name several. They
            are created on one account, as long as it can serve; others on the account that
            the strategy selects.
        one: found in the path of one object; the group that matches is its id.
        mark: occurs in every body that names a file.
    """

    path: LazyPattern[str]
    tail: LazyPattern[str]
    together: LazyPattern[str]
    one: LazyPattern[str]
    mark: bytes

    @classmethod
    def of(
        cls,
        below: str,
        *,
        together: Iterable[str],
        apart: Iterable[str] = (),
        mark: bytes = b"file_id",
        with_kind: Iterable[str] = (),
    ) -> StoredObjects:
        """Return the objects of an API. Strings here are parts of regular expressions.

        Args:
            below: the part of a path before the kind of object.
            together, apart: kinds, the first as explained above.
            with_kind: kinds whose ids begin with their kind: `files/abc`.
        """
        several, kinds = "|".join(together), "|".join((*together, *apart))
        ids_in_request = rf"/(?:{kinds})/([^/:]+)"
        if with_kind:
            ids_in_request = rf"/((?:{'|'.join(with_kind)})/[^/:]+)|{ids_in_request}"
        tail = rf"/(?:{kinds})(?:/(?!\.)[\w@:~.-]+)*"
        return cls(
            path=LazyPattern(rf"(?:{below}){tail}"),
            tail=LazyPattern(rf"{tail}$"),
            together=LazyPattern(rf"/(?:{several})(?:/|$)"),
            one=LazyPattern(ids_in_request),
            mark=mark,
        )

    def route(self, head: RequestHead) -> bool:
        """Return whether *head* asks for objects, with a method that the pool serves."""
        return head.method in _METHODS and self.path.fullmatch(head.path) is not None


# PATCH: https://ai.google.dev/api/caching#method:-cachedcontents.patch
_METHODS = frozenset({"DELETE", "GET", "PATCH", "POST"})


# -- what a request names


def ids_in_request(
    head: RequestHead, asked: Body | None, stored: StoredObjects | None
) -> tuple[str, ...]:
    """Return the ids of objects that a request names; most name none.

    Args:
        asked: its JSON body.
    """
    found: tuple[str, ...] = ()
    if asked is not None:
        members = (
            asked.previous_response_id,
            asked.previous_interaction_id,
            asked.conversation,
            asked.container,
            asked.environment,
            asked.cachedContent,
            asked.cached_content,
        )
        if any(members):
            found = tuple(thing for member in members if (thing := id_of(member)))
        if stored is not None and (asked.tools or stored.mark in head.body):
            found += tuple(_in_body(head.body, asked, stored.mark))
    if stored is not None and stored.tail.search(head.path):
        found += tuple(_in_path(head, stored))
    return found


def id_of(member: Any) -> str | None:
    """Return an id that is given as a string, or as the member `id` of an object."""
    return text_in(member.get("id") if isinstance(member, dict) else member)


# Text that looks like this inside a string has its quotes escaped.
_NAMES = LazyPattern(
    rb'"(?:(?:(?:input_)?file_?)?[uU]ri|(?:input_)?file_?(?:ids?|[nN]ame)|vector_store_ids'
    rb'|container|skill_id)"'
    rb'\s*:\s*(\[[^\]]*\]|"[^"\\]*")'
)
_TEXT = LazyPattern(rb'"([^"\\]+)"')
_TOOLS_NAME = (b"vector_store_ids", b'"container"')


def _in_body(body: bytes, asked: Body, mark: bytes) -> Iterator[str]:
    """Yield the files a body names anywhere, and what its tools name."""
    tools = bytes(asked.tools)
    if mark in body:
        text = body
    elif any(name in tools for name in _TOOLS_NAME):
        text = tools
    else:
        return
    for value in _NAMES.finditer(text):
        for text_of in _TEXT.findall(value[1]):
            thing = _without_host(text_of.decode(errors="replace"))
            if thing is not None:
                yield thing


def _without_host(thing: str) -> str | None:
    """Return the name of a file of Gemini that is given by its URL.

    None for any other URL: accounts do not store those.
    """
    if "://" not in thing:
        return thing
    _, found, name = thing.rpartition("/files/")
    return "files/" + name if found else None


#: The next page of a list and the next piece of a file belong to the account of the first.
_CURSORS = ("after", "after_id", "before", "before_id", "page", "pageToken", "upload_id")


def _in_path(head: RequestHead, stored: StoredObjects) -> Iterator[str]:
    if found := stored.one.search(head.path):
        yield unquote(found[found.lastindex or 0])
    if head.query:
        query = parse_qs(head.query)
        for name in _CURSORS:
            yield from query.get(name, ())


# -- what a response contains


class _Created(msgspec.Struct):
    """The object that a response is, or that its first event is about."""

    id: Any = None
    conversation: Any = None
    container: Any = None
    environment_id: Any = None
    response: msgspec.Raw = msgspec.Raw(b"")
    interaction: msgspec.Raw = msgspec.Raw(b"")


_CREATED = msgspec.json.Decoder(_Created)
_DATA = LazyPattern(rb"^data:\s*(\{.*\})\s*$", re.MULTILINE)


def ids_in_response(
    head: RequestHead,
    first_part: Callable[[], bytes],
    headers: Mapping[str, str],
    stored: StoredObjects | None = None,
) -> tuple[str, ...]:
    """Return the ids in a successful response, as `Provider.created_ids`."""
    if stored is not None and stored.tail.search(head.path):
        return _ids_of_objects(head, first_part, headers, stored)
    if head.path.endswith(("/responses", "/interactions")):
        return _ids_of_stored(head, first_part)
    if head.path.endswith("/v1/messages"):
        return _container(first_part())
    if head.path.endswith(":batchGenerateContent"):  # the batch that Gemini has started
        return (*_ids(_OBJECT_ID, first_part()), TOGETHER)
    return ()


def _ids_of_stored(head: RequestHead, first_part: Callable[[], bytes]) -> tuple[str, ...]:
    """Return the ids of a stored response and what it ran in: OpenAI's Responses API, and
    Gemini's Interactions API.

    One that is not stored (`store: false`) cannot be named again except inside a WebSocket.
    """
    if head.json is None or head.json.store is False:
        return ()
    text = first_part()
    event = _DATA.search(text)
    created = _created(event[1] if event else text)
    if created is not None and (inner := created.response or created.interaction):
        created = _created(inner)
    if created is None:
        return ()
    # The container in which its tools ran, which they do not name before.
    containers = _ids(_CONTAINER_ID, text) if b'"container_id"' in text else ()
    ids = (id_of(created.id), id_of(created.conversation), id_of(created.environment_id))
    return tuple(thing for thing in ids if thing) + containers


def _container(text: bytes) -> tuple[str, ...]:
    """Return the container of a response of Anthropic's that does not stream."""
    # Most responses have none: they are not parsed.
    created = _created(text) if b'"container"' in text else None
    thing = id_of(created.container) if created is not None else None
    return () if thing is None else (thing,)


def _created(text: bytes | msgspec.Raw) -> _Created | None:
    try:
        return _CREATED.decode(text)
    except NOT_READ:
        return None


_CONTAINER_ID = LazyPattern(rb'"container_id"\s*:\s*"([^"\\]{1,256})"')
# Objects, the files of a batch, and where a list goes on; names of Google.
_OBJECT_ID = LazyPattern(
    rb'"(?:id|[a-z]+_file_id|next_?[pP]age(?:Token)?)"\s*:\s*"([^"\\]{1,256})"'
    rb'|"name"\s*:\s*"((?:batches|cachedContents|files)/[^"\\/]{1,256})"'
)
#: Responses to these paths are the content of a file, which may be anything.
_CONTENT = ("/content", "/results", ":download")


def _ids_of_objects(
    head: RequestHead,
    first_part: Callable[[], bytes],
    headers: Mapping[str, str],
    stored: StoredObjects,
) -> tuple[str, ...]:
    together, one = stored.together.search(head.path), stored.one.search(head.path)
    if head.path.endswith(_CONTENT) or (one and not together):
        return ()
    ids = _ids(_OBJECT_ID, first_part())
    if upload := headers.get("x-goog-upload-url"):
        ids += tuple(parse_qs(urlsplit(upload).query).get("upload_id", ()))
    made_here = together and one is None and head.method == "POST"
    return (*ids, TOGETHER) if made_here else ids


def _ids(pattern: LazyPattern[bytes], text: bytes) -> tuple[str, ...]:
    """Return what the groups of *pattern* find, each once."""
    found = (value for match in pattern.finditer(text) for value in match.groups() if value)
    return tuple(dict.fromkeys(v.decode(errors="replace") for v in found))[:MAX_IDS]
