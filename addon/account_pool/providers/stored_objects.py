"""Objects that only the account knows which created them: stored responses, files, batches ...

A request names such an object in its path, its query or its body. The response that created
it has its id, and so do lists. `core/sessions.py` keeps which account an object belongs to. The
paths are those of the vendors' API references.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from account_pool.core.text_patterns import LazyPattern
from account_pool.providers.base import Body, RequestHead, body_of

#: Stands for all objects that are kept together: the account that created the last one
#: creates the next.
TOGETHER = "(things)"
#: Maximum number of ids learnt from one response: a page of a list has 100 of them.
MAX_IDS = 200


@dataclass(frozen=True, slots=True)
class StoredObjects:
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

    path: LazyPattern
    tail: LazyPattern
    together: LazyPattern
    one: LazyPattern
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

# https://platform.openai.com/docs/api-reference
_STORED = ("responses(?=/)(?!/(?:compact|input_tokens)$)", "conversations")
_FILES = ("batches", "containers", "files", "uploads", "vector_stores")
OPENAI = StoredObjects.of("/v1", together=_FILES, apart=_STORED)
AZURE = StoredObjects.of("/openai(?:/v1)?", together=_FILES, apart=_STORED)
# https://docs.anthropic.com/en/api
ANTHROPIC = StoredObjects.of("/v1", together=("files", "messages/batches", "skills"))
# https://ai.google.dev/api/files, /caching, /batch-api; the results of a batch are fetched
# below /download (https://ai.google.dev/gemini-api/docs/batch-api). What creates an
# interaction is inference; it is stored below /interactions/ (https://ai.google.dev/api/interactions-api).
_GOOGLE_NAMES = ("batches", "cachedContents", "files")
GEMINI = StoredObjects.of(
    "(?:/upload|/download)?/v1(?:alpha|beta)?",
    together=("batches", "files"),
    apart=("cachedContents", "interactions(?=/)(?!/live$)"),
    mark=b"files/",
    with_kind=_GOOGLE_NAMES,
)


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
    if isinstance(member, dict):
        member = member.get("id")
    return member if isinstance(member, str) and member else None


# Text that looks like this inside a string has its quotes escaped.
_NAMES = re.compile(
    rb'"(?:(?:(?:input_)?file_?)?[uU]ri|(?:input_)?file_?(?:ids?|[nN]ame)|vector_store_ids'
    rb'|container|skill_id)"'
    rb'\s*:\s*(\[[^\]]*\]|"[^"\\]*")'
)
_TEXT = re.compile(rb'"([^"\\]+)"')
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
_DATA = re.compile(rb"^data:\s*(\{.*\})\s*$", re.MULTILINE)


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
    return _started(first_part()) if head.path.endswith(":batchGenerateContent") else ()


def _ids_of_stored(head: RequestHead, first_part: Callable[[], bytes]) -> tuple[str, ...]:
    """Return the ids of a stored response and what it ran in: OpenAI's Responses API, and
    Gemini's Interactions API.

    One that is not stored (`store: false`) cannot be named again except inside a WebSocket.
    """
    body = body_of(head)
    if body is None or body.store is False:
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
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


_CONTAINER_ID = re.compile(rb'"container_id"\s*:\s*"([^"\\]{1,256})"')
# Objects, the files of a batch, and where a list goes on; names of Google.
_ID = re.compile(
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
    ids = _ids(_ID, first_part())
    if upload := headers.get("x-goog-upload-url"):
        ids += tuple(parse_qs(urlsplit(upload).query).get("upload_id", ()))
    made_here = together and one is None and head.method == "POST"
    return (*ids, TOGETHER) if made_here else ids


def _started(text: bytes) -> tuple[str, ...]:
    """Return the id of the batch that Gemini has started."""
    return (*_ids(_ID, text), TOGETHER)


def _ids(pattern: re.Pattern[bytes], text: bytes) -> tuple[str, ...]:
    """Return what the groups of *pattern* find, each once."""
    found = (value for match in pattern.finditer(text) for value in match.groups() if value)
    return tuple(dict.fromkeys(v.decode(errors="replace") for v in found))[:MAX_IDS]
