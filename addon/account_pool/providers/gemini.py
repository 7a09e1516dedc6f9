"""Gemini API keys: generativelanguage.googleapis.com.

https://ai.google.dev/api. The model of a native request is in its path.

Refusals, also those of Code Assist, are google.rpc.Status with details
(https://google.aip.dev/193): `ErrorInfo` names a reason, `QuotaFailure` the quotas that ran out,
`RetryInfo` a delay. Quotas belong to the project, most of them per model; those of a day end at
midnight Pacific (https://ai.google.dev/gemini-api/docs/rate-limits).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote

from msgspec.structs import replace

from account_pool.core import reset_hints
from account_pool.core.account import Account
from account_pool.core.credential import Credential
from account_pool.core.json_values import text_in
from account_pool.core.meaning import LazyPattern, Meaning
from account_pool.core.outcome import ErrorFacts
from account_pool.core.signals import (
    AUTH_EXPIRED,
    AUTH_INVALID,
    FORBIDDEN_ACCOUNT,
    MODEL,
    OVERLOADED,
    QUOTA,
    RATE_LIMIT,
    RATE_WINDOW_S,
    REQUEST_ERROR,
    SERVER_ERROR,
    Rule,
    SignalTable,
    Wait,
    first_wait,
    prose,
    retry_after,
    retry_after_ms,
    rules,
)
from account_pool.core.sse import Verdict
from account_pool.providers import envelopes, openai, sessions
from account_pool.providers.base import (
    NO_STEP,
    HostRule,
    LocalResponse,
    Provider,
    RequestHead,
    Route,
    Swap,
    bearer,
    body_model,
    is_websocket,
)
from account_pool.providers.common_signals import COMPATIBLE_RULES
from account_pool.providers.sessions import StoredObjects

_I = re.IGNORECASE
_LIMITS = "https://ai.google.dev/gemini-api/docs/rate-limits"
_GCL = "google-gemini/gemini-cli packages/core/src/utils/googleQuotaErrors.test.ts"
_REASONS = "https://cloud.google.com/apis/docs/reference: google.api.ErrorReason"
_MAX_ITEMS = 16
#: A hint shorter than this beside "the quota is exhausted" belongs to another window.
_MISLEADING_S = 60.0

# -- who serves a request

_VERSION = r"/v1(?:alpha|beta)?"
# `async...` and `predictLongRunning` start operations that belong to the project.
_METHOD = (
    r"generateContent|streamGenerateContent|countTokens|embedContent|batchEmbedContents"
    r"|generateAnswer|predict|batchGenerateContent"
)
_NATIVE_POST = LazyPattern(rf"{_VERSION}/models/(?P<model>[^/:]+):(?:{_METHOD})")
# https://ai.google.dev/api/interactions-api
_INTERACTIONS = LazyPattern(rf"{_VERSION}/interactions")
# https://ai.google.dev/api/files, /caching, /batch-api; the results of a batch are fetched
# below /download (https://ai.google.dev/gemini-api/docs/batch-api). What creates an
# interaction is inference; it is stored below /interactions/.
STORED = StoredObjects.of(
    f"(?:/upload|/download)?{_VERSION}",
    together=("batches", "files"),
    apart=("cachedContents", "interactions(?=/)(?!/live$)"),
    mark=b"files/",
    with_kind=("batches", "cachedContents", "files"),
)
_NATIVE_GET = LazyPattern(rf"{NO_STEP}{_VERSION}/models(?:/[^/:]+)?")
_OPENAI_PREFIX = LazyPattern(rf"{_VERSION}/openai(?=/)")
_LIVE = LazyPattern(
    r"/ws/google\.ai\.generativelanguage\.v1(?:alpha|beta)?"
    r"\.GenerativeService\.BidiGenerateContent"
    rf"|{_VERSION}/interactions/live"
)


def route(head: RequestHead) -> Route:
    """Say who serves a request.

    Tuned models and operations belong to the project that made them and pass; so does a
    request with a Google login (`ya29.`), which is no API key.
    """
    if bearer(head).startswith("ya29.") or "access_token" in parse_qs(
        head.query, keep_blank_values=True
    ):
        return Route.PASS
    if prefix := _OPENAI_PREFIX.match(head.path):
        return _compatible_route(head, prefix.end())
    if STORED.route(head):
        return Route.POOL
    if head.method == "POST":
        pooled = _NATIVE_POST.fullmatch(head.path) or _INTERACTIONS.fullmatch(head.path)
    elif head.method == "GET":
        pooled = (_LIVE if is_websocket(head) else _NATIVE_GET).fullmatch(head.path)
    else:
        return Route.PASS
    return Route.POOL if pooled else Route.PASS


def _compatible_route(head: RequestHead, prefix_length: int) -> Route:
    path = "/v1" + head.path[prefix_length:]
    as_openai = RequestHead(
        method=head.method, host=head.host, port=head.port, path=path, headers=head.headers
    )
    # What is stored has Google's names on either path.
    return Route.PASS if openai.STORED.route(as_openai) else openai.route(as_openai)


def model(head: RequestHead) -> str | None:
    """Return the model of the path, or of the body where the path names none.

    An interaction may name an agent instead, which has limits of its own.
    """
    native = _NATIVE_POST.fullmatch(head.path) or _MODEL_IN_PATH.match(head.path)
    if native:
        return unquote(native["model"])
    if (named := body_model(head)) or not _INTERACTIONS.fullmatch(head.path):
        return named
    return text_in(head.json.agent) if head.json is not None else None


_MODEL_IN_PATH = LazyPattern(rf"{_VERSION}/models/(?P<model>[^/:]+)")

# -- the credential


def swap(_account: Account, credential: Credential) -> Swap:
    """Put the key in `x-goog-api-key`, or as Bearer on the OpenAI-compatible path.

    The client may have sent its own in either, or as `?key=`; one remains.
    https://ai.google.dev/gemini-api/docs/openai
    """
    key = credential.secret.reveal().encode()
    native = Swap(
        headers=((b"x-goog-api-key", key),),
        drop=_CREDENTIAL_HEADERS,
        drop_query=_CREDENTIAL_QUERY,
    )
    compatible = replace(native, headers=((b"authorization", b"Bearer " + key),))
    return replace(native, by_path=(("/openai/", compatible),))


# The user project is a companion: it names whose quota is used.
_CREDENTIAL_HEADERS = frozenset({b"authorization", b"x-goog-api-key", b"x-goog-user-project"})
_CREDENTIAL_QUERY = ("key", "access_token")


# -- reading the details


def _details(facts: ErrorFacts) -> Iterator[Mapping[str, Any]]:
    details = facts.error.get("details")
    if isinstance(details, list):
        yield from (item for item in details[:_MAX_ITEMS] if isinstance(item, dict))


def _metadata(facts: ErrorFacts) -> Iterator[Mapping[str, Any]]:
    for detail in _details(facts):
        if isinstance(metadata := detail.get("metadata"), dict):
            yield metadata


def _violations(facts: ErrorFacts) -> Iterator[Mapping[str, Any]]:
    for detail in _details(facts):
        if isinstance(violations := detail.get("violations"), list):
            yield from (item for item in violations[:_MAX_ITEMS] if isinstance(item, dict))


def _texts(holders: Iterable[Mapping[str, Any]], *keys: str) -> list[str]:
    found = [holder.get(key) for holder in holders for key in keys]
    return [value for value in found if isinstance(value, str)]


def _quotas(facts: ErrorFacts) -> list[str]:
    """Return the ids of the quotas that ran out, new form and old."""
    return [
        *_texts(_violations(facts), "quotaId", "quotaMetric"),
        *_texts(_metadata(facts), "quota_limit", "quota_metric"),
    ]


_PER_DAY = LazyPattern(r"per[_ ]?day", _I)
# Also a model's name: `Gemini25ProRequestsPerDayPerUserPerTier`, "Gemini 2.5 Pro Requests".
_PER_MODEL = LazyPattern(
    r"per[_ ]?(?:base[_ ]?)?model|_model_|gemini[ _-]?\d|(?:pro|flash)[ _-]?req", _I
)
_PER_USER = LazyPattern(r"per[_ ]?user", _I)
_MODEL_IN_TEXT = LazyPattern(r"\bmodel: ?([\w./-]{1,80})")
# "limit: 0", but neither "limit: 0.5" nor "limit: 07"
_ZERO_IN_TEXT = LazyPattern(r"\blimit: ?0(?!\.?\d)", _I)
_METRIC_IN_TEXT = LazyPattern(
    r"\bquota exceeded for (?:quota )?metric\b(?P<named>[^\n]{0,200})", _I
)


def _is_zero(facts: ErrorFacts) -> bool:
    """Say whether a quota's limit is 0: the model is not offered to this project."""
    values = [violation.get("quotaValue") for violation in _violations(facts)]
    values += [metadata.get("quota_limit_value") for metadata in _metadata(facts)]
    return any(reset_hints.seconds(v) == 0 for v in values) or bool(
        _ZERO_IN_TEXT.search(facts.message)
    )


