"""An answer: what was read of it, the facts of an error in it, what it means and what is kept.

Its words are those of docs/why.md. Providers turn an `UpstreamResponse` into an `Outcome` (see
`providers/`), for the account that gave the answer and for the request; the pool and the attempt
machine act on it. The rules of `signals.py`, which decide, look at `ErrorFacts`.

Facts are read once. The error object is found in the envelopes that vendors use, and in it the
codes, the message and the status and headers inside bodies and frames. Only envelopes are read,
never what a model wrote, and reading is total: any JSON value gives some facts. This module
knows shapes, but no provider.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import tzinfo
from enum import StrEnum
from functools import cached_property
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from account_pool.core import reset_hints
from account_pool.core.credential import Secret
from account_pool.core.json_values import decoded, members
from account_pool.core.meaning import LazyPattern, Meaning, is_about_model, meaning_of


class OutcomeClass(StrEnum):
    """The kind of an answer. Values are those of `account-pool classify`."""

    #: a good answer, past the first-event gate
    OK = "ok"
    #: asked to slow down; a window of an hour or less
    RATE_LIMIT = "rate_limit"
    #: a longer window, a plan limit, or money
    QUOTA = "quota"
    #: the vendor is short of capacity; another account does not help
    OVERLOADED = "overloaded"
    #: the vendor failed
    SERVER_ERROR = "server_error"
    #: the credential has run out; a refresh may help
    AUTH_EXPIRED = "auth_expired"
    #: the credential is not accepted
    AUTH_INVALID = "auth_invalid"
    #: this account cannot serve this: plan, policy, suspension, limit 0
    FORBIDDEN_ACCOUNT = "forbidden_account"
    #: the request's own fault; the same on every account
    REQUEST_ERROR = "request_error"
    #: no answer: connection failed or broke
    TRANSPORT = "transport"


LIMITS = frozenset({OutcomeClass.RATE_LIMIT, OutcomeClass.QUOTA})
#: Classes that blame an account or its credential, and are no limit.
BENCHING = frozenset(
    {OutcomeClass.AUTH_EXPIRED, OutcomeClass.AUTH_INVALID, OutcomeClass.FORBIDDEN_ACCOUNT}
)


class Scope(StrEnum):
    """How far the evidence of a limit reaches."""

    NONE = "none"
    ACCOUNT = "account"
    MODEL = "account+model"
    SERVER = "server"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer means.

    Attributes:
        cls: the class.
        scope: how far it reaches; NONE means that nothing is to be cooled.
        cooldown_s: seconds until the named reset; None when the answer names none
            that can be used.
        replayable: whether another account may answer the same request.
        signal: the evidence in a few words, without user text or secrets, e.g.
            "429 code=insufficient_quota".
        explicit: a code or a sentence of the provider says so, not the status alone.
        unknown: nothing in the answer was understood: the class follows the status.
        names_credential: a code says that the credential itself is refused
            (`invalid_api_key`), so no other account need be asked to believe it.
        money: paying cures it, not waiting.
        evidence: values that speak of limits, by lower-case name of the header, or of
            the field of the error; the most telling first.
        model: the model (or family, or feature) a MODEL scope is about, when the
            answer itself names it; None: the model of the request.
        shared: the limit is that of the account's owner (organisation, team, project):
            every account of the same owner has it.
        owner: the owner, when the answer itself names it.
        missing_model: a request error that says this account does not have the model;
            another may have it.
    """

    cls: OutcomeClass
    scope: Scope = Scope.NONE
    cooldown_s: float | None = None
    replayable: bool = False
    signal: str = ""
    explicit: bool = True
    unknown: bool = False
    names_credential: bool = False
    money: bool = False
    evidence: Mapping[str, str] = msgspec.field(default_factory=dict)
    model: str | None = None
    shared: bool = False
    owner: str | None = None
    missing_model: bool = False

    @property
    def is_limit(self) -> bool:
        """Say whether something is to be cooled down for a limit."""
        return self.cls in LIMITS and self.scope is not Scope.NONE

    @property
    def blames_account(self) -> bool:
        """Say whether it blames the account or its credential, so that a witness is needed.

        A 402 that says nothing else is one; a limit that is known speaks for itself.
        """
        return self.cls in BENCHING or (self.cls is OutcomeClass.QUOTA and self.unknown)

    def about(self, model: str | None) -> str | None:
        """Return what it says of a request for *model* is about; None for the whole account.

        What was not understood is believed of that model only.
        """
        return (self.model or model) if self.scope is Scope.MODEL or self.unknown else None

    def masked(self, secret: Secret) -> Outcome:
        """Return it without *secret*, which the answer may have echoed anywhere."""
        texts = (self.signal, *self.evidence, *self.evidence.values(), self.model, self.owner)
        joined = "\n".join(filter(None, texts))
        if secret.masked(joined) == joined:
            return self
        return replace(
            self,
            signal=secret.masked(self.signal),
            evidence={
                secret.masked(name): secret.masked(value) for name, value in self.evidence.items()
            },
            model=self.model and secret.masked(self.model),
            owner=self.owner and secret.masked(self.owner),
        )


