"""GitHub Copilot: an API host per plan, tokens exchanged at api.github.com.

Two kinds of credential that never mix: editors send a short-lived token they got for
their GitHub token ("copilot"), the Copilot CLI the GitHub token itself ("github").
Hosts: https://docs.github.com/en/copilot/reference/copilot-allowlist-reference.

Codes of refusals are those of microsoft/vscode-copilot-chat `chatMLFetcher.ts`; what follows
a colon is the plan. One code covers windows of seconds and of days
(`user_global_rate_limited`): the key in `x-ratelimit-exceeded`, the wait and the sentence
tell which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from msgspec.structs import replace

from account_pool.core import reset_hints
from account_pool.core.account import Account
from account_pool.core.credential import Credential
from account_pool.core.headroom_parsing import snapshot_parts
from account_pool.core.json_values import members
from account_pool.core.lease import Conversation
from account_pool.core.meaning import LazyPattern
from account_pool.core.outcome import ErrorFacts, Outcome, UpstreamResponse
from account_pool.core.signals import (
    ACCOUNT,
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
    body_reset,
    first_wait,
    latest,
    prose,
    retry_after,
    rules,
)
from account_pool.core.sse import Verdict
from account_pool.providers import anthropic, envelopes, sessions
from account_pool.providers.base import (
    HostRule,
    LocalResponse,
    Origin,
    Provider,
    RequestHead,
    Route,
    Swap,
    bearer,
    body_model,
    is_websocket,
)
from account_pool.providers.common_signals import COMPATIBLE_RULES

# -- who serves a request

GITHUB_API = "api.github.com"
EXCHANGE_PATH = "/copilot_internal/v2/token"
# Plan and API host of an account: the Copilot CLI does not start without them.
_USER_PATH = "/copilot_internal/user"
# What GitHub serves of its own for a tenant, beside `copilot-api.<tenant>.ghe.com`.
_TENANT_API = LazyPattern(r"api\.[^.]+\.ghe\.com")
_COMPLETIONS_PROXY = "copilot-proxy.githubusercontent.com"

_POOL_POST = frozenset(
    {
        "/chat/completions",
        "/embeddings",
        "/responses",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/responses",
    }
)
_ENGINE = LazyPattern(r"/v1/engines/(?P<model>[^/]+)/completions")
_POOL_WEBSOCKET = frozenset({"/responses", "/v1/responses"})
# Issued by the account that opened the session, and returned by the client later:
# microsoft/vscode-copilot-chat `autoChatEndpoint.ts`, `chatMLFetcher.ts`.
_SESSION_TOKENS = ("copilot-session-token", "copilot-edits-session")


def route(head: RequestHead) -> Route:
    """Say who serves a request.

    At GitHub's own API the exchange is answered locally, and an account is asked about itself.
    Elsewhere inference and the list of models are pooled; agents, MCP, skills, search,
    telemetry and whatever carries a session token of the client's account pass.
    """
    if head.method == "GET" and head.path == EXCHANGE_PATH:
        return Route.LOCAL
    if any(name in head.headers for name in _SESSION_TOKENS):
        return Route.PASS
    if head.method == "GET" and head.path == _USER_PATH:
        return Route.POOL
    if head.host == GITHUB_API or _TENANT_API.fullmatch(head.host):
        return Route.PASS
    if head.method == "POST":
        pooled = head.path in _POOL_POST or _ENGINE.fullmatch(head.path) is not None
    elif head.method == "GET":
        websocket = is_websocket(head)
        pooled = head.path in _POOL_WEBSOCKET if websocket else head.path == "/models"
    else:
        pooled = False
    return Route.POOL if pooled else Route.PASS


def kind(head: RequestHead) -> str:
    """Tell the client's kind from its token, else from how it introduces itself.

    GitHub's own API takes no exchanged token.
    """
    if head.path.endswith(_USER_PATH):
        return "github"
    if bearer(head).startswith(_GITHUB_TOKENS):
        return "github"
    integration = head.headers.get("copilot-integration-id", "").strip().lower()
    return "github" if integration == "copilot-developer-cli" else "copilot"


_GITHUB_TOKENS = ("gho_", "ghu_", "ghp_", "github_pat_")


def model(head: RequestHead) -> str | None:
    """Return the model of the body, or of the path for completions."""
    engine = _ENGINE.fullmatch(head.path)
    return unquote(engine["model"]) if engine else body_model(head)


def conversation(head: RequestHead) -> Conversation:
    """Say what a request is a part of, and whether a tool goes on by itself.

    Only prompts of a user count. Session tokens are known to the account alone that issued them.
    """
    found = sessions.conversation(head)
    tokens = tuple(value for name in _SESSION_TOKENS if (value := head.headers.get(name)))
    return found._replace(
        named=found.named + tokens,
        sticky=None,
        follow_up=head.headers.get("x-initiator", "").strip().lower() == "agent",
    )


# -- the credential


def swap(_account: Account, credential: Credential) -> Swap:
    """Put the token in `Authorization` and send it to the host of the account's plan.

    Enterprises route by these hosts, so a request must not reach another plan's.
    Completions live on a host of their own beside it.
    """
    headers = ((b"authorization", f"Bearer {credential.secret.reveal()}".encode()),)
    where_asked = Swap(headers=headers, drop=_DROPPED)
    host = credential.companions.get("host")
    if not host:
        return where_asked
    completions = Origin.parse(credential.companions.get("proxy") or _completions_host(host))
    # GitHub's own API is where the client found it, not at the host of the plan.
    by_path = (
        ("/v1/engines/", replace(where_asked, origin=completions)),
        (_USER_PATH, where_asked),
    )
    return replace(where_asked, origin=Origin.parse(host), by_path=by_path)


def _completions_host(host: str) -> str:
    """Return where the completions of an API host live."""
    if host == "api.githubcopilot.com":
        return _COMPLETIONS_PROXY
    if host.startswith("api.") and host.endswith(".githubcopilot.com"):
        return "proxy." + host.removeprefix("api.")
    return host


def holder(credential: Credential) -> str | None:
    """Return the organisation that pays for the seat, if its owner wrote it down.

    Credits of Copilot Business and Enterprise are those of all of its seats.
    """
    return credential.companions.get("organization")


_DROPPED = frozenset({b"authorization", b"x-api-key"})
_CREDENTIAL_HEADERS = frozenset({*_DROPPED, *(name.encode() for name in _SESSION_TOKENS)})

# -- what a response says

_FETCHER = "microsoft/vscode-copilot-chat src/extension/prompt/node/chatMLFetcher.ts"
_TOKEN = "microsoft/vscode-copilot-chat src/platform/authentication/common/copilotToken.ts"  # noqa: S105

# -- reading the evidence


def limit_key(facts: ErrorFacts) -> str:
    """Return the key of `x-ratelimit-exceeded: <service>:<key>:<principal>:<plan>`.

    Such as `global-usage-5-hour-key`; "" if there is none.
    """
    parts = facts.headers.get("x-ratelimit-exceeded", "").lower().split(":")
    return parts[1] if len(parts) > 1 else parts[0]


# A key is words joined by "-", some with a date: `global-user-tps-high-2025-04-08`.
_SESSION_KEY = LazyPattern(r"\b\d+-hours?\b|\bsession\b|\bdaily\b|\bday\b")
_WEEKLY_KEY = LazyPattern(r"\bweekly\b|\bweek\b|\b7-days?\b")
_MONTHLY_KEY = LazyPattern(r"\bmonthly\b|\bmonth\b|\bquota_exceeded\b")
_MODEL_KEY = LazyPattern(r"\bmodel\b")


def _key_is(pattern: LazyPattern[str]) -> Callable[[ErrorFacts], bool]:
    return lambda facts: bool(pattern.search(limit_key(facts)))


def _user_retry_after(facts: ErrorFacts) -> float | None:
    value = facts.headers.get("x-ratelimit-user-retry-after")
    return reset_hints.retry_after(value, facts.now)


def _principal(facts: ErrorFacts) -> str:
    """Return who is limited, of `x-ratelimit-exceeded`: `userID`, `orgID`; "" if not said."""
    parts = facts.headers.get("x-ratelimit-exceeded", "").lower().split(":")
    return parts[2].strip() if len(parts) > 2 else ""


_OWNER_LIMITED = LazyPattern(r"(?:org|enterprise|business|billing)")


def _snapshots(facts: ErrorFacts) -> Iterator[Mapping[str, Any]]:
    """Yield what is left of each quota: headers (query strings) and frames.

    `ent=300&ov=0.0&ovPerm=false&rem=29.7&rst=2026-05-01T00%3A00%3A00Z`, in any order.
    """
    for name, value in facts.headers.items():
        if name.startswith(("x-usage-ratelimit-", "x-quota-snapshot-")):
            yield snapshot_parts(value)
    inside = members(members(facts.payload).get("copilot_quota_snapshots"))
    for value in list(inside.values())[:_MAX_SNAPSHOTS]:
        yield snapshot_parts(value)


_MAX_SNAPSHOTS = 16


def _spent_snapshot(facts: ErrorFacts) -> float | None:
    """The latest reset of the quotas of which nothing is left (`rem` is a percentage)."""
    return latest(
        reset_hints.instant(snapshot.get("rst"), facts.now)
        for snapshot in _snapshots(facts)
        if reset_hints.seconds(snapshot.get("rem")) == 0
        and str(snapshot.get("ent")) != "-1"
        and str(snapshot.get("ovPerm")).lower() != "true"
    )


def _monday(facts: ErrorFacts) -> float | None:
    return reset_hints.until_utc_monday(facts.now)


def _github_reset(facts: ErrorFacts) -> float | None:
    return reset_hints.reset(facts.headers.get("x-ratelimit-reset"), facts.now)


WAITS: tuple[Wait, ...] = (retry_after, _user_retry_after, prose, body_reset, _spent_snapshot)


def _is_long(facts: ErrorFacts) -> bool:
    """Say whether a code without a window is about a plan: by sentence or wait."""
    wait = first_wait(facts, WAITS)
    return max(wait or 0.0, facts.window_s or 0.0) > RATE_WINDOW_S


# -- the rules

#: Codes that cover windows of seconds and of days.
_ANY_WINDOW = frozenset({"user_global_rate_limited", "rate_limited", "agent_mode_limit_exceeded"})

RULES = rules(
    _FETCHER,
    Rule("an extension is blocked", REQUEST_ERROR, words={"extension_blocked"}),
    Rule("an extension asks for its own permission", REQUEST_ERROR, status={401},
        when=lambda facts: "authorize_url" in facts.error),
    Rule("the client is too old", REQUEST_ERROR, status={466}),
    Rule("no capacity", OVERLOADED,
        words={"model_overloaded", "service_unavailable", "upstream_provider_rate_limit"}),
    Rule("no capacity", OVERLOADED, status={0, 429, 503},
        phrase=r"\bupstream provider rate limit\b"),
    Rule("the client's integration is limited for all of its users", OVERLOADED,
        words={"integration_rate_limited"}),
    Rule("the credits of the organisation", QUOTA, status={402, 403, 429},
        when=lambda facts: bool(_OWNER_LIMITED.match(_principal(facts))), shared=True,
        source="x-ratelimit-exceeded; https://github.com/orgs/community/discussions/197605"),
    Rule("quota or spending limit", QUOTA,
        words={"additional_spend_limit_reached", "billing_not_configured", "free_quota_exceeded",
        "overage_limit_reached", "quota_exceeded", "session_quota_exceeded"}),
    Rule("the model's limit", RATE_LIMIT, MODEL, words={"user_model_rate_limited"}),
    Rule("the week of the plan", QUOTA, words={"user_weekly_rate_limited"},
        waits=(*WAITS, _monday)),
    Rule("the week of the plan", QUOTA, status={0, 402, 429}, when=_key_is(_WEEKLY_KEY),
        waits=(*WAITS, _monday), source="x-ratelimit-exceeded: global-usage-weekly-key"),
    Rule("the session window of the plan", QUOTA, status={0, 402, 429}, when=_key_is(_SESSION_KEY),
        source="x-ratelimit-exceeded: global-usage-5-hour-key"),
    Rule("the month of the plan", QUOTA, status={0, 402, 429}, when=_key_is(_MONTHLY_KEY),
        source="x-ratelimit-exceeded: quota_exceeded"),
    Rule("the model's limit", RATE_LIMIT, MODEL, status={429}, when=_key_is(_MODEL_KEY),
        source="x-ratelimit-exceeded"),
    Rule("the week of the plan", QUOTA, status={0, 429}, phrase=r"\bweekly\b|\bper week\b",
        waits=(*WAITS, _monday), source="https://github.com/orgs/community/discussions/192620"),
    Rule("a window of the plan", QUOTA, words=_ANY_WINDOW, when=_is_long,
        source="https://github.com/orgs/community/discussions/192485"),
    Rule("the model's limit", RATE_LIMIT, MODEL, words=_ANY_WINDOW,
        when=lambda facts: facts.about_model),
    Rule("rate limit", RATE_LIMIT, words=_ANY_WINDOW),
    Rule("rate limit", RATE_LIMIT, status={429}, when=lambda facts: limit_key(facts) != "",
        source="x-ratelimit-exceeded: global-user-tps-high-..."),
    Rule("GitHub's own API limit", RATE_LIMIT, ACCOUNT, status={403, 429},
        phrase=r"^(?:api|you have exceeded a secondary) rate limit\b",
        waits=(retry_after, _github_reset, prose),
        source="microsoft/vscode-copilot-chat copilotToken.spec.ts; docs.github.com/rest"),
    Rule("a problem of the vendor's own", SERVER_ERROR, status={0, 403}, words={"server_error"},
        source=_TOKEN),
    # Answered with 400, in plain text. Anchored: other 400s echo what a user wrote.
    Rule("a credential of the wrong kind", AUTH_INVALID, status={400},
        phrase=r"^checking third-party user token\b"
        r"|^(?:bad request: )?[\w ]{0,40}\baccess tokens? (?:is|are) not",
        source="api.githubcopilot.com, recorded"),
    Rule("the plan does not include this model", FORBIDDEN_ACCOUNT, MODEL, status={0, 400, 403},
        words={"model_not_supported", "model_not_available"}),
    *COMPATIBLE_RULES,
)  # fmt: skip

#: Copilot speaks both dialects.
SIGNALS = SignalTable(rules=RULES, judge=anthropic.judge, waits=WAITS)

_EXCHANGE = SignalTable(
    rules=(
        Rule("not a token of this app", FORBIDDEN_ACCOUNT, status={404},
            source="api.github.com/copilot_internal/v2/token with a PAT, recorded"),
        *RULES,
    ),
    judge=lambda _name, _value: Verdict.COMMIT,
    waits=(*WAITS, _github_reset),
)  # fmt: skip


def classify_exchange(response: UpstreamResponse) -> Outcome:
    """Say what a response of the token exchange means: there, a 404 is about the token."""
    return _EXCHANGE.classify(response)


# -- refusals of our own

_CODES = {
    401: "unauthorized",
    402: "quota_exceeded",
    403: "forbidden",
    429: "rate_limited",
    503: "service_unavailable",
}
# VS Code warns of an intercepting proxy when a 4xx comes without it.
_REQUEST_ID = ("x-github-request-id", "0000:000000:0000000:0000000:00000000")


def refusal(status: int, message: str, wait_s: float | None) -> LocalResponse:
    """`{"error": {message, code}}` with a request id."""
    code = _CODES.get(status, "server_error" if status >= 500 else "bad_request")
    headers = () if wait_s is None else delay(wait_s)
    body = {"error": {"message": message, "code": code}}
    return envelopes.json_response(status, (_REQUEST_ID, *headers), body)


def delay(wait_s: float) -> envelopes.Headers:
    """Return the wait in both headers VS Code reads."""
    seconds = str(envelopes.whole_seconds(wait_s))
    return (("retry-after", seconds), ("x-ratelimit-user-retry-after", seconds))


PROVIDER = Provider(
    name="copilot",
    hosts=(
        HostRule("githubcopilot.com", subdomains=True),
        HostRule(_COMPLETIONS_PROXY),
        HostRule(GITHUB_API),
    ),
    env=("GITHUB_TOKEN", "GH_TOKEN"),
    route=route,
    kind=kind,
    model=model,
    credential_headers=_CREDENTIAL_HEADERS,
    conversation=conversation,
    issued_headers=frozenset(_SESSION_TOKENS),
    created_ids=sessions.ids_in_response,
    windows=(
        "5h",
        "7d",
        "premium_interactions",
        "premium_models",
        "chat",
        "completions",
    ),
    swap=swap,
    judge=anthropic.judge,
    headroom_marks=(b'"copilot_quota_snapshots"',),
    classify=SIGNALS.classify,
    signals=SIGNALS,
    refusal=refusal,
    delay=delay,
    delay_headers=frozenset({"retry-after", "x-ratelimit-user-retry-after"}),
    holder=holder,
    companions=frozenset({"host", "organization"}),
)