def _is_daily(facts: ErrorFacts) -> bool:
    return any(_PER_DAY.search(quota) for quota in _quotas(facts)) or (
        facts.window_s == 86_400.0 and bool(_METRIC_IN_TEXT.search(facts.message))
    )


def _project(facts: ErrorFacts) -> str | None:
    """Return the project whose quota it is: `consumer: projects/123`.

    None for a quota of each user: there the consumer is Google's own, the same for all.
    """
    if any(_PER_USER.search(text) for text in (*_quotas(facts), facts.message)):
        return None
    return next(iter(_texts(_metadata(facts), "consumer")), None)


def _named_model(facts: ErrorFacts) -> str | None:
    """Return the model the details or the sentence name."""
    for violation in _violations(facts):
        dimensions = violation.get("quotaDimensions")
        if isinstance(dimensions, dict) and isinstance(model := dimensions.get("model"), str):
            return model or None
    for name in _texts(_metadata(facts), "model"):
        return name or None
    found = _MODEL_IN_TEXT.search(facts.message)
    return found[1].rstrip(".") if found else None


def _is_per_model(facts: ErrorFacts) -> bool:
    """Say whether what ran out is counted per model.

    A sentence that names a metric without saying more means the usual, which is; one of
    each user without a model is the whole account's.
    """
    if _named_model(facts) is not None:
        return True
    quotas = _quotas(facts)
    if quotas:
        return any(_PER_MODEL.search(quota) for quota in quotas)
    found = _METRIC_IN_TEXT.search(facts.message)
    if found is None:
        return False
    return bool(_PER_MODEL.search(found["named"])) or not _PER_USER.search(found["named"])


