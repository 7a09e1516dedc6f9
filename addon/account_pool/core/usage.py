"""How many tokens a response reports, what streams are asked for it, and what accounts have served.

Every vendor reports tokens in an object of the response, a whole one or the last event of a
stream, and nearly all in one named `usage`. Which dialect it is, the names inside it say;
the provider does not: Copilot, OpenRouter and Gemini each speak several. So there is one
table for all, and a service that a user describes needs no word about it.

The object is looked for by its name from the end of the response on, without reading what
stands before it. Inside a JSON string its quotes would be escaped, so a model that writes
about usage is not taken at its word.

Requests and tokens are added up by account, model and day. Days are those of UTC: they begin
at the same moment for every proxy that shares a store, whatever its clock shows its owner.
Those proxies add to the same sums, which the store has: `Counts` is what one of them has not
written yet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct, field

from account_pool.core.account import AccountKey
from account_pool.core.json_values import NOT_READ

#: How much of the end of an answer is searched: the usage is at the end of the last event,
#: also where that repeats the whole answer.
END_BYTES = 64 * 1024
#: How much of the beginning: Anthropic tells the input there, and Mistral all of it.
_START_BYTES = 16 * 1024
#: The longest object that is read; Anthropic's, the longest, has some 600 bytes.
_OBJECT_BYTES = 8 * 1024
#: How many objects of that name are tried that turn out to be something else.
_TRIES = 8
#: No answer takes more tokens than that; a larger number is a mistake.
_MAX_TOKENS = 10**9

_MARK = b'"usage'
_MEMBER = re.compile(rb'"usage(?:Metadata)?"\s*:\s*(?=\{)')
# Cohere's first API: https://docs.cohere.com/v1/reference/chat
_OLD_MARK = b'"meta"'
_OLD_MEMBER = re.compile(rb'"meta"\s*:\s*(?=\{)')
_OPENING = b'"message_start"'
_DECODER = json.JSONDecoder()
_NUMBERS = (int, float)


class Usage(NamedTuple):
    """Tokens of one answer.

    Attributes:
        input_tokens: all that was sent, what came from the prompt cache included.
        cached_tokens: what of it came from the cache.
        output_tokens: all that was generated, reasoning included.
        reasoning_tokens: what of it was reasoning, where the vendor tells.
        cache_write_tokens: what of the input was written to the cache, where that is told:
            vendors that tell it have a price of its own for it.
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_tokens: int = 0


class _Dialect(Struct, frozen=True):
    """Names of members, dots between a member and one inside it.

    Attributes:
        told_by: an object that has one of them is of this dialect.
        input, output: are added up.
        cached, reasoning, cache_write: the first that is there counts.
    """

    told_by: tuple[str, ...]
    input: tuple[str, ...]
    output: tuple[str, ...]
    cached: tuple[str, ...] = ()
    reasoning: tuple[str, ...] = ()
    cache_write: tuple[str, ...] = ()


