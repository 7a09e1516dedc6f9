"""OpenAI API keys: api.openai.com.

Hosts, paths and headers: https://platform.openai.com/docs/api-reference. Limits belong to
organisation, project and model (https://platform.openai.com/docs/guides/rate-limits); money
to the organisation. Services with the same API are copies of this value with other hosts
(`definition.like`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from account_pool.core.account import Account
from account_pool.core.credential import Credential
from account_pool.core.json_values import members
from account_pool.core.meaning import LazyPattern
from account_pool.core.outcome import (
    ERROR_STATUS,
    ErrorFacts,
    Scope,
    UpstreamResponse,
    read_facts,
)
from account_pool.core.signals import (
    FORBIDDEN_ACCOUNT,
    MODEL,
    OVERLOADED,
    QUOTA,
    RATE_LIMIT,
    Rule,
    SignalTable,
)
from account_pool.core.sse import Verdict
from account_pool.providers import envelopes, sessions
from account_pool.providers.base import (
    MODELS,
    HostRule,
    LocalResponse,
    Provider,
    RequestHead,
    Route,
    Swap,
    bearer,
    is_websocket,
)
from account_pool.providers.common_signals import COMPATIBLE_RULES, named_model
from account_pool.providers.sessions import StoredObjects

# -- who serves a request

#: Everything that any account can answer: inference, and the list of models, without
#: which a tool that holds a placeholder key does not start.
_POOL_POST = frozenset(
    {
        "/v1/audio/speech",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/images/edits",
        "/v1/images/generations",
        "/v1/images/variations",
        "/v1/moderations",
        "/v1/responses",
        "/v1/responses/compact",
        "/v1/responses/input_tokens",
    }
)
_POOL_WEBSOCKET = frozenset({"/v1/responses", "/v1/realtime"})


def stored_below(path: str) -> StoredObjects:
    """Return what an API as OpenAI's keeps for its accounts below *path*."""
    # https://platform.openai.com/docs/api-reference
    return StoredObjects.of(
        path,
        together=("batches", "containers", "files", "uploads", "vector_stores"),
        apart=("responses(?=/)(?!/(?:compact|input_tokens)$)", "conversations"),
    )


STORED = stored_below("/v1")


def route(head: RequestHead) -> Route:
    """Say who serves a request.

    Fine-tuning, assistants and the like belong to the client's own account and pass, as do
    `/v1/organization/*` (admin keys) and everything unknown.
    """
    if head.method == "POST" and head.path in _POOL_POST:
        return Route.POOL
    if STORED.route(head) and not is_websocket(head):
        return Route.POOL
    if head.method != "GET":
        return Route.PASS
    if is_websocket(head):
        return _websocket_route(head)
    return Route.POOL if MODELS.fullmatch(head.path) else Route.PASS


def _websocket_route(head: RequestHead) -> Route:
    if head.path not in _POOL_WEBSOCKET:
        return Route.PASS
    # An ephemeral key (`ek_`) is a session some account opened, and a key in the
    # subprotocol cannot be replaced without changing what was negotiated.
    protocols = head.headers.get("sec-websocket-protocol", "")
    if bearer(head).startswith("ek_") or "insecure-api-key" in protocols:
        return Route.PASS
    return Route.POOL


def avoids_websocket(head: RequestHead) -> bool:
    """Say whether the client is Codex, which opens a socket first.

    A 426 to its upgrade makes it use HTTP at once and for good, without a message to the
    user; inside a WebSocket not every request can be replayed.
    """
    return "responses_websockets" in head.headers.get("openai-beta", "")


# -- the credential


def swap(account: Account, credential: Credential) -> Swap:
    """Put the key in `Authorization`, and the account's organisation and project.

    Those of the client's own account go: with a foreign key they are refused.
    """
    companions = {**account.companions, **credential.companions}
    headers = [(b"authorization", f"Bearer {credential.secret.reveal()}".encode())]
    if organization := companions.get("organization"):
        headers.append((b"openai-organization", organization.encode()))
    if project := companions.get("openai_project"):
        headers.append((b"openai-project", project.encode()))
    return Swap(headers=tuple(headers), drop=_CREDENTIAL_HEADERS)