_PLAN_WORDS = LazyPattern(
    r"\bindividual quota\b|\b(?:of|for) your (?:plan|subscription)\b"
    r"|\bupgrade your (?:plan|subscription)\b",
    _I,
)


def _is_of_the_plan(facts: ErrorFacts) -> bool:
    """Say whether a quota is that of the whole account: "Individual quota reached"."""
    if _named_model(facts) is not None or facts.about_model:
        return False
    return bool(_PLAN_WORDS.search(facts.message))


#: Google's codes for every quota, of a minute or of money.
_EXHAUSTED = frozenset({"resource_exhausted", "rate_limit_exceeded", "ratelimitexceeded"})


#: What is spent is money, whatever the window.
_SPENDING = LazyPattern(r"\b(?:spend(?:ing)?|budget|free (?:quota|credits?))\b", _I)


def _is_of_a_long_window(facts: ErrorFacts) -> bool:
    """Say whether the sentence names a window of more than an hour, or what is spent."""
    if facts.meaning is not Meaning.PLAN:
        return False
    return (facts.window_s or 0.0) > RATE_WINDOW_S or bool(_SPENDING.search(facts.message))


# -- where a reset is named


def retry_info(facts: ErrorFacts) -> float | None:
    """`RetryInfo.retryDelay`, a protobuf Duration."""
    delays = _texts(_details(facts), "retryDelay")
    return next((w for d in delays if (w := reset_hints.duration(d)) is not None), None)


def quota_reset(facts: ErrorFacts) -> float | None:
    """Code Assist: `quotaResetDelay`, else `quotaResetTimeStamp`; relays take them out."""
    holders = (*_metadata(facts), *_details(facts))
    for delay in _texts(holders, "quotaResetDelay"):
        if (wait := reset_hints.duration(delay)) is not None:
            return wait
    for stamp in _texts(holders, "quotaResetTimeStamp"):
        if (wait := reset_hints.instant(stamp, facts.now)) is not None:
            return wait
    return None


def _pacific_midnight(facts: ErrorFacts) -> float | None:
    return reset_hints.until_pacific_midnight(facts.now)


def _long_hint(facts: ErrorFacts) -> float | None:
    """A hint for an exhausted quota; a short one is that of the request rate."""
    wait = first_wait(facts, (quota_reset, retry_info, prose, retry_after))
    return wait if wait is not None and wait > _MISLEADING_S else None


WAITS: tuple[Wait, ...] = (quota_reset, retry_info, retry_after_ms, retry_after, prose)


# -- the rules


