"""Gemini API keys: generativelanguage.googleapis.com.

https://ai.google.dev/api. The model of a native request is in its path. Limits are in
`gemini_signals.py`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote

from account_pool.core.account import Account
from account_pool.core.credential import Credential
from account_pool.core.signals import SignalTable
from account_pool.core.sse import Verdict
from account_pool.providers import envelopes, openai, sessions, stored_objects
from account_pool.providers.base import HostRule, LocalResponse, Provider, Route, Swap
from account_pool.providers.gemini_signals import RULES, WAITS
from account_pool.providers.request_head import (
    NO_STEP,
    RequestHead,
    bearer,
    body_model,
    body_of,
    is_websocket,
)

# -- who serves a request

_VERSION = r"/v1(?:alpha|beta)?"
# `async...` and `predictLongRunning` start operations that belong to the project.
_METHOD = (
    r"generateContent|streamGenerateContent|countTokens|embedContent|batchEmbedContents"
    r"|generateAnswer|predict|batchGenerateContent"
)
_NATIVE_POST = re.compile(rf"{_VERSION}/models/(?P<model>[^/:]+):(?:{_METHOD})")
# https://ai.google.dev/api/interactions-api; what is stored below it is in stored_objects.py.
_INTERACTIONS = re.compile(rf"{_VERSION}/interactions")
_NATIVE_GET = re.compile(rf"{NO_STEP}{_VERSION}/models(?:/[^/:]+)?")
_OPENAI_PREFIX = re.compile(rf"{_VERSION}/openai(?=/)")
_LIVE = re.compile(
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
    if stored_objects.GEMINI.route(head):
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
    return Route.PASS if stored_objects.OPENAI.route(as_openai) else openai.route(as_openai)


def model(head: RequestHead) -> str | None:
    """Return the model of the path, or of the body where the path names none.

    An interaction may name an agent instead, which has limits of its own.
    """
    native = _NATIVE_POST.fullmatch(head.path) or _MODEL_IN_PATH.match(head.path)
    if native:
        return unquote(native["model"])
    if (named := body_model(head)) or not _INTERACTIONS.fullmatch(head.path):
        return named
    body = body_of(head)
    agent = body.agent if body is not None else None
    return agent if isinstance(agent, str) and agent else None


_MODEL_IN_PATH = re.compile(rf"{_VERSION}/models/(?P<model>[^/:]+)")

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


_DELAY_MEMBER = re.compile(r'("(?:retryDelay|quotaResetDelay)"\s*:\s*")[^"]*(")')
_DELAY_SENTENCE = re.compile(r"(Please retry in )[0-9][0-9a-z.]*?(?=\.?(?:[\s\"\\]|$))")


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
    conversation=partial(sessions.conversation, stored=stored_objects.GEMINI),
    created_ids=partial(stored_objects.ids_in_response, stored=stored_objects.GEMINI),
    windows=(),
    swap=swap,
    judge=judge,
    classify=SIGNALS.classify,
    signals=SIGNALS,
    refusal=refusal,
    delay=envelopes.retry_after,
    delay_body=delay_body,
)
