"""The facts of an error response, read once for the rules of `signals.py`.

Finds the error object in the envelopes that vendors use, and takes its codes, its message
and the status and headers inside bodies and frames. Reads envelopes only, never what a
model wrote, and is total: any JSON value gives some facts. Knows shapes, but no vendor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import tzinfo
from functools import cached_property
from typing import Any

import msgspec

from account_pool.core import reset_hints
from account_pool.core.meaning import Meaning, is_about_model, meaning_of
from account_pool.core.outcome import UpstreamResponse
from account_pool.core.text_patterns import LazyPattern

# Bounds on what is read of a hostile body.
_MAX_MESSAGE_CHARS = 4096
_MAX_WORD_CHARS = 100
_MAX_ITEMS = 16
_MAX_HEADERS = 64
_MAX_DEPTH = 5

# Where envelopes put their codes, and where their sentence.
_WORD_KEYS = (
    *("code", "type", "status", "status_code", "reason", "error_type", "error_code", "errorCode"),
    *("err_code", "errcode", "errorcode", "limit_source", "notification_id", "Code"),
)
_MESSAGE_KEYS = (
    *("message", "msg", "detail", "error_description", "error_message", "errorMessage", "title"),
    *("status_msg", "error_msg", "errorMsg", "errmsg", "faultstring", "Message"),
)
#: Names of events that only say "here is an error".
_NO_WORDS = frozenset({"", "0", "error", "response.failed", "none", "null"})

#: A code that stands before its sentence: "QUOTA_EXCEEDED: ..."
_CODE_FIRST = re.compile(r"\W{0,4}([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)\b")
# RateLimitReached -> rate_limit_reached
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

_ERROR_STATUS = re.compile(r"[45][0-9]{2}")

# The window a sentence names; the first one counts, later ones advertise upgrades.
_WINDOW = LazyPattern(
    r"\b(?P<count>[0-9]{1,3})[\s-]?(?P<unit>hour|day|week|month)s?\b"
    r"|(?:\bper|/)[\s-]*(?P<per>sec|min|hour|day|week|month)(?:onds?|utes?|s)?\b"
    r"|\bper\s(?P<seconds>[0-9]{1,7})\s?s(?:econds)?\b"
    r"|\b(?P<every>hourly|daily|weekly|monthly|billing (?:cycle|period)|this (?:week|month))\b"
    r"|\b(?:[RTI]|[IO]T)P(?P<short>[SMHD])\b"
    # UserByModelByDay
    r"|(?<=[a-z])By(?P<by>Second|Minute|Hour|Day|Week|Month)\b"
    r"|(?P<count_zh>[0-9]{1,3})\s?个?(?P<unit_zh>小时|天|日|周|月)(?!\s?\d)"
    r"|(?P<every_zh>每秒|每分钟|每小时|每日|每天|今日|当日|当天|每周|本周|每月|本月|月度)",
    re.IGNORECASE,
)
_SECONDS = {
    **dict.fromkeys(("s", "sec", "second", "每秒"), 1.0),
    **dict.fromkeys(("m", "min", "minute", "每分钟"), 60.0),
    **dict.fromkeys(("h", "hour", "hourly", "小时", "每小时"), 3600.0),
    **dict.fromkeys(("d", "day", "daily"), 86_400.0),
    **dict.fromkeys(("天", "日", "每日", "每天", "今日", "当日", "当天"), 86_400.0),
    **dict.fromkeys(("week", "weekly", "this week", "周", "每周", "本周"), 604_800.0),
    **dict.fromkeys(("month", "monthly", "this month"), 2_678_400.0),
    **dict.fromkeys(("billing cycle", "billing period"), 2_678_400.0),
    **dict.fromkeys(("月", "每月", "本月", "月度"), 2_678_400.0),
}


@dataclass(frozen=True, kw_only=True)
class ErrorFacts:
    """What rules may look at, read once from a response.

    Attributes:
        status: HTTP status of the refusal; inside a stream the one that the event names, 0
            if it names none.
        headers: by lower-case name, including those inside a WebSocket frame or body.
        words: every code, type, status and reason of the envelope, in lower case; of
            `code:detail` both the whole and the part before the colon; of `TwoWords` and
            `two-words` also `two_words`.
        message: the message of the envelope, or a plain-text body; "" for HTML.
        error: the error object, {} if there is none.
        outer: the whole body or event; the error object itself if there is no wrapper.
        html: the body is a page, from something in front of the API.
        window_s: length of the first window that *message* names, in seconds.
        model: the model that the request asked for.
        now: seconds since the epoch that instants are compared with; None if unknown.
        payload: the JSON value that contains the error, None if it is not JSON.
        zone: the vendor's time zone, for dates without one; None: UTC.
    """

    status: int
    headers: Mapping[str, str]
    words: frozenset[str]
    message: str
    error: Mapping[str, Any]
    outer: Mapping[str, Any]
    html: bool
    window_s: float | None
    model: str | None
    now: float | None
    payload: Any = None
    zone: tzinfo | None = None

    @cached_property
    def meaning(self) -> Meaning | None:
        """What codes and sentence say in the vocabulary all vendors share."""
        return None if self.html else meaning_of(self.status, self.message, self.words)

    @cached_property
    def about_model(self) -> bool:
        """Whether the sentence is about one model."""
        return is_about_model(self.message, self.model)


def read_facts(answer: UpstreamResponse) -> ErrorFacts:
    """Read what rules look at from *answer*, whatever its shape."""
    payload = _first(answer.payload)
    error, message = _envelope(payload)
    outer = _mapping(payload)
    text = answer.text.lstrip()[:_MAX_MESSAGE_CHARS]
    html = not outer and text[:1] == "<"
    if not message and not outer and not html:
        message = text
    headers = _all_headers(answer.headers, outer, error)
    words = _words(error)
    if first := _CODE_FIRST.match(message):
        words |= _word(first[1])
    if outer is not error:
        words |= _words(outer)
    message = message[:_MAX_MESSAGE_CHARS]
    status = answer.status if answer.status >= 400 else _status_inside(outer, error)
    return ErrorFacts(
        status=status,
        headers=headers,
        words=words,
        message=message,
        error=error,
        outer=outer,
        html=html,
        window_s=window_s(message),
        model=answer.model,
        now=reset_hints.answer_now(answer.headers, answer.wall_now),
        payload=payload,
        zone=answer.zone,
    )


#: Codes of what went well, and members that hold an answer.
_FINE = frozenset({"0", "200", "ok", "success", "none"})
_CONTENT = ("choices", "candidates", "content", "output", "delta", "item", "response", "data")


def is_failure(value: Mapping[str, Any]) -> bool:
    """Say whether an object inside a success is a refusal although it has no `error`.

    MiniMax's `base_resp` says so by its code; of a flat `{"code", "msg"}` only a known
    meaning does.
    """
    base = _mapping(value.get("base_resp"))
    if base and str(base.get("status_code") or 0).lower() not in _FINE:
        return True
    if value.get("success") is not False and str(value.get("code") or 0).lower() in _FINE:
        return False
    if any(value.get(key) for key in _CONTENT):
        return False
    return read_facts(UpstreamResponse(status=200, payload=value)).meaning is not None


def window_s(text: str) -> float | None:
    """Return the length of the first window *text* names, in seconds.

    "tokens per min (TPM)", "40 API calls / minute", "5 hour session limits", "TPD".
    """
    found = _WINDOW.search(text)
    if not found:
        return None
    if found["count"] or found["count_zh"]:
        unit = found["unit"] or found["unit_zh"]
        return float(found["count"] or found["count_zh"]) * _SECONDS[unit.lower()]
    if found["seconds"]:
        return float(found["seconds"])
    name = found["per"] or found["every"] or found["short"] or found["by"] or found["every_zh"]
    return _SECONDS[name.lower()]


def _first(payload: Any) -> Any:
    """Return the item of a streamed array that counts: `[{"error": {...}}]`."""
    if isinstance(payload, list):
        return payload[0] if payload else None
    return payload


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _envelope(payload: Any) -> tuple[Mapping[str, Any], str]:
    """Return the error object and its message.

    `{"error": {...}}`, `{"error": "text", "code": ...}`, `{"response": {"error": ...}}`,
    `{"choices": [{"error": ...}]}`, `{"base_resp": {...}}`, flat `{"message", "code"}`,
    `{"detail": ...}`, or plain text. Gateways wrap the upstream's envelope in their own, some
    as text.
    """
    holder = payload
    for _ in range(_MAX_DEPTH):
        inner = _inner(holder)
        if inner is None:
            break
        holder = inner
    if isinstance(holder, str):
        return {}, holder
    holder = _mapping(holder)
    error = holder.get("error")
    texts = [error] if isinstance(error, str) else []
    return holder, "\n".join(dict.fromkeys(filter(None, (*texts, *_messages(holder)))))


def _inner(holder: Any) -> Mapping[str, Any] | None:
    """Return the object within *holder* that is nearer to the error, None if there is none."""
    if isinstance(holder, str):
        return _mapping(_json(holder)) or None
    holder = _mapping(holder)
    error = holder.get("error") or holder.get("Error") or _choice_error(holder)
    if error:
        return _object(error)
    # MiniMax: a status of its own beside an answer without content.
    base = _mapping(holder.get("base_resp"))
    if base.get("status_code"):
        return base
    for key in _WRAPPERS:
        inner = _mapping(holder.get(key))
        if inner.get("error") or inner.get("Error"):
            return inner
    if not holder.keys() & _SAYS:
        for key in _WRAPPERS:
            inner = _mapping(holder.get(key))
            if inner.keys() & _SAYS:
                return inner
    message = holder.get("message") or holder.get("msg")
    if isinstance(message, str):
        inner = _mapping(_json(message))
        return inner if inner.keys() & _ERROR_KEYS else None
    if isinstance(message, dict):
        return message if message.keys() & _ERROR_KEYS else None
    errors = holder.get("errors")
    text = _first(errors)
    return {"message": text} if isinstance(text, str) else _object(errors)


#: What gateways put an error into.
_WRAPPERS = (
    *("response", "data", "body", "detail", "result", "fault", "header"),
    *("Response", "ResponseMetadata"),
)
#: What says something of an error, in the object or in one around it.
_SAYS = frozenset({*_MESSAGE_KEYS, "errors"} - {"detail", "title"})
#: One of them is in every object that is an error.
_ERROR_KEYS = frozenset({"error", "message", "code", "msg", "base_resp"})


def _object(value: Any) -> Mapping[str, Any] | None:
    """Return *value* as an object: itself, the first of a list, or what its text says."""
    value = _json(value) if isinstance(value, str) else _first(value)
    return _mapping(value) or None


# An object inside a sentence: "upstream: {...}", "Error code: 429 - {'error': {...}}".
_IN_TEXT = re.compile(r"\{\s*[\"'](?:error|message|code|msg|base_resp|type)[\"']\s*:")


def _json(text: str) -> Any:
    """Return the value of a JSON object in *text*, as Python prints it too; None if none."""
    found = _IN_TEXT.search(text[:_MAX_MESSAGE_CHARS])
    start = 0 if text.lstrip()[:1] == "{" else found.start() if found else -1
    end = text.rfind("}") + 1
    if start < 0 or not end:
        return None
    text = text[start:end]
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass
    if len(text) > _MAX_MESSAGE_CHARS or not found or "'" not in found[0]:
        return None
    import ast  # noqa: PLC0415 - a rare body

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def _choice_error(holder: Mapping[str, Any]) -> Any:
    """Return the error of a chat choice (OpenRouter)."""
    return _mapping(_first(holder.get("choices"))).get("error")


def _messages(holder: Mapping[str, Any]) -> Iterator[str]:
    """Yield what an error object says in prose, and what its details add."""
    for source in (holder, *_parts(holder)):
        for key in _MESSAGE_KEYS:
            if isinstance(text := source.get(key), str):
                yield text
    if isinstance(details := holder.get("details"), str):
        yield details


def _parts(holder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the objects inside an error object that say more of it, an object or a list."""
    for key in ("metadata", "innererror", "error_details", "detail", "details", "errors"):
        value = holder.get(key)
        items = value[:_MAX_ITEMS] if isinstance(value, list) else [value]
        yield from (item for item in items if isinstance(item, dict))