RULES = rules(
    _GCL,
    # 429 or 503.
    Rule("no capacity for the model", OVERLOADED, words={"model_capacity_exhausted"}),
    # "No capacity available for model x on the server": no reason need stand beside it.
    Rule("no capacity for the model", OVERLOADED, status={0, 429, 503}, means=Meaning.CAPACITY),
    Rule("the model is overloaded", OVERLOADED, words={"unavailable"},
        source="https://ai.google.dev/gemini-api/docs/troubleshooting (503)"),
    # Nobody here has cancelled it.
    Rule("cancelled", SERVER_ERROR, status={0, 499}, words={"cancelled"}, source=_GCL),
    Rule("internal error", SERVER_ERROR, status={0, 500, 502, 504},
        words={"internal", "deadline_exceeded", "data_loss"},
        source="https://ai.google.dev/gemini-api/docs/troubleshooting (500, 504)"),
    # A 400 here.
    Rule("the key is not accepted", AUTH_INVALID, words={"api_key_invalid", "api_key_expired"},
        names_credential=True, source=_REASONS),
    # Anchored: other 400s echo what a user wrote.
    Rule("the key is not accepted", AUTH_INVALID, status={0, 400, 401, 403},
        phrase=r"^api key (?:not valid|not found|expired)\b|^your api key was reported as leaked\b"
        r"|^method doesn't allow unregistered callers\b",
        source="https://ai.google.dev/gemini-api/docs/api-key; 403, recorded"),
    Rule("the token has expired", AUTH_EXPIRED, words={"access_token_expired"}, source=_REASONS),
    Rule("the project or key is barred", FORBIDDEN_ACCOUNT,
        words={"account_state_invalid", "api_key_android_app_blocked",
        "api_key_http_referrer_blocked", "api_key_ios_app_blocked", "api_key_ip_address_blocked",
        "api_key_service_blocked", "billing_disabled", "consumer_invalid", "consumer_suspended",
        "service_disabled", "unsupported_client", "user_project_denied", "validation_required"},
        source=_REASONS),
    Rule("the project is barred", FORBIDDEN_ACCOUNT, status={0, 400, 403},
        phrase=r"^(?:permission denied: )?consumer \S+ has been suspended\b"
        r"|^[\w ]{0,40}\bfree tier is not available in your country\b",
        source="Gemini API 403, recorded; troubleshooting (400 FAILED_PRECONDITION)"),
    # What a request that names a file gets on an account that does not have it.
    Rule("a file or cache of another project", REQUEST_ERROR, status={0, 403, 404},
        phrase=r"\bpermission to access the (?:file|cachedcontent|tunedmodel)\b"
        r"|\bcachedcontent not found\b", source="Gemini API 403, recorded"),
    Rule("the quota of the project is 0", FORBIDDEN_ACCOUNT, MODEL, status={0, 429}, when=_is_zero,
        model=_named_model),
    Rule("out of credit", QUOTA, words={"insufficient_g1_credits_balance"}, waits=()),
    Rule("out of credit", QUOTA, status={0, 402, 403, 429},
        phrase=r"\bprepa(?:id|yment) credits\b.*\bdepleted\b|\bspending cap\b", waits=(),
        source="https://ai.google.dev/gemini-api/docs/billing"),
    # RetryInfo beside it is a matter of seconds and does not apply.
    Rule("the quota of the day", QUOTA, MODEL, status={0, 429},
        when=lambda facts: _is_daily(facts) and _is_per_model(facts), waits=(_pacific_midnight,),
        model=_named_model, owner=_project, source=_LIMITS),
    Rule("the quota of the day", QUOTA, status={0, 429}, when=_is_daily, waits=(_pacific_midnight,),
        owner=_project, source=_LIMITS),
    # Interactions: codes in words.
    Rule("the quota of the day", QUOTA, MODEL, status={0, 429}, words={"quota_exceeded"},
        when=lambda facts: facts.window_s is None or facts.window_s >= 86_400.0,
        waits=(_pacific_midnight,), source="https://ai.google.dev/gemini-api/docs/api-errors"),
    Rule("the quota of the plan", QUOTA, words={"quota_exhausted", "resource_exhausted"},
        when=_is_of_the_plan, waits=(_long_hint,), shared=False,
        source="router-for-me/CLIProxyAPI antigravity: Individual quota reached"),
    Rule("the quota of the model", QUOTA, MODEL, words={"quota_exhausted"}, waits=(_long_hint,),
        model=_named_model, owner=_project),
    Rule("the quota of the model", RATE_LIMIT, MODEL, status={0, 429}, when=_is_per_model,
        model=_named_model, owner=_project, source=_LIMITS),
    Rule("out of credit", QUOTA, words=_EXHAUSTED, means=Meaning.MONEY, waits=(), owner=_project,
        source="Gemini API billing: prepaid credits, spend caps"),
    Rule("the quota of a longer window", QUOTA, words=_EXHAUSTED, when=_is_of_a_long_window,
        owner=_project, source="Gemini API billing: prepaid credits, spend caps"),
    Rule("the quota of the project", RATE_LIMIT, words=_EXHAUSTED, owner=_project, source=_LIMITS),
    # OpenAI's sentence for money is Google's for a minute: neither it nor the bare code may
    # get this far.
    *COMPATIBLE_RULES,
)  # fmt: skip