_CREDENTIAL_HEADERS = frozenset(
    {
        b"authorization",
        b"api-key",
        b"openai-organization",
        b"openai-project",
        b"x-api-key",
        # Codex returns it with an API key too: a sticky token of the account that gave it out.
        b"x-codex-turn-state",
    }
)

# -- what a response says

#: Events that may precede an error (Responses API, realtime sessions, Codex).
_QUIET_EVENTS = frozenset(
    {
        "codex.rate_limits",
        "codex.response.metadata",
        "conversation.created",
        "keepalive",
        "ping",
        "rate_limits.updated",
        "response.created",
        "response.in_progress",
        "response.metadata",
        "response.queued",
        "session.created",
        "session.updated",
    }
)


#: Codes of what went well, and members that hold an answer.
_FINE = frozenset({"0", "200", "ok", "success", "none"})
#: Where an answer says how it went: MiniMax, iFlytek, Tencent, Volcengine.
_RESULTS = (
    *(("base_resp", "status_code"), ("header", "code")),
    *(("Response", "Error"), ("ResponseMetadata", "Error")),
)
_ERROR_CODES = ("error_code", "errorCode", "errcode", "err_code")
_CONTENT = ("choices", "candidates", "content", "output", "delta", "item", "response", "data")


def judge(name: str | None, value: Any) -> Verdict:
    """Say what an event, a WebSocket frame or a JSON body is: chat, responses, errors."""
    if not isinstance(value, dict):
        # Google's dialect of this API: `[{"error": {...}}]`.
        failed = isinstance(value, list) and any(members(item).get("error") for item in value[:1])
        return Verdict.REFUSE if failed or name == "error" else Verdict.COMMIT
    event = value.get("type", name)
    # `"error": null` is part of every good response object.
    if value.get("error") or event in ("error", "response.failed") or name == "error":
        return Verdict.REFUSE
    if value.get("object") == "error":
        return Verdict.REFUSE  # vLLM, SGLang, Mistral: flat
    if event == "response.done" and members(value.get("response")).get("status") == "failed":
        return Verdict.REFUSE  # realtime
    if isinstance(event, str) and event in _QUIET_EVENTS:
        return Verdict.CONTINUE
    if not value.get("choices") and is_failure(value):
        return Verdict.REFUSE
    # Azure and Copilot begin with a chunk of filter results for the prompt.
    return Verdict.CONTINUE if value.get("choices") == [] else Verdict.COMMIT


def is_failure(value: Mapping[str, Any]) -> bool:
    """Say whether an object inside a success is a refusal although it has no `error`.

    `base_resp` and `header` say so by their codes, `Response` by an `Error`, an `error_code`
    by its name; a flat `{"code", "msg"}` by the status that is its code, or by a known meaning.
    """
    for name, code in _RESULTS:
        if not _is_fine(members(value.get(name)).get(code)):
            return True
    named = any(not _is_fine(value.get(key)) for key in _ERROR_CODES)
    named = named or value.get("success") is False or _says_so(value)
    if not named and _is_fine(value.get("code")):
        return False
    if any(value.get(key) for key in _CONTENT):
        return False
    return named or read_facts(UpstreamResponse(status=200, payload=value)).meaning is not None


def _says_so(value: Mapping[str, Any]) -> bool:
    """Say whether a sentence stands beside a code or status that is an error's."""
    if not isinstance(value.get("message") or value.get("msg"), str):
        return False
    failed = value.get("status") in ("error", "fail", "failure")
    return failed or ERROR_STATUS.fullmatch(str(value.get("code"))) is not None


def _is_fine(code: object) -> bool:
    return str(code or 0).lower() in _FINE


_CODES = "https://platform.openai.com/docs/guides/error-codes"

_ORGANISATION = LazyPattern(r"\bin organization [`'\"]?(org[-_]\w{1,64})")