def _words(holder: Mapping[str, Any]) -> frozenset[str]:
    """Collect the codes of an error object and of what it holds."""
    words: set[str] = set()
    for source in (holder, *_parts(holder)):
        for key in _WORD_KEYS:
            words |= _word(source.get(key))
    # OAuth: {"error": "invalid_grant", "error_description": ...}
    words |= _word(holder.get("error"))
    return frozenset(words - _NO_WORDS)


def _word(value: Any) -> set[str]:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return set()
    if isinstance(value, int) and abs(value) > 10**9:
        return set()
    text = str(value).strip()
    if len(text) > _MAX_WORD_CHARS:
        return set()
    word = text.lower()
    snake = _HUMP.sub("_", text).lower().replace("-", "_")
    return {word, word.partition(":")[0], snake}


def _status_inside(outer: Mapping[str, Any], error: Mapping[str, Any]) -> int:
    """Return the HTTP status an event inside a success names, 0 if none."""
    for value in (
        outer.get("status"),
        outer.get("status_code"),
        error.get("status"),
        error.get("code"),
    ):
        if isinstance(value, str | int) and _ERROR_STATUS.fullmatch(str(value)):
            return int(value)
    return 0


def _all_headers(
    headers: Mapping[str, str], outer: Mapping[str, Any], error: Mapping[str, Any]
) -> Mapping[str, str]:
    """Add the headers that travel inside a frame (Codex) or a body (OpenRouter)."""
    inside: dict[str, str] = {}
    for holder in (_mapping(error.get("metadata")), outer):
        for name, value in list(_mapping(holder.get("headers")).items())[:_MAX_HEADERS]:
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                inside[name.lower()] = str(value)[:_MAX_MESSAGE_CHARS]
    return {**headers, **inside} if inside else headers
