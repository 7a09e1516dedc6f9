"""Tables of rules that say what a refusal means, and the small engine that reads them.

A provider writes its vocabulary as `Rule` rows (codes, phrases, header families) and
makes a `SignalTable` of them; the first row that matches decides. Rows look at the
envelope of an error, never at what a model wrote or a user asked: whatever is a code in
the body comes before the status, because limits arrive as 200, 400, 402, 403, 412,
413, 429, 498, 503 and 529, and 429 also carries things that are no limit.

This module knows HTTP statuses (RFC 9110) and where resets are named, `outcome.py` the
shapes of envelopes; neither knows the codes of a vendor.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Set

from msgspec import Struct
from msgspec.structs import replace

from account_pool.core import reset_hints, reset_sentences
from account_pool.core.meaning import LazyPattern, Meaning
from account_pool.core.outcome import (
    LIMITS,
    ErrorFacts,
    Outcome,
    OutcomeClass,
    Scope,
    UpstreamResponse,
    read_facts,
)
from account_pool.core.sse import Judge, Verdict, is_page

# -- where a response names the moment to come back

#: Finds one spelling of a wait in the facts, in seconds from now, or None. `reset_hints.py`
#: reads the values. A provider lists those its vendor uses, best first.
Wait = Callable[[ErrorFacts], float | None]

_WINDOW_NAMES = {1.0: "second", 60.0: "minute", 3600.0: "hour", 86_400.0: "day"}


def retry_after_ms(facts: ErrorFacts) -> float | None:
    """`retry-after-ms`: OpenAI, Azure."""
    return reset_hints.milliseconds(facts.headers.get("retry-after-ms"))


def retry_after(facts: ErrorFacts) -> float | None:
    """`retry-after`."""
    return reset_hints.retry_after(facts.headers.get("retry-after"), facts.now, facts.answer.zone)


def prose(facts: ErrorFacts) -> float | None:
    """The sentence: "Please try again in 1.574s"."""
    return reset_sentences.sentence(facts.message, facts.now, facts.answer.zone)


#: Fields of an error object that name a reset: waits, and what may be a moment as well.
_WAIT_FIELDS = (
    *("resets_in_seconds", "reset_in_seconds", "reset_after_seconds", "reset_seconds"),
    "retry_after_seconds",
)
_RESET_FIELDS = ("retry_after", "resets_at", "reset_at", "resets_in", "reset_in", "reset_time")


def body_reset(facts: ErrorFacts) -> float | None:
    """Members of the body: milliseconds, then a wait, then a moment, which may be outdated."""
    if not facts.resets:
        return None
    wait = reset_hints.milliseconds(facts.resets.get("retry_after_ms"))
    if wait is not None:
        return wait
    for key in _WAIT_FIELDS:
        if (wait := reset_hints.seconds(facts.resets.get(key))) is not None:
            return wait
    for key in _RESET_FIELDS:
        value = facts.resets.get(key)
        wait = None if value is None else reset_hints.reset(value, facts.now, facts.answer.zone)
        if wait is not None:
            return wait
    return None


def spent_window(facts: ErrorFacts) -> float | None:
    """The latest reset among the windows of which nothing remains.

    `x-ratelimit-remaining-tokens: 0` goes with `x-ratelimit-reset-tokens`.
    """
    return latest(
        reset_hints.reset(facts.headers.get(name.replace("remaining", "reset")), facts.now)
        for name, value in facts.headers.items()
        if "remaining" in name and reset_hints.seconds(value) == 0
    )


#: How a number that is not 0 mostly begins.
_NOT_ZERO = tuple("123456789")


def limit_is_zero(facts: ErrorFacts) -> bool:
    """Say whether a limit, not what remains of it, is 0."""
    return bool(
        [
            name
            for name, value in facts.headers.items()
            if "ratelimit" in name
            and "limit" in name.partition("ratelimit")[2]
            and not value.startswith(_NOT_ZERO)
            and reset_hints.seconds(value) == 0
        ]
    )


def named_window(facts: ErrorFacts) -> float | None:
    """The reset header of the window the message names, the right unit before others.

    "Tokens per hour limit exceeded" goes with `x-ratelimit-reset-tokens-hour`.
    """
    window = _WINDOW_NAMES.get(facts.window_s or 0.0)
    if window is None:
        return None
    names = [n for n in facts.headers if "reset" in n and n.endswith("-" + window)]
    text = facts.message.lower()
    exact = [n for n in names if any(u in n and u in text for u in ("token", "request"))]
    return latest(reset_hints.reset(facts.headers[n], facts.now) for n in exact or names)


def lone_reset(facts: ErrorFacts) -> float | None:
    """A `...ratelimit-reset` that is the only one, so that it must be the one meant."""
    names = [n for n in facts.headers if "reset" in n and ("ratelimit" in n or "rate-limit" in n)]
    return reset_hints.reset(facts.headers[names[0]], facts.now) if len(names) == 1 else None


def spent_field(facts: ErrorFacts) -> float | None:
    """`ratelimit: "default";r=0;t=30`, before draft 8 `limit=100, remaining=0, reset=30`.

    https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/
    """
    return latest(
        reset_hints.seconds(found[1])
        for policy in facts.headers.get("ratelimit", "").split('"')[:_MAX_POLICIES]
        if _NONE_LEFT.search(policy) and (found := _UNTIL.search(policy))
    )


_NONE_LEFT = LazyPattern(r"(?:\br|\bremaining)\s*=\s*0(?![\d.])")
_UNTIL = LazyPattern(r"(?:\bt|\breset)\s*=\s*(\d+)")
_MAX_POLICIES = 16


#: Explicit waits before sentences before what must be concluded from windows.
USUAL_WAITS: tuple[Wait, ...] = (
    body_reset,
    retry_after_ms,
    retry_after,
    prose,
    named_window,
    spent_window,
    spent_field,
    lone_reset,
)


def first_wait(facts: ErrorFacts, waits: Iterable[Wait]) -> float | None:
    """Return the first wait that is not over; 0 if all that are named are; else None."""
    over = None
    for wait in waits:
        seconds = wait(facts)
        if seconds:
            return seconds
        over = seconds if seconds is not None else over
    return over


def latest(waits: Iterable[float | None]) -> float | None:
    """Return the longest of *waits* that are known."""
    return max((wait for wait in waits if wait is not None), default=None)


# -- rules

#: A window of an hour or less is a rate limit, a longer one a quota.
RATE_WINDOW_S = 3600.0

# Bounds on the evidence an outcome keeps.
_MAX_EVIDENCE, _MAX_EVIDENCE_CHARS = 24, 120

#: Headers that speak of limits. Of Codex's only those of windows do: others carry tokens of
#: an account and sentences.
_LIMIT_HEADER = LazyPattern(
    r"retry-after(?:-ms)?|x-should-retry|(?:x-|anthropic-)?rate-?limit.*"
    r"|x-usage-ratelimit-.*|x-quota-snapshot-.*|x-codex-.*"
    r"-(?:percent|minutes|reset-at|reset-after-seconds|limit|type|credits|unlimited|balance)"
)
_BODY_FIELDS = _WAIT_FIELDS + _RESET_FIELDS
# Numbers, dates, names of windows, `k=v` lists. Keys and tokens have longer words.
_EVIDENT = LazyPattern(r"(?!.*[\w-]{33})[\w.:;,=+%/&\"' -]*", re.ASCII)
# A code that can be shown in a log: a vendor's identifier, not a sentence.
_PRINTABLE_WORD = LazyPattern(r"[a-z0-9_.:/-]{1,64}")


# The words of the tables.
RATE_LIMIT = OutcomeClass.RATE_LIMIT
QUOTA = OutcomeClass.QUOTA
OVERLOADED = OutcomeClass.OVERLOADED
SERVER_ERROR = OutcomeClass.SERVER_ERROR
AUTH_EXPIRED = OutcomeClass.AUTH_EXPIRED
AUTH_INVALID = OutcomeClass.AUTH_INVALID
FORBIDDEN_ACCOUNT = OutcomeClass.FORBIDDEN_ACCOUNT
REQUEST_ERROR = OutcomeClass.REQUEST_ERROR
ACCOUNT = Scope.ACCOUNT
MODEL = Scope.MODEL


class _Row(Struct, frozen=True):
    """What a row says without names; all else is named (msgspec has no `KW_ONLY`)."""

    why: str
    cls: OutcomeClass
    scope: Scope | None = None


class Rule(_Row, frozen=True, kw_only=True):
    """One row. Every condition that is given must hold.

    Attributes:
        why: the row in a few words, for logs.
        cls: what it means.
        scope: how far it reaches; None: what is usual for the class.
        status: HTTP statuses; 0 is an event of a stream that names none.
        words: codes, lower case; any of them.
        phrase: a regular expression, searched in the message; case does not matter.
        means: what codes and sentence say in the vocabulary that all vendors share.
        when: anything else.
        waits: where the reset is named, best first; None: the table's. () when no
            wait cures it (paying does) or what is named misleads.
        model: the model the answer names, for a request that named none.
        feature: the family or feature that is spent where it is another thing than the
            request's model: it is cooled in the model's place.
        shared: whether the limit is that of the account's owner, and so of every account
            of the same owner; None: what is usual for the vendor.
        owner: the owner (organisation, team, project) the answer names.
        missing_model: a request error that says that this account does not have the
            model; another may have it.
        names_credential: the code says that the credential itself is refused.
        unknown: the status alone decides; the answer says nothing that is understood.
        explicit: *when* finds a code or a sentence.
        source: where the vendor or a recording says so; "": that of the table (`rules`).
    """

    status: Set[int] = frozenset()
    words: Set[str] = frozenset()
    phrase: str = ""
    means: Meaning | None = None
    when: Callable[[ErrorFacts], bool] | None = None
    waits: tuple[Wait, ...] | None = None
    model: Callable[[ErrorFacts], str | None] | None = None
    feature: Callable[[ErrorFacts], str | None] | None = None
    shared: bool | None = None
    owner: Callable[[ErrorFacts], str | None] | None = None
    missing_model: bool = False
    names_credential: bool = False
    unknown: bool = False
    explicit: bool = False
    source: str = ""

    def matches(self, facts: ErrorFacts) -> bool:
        """Say whether every condition holds."""
        if self.status and facts.status not in self.status:
            return False
        if self.words and self.words.isdisjoint(facts.words):
            return False
        if self.phrase and not _pattern(self.phrase).search(facts.message):
            return False
        if self.means and facts.meaning is not self.means:
            return False
        return self.when is None or self.when(facts)


@functools.cache
def _pattern(phrase: str) -> re.Pattern[str]:
    """Compile *phrase* at the first refusal: a proxy that starts has seen none."""
    return re.compile(phrase, re.IGNORECASE)


def rules(source: str, *rows: Rule) -> tuple[Rule, ...]:
    """Return *rows* as a table; *source* is that of each row that names none."""
    return tuple(row if row.source else replace(row, source=source) for row in rows)


_USUAL_SCOPE = {
    **dict.fromkeys((QUOTA, AUTH_EXPIRED, AUTH_INVALID, FORBIDDEN_ACCOUNT), ACCOUNT),
    **dict.fromkeys((OVERLOADED, SERVER_ERROR), Scope.SERVER),
    REQUEST_ERROR: Scope.NONE,
}
_WAITING = frozenset({RATE_LIMIT, QUOTA, OVERLOADED, SERVER_ERROR})
#: Those that say that the server failed; what is no status of HTTP is read as one (RFC 9110, 15).
FAILURES = frozenset(range(500, 1000))
_REPLAYABLE = frozenset({RATE_LIMIT, QUOTA, AUTH_EXPIRED, AUTH_INVALID, FORBIDDEN_ACCOUNT})


# -- statuses, when the body says nothing a provider knows


def _says_nothing(facts: ErrorFacts) -> bool:
    """Say whether a 429 comes without any header, code, window or wait."""
    return (
        not any(_is_of_limits(name) for name in facts.headers if name != "x-should-retry")
        and all(_STATUS.fullmatch(word) or word in REQUEST_CODES for word in facts.words)
        and facts.window_s is None
        and body_reset(facts) is None
        and prose(facts) is None
    )


#: Codes that blame a request, if anything: DeepSeek sends the first with everything.
REQUEST_CODES = frozenset(
    {
        *("invalid_request_error", "invalid_request", "bad_request", "invalid_argument"),
        *("invalid_parameter", "invalid_parameter_error", "validation_error"),
    }
)
# A number that is no code of the vendor's own.
_STATUS = LazyPattern(r"[1-5]\d\d")

#: The end of every table.
STATUS_RULES = rules(
    "RFC 9110 section 15",
    # What an edge says is about the address or the client: every account would be benched in
    # turn. A page with a 429 may be about the key.
    Rule("blocked before it reached the API", SERVER_ERROR, status={401, 403},
        when=lambda facts: facts.edge, source="just-every/code codex-api/src/api_bridge_tests.rs"),
    Rule("limited before it reached the API", SERVER_ERROR, status={429},
        when=lambda facts: facts.edge and not facts.html,
        source="https://developers.cloudflare.com/support/troubleshooting/http-status-codes/"
        "cloudflare-1xxx-errors/error-1015/"),
    # A login page of a network, with status 200: no account is to blame.
    Rule("a page in place of an answer", SERVER_ERROR, when=lambda facts: facts.html and
        facts.status < 400, source="https://www.rfc-editor.org/rfc/rfc8952#section-1"),
    # "invalid or expired", "may have expired": nobody knows.
    Rule("not accepted and said to have expired", AUTH_EXPIRED, status={401},
        phrase=r"(?<!or )(?<!may have )\bexpired\b|(?<!或)已过期(?!或)"),
    Rule("not accepted", AUTH_INVALID, status={401}, unknown=True),
    Rule("payment required", QUOTA, status={402}, unknown=True),
    Rule("refused", FORBIDDEN_ACCOUNT, status={403}, unknown=True),
    Rule("429 without a header, code or window", RATE_LIMIT, Scope.NONE, status={429},
        when=_says_nothing, unknown=True, source="RFC 6585 section 4"),
    Rule("too many requests", RATE_LIMIT, status={429}, source="RFC 6585 section 4"),
    # 498: Groq's flex tier. 529: Anthropic.
    Rule("no capacity", OVERLOADED, status={498, 503, 529}, source="RFC 9110 section 15.6.4"),
    Rule("request error", REQUEST_ERROR, when=lambda facts: 400 <= facts.status < 500,
        unknown=True),
    Rule("server error", SERVER_ERROR, unknown=True),
)  # fmt: skip


class SignalTable(Struct, frozen=True, kw_only=True):
    """The rules of one provider.

    Attributes:
        rules: in order; `STATUS_RULES` follow.
        judge: tells an error inside a success from an answer.
        rate_scope: how far a rate limit of this vendor reaches when a row does not say.
        plan_scope: the same where the limit is one of more than an hour and nothing in the
            answer names a model; None: as *rate_scope*.
        waits: where this vendor names a reset, best first.
        shared: limits of this vendor are those of an owner of several accounts.
        owner: the owner an answer of this vendor names, where a row does not say.
        names_owner: the owner that an answer names is the account's; false behind a gateway.
    """

    rules: tuple[Rule, ...]
    judge: Judge
    rate_scope: Scope = Scope.ACCOUNT
    plan_scope: Scope | None = None
    waits: tuple[Wait, ...] = USUAL_WAITS
    shared: bool = False
    owner: Callable[[ErrorFacts], str | None] | None = None
    names_owner: bool = True

    def classify(self, answer: UpstreamResponse) -> Outcome:
        """Say what *answer* means. Total: never raises, whatever it holds."""
        # STATUS_RULES end with a row without conditions.
        found = self._first((*self.rules, *STATUS_RULES), answer)
        return found or Outcome(cls=OutcomeClass.OK, signal=str(answer.status))

    def recognise(self, answer: UpstreamResponse) -> Outcome | None:
        """Return what the rows of this table alone say; None if none matches."""
        return self._first(self.rules, answer)

    def _first(self, rules: tuple[Rule, ...], answer: UpstreamResponse) -> Outcome | None:
        if answer.status < 400 and not self._refuses(answer):
            return None
        facts = read_facts(answer)
        for rule in rules:
            if rule.matches(facts):
                return self._outcome(rule, facts)
        return None

    def _refuses(self, answer: UpstreamResponse) -> bool:
        payload = answer.payload
        if isinstance(payload, list):
            return any(self.judge(None, item) is Verdict.REFUSE for item in payload[:1])
        if isinstance(payload, str) and is_page(payload):
            return True
        # Text that is not JSON reaches a judge as None.
        value = None if isinstance(payload, str) else payload
        return self.judge(answer.event, value) is Verdict.REFUSE

    def _outcome(self, rule: Rule, facts: ErrorFacts) -> Outcome:
        cls = rule.cls
        wait = None
        if cls in _WAITING:
            wait = first_wait(facts, self.waits if rule.waits is None else rule.waits)
        scope = rule.scope or _USUAL_SCOPE.get(cls, self.rate_scope)
        longest = max(wait or 0.0, facts.window_s or 0.0)
        if cls is OutcomeClass.RATE_LIMIT and scope is not Scope.NONE and longest > RATE_WINDOW_S:
            cls = OutcomeClass.QUOTA
            if rule.scope is None and self.plan_scope and not _is_counted_per_model(facts):
                scope = self.plan_scope
        limited = cls in LIMITS and scope is not Scope.NONE
        shared = rule.shared
        if shared is None:
            shared = self.shared and not _OF_THE_KEY.search(facts.message)
        owner = rule.owner or self.owner if limited and self.names_owner else None
        return Outcome(
            cls=cls,
            scope=scope,
            cooldown_s=wait,
            replayable=cls in _REPLAYABLE,
            signal=_signal(rule, facts),
            explicit=rule.explicit or bool(rule.words or rule.phrase or rule.means),
            evidence=_evidence(facts),
            model=_covered(rule, facts) if scope is Scope.MODEL else None,
            shared=limited and shared,
            owner=owner and owner(facts),
            missing_model=rule.missing_model,
            unknown=rule.unknown,
            names_credential=rule.names_credential,
            money=cls is OutcomeClass.QUOTA and rule.waits == (),
        )


# Narrower than the owner of the account: other keys, and those of other workspaces, serve on.
_OF_THE_KEY = LazyPattern(
    r"\b(?:for|of|on|by) the (?:api[ -]?)?key\b|\b(?:this|your) (?:api[ -]?)?key\b"
    r"|\bworkspace (?:api )?(?:usage|spend)",
    re.IGNORECASE,
)

# "on tokens per day (TPD)": OpenAI's dialect, in which each model has its own count.
_COUNTED = LazyPattern(
    r"\b(?:[RTI]|[IO]T)P[SMHD]\b|\b(?:requests?|tokens?) ?(?:per|/) ?\w", re.IGNORECASE
)


def _is_counted_per_model(facts: ErrorFacts) -> bool:
    return facts.about_model or bool(_COUNTED.search(facts.message))


def _covered(rule: Rule, facts: ErrorFacts) -> str | None:
    """Return what a limit of less than the account is about; None: the request's model."""
    if rule.feature and (feature := rule.feature(facts)):
        return feature
    # The request's own name is what later requests ask for; the vendor may call the same
    # model otherwise (`-latest`, a dated snapshot).
    return rule.model(facts) if rule.model and facts.model is None else None


