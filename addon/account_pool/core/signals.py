"""Tables of rules that say what a refusal means, and the small engine that reads them.

A provider writes its vocabulary as `Rule` rows (codes, phrases, header families) and
makes a `SignalTable` of them; the first row that matches decides. Rows look at the
envelope of an error, never at what a model wrote or a user asked: whatever is a code in
the body comes before the status, because limits arrive as 200, 400, 402, 403, 412,
413, 429, 498, 503 and 529, and 429 also carries things that are no limit.

This module knows the shapes of envelopes and HTTP statuses (RFC 9110), but no vendor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from account_pool.core import reset_hints
from account_pool.core.outcome import Answer, Outcome, OutcomeClass, Scope
from account_pool.core.sse import Judge, Verdict

#: A window of an hour or less is a rate limit, a longer one a quota (design.md, 7).
RATE_WINDOW_S = 3600.0

# Bounds on what is read of a hostile body.
_MAX_MESSAGE_CHARS = 4096
_MAX_WORD_CHARS = 100
_MAX_ITEMS = 16
_MAX_EVIDENCE, _MAX_EVIDENCE_CHARS = 32, 200

#: Headers that speak of limits: the evidence an outcome keeps.
_LIMIT_HEADER = re.compile(
    r"retry-after(?:-ms)?|x-should-retry|(?:x-|anthropic-)?ratelimit.*|x-codex-.*"
    r"|x-usage-ratelimit-.*|x-quota-snapshot-.*"
)
# A code that can be shown in a log: a vendor's identifier, not a sentence.
_PRINTABLE_WORD = re.compile(r"[a-z0-9_.:/-]{1,64}")

# Where envelopes put their codes, and where their sentence.
_WORD_KEYS = ("code", "type", "status", "reason", "error_type", "limit_source", "notification_id")
_MESSAGE_KEYS = ("message", "msg", "detail", "error_description", "title")
#: Names of events that only say "here is an error".
_NO_WORDS = frozenset({"", "error", "response.failed", "none", "null"})

_ERROR_STATUS = re.compile(r"[45][0-9]{2}")

# The window a sentence names; the first one counts, later ones advertise upgrades.
_WINDOW = re.compile(
    r"\b(?P<count>[0-9]{1,3})[\s-]?(?P<unit>hour|day)s?\b"
    r"|(?:\bper|/)[\s-]*(?P<per>sec|min|hour|day|week|month)(?:onds?|utes?|s)?\b"
    r"|\b(?P<every>hourly|daily|weekly|monthly)\b"
    r"|\b(?:[RTI]|[IO]T)P(?P<short>[SMHD])\b",
    re.IGNORECASE,
)
_SECONDS = {
    "s": 1.0,
    "sec": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "hourly": 3600.0,
    "d": 86_400.0,
    "day": 86_400.0,
    "daily": 86_400.0,
    "week": 604_800.0,
    "weekly": 604_800.0,
    "month": 2_678_400.0,
    "monthly": 2_678_400.0,
}
_WINDOW_NAMES = {1.0: "second", 60.0: "minute", 3600.0: "hour", 86_400.0: "day"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What rules may look at, read once from an answer.

    Attributes:
        status: HTTP status of the refusal. Inside a stream the one the event names; 0
            when it names none.
        headers: by lower-case name, those inside a WebSocket frame or body included.
        words: every code, type, status and reason of the envelope, in lower case; of
            `code:detail` both the whole and the part before the colon.
        message: what the envelope says in prose, or a plain-text body; "" for HTML.
        error: the error object, {} if there is none.
        html: the body is a page: it came from something before the API.
        window_s: length of the first window *message* names, in seconds.
        model: the model the request asked for.
        now: wall clock by which instants are read; None if unknown.
    """

    status: int
    headers: Mapping[str, str]
    words: frozenset[str]
    message: str
    error: Mapping[str, Any]
    html: bool
    window_s: float | None
    model: str | None
    now: float | None