#: The signal of a cooldown its owner set: nobody but him knows better.
BY_HAND = "by hand"


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """Why an account cools or is disabled: what is kept of an `Outcome`.

    Attributes:
        hinted: whether the deadline was named by the provider.
    """

    signal: str
    cls: OutcomeClass
    scope: Scope
    evidence: Mapping[str, str] = msgspec.field(default_factory=dict)
    hinted: bool = False
    unknown: bool = False
    money: bool = False

    @classmethod
    def of(cls, outcome: Outcome, *, hinted: bool) -> Cause:
        return cls(
            signal=outcome.signal,
            cls=outcome.cls,
            scope=outcome.scope,
            evidence=outcome.evidence,
            hinted=hinted,
            unknown=outcome.unknown,
            money=outcome.money,
        )

    @property
    def benches(self) -> bool:
        """Say whether an account is on the bench for it: not limited, but refused."""
        refused = self.cls in BENCHING or (self.cls is OutcomeClass.QUOTA and self.unknown)
        return refused and self.signal != BY_HAND

    @property
    def bare(self) -> bool:
        """Say whether it is a 429 that says nothing about whose limit it is."""
        return self.scope is Scope.NONE and self.signal != BY_HAND

    @property
    def yields(self) -> bool:
        """Say whether the account is asked all the same while no other can serve."""
        return self.benches or self.bare


class UpstreamResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A provider's response as far as it was read: values only, already decoded.

    Attributes:
        status: HTTP status; for a WebSocket the status of the handshake.
        headers: by lower-case name; repeated headers joined with ", ".
        text: the body, decompressed, up to a bound; "" if there is none.
        payload: the JSON value that carries the verdict: the parsed body, or the data
            of the terminal event of a stream; None if it is not JSON.
        in_stream: *payload* came out of an event stream, array or socket that began
            with a success status.
        event: name of the stream event (`event:` line), if it had one.
        model: the model the request asked for, if known.
        wall_now: the proxy's clock, seconds since the epoch. The answer's own `date`
            header, when present, is preferred as "now".
        zone: the vendor's time zone, for dates that name none; None: UTC.
    """

    status: int
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    text: str = ""
    payload: Any = None
    in_stream: bool = False
    event: str | None = None
    model: str | None = None
    wall_now: float = 0.0
    zone: tzinfo | None = None


# -- the facts of an error

# Bounds on what is read of a hostile body.
_MAX_MESSAGE_CHARS = 4096
_MAX_WORD_CHARS = 100
_MAX_ITEMS = 16
_MAX_HEADERS = 64
_MAX_DEPTH = 5

# Where envelopes put their codes, and where their sentence.
_WORD_KEYS = (
    *("code", "type", "status", "status_code", "reason", "error_type", "error_code", "errorCode"),
    *("err_code", "errcode", "errorcode", "limit_source", "notification_id", "Code", "__type"),
)
_MESSAGE_KEYS = (
    *("message", "msg", "detail", "error_description", "error_message", "errorMessage", "title"),
    *("status_msg", "error_msg", "errorMsg", "errmsg", "faultstring", "Message"),
)
#: Names of events that only say "here is an error".
_NO_WORDS = frozenset({"", "0", "error", "response.failed", "none", "null"})

#: A code that stands before its sentence: "QUOTA_EXCEEDED: ...", "[1113][...]", "SomeError: ...".
_CODE_FIRST = LazyPattern(
    r"\W{0,4}(?:([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)\b|(?<=\[)([0-9]{4,5})\]"
    r"|([A-Z][A-Za-z]{2,40}Error):)"
)
#: One that stands alone.
_CODE = LazyPattern(r"[\w.:/-]+")
#: One that stands behind it: "... (1008)".
_CODE_LAST = LazyPattern(r"\(([0-9]{4,5})\)\W{0,2}$")
# RateLimitReached -> rate_limit_reached
_HUMP = LazyPattern(r"(?<=[a-z0-9])(?=[A-Z])")

# Those that HTTP has, and those of edges, Anthropic and Copilot: 434 or 449 is a vendor's own code.
ERROR_STATUS = LazyPattern(
    r"4(?:0[0-9]|1[0-8]|2[1-689]|31|51|66|9[89])|5(?:0[0-8]|1[01]|2[0-79]|30)"
)


class ErrorFacts(Struct, frozen=True, kw_only=True, dict=True):
    """What rules may look at, read once from a response.

    Attributes:
        status: HTTP status of the refusal; inside a stream the one that the event names, 0
            if it names none.
        headers: by lower-case name, including those inside a WebSocket frame or body.
        words: every code, type, status and reason of the envelope, in lower case; of
            `code:detail` both the whole and the part before the colon; of `TwoWords` and
            `two-words` also `two_words`.
        message: the message of the envelope, or a plain-text body; "" for HTML.
        wording: the same, whatever number of seconds it names.
        error: the error object, {} if there is none.
        outer: the whole body or event; the error object itself if there is no wrapper.
        html: the body is a page, from something in front of the API.
        edge: the response is from something in front of the API: a page, or what Cloudflare
            says as text or JSON. Then there are no words and no message.
        resets: members that may name a return, by name in snake case: `resetAt` is `reset_at`.
            Those of the error object and its metadata before those of what is around it.
        window_s: length of the first window that *message* names, in seconds.
        model: the model that the request asked for.
        payload: the JSON value that contains the error, None if it is not JSON.
        answer: what they were read from.
    """

    status: int
    headers: Mapping[str, str]
    words: frozenset[str]
    message: str
    wording: str
    error: Mapping[str, Any]
    outer: Mapping[str, Any]
    html: bool
    edge: bool
    resets: Mapping[str, Any]
    window_s: float | None
    model: str | None
    payload: Any
    answer: UpstreamResponse

    @cached_property
    def now(self) -> float | None:
        """Seconds since the epoch that instants are compared with; None if unknown."""
        return reset_hints.answer_now(self.answer.headers, self.answer.wall_now)

    @cached_property
    def meaning(self) -> Meaning | None:
        """What codes and sentence say in the vocabulary all vendors share."""
        return None if self.edge else meaning_of(self.status, self.wording, self.words)

    @cached_property
    def about_model(self) -> bool:
        """Whether the sentence is about one model."""
        return is_about_model(self.wording, self.model)


def read_facts(answer: UpstreamResponse) -> ErrorFacts:
    """Read what rules look at from *answer*, whatever its shape."""
    payload = _first(answer.payload)
    text = answer.text.lstrip(_BLANK)[:_MAX_MESSAGE_CHARS]
    if payload is None and text[:1] != "<":
        payload = _error_in(text)  # "Last error: HTTP 429: {...}"
    layers = _layers(payload)
    error, message = _envelope(layers[-1])
    outer = payload if isinstance(payload, dict) else {}
    html = not outer and text[:1] == "<"
    if not message and not outer and not html:
        message = text
    headers = _all_headers(answer.headers, outer, error)
    words = _words(error)
    message = message[:_MAX_MESSAGE_CHARS]
    for found in (_CODE_FIRST.match(message), _CODE_LAST.search(message)):
        words |= _word(found[found.lastindex or 0]) if found else set()
    if outer is not error:
        words |= _words(outer)
    edge = html or _is_of_the_edge((outer, error), message, headers)
    if edge:  # its codes are not those of the vendor
        message, words = "", frozenset()
    status = answer.status if answer.status >= 400 else _status_inside(outer, error)
    regardless = reset_hints.SECONDS.sub(reset_hints.SAME_SECONDS, message)
    return ErrorFacts(
        status=status,
        headers=headers,
        words=words,
        message=message,
        wording=regardless,
        error=error,
        outer=outer,
        html=html,
        edge=edge,
        resets=_resets(layers, error),
        window_s=reset_hints.window_s(regardless),
        model=answer.model,
        payload=payload,
        answer=answer,
    )


def _resets(layers: list[Any], error: Mapping[str, Any]) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    metadata = error.get("metadata")
    around = [layer for layer in reversed(layers) if isinstance(layer, dict)]
    for one in (error, members(metadata) if metadata else {}, *around):
        for key in list(one)[:_MAX_HEADERS]:
            if isinstance(key, str) and ("reset" in (name := key.lower()) or "retry" in name):
                found.setdefault(_HUMP.sub("_", key).lower(), one[key])
    return found


# What a network in front of the API says of itself: "error code: 1010", a header.
_EDGE_TEXT = LazyPattern(
    r"(?i:error code: 1[0-9]{3}|(?:.{0,80}\b403[:,] )?your request was blocked\.?)\s*"
)
#: What may stand before a page.
_BLANK = " \t\r\n\f\v\ufeff"
_EDGE_CODE = LazyPattern(r"1[0-9]{3}")
_EDGE_HEADERS = ("cf-mitigated", "x-vercel-mitigated")


def _is_of_the_edge(
    holders: tuple[Mapping[str, Any], ...], message: str, headers: Mapping[str, str]
) -> bool:
    """Say whether Cloudflare or its like answered, which blames an address or a client.

    Its JSON has a code from 1000 on and a name for it, also where a gateway hands it on.
    """
    if _EDGE_TEXT.fullmatch(message):
        return True
    if not any(holders):
        return any(name in headers for name in _EDGE_HEADERS)
    return any(
        holder.get("cloudflare_error") is True
        or ("error_name" in holder and _EDGE_CODE.fullmatch(str(holder.get("error_code"))))
        for holder in holders
    )


def _first(payload: Any) -> Any:
    """Return the item of a streamed array that counts: `[{"error": {...}}]`."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(payload, list):
            break
        payload = payload[0] if payload else None
    return payload