# -- saying what was seen


def _signal(rule: Rule, facts: ErrorFacts) -> str:
    """Say the evidence without any text of the vendor: it may echo a user or a key."""
    words = sorted(rule.words & facts.words or facts.words)
    code = next((word for word in words if _PRINTABLE_WORD.fullmatch(word)), None)
    status = str(facts.status) if facts.status else "in stream"
    return f"{status} code={code}: {rule.why}" if code else f"{status}: {rule.why}"


def _evidence(facts: ErrorFacts) -> dict[str, str]:
    """Return the values that speak of limits, the most telling first."""
    told = {name: value for name, value in facts.headers.items() if _is_of_limits(name)}
    named = {name: str(facts.resets[name]) for name in _BODY_FIELDS if name in facts.resets}
    values = {name: value[:_MAX_EVIDENCE_CHARS] for name, value in {**named, **told}.items()}
    shown = [name for name in sorted(values, key=_telling) if _EVIDENT.fullmatch(values[name])]
    return {name: values[name] for name in shown[:_MAX_EVIDENCE]}


@functools.lru_cache(maxsize=256)
def _is_of_limits(header: str) -> bool:
    return _LIMIT_HEADER.fullmatch(header) is not None


def _telling(name: str) -> int:
    """Rank what says when to come back before what is left, and that before the rest."""
    if name in _BODY_FIELDS or name.startswith("retry-after"):
        return 0
    return 1 if "reset" in name or "remaining" in name else 2
