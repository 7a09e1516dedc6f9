"""How many tokens an answer says it took.

Every vendor tells it in an object of the answer, a whole one or the last event of a
stream, and nearly all in one named `usage`. Which dialect it is, the names inside it say;
the provider does not: Copilot, OpenRouter and Gemini each speak several. So there is one
table for all, and a service that a user describes needs no word about it.

The object is looked for by its name from the end of the answer on, without reading what
stands before it. Inside a JSON string its quotes would be escaped, so a model that writes
about usage is not taken at its word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Dialect:
    """Names of members, dots between a member and one inside it.

    Attributes:
        told_by: an object that has one of them is of this dialect.
        input, output: are added up.
        cached, reasoning: the first that is there counts.
    """

    told_by: tuple[str, ...]
    input: tuple[str, ...]
    output: tuple[str, ...]
    cached: tuple[str, ...] = ()
    reasoning: tuple[str, ...] = ()


# The first that fits. An answer of two dialects at once gives the same numbers in both.
_DIALECTS = (
    # https://platform.openai.com/docs/api-reference/chat/object; all who followed it, and
    # DeepSeek's own name: https://api-docs.deepseek.com/guides/kv_cache
    _Dialect(told_by=("prompt_tokens", "completion_tokens"), input=("prompt_tokens",),
        output=("completion_tokens",),
        cached=("prompt_tokens_details.cached_tokens", "prompt_cache_hit_tokens"),
        reasoning=("completion_tokens_details.reasoning_tokens",)),
    # https://platform.openai.com/docs/api-reference/responses/object, and Anthropic's
    # Messages, whose input_tokens leave out what is read from and written to the cache:
    # https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching
    _Dialect(told_by=("input_tokens", "output_tokens"),
        input=("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
        output=("output_tokens",),
        cached=("input_tokens_details.cached_tokens", "cache_read_input_tokens"),
        reasoning=("output_tokens_details.reasoning_tokens",)),
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
    return Usage(
        input_tokens=sent,
        cached_tokens=min(_first_of(value, dialect.cached), sent),
        output_tokens=generated,
        reasoning_tokens=min(reasoning, generated),
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