def _layers(payload: Any) -> list[Any]:
    """Return *payload* and the objects within it, each nearer to the error.

    `{"error": {...}}`, `{"error": "text", "code": ...}`, `{"response": {"error": ...}}`,
    `{"choices": [{"error": ...}]}`, `{"base_resp": {...}}`, flat `{"message", "code"}`,
    `{"detail": ...}`, or plain text. Gateways wrap the upstream's envelope in their own, some
    as text.
    """
    layers = [payload]
    while len(layers) <= _MAX_DEPTH and (inner := _inner(layers[-1])) is not None:
        layers.append(inner)
    return layers


def _envelope(holder: Any) -> tuple[Mapping[str, Any], str]:
    """Return the error object and its message, of the innermost of `_layers`."""
    if isinstance(holder, str):
        return {}, holder
    if not isinstance(holder, dict):
        return {}, ""
    error = holder.get("error")
    texts = [error] if isinstance(error, str) else []
    return holder, "\n".join(dict.fromkeys(filter(None, (*texts, *_messages(holder)))))


def _inner(holder: Any) -> Mapping[str, Any] | None:
    """Return the object within *holder* that is nearer to the error, None if there is none."""
    if isinstance(holder, str):
        return _object(holder)
    if not isinstance(holder, dict):
        return None
    error = holder.get("error") or holder.get("Error")
    if not error and (choices := holder.get("choices")):
        error = members(_first(choices)).get("error")  # of a chat choice (OpenRouter)
    if error:
        return _object(error)
    # MiniMax: a status of its own beside an answer without content.
    base = holder.get("base_resp")
    if isinstance(base, dict) and base.get("status_code"):
        return base
    wrapped = [inner for key in _WRAPPERS if (inner := _error_in(holder.get(key))) is not None]
    for inner in wrapped:
        if inner.get("error") or inner.get("Error"):
            return inner
        # OpenAI's realtime API: a response that is done, and has failed
        if members(details := inner.get("status_details")).get("error"):
            return members(details)
    if not holder.keys() & _SAYS:
        for inner in wrapped:
            if inner.keys() & _SAYS:
                return inner
        if wrapped and not any(isinstance(holder.get(key), str) for key in _TITLES):
            return next((inner for inner in wrapped if inner.keys() & _TITLES), None)
    message = holder.get("message") or holder.get("msg")
    if isinstance(message, str):
        return _error_in(message)
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
_TITLES = frozenset({"detail", "title"})
_SAYS = frozenset({*_MESSAGE_KEYS, "errors"} - _TITLES)
#: One of them is in every object that is an error.
_ERROR_KEYS = frozenset(
    {"error", "errors", "message", "msg", "detail", "code", "error_code", "base_resp"}
)