#: Finds one spelling of a wait in the facts, seconds.
Wait = Callable[[Facts], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row. Every condition that is given must hold; `words` means any of them.

    Attributes:
        why: the row in a few words, for logs.
        cls: what it means.
        scope: how far it reaches; None: what is usual for the class.
        status: HTTP statuses; 0 is an event of a stream that names none.
        words: codes, lower case.
        phrase: searched in the message.
        when: anything else.
        waits: where the reset is named, best first; None: the table's. () when no
            wait cures it or what is named misleads.
        model: the model, family or feature the answer names.
        source: where the vendor or a recording says so.
    """

    why: str
    cls: OutcomeClass
    source: str
    scope: Scope | None = None
    status: frozenset[int] = frozenset()
    words: frozenset[str] = frozenset()
    phrase: re.Pattern[str] | None = None
    when: Callable[[Facts], bool] | None = None
    waits: tuple[Wait, ...] | None = None
    model: Callable[[Facts], str | None] | None = None

    def matches(self, facts: Facts) -> bool:
        """Say whether every condition holds."""
        if self.status and facts.status not in self.status:
            return False
        if self.words and self.words.isdisjoint(facts.words):
            return False
        if self.phrase and not self.phrase.search(facts.message):
            return False
        return self.when is None or self.when(facts)


_USUAL_SCOPE = {
    OutcomeClass.QUOTA: Scope.ACCOUNT,
    OutcomeClass.AUTH_EXPIRED: Scope.ACCOUNT,
    OutcomeClass.AUTH_INVALID: Scope.ACCOUNT,
    OutcomeClass.FORBIDDEN_ACCOUNT: Scope.ACCOUNT,
    OutcomeClass.OVERLOADED: Scope.SERVER,
    OutcomeClass.SERVER_ERROR: Scope.SERVER,
    OutcomeClass.REQUEST_ERROR: Scope.NONE,
}
_WAITING = frozenset(
    {
        OutcomeClass.RATE_LIMIT,
        OutcomeClass.QUOTA,
        OutcomeClass.OVERLOADED,
        OutcomeClass.SERVER_ERROR,
    }
)
_REPLAYABLE = frozenset(
    {
        OutcomeClass.RATE_LIMIT,
        OutcomeClass.QUOTA,
        OutcomeClass.AUTH_EXPIRED,
        OutcomeClass.AUTH_INVALID,
        OutcomeClass.FORBIDDEN_ACCOUNT,
    }
)


# -- where a reset is named


def retry_after_ms(facts: Facts) -> float | None:
    """`retry-after-ms`: OpenAI, Azure."""
    return reset_hints.milliseconds(facts.headers.get("retry-after-ms"))


def retry_after(facts: Facts) -> float | None:
    """`retry-after`."""
    return reset_hints.retry_after(facts.headers.get("retry-after"), facts.now)


def prose(facts: Facts) -> float | None:
    """The sentence: "Please try again in 1.574s"."""
    return reset_hints.sentence(facts.message, facts.now)


def body_reset(facts: Facts) -> float | None:
    """Fields of the error object: a wait before a moment, which may be outdated."""
    for holder in (facts.error, _mapping(facts.error.get("metadata"))):
        for key in ("resets_in_seconds", "reset_after_seconds", "retry_after_seconds"):
            if (wait := reset_hints.seconds(holder.get(key))) is not None:
                return wait
        for key in ("retry_after", "resets_at", "reset_at"):
            if (wait := reset_hints.reset(holder.get(key), facts.now)) is not None:
                return wait
    return None


def spent_window(facts: Facts) -> float | None:
    """The latest reset among the windows of which nothing remains.

    `x-ratelimit-remaining-tokens: 0` goes with `x-ratelimit-reset-tokens`.
    """
    return _latest(
        reset_hints.reset(facts.headers.get(name.replace("remaining", "reset")), facts.now)
        for name, value in facts.headers.items()
        if "remaining" in name and reset_hints.seconds(value) == 0
    )


def named_window(facts: Facts) -> float | None:
    """The reset header of the window the message names, the right unit before others.

    "Tokens per hour limit exceeded" goes with `x-ratelimit-reset-tokens-hour`.
    """
    window = _WINDOW_NAMES.get(facts.window_s or 0.0)
    if window is None:
        return None
    names = [n for n in facts.headers if "reset" in n and n.endswith("-" + window)]
    text = facts.message.lower()
    exact = [n for n in names if any(u in n and u in text for u in ("token", "request"))]
    return _latest(reset_hints.reset(facts.headers[n], facts.now) for n in exact or names)


def lone_reset(facts: Facts) -> float | None:
    """A `...ratelimit-reset` that is the only one, so that it must be the one meant."""
    names = [n for n in facts.headers if "ratelimit" in n and "reset" in n]
    return reset_hints.reset(facts.headers[names[0]], facts.now) if len(names) == 1 else None


#: Explicit waits before sentences before what must be concluded from windows.
USUAL_WAITS: tuple[Wait, ...] = (
    body_reset,
    retry_after_ms,
    retry_after,
    prose,
    named_window,
    spent_window,
    lone_reset,
)


def first_wait(facts: Facts, waits: Iterable[Wait]) -> float | None:
    """Return the first wait that is not over; 0 if all that are named are; else None."""
    over = None
    for wait in waits:
        seconds = wait(facts)
        if seconds:
            return seconds
        over = seconds if seconds is not None else over
    return over


# -- statuses, when the body says nothing a provider knows


def _says_nothing(facts: Facts) -> bool:
    """Say whether a 429 comes without any header, code, window or wait."""
    return (
        not any(_LIMIT_HEADER.fullmatch(name) for name in facts.headers if name != "x-should-retry")
        and all(word.isdigit() for word in facts.words)
        and facts.window_s is None
        and prose(facts) is None
    )


_RFC = "RFC 9110 section 15"


def _statuses(*statuses: int) -> frozenset[int]:
    return frozenset(statuses)


#: The end of every table.
STATUS_RULES: tuple[Rule, ...] = (
    Rule(
        why="blocked before it reached the API",
        cls=OutcomeClass.SERVER_ERROR,
        # The page of an edge is about the address or the client: every account would
        # be benched in turn.
        status=_statuses(401, 403),
        when=lambda facts: facts.html,
        source="just-every/code codex-api/src/api_bridge_tests.rs",
    ),
    Rule(
        why="not accepted and said to have expired",
        cls=OutcomeClass.AUTH_EXPIRED,
        status=_statuses(401),
        phrase=re.compile(r"(?<!or )\bexpired\b", re.IGNORECASE),
        source=_RFC,
    ),
    Rule(why="not accepted", cls=OutcomeClass.AUTH_INVALID, status=_statuses(401), source=_RFC),
    Rule(why="payment required", cls=OutcomeClass.QUOTA, status=_statuses(402), source=_RFC),
    Rule(why="refused", cls=OutcomeClass.FORBIDDEN_ACCOUNT, status=_statuses(403), source=_RFC),
    Rule(
        why="429 without a header, code or window",
        cls=OutcomeClass.RATE_LIMIT,
        scope=Scope.NONE,
        status=_statuses(429),
        when=_says_nothing,
        source="RFC 6585 section 4",
    ),
    Rule(
        why="too many requests",
        cls=OutcomeClass.RATE_LIMIT,
        status=_statuses(429),
        source="RFC 6585 section 4",
    ),
    Rule(
        why="no capacity",
        cls=OutcomeClass.OVERLOADED,
        # 498: Groq's flex tier. 529: Anthropic.
        status=_statuses(498, 503, 529),
        source="RFC 9110 section 15.6.4",
    ),
    Rule(
        why="request error",
        cls=OutcomeClass.REQUEST_ERROR,
        when=lambda facts: 400 <= facts.status < 500,
        source=_RFC,
    ),
    Rule(why="server error", cls=OutcomeClass.SERVER_ERROR, source=_RFC),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalTable:
    """The rules of one provider.

    Attributes:
        rules: in order; `STATUS_RULES` follow.
        judge: tells an error inside a success from an answer.
        rate_scope: how far a rate limit of this vendor reaches when a row does not say.
        waits: where this vendor names a reset, best first.
    """

    rules: tuple[Rule, ...]
    judge: Judge
    rate_scope: Scope = Scope.ACCOUNT
    waits: tuple[Wait, ...] = USUAL_WAITS

    def classify(self, answer: Answer) -> Outcome:
        """Say what *answer* means. Total: never raises, whatever it holds."""
        if answer.status < 400 and not self._refuses(answer):
            return Outcome(cls=OutcomeClass.OK, signal=str(answer.status))
        facts = read_facts(answer)
        # STATUS_RULES end with a row without conditions.
        rule = next(rule for rule in (*self.rules, *STATUS_RULES) if rule.matches(facts))
        return self._outcome(rule, facts)

    def _refuses(self, answer: Answer) -> bool:
        if isinstance(answer.payload, list):
            return any(self.judge(None, item) is Verdict.REFUSE for item in answer.payload[:1])
        return self.judge(answer.event, _jsonlike(answer.payload)) is Verdict.REFUSE

    def _outcome(self, rule: Rule, facts: Facts) -> Outcome:
        cls = rule.cls
        wait = None
        if cls in _WAITING:
            wait = first_wait(facts, self.waits if rule.waits is None else rule.waits)
        scope = rule.scope or _USUAL_SCOPE.get(cls, self.rate_scope)
        longest = max(wait or 0.0, facts.window_s or 0.0)
        if cls is OutcomeClass.RATE_LIMIT and scope is not Scope.NONE and longest > RATE_WINDOW_S:
            cls = OutcomeClass.QUOTA
        named = rule.model(facts) if rule.model and scope is Scope.MODEL else None
        return Outcome(
            cls=cls,
            scope=scope,
            cooldown_s=wait,
            replayable=cls in _REPLAYABLE,
            signal=_signal(rule, facts),
            evidence=_evidence(facts.headers),
            # The request's own name is what later requests ask for; the vendor may
            # call the same model otherwise (`-latest`, a dated snapshot).
            model=named if facts.model is None else None,
        )


# -- reading an envelope


def read_facts(answer: Answer) -> Facts:
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
    if outer is not error:
        words |= _words(outer)
    message = message[:_MAX_MESSAGE_CHARS]
    return Facts(
        status=answer.status if answer.status >= 400 else _status_inside(outer, error),
        headers=headers,
        words=words,
        message=message,
        error=error,
        html=html,
        window_s=window_s(message),
        model=answer.model,
        now=reset_hints.answer_now(answer.headers, answer.wall_now),
    )


def window_s(text: str) -> float | None:
    """Return the length of the first window *text* names, in seconds.

    "tokens per min (TPM)", "40 API calls / minute", "5 hour session limits", "TPD".
    """
    found = _WINDOW.search(text)
    if not found:
        return None
    if found["count"]:
        return float(found["count"]) * _SECONDS[found["unit"].lower()]
    return _SECONDS[(found["per"] or found["every"] or found["short"]).lower()]


def _jsonlike(payload: Any) -> Any:
    """Return *payload* as a judge sees it: text that is not JSON is None."""
    return None if isinstance(payload, str) else payload


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
    flat `{"message", "code"}`, `{"detail": ...}`, or plain text.
    """
    if isinstance(payload, str):
        return {}, payload
    holder = _mapping(payload)
    if isinstance(inner := holder.get("response"), dict) and inner.get("error"):
        holder = inner
    error = holder.get("error")
    if isinstance(error, dict):
        # Gateways wrap the upstream's envelope in their own.
        error = error["error"] if isinstance(error.get("error"), dict) else error
        return error, _message(error)
    if isinstance(error, str):
        return holder, "\n".join(filter(None, (error, _message(holder))))
    return holder, _message(holder)


def _message(holder: Mapping[str, Any]) -> str:
    texts = [holder.get(key) for key in _MESSAGE_KEYS]
    return "\n".join(text for text in texts if isinstance(text, str))


def _words(holder: Mapping[str, Any]) -> frozenset[str]:
    """Collect the codes of an error object and of what it holds."""
    words: set[str] = set()
    details = holder.get("details")
    errors = holder.get("errors")
    for source in (
        holder,
        _mapping(holder.get("metadata")),
        _mapping(holder.get("innererror")),
        _mapping(holder.get("error_details")),
        *map(_mapping, (details if isinstance(details, list) else [])[:_MAX_ITEMS]),
        *map(_mapping, (errors if isinstance(errors, list) else [])[:_MAX_ITEMS]),
    ):
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
    word = str(value).strip().lower()
    if len(word) > _MAX_WORD_CHARS:
        return set()
    return {word, word.partition(":")[0]}


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
        for name, value in list(_mapping(holder.get("headers")).items())[:64]:
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                inside[name.lower()] = str(value)[:_MAX_MESSAGE_CHARS]
    return {**headers, **inside} if inside else headers


# -- saying what was seen


def _signal(rule: Rule, facts: Facts) -> str:
    """Say the evidence without any text of the vendor: it may echo a user or a key."""
    words = sorted(rule.words & facts.words or facts.words)
    code = next((word for word in words if _PRINTABLE_WORD.fullmatch(word)), None)
    status = str(facts.status) if facts.status else "in stream"
    return f"{status} code={code}: {rule.why}" if code else f"{status}: {rule.why}"


def _evidence(headers: Mapping[str, str]) -> dict[str, str]:
    names = [name for name in headers if _LIMIT_HEADER.fullmatch(name)]
    return {name: headers[name][:_MAX_EVIDENCE_CHARS] for name in names[:_MAX_EVIDENCE]}


def _latest(waits: Iterable[float | None]) -> float | None:
    return max((wait for wait in waits if wait is not None), default=None)