def organisation(facts: ErrorFacts) -> str | None:
    """Return the organisation a sentence names: "... in organization org-x on ..."."""
    found = _ORGANISATION.search(facts.message)
    return found[1] if found else None


OPENAI_RULES: tuple[Rule, ...] = (
    Rule("no flex capacity", OVERLOADED, words={"flex_capacity_exceeded", "resource_unavailable"},
        source="https://platform.openai.com/docs/guides/flex-processing"),
    # The same code as a 503 is about the server.
    Rule("requests rose too fast", RATE_LIMIT, status={0, 429}, words={"slow_down"},
        when=lambda facts: "rate_limit_error" in facts.words, source=_CODES),
    Rule("no capacity", OVERLOADED, words={"server_is_overloaded", "slow_down"},
        source="just-every/code codex-api/src/api_bridge_tests.rs"),
    # The code may be null and the type missing; the sentence is OpenAI's own.
    Rule("out of credit", QUOTA, status={0, 429},
        phrase=r"^you exceeded your current quota\b|\baccount is not active\b|\bhard limit\b",
        waits=(), source=f"{_CODES}; waylaidwanderer/node-chatgpt-api#167"),
    Rule("the organisation may not use this model", FORBIDDEN_ACCOUNT, MODEL,
        status={400, 403, 404}, phrase=r"^your organization must be verified\b", model=named_model,
        source="https://help.openai.com/en/articles/10910291-api-organization-verification"),
)  # fmt: skip

RULES: tuple[Rule, ...] = (*OPENAI_RULES, *COMPATIBLE_RULES)


SIGNALS = SignalTable(rules=RULES, judge=judge, rate_scope=Scope.MODEL, shared=True)


def owner(headers: Mapping[str, str]) -> str | None:
    """Return whose limits a response speaks of: the organisation, or its project if named.

    https://platform.openai.com/docs/guides/rate-limits: limits are those of both.
    """
    organization, project = headers.get("openai-organization"), headers.get("openai-project")
    return f"{organization}/{project}" if organization and project else organization


# -- refusals of our own

#: Type and code by status.
ErrorNames = Mapping[int, tuple[str, str | None]]
ERROR_NAMES: ErrorNames = {
    401: ("invalid_request_error", "invalid_api_key"),
    402: ("insufficient_quota", "insufficient_quota"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
    503: ("service_unavailable_error", "server_is_overloaded"),
}


def error_object(status: int, message: str, names: ErrorNames) -> dict[str, Any]:
    """Return `{message, type, param, code}`."""
    usual = ("server_error" if status >= 500 else "invalid_request_error", None)
    type_, code = names.get(status, usual)
    return {"message": message, "type": type_, "param": None, "code": code}


def refusal(status: int, message: str, wait_s: float | None) -> LocalResponse:
    """`{"error": {message, type, param, code}}`."""
    error = error_object(status, message, ERROR_NAMES)
    # Out of credit is a 429 here as well: the code distinguishes it from a limit.
    return envelopes.sdk_response(429 if status == 402 else status, wait_s, {"error": error})


PROVIDER = Provider(
    name="openai",
    hosts=(HostRule("api.openai.com"),),
    env=("OPENAI_API_KEY",),
    route=route,
    posts=_POOL_POST,
    credential_headers=_CREDENTIAL_HEADERS,
    conversation=partial(sessions.conversation, stored=STORED),
    issued_headers=frozenset({sessions.TURN_STATE}),
    created_ids=partial(sessions.ids_in_response, stored=STORED),
    swap=swap,
    judge=judge,
    classify=SIGNALS.classify,
    signals=SIGNALS,
    refusal=refusal,
    delay=envelopes.sdk_delay,
    delay_headers=envelopes.SDK_DELAY_HEADERS,
    delay_body=envelopes.delay_sentence,
    companions=frozenset({"host", "organization", "openai_project"}),
    avoids_websocket=avoids_websocket,
    owner=owner,
)