def _error_in(value: Any) -> Mapping[str, Any] | None:
    """Return *value* if it is an object, or the error that its text holds; else None."""
    value = _first(value)
    if isinstance(value, dict):
        return value
    found = _json(value) if isinstance(value, str) else None
    return found if isinstance(found, dict) and found.keys() & _ERROR_KEYS else None


def _object(value: Any) -> Mapping[str, Any] | None:
    """Return *value* as an object: itself, the first of a list, or what its text says."""
    value = _json(value) if isinstance(value, str) else _first(value)
    return value if value and isinstance(value, dict) else None


# An object inside a sentence: "upstream: {...}", "Error code: 429 - {'error': {...}}".
_IN_TEXT = LazyPattern(
    r"\{\s*[\"'](?:errors?|message|code|error_code|msg|detail|base_resp|type|object|status|title"
    r"|success|ok|id|request_id|statusCode|__type)[\"']\s*:"
)


def _json(text: str) -> Any:
    """Return the value of a JSON object in *text*, as Python prints it too; None if none."""
    found = _IN_TEXT.search(text[:_MAX_MESSAGE_CHARS])
    start = 0 if text.lstrip()[:1] == "{" else found.start() if found else -1
    end = text.rfind("}") + 1
    if start < 0 or not end:
        return None
    text = text[start:end]
    if (value := decoded(text)) is not None:
        return value
    if len(text) > _MAX_MESSAGE_CHARS or not found or "'" not in found[0]:
        return None
    import ast  # noqa: PLC0415 - a rare body

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


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
        if key in holder:
            value = holder[key]
            items = value[:_MAX_ITEMS] if isinstance(value, list) else [value]
            yield from (item for item in items if isinstance(item, dict))


def _words(holder: Mapping[str, Any]) -> frozenset[str]:
    """Collect the codes of an error object and of what it holds."""
    words: set[str] = set()
    for source in (holder, *_parts(holder)):
        for key in _WORD_KEYS:
            if key in source:
                words |= _word(source[key])
    # OAuth: {"error": "invalid_grant", "error_description": ...}; elsewhere it is a sentence.
    if isinstance(error := holder.get("error"), str) and _CODE.fullmatch(error.strip()):
        words |= _word(error)
    return frozenset(words - _NO_WORDS)


def _word(value: Any) -> set[str]:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return set()
    if isinstance(value, int) and abs(value) > 10**9:
        return set()
    text = str(value).strip().rpartition("#")[2]  # com.amazon.coral#ThrottlingException
    if len(text) > _MAX_WORD_CHARS:
        return set()
    word = text.lower()
    snake = _HUMP.sub("_", text).lower().replace("-", "_")
    return {word, word.partition(":")[0], snake}


def _status_inside(outer: Mapping[str, Any], error: Mapping[str, Any]) -> int:
    """Return the HTTP status an event inside a success names, 0 if none."""
    told = (outer.get("status"), outer.get("status_code"), error.get("status"), error.get("code"))
    for value in told:
        if isinstance(value, str | int) and ERROR_STATUS.fullmatch(str(value)):
            return int(value)
    return 0


def _all_headers(
    headers: Mapping[str, str], outer: Mapping[str, Any], error: Mapping[str, Any]
) -> Mapping[str, str]:
    """Add the headers that travel inside a frame (Codex) or a body (OpenRouter)."""
    inside: dict[str, str] = {}
    for holder in (error.get("metadata"), outer):
        sent = holder.get("headers") if isinstance(holder, dict) else None
        for name, value in list(sent.items())[:_MAX_HEADERS] if isinstance(sent, dict) else ():
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                inside[name.lower()] = str(value)[:_MAX_MESSAGE_CHARS]
    return {**headers, **inside} if inside else headers