# The first that fits. An answer of two dialects at once gives the same numbers in both.
_DIALECTS = (
    # https://platform.openai.com/docs/api-reference/chat/object; all who followed it, and
    # DeepSeek's own name: https://api-docs.deepseek.com/guides/kv_cache
    _Dialect(told_by=("prompt_tokens", "completion_tokens"), input=("prompt_tokens",),
        output=("completion_tokens",),
        cached=("prompt_tokens_details.cached_tokens", "prompt_cache_hit_tokens"),
        reasoning=("completion_tokens_details.reasoning_tokens",),
        # https://openrouter.ai/docs/use-cases/usage-accounting
        cache_write=("prompt_tokens_details.cache_write_tokens",)),
    # https://platform.openai.com/docs/api-reference/responses/object, and Anthropic's
    # Messages, whose input_tokens leave out what is read from and written to the cache:
    # https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching
    _Dialect(told_by=("input_tokens", "output_tokens"),
        input=("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
        output=("output_tokens",),
        cached=("input_tokens_details.cached_tokens", "cache_read_input_tokens"),
        reasoning=("output_tokens_details.reasoning_tokens",),
        cache_write=("cache_creation_input_tokens",)),
    # https://ai.google.dev/api/generate-content#UsageMetadata: the candidates leave out
    # the thoughts, the prompt includes the cached content.
    _Dialect(told_by=("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount"),
        input=("promptTokenCount", "toolUsePromptTokenCount"),
        output=("candidatesTokenCount", "thoughtsTokenCount"), cached=("cachedContentTokenCount",),
        reasoning=("thoughtsTokenCount",)),
    # https://ai.google.dev/api/interactions-api: the output leaves out the thoughts.
    _Dialect(told_by=("total_input_tokens", "total_output_tokens"),
        input=("total_input_tokens", "total_tool_use_tokens"),
        output=("total_output_tokens", "total_thought_tokens"), cached=("total_cached_tokens",),
        reasoning=("total_thought_tokens",)),
    # https://docs.cohere.com/reference/chat; what is billed leaves out what Cohere adds.
    _Dialect(told_by=("tokens.input_tokens", "tokens.output_tokens"),
        input=("tokens.input_tokens",), output=("tokens.output_tokens",),
        cached=("cached_tokens",)),
    # https://docs.cohere.com/reference/embed, which tells nothing else.
    _Dialect(told_by=("billed_units.input_tokens", "billed_units.output_tokens"),
        input=("billed_units.input_tokens",), output=("billed_units.output_tokens",)),
)  # fmt: skip


def of_answer(body: bytes | bytearray, tail: bytes | bytearray = b"") -> Usage | None:
    """Return what an answer says it took, None if it does not.

    Args:
        body: the answer without its content-encoding, as far as it has come: a JSON
            document or an event stream. Numbers of a stream that was cut off are those it
            had told by then.
        tail: its end, where *body* is its beginning only.
    """
    last = _last(tail or body)
    start = body.find(_OPENING, 0, _START_BYTES)
    if start < 0:
        # A long document, in which the usage may stand before the answer.
        return last or _first(body, 0)
    # Anthropic counts the input when it begins and the output when it ends; compatible
    # services tell all of it at the end, and zeros before.
    first = _first(body, start)
    return _larger(first, last) if first and last else first or last


def of_frame(content: bytes) -> Usage | None:
    """Return the same of one message of a WebSocket; quick with those that tell nothing."""
    return _last(content) if _MARK in content else None


def _last(data: bytes | bytearray) -> Usage | None:
    """Return what the last object in *data* tells that is a usage."""
    for mark, member in ((_MARK, _MEMBER), (_OLD_MARK, _OLD_MEMBER)):
        lowest, at = max(len(data) - END_BYTES, 0), len(data)
        tries = _TRIES
        while tries and (at := data.rfind(mark, lowest, at)) >= 0:
            if found := member.match(data, at):
                if usage := _read(data, found.end()):
                    return usage
                tries -= 1
    return None


def _first(data: bytes | bytearray, start: int) -> Usage | None:
    """Return what the first object after *start* tells."""
    at = data.find(_MARK, start, start + _START_BYTES)
    found = _MEMBER.match(data, at) if at >= 0 else None
    return _read(data, found.end()) if found else None


def _read(data: bytes | bytearray, at: int) -> Usage | None:
    """Read the object that begins at *at*; None if it is cut off or no usage."""
    text = data[at : at + _OBJECT_BYTES].decode("utf-8", "replace")
    try:
        value, _end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return _counted(value)


def _counted(value: Mapping[str, Any]) -> Usage | None:
    for dialect in _DIALECTS:
        for name in dialect.told_by:
            if _count(value, name) is not None:
                return _in(dialect, value)
    return None


def _in(dialect: _Dialect, value: Mapping[str, Any]) -> Usage:
    sent, generated = _sum_of(value, dialect.input), _sum_of(value, dialect.output)
    reasoning = _first_of(value, dialect.reasoning)
    # https://docs.x.ai/docs/guides/reasoning: xAI counts reasoning beside the completion,
    # which its own total shows.
    if reasoning and _count(value, "total_tokens") == sent + generated + reasoning:
        generated += reasoning
    cached = min(_first_of(value, dialect.cached), sent)
    return Usage(
        input_tokens=sent,
        cached_tokens=cached,
        output_tokens=generated,
        reasoning_tokens=min(reasoning, generated),
        cache_write_tokens=min(_first_of(value, dialect.cache_write), sent - cached),
    )


def _sum_of(value: Mapping[str, Any], names: tuple[str, ...]) -> int:
    total = 0
    for name in names:
        total += _count(value, name) or 0
    return total


def _first_of(value: Mapping[str, Any], names: tuple[str, ...]) -> int:
    for name in names:
        count = _count(value, name)
        if count is not None:
            return count
    return 0


def _count(value: Mapping[str, Any], name: str) -> int | None:
    """Return a number of tokens, None if it is not there or is none."""
    count: Any = value.get(name)
    if count is None and "." in name:
        outer, _, inner = name.partition(".")
        within = value.get(outer)
        count = within.get(inner) if isinstance(within, dict) else None
    # Cohere writes 9.0.
    if type(count) in _NUMBERS and 0 <= count <= _MAX_TOKENS:
        return int(count)
    return None


def _larger(first: Usage, last: Usage) -> Usage:
    """Return the larger of each number: all of them only grow while an answer streams."""
    return Usage(*map(max, first, last))


# -- what accounts have served

#: What is counted, from the wide to the narrow: ("2026-08-01", "openai/work", "gpt-5").
CountKey = tuple[str, ...]
#: Amounts by name ("requests", "input_tokens"), by key.
Counted = dict[CountKey, dict[str, float]]

#: Keys that wait to be written at most. Clients choose the names of models, and a store
#: may fail for long.
MAX_WAITING = 10_000


class Counts(Struct, eq=False):
    """Numbers that only grow, by key, of which the store has the sums.

    Attributes:
        changed: called after each change; quick, raises nothing.
        waiting: what was counted and is not written yet.
    """

    changed: Callable[[], object] = lambda: None
    waiting: Counted = field(default_factory=dict)

    def add(self, key: CountKey, amounts: Mapping[str, float]) -> None:
        """Count *amounts* more of *key*. One key too many is not counted."""
        if key not in self.waiting and len(self.waiting) >= MAX_WAITING:
            return
        add_to(self.waiting, {key: amounts})
        self.changed()

    def take(self) -> Counted:
        """Return what waits, which is then whoever's who takes it."""
        taken, self.waiting = self.waiting, {}
        return taken

    def put_back(self, taken: Counted) -> None:
        """What was taken could not be written."""
        add_to(self.waiting, taken)


def add_to(sums: Counted, more: Mapping[CountKey, Mapping[str, float]]) -> None:
    """Add *more* to *sums*, number by number."""
    for key, amounts in more.items():
        known = sums.setdefault(key, {})
        for name, amount in amounts.items():
            known[name] = known.get(name, 0) + amount


#: Models of one account that are counted one by one. Clients choose the names.
MAX_MODELS = 200
#: Windows that are counted at most. Clients choose the names of models, which are in theirs.
MAX_WINDOWS = 2000
#: What the others count as.
OTHER = "other"
#: What a request counts as that names no model.
UNNAMED = "-"
#: Longest name of a model that is kept.
_MAX_NAME = 128
_DAY_S = 86_400

#: Adds amounts, by name, to a day, an account and a model.
Book = Callable[[tuple[str, str, str], Mapping[str, float]], object]


class Tally(Struct):
    """What was served. Tokens as in `core.usage.Usage`.

    Attributes:
        requests: good answers, those that were cut off included; turns of a WebSocket.
    """

    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_tokens: int = 0

    def add(self, more: Usage) -> None:
        """Add the tokens of one answer."""
        self.input_tokens += more.input_tokens
        self.cached_tokens += more.cached_tokens
        self.output_tokens += more.output_tokens
        self.reasoning_tokens += more.reasoning_tokens
        self.cache_write_tokens += more.cache_write_tokens


class Resets:
    """Counts resets of long windows, and what was left of them.

    Attributes:
        totals: since this proxy started, by account and window: how many, and the sum of the
            shares that were left.
    """

    def __init__(self, book: Book = lambda _key, _amounts: None) -> None:
        """Every count also goes to *book*, which keeps it by day."""
        self.totals: dict[tuple[str, str], tuple[int, float]] = {}
        self._book = book

    def count(self, key: AccountKey, window: str, share: float, wall_now: float) -> None:
        """Count a reset of *window*, of which *share* (0 to 1) was left."""
        of = (str(key), window[:_MAX_NAME])
        known = self.totals.get(of)
        if known is None and len(self.totals) >= MAX_WINDOWS:
            return
        count, left = known or (0, 0.0)
        self.totals[of] = (count + 1, left + share)
        day = datetime.fromtimestamp(wall_now, UTC).date().isoformat()
        self._book((day, *of), {"resets": 1, "left": share})


class Usages:
    """Counts what accounts serve.

    Attributes:
        totals: since this proxy started, by account and model.
    """

    def __init__(self, book: Book = lambda _key, _amounts: None) -> None:
        """Every count also goes to *book*, which keeps it by day."""
        self.totals: dict[tuple[str, str], Tally] = {}
        self._book = book
        self._models: dict[str, set[str]] = {}
        self._day = (0, "")

    def count(
        self,
        key: AccountKey,
        model: str | None,
        usage: Usage | None,
        wall_now: float,
        *,
        requests: int = 1,
    ) -> tuple[str, str, str]:
        """Count *requests* answers of *key*, and what they took as far as it is told.

        Return what they were counted as: day, account and model.
        """
        account = str(key)
        name = self._name(account, model)
        total = self.totals.get((account, name))
        if total is None:
            total = self.totals[account, name] = Tally()
        amounts: dict[str, float] = {"requests": requests}
        total.requests += requests
        if usage is not None:
            amounts.update(usage._asdict())
            total.add(usage)
        counted = self._today(wall_now), account, name
        self._book(counted, amounts)
        return counted

    def _name(self, account: str, model: str | None) -> str:
        """Return what *model* counts as."""
        if not model:
            return UNNAMED
        name = model[:_MAX_NAME]
        known = self._models.setdefault(account, set())
        if name not in known:
            if len(known) >= MAX_MODELS:
                return OTHER
            known.add(name)
        return name

    def _today(self, wall_now: float) -> str:
        number = int(wall_now // _DAY_S)
        if number != self._day[0]:
            self._day = (number, datetime.fromtimestamp(wall_now, UTC).date().isoformat())
        return self._day[1]


# -- chat streams that are asked for it (`pool_count_streams`). OpenAI's say their tokens only where
# `stream_options` asks for it
# (https://platform.openai.com/docs/api-reference/chat/create#chat-create-stream_options): one
# event more before the end, and `"usage":null` in each of the others. Its client, which has
# not asked, gets the bytes that it would have got.

#: An event that is longer is handed on as it is, and all that follows it.
MAX_EVENT_BYTES = 1024 * 1024
_END = re.compile(rb"\r?\n\r?\n|\r\r")
_NULL = re.compile(rb',\s*"usage"\s*:\s*null|"usage"\s*:\s*null\s*,\s*')
_ADDED = b'"stream_options":{"include_usage":true}'
_SPACE = b" \t\r\n"


class _Asked(msgspec.Struct):
    stream: bool = False
    stream_options: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_ASKED, _CHUNK = msgspec.json.Decoder(_Asked), msgspec.json.Decoder(_Chunk)


def with_usage(body: bytes) -> bytes | None:
    """Return the request *body* with the question for its usage, all else as it is.

    None: it is no stream, or says something about `stream_options` itself.
    """
    try:
        asked = _ASKED.decode(body)
    except NOT_READ:
        return None
    if not asked.stream or asked.stream_options is not msgspec.UNSET:
        return None
    kept = body.rstrip(_SPACE)
    # It has a member at least: stream.
    return kept[:-1] + b"," + _ADDED + b"}" + body[len(kept) :]


class UsageFilter:
    """Takes the answer to that question out of a stream.

    Attributes:
        taken: the event with the usage, once it has come.
    """

    def __init__(self) -> None:
        self.taken = b""
        self._held = bytearray()
        self._gave_up = False

    def feed(self, data: bytes) -> bytes:
        """Return what goes on of *data* and what was held back; whole events."""
        if self._gave_up:
            return data
        self._held += data
        out, at = [], 0
        for end in _END.finditer(self._held):
            out.append(self._event(bytes(self._held[at : end.end()])))
            at = end.end()
        del self._held[:at]
        if len(self._held) > MAX_EVENT_BYTES:
            self._gave_up = True
            out.append(self.end())
        return b"".join(out)

    def end(self) -> bytes:
        """The stream has ended: return what is still held back."""
        held = bytes(self._held)
        self._held.clear()
        return held

    def _event(self, event: bytes) -> bytes:
        if b'"usage"' not in event:
            return event
        chunk = _chunk_in(event)
        if chunk is None or chunk.usage is msgspec.UNSET:
            return event
        if bytes(chunk.usage) == b"null":
            return _without_null(event)
        if chunk.choices == [] and not self.taken:
            self.taken = event
            return b""
        return event


def _without_null(event: bytes) -> bytes:
    """Return *event* without the member of its object; others inside it stay."""
    for found in _NULL.finditer(event):
        without = event[: found.start()] + event[found.end() :]
        chunk = _chunk_in(without)
        if chunk is not None and chunk.usage is msgspec.UNSET:
            return without
    return event


def _chunk_in(event: bytes) -> _Chunk | None:
    """Return the object in *event*; None if it is none, or in more than one line."""
    lines = [line for line in event.splitlines() if line.startswith(b"data:")]
    try:
        return _CHUNK.decode(lines[0][5:]) if len(lines) == 1 else None
    except NOT_READ:
        return None