# -- what a response says

#: Members of an item that says nothing yet: a verdict on the prompt is no limit, and
#: usage alone is no response.
_QUIET_MEMBERS = frozenset(
    {"createTime", "modelVersion", "promptFeedback", "responseId", "traceId", "usageMetadata"}
)
#: Events of an interaction that say only that it was accepted; `start` is what `created`
#: was called before it had steps.
_QUIET_EVENTS = frozenset({"interaction.created", "interaction.start", "interaction.status_update"})


def judge(name: str | None, value: Any) -> Verdict:
    """Say what an event, an array item or a JSON body is."""
    if not isinstance(value, dict):
        return openai.judge(name, value)
    if value.get("error") or value.get("event_type") == "error":
        return Verdict.REFUSE
    if value.get("event_type") in _QUIET_EVENTS:
        return Verdict.CONTINUE
    inner = value.get("response")
    # Code Assist wraps each item: {"response": {"candidates": ...}, "traceId": ...}
    members = inner if isinstance(inner, dict) and not isinstance(inner.get("id"), str) else value
    if members and _QUIET_MEMBERS.issuperset(members):
        return Verdict.CONTINUE
    return openai.judge(name, value)


SIGNALS = SignalTable(rules=RULES, judge=judge, waits=WAITS, shared=True)

# -- refusals of our own

_STATUS_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
_RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"


def refusal(status: int, message: str, wait_s: float | None) -> LocalResponse:
    """`{"error": {code, message, status, details}}` with the wait as RetryInfo."""
    details: list[dict[str, Any]] = []
    if status == 402:
        # No code of google.rpc: this is how its APIs say that a project does not pay.
        status, reason = 403, {"reason": "BILLING_DISABLED", "domain": "googleapis.com"}
        details.append({"@type": _ERROR_INFO, **reason})
    error: dict[str, Any] = {
        "code": status,
        "message": message,
        "status": _STATUS_NAMES.get(status, "INTERNAL" if status >= 500 else "FAILED_PRECONDITION"),
    }
    if wait_s is not None:
        details.append({"@type": _RETRY_INFO, "retryDelay": f"{envelopes.whole_seconds(wait_s)}s"})
    if details:
        error["details"] = details
    headers = () if wait_s is None else envelopes.retry_after(wait_s)
    return envelopes.json_response(status, headers, {"error": error})


_DELAY_MEMBER = LazyPattern(r'("(?:retryDelay|quotaResetDelay)"\s*:\s*")[^"]*(")')
_DELAY_SENTENCE = LazyPattern(r"(Please retry in )[0-9][0-9a-z.]*?(?=\.?(?:[\s\"\\]|$))")


def delay_body(text: str, wait_s: float, _wall_now: float) -> str:
    """Rewrite the delays of a refusal: gemini-cli and the SDKs obey the body."""
    delay = f"{envelopes.whole_seconds(wait_s)}s"
    text = _DELAY_MEMBER.sub(rf"\g<1>{delay}\g<2>", text)
    return _DELAY_SENTENCE.sub(rf"\g<1>{delay}", text)


PROVIDER = Provider(
    name="gemini",
    hosts=(HostRule("generativelanguage.googleapis.com"),),
    env=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    route=route,
    model=model,
    credential_headers=_CREDENTIAL_HEADERS,
    credential_query=_CREDENTIAL_QUERY,
    conversation=partial(sessions.conversation, stored=STORED),
    created_ids=partial(sessions.ids_in_response, stored=STORED),
    windows=(),
    swap=swap,
    judge=judge,
    classify=SIGNALS.classify,
    signals=SIGNALS,
    refusal=refusal,
    delay=envelopes.retry_after,
    delay_body=delay_body,
)
