"""GitHub Copilot: an API host per plan, tokens exchanged at api.github.com.

Two kinds of credential that never mix: editors send a short-lived token they got for
their GitHub token ("copilot"), the Copilot CLI the GitHub token itself ("github").
Hosts: https://docs.github.com/en/copilot/reference/copilot-allowlist-reference. Limits
are in `copilot_signals.py`.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from account_pool.core.account import Account
from account_pool.core.credential import Credential
from account_pool.core.signals import SignalTable
from account_pool.providers import anthropic, envelopes, sessions, stored_objects
from account_pool.providers.base import (
    HostRule,
    LocalAnswer,
    Origin,
    Provider,
    RequestHead,
    Route,
    Swap,
)
from account_pool.providers.copilot_signals import RULES, WAITS
from account_pool.providers.request_head import bearer, body_model, is_websocket

# -- whose business a request is

GITHUB_API = "api.github.com"
EXCHANGE_PATH = "/copilot_internal/v2/token"
# Plan and API host of an account: the Copilot CLI does not start without them.
_USER_PATH = "/copilot_internal/user"
# What GitHub serves of its own for a tenant, beside `copilot-api.<tenant>.ghe.com`.
_TENANT_API = re.compile(r"api\.[^.]+\.ghe\.com")
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
_ENGINE = re.compile(r"/v1/engines/(?P<model>[^/]+)/completions")
_POOL_WEBSOCKET = frozenset({"/responses", "/v1/responses"})
# Issued by the account that opened the session, and returned by the client later.
_SESSION_HEADERS = sessions.COPILOT_TOKENS


def route(head: RequestHead) -> Route:
    """Say whose business a request is.

    At GitHub's own API only the exchange, which is answered locally, and what an account
    is. Elsewhere inference and the list of models; agents, MCP, skills, search, telemetry
    and whatever carries a session token of the client's account pass.
    """
    if head.method == "GET" and head.path == EXCHANGE_PATH:
        return Route.LOCAL
    if any(name in head.headers for name in _SESSION_HEADERS):
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


# -- the credential


def swap(_account: Account, credential: Credential) -> Swap:
    """Put the token in `Authorization` and send it to the host of the account's plan.

    Enterprises route by these hosts, so a request must not reach another plan's.
    Completions live on a host of their own beside it.
    """
    headers = ((b"authorization", f"Bearer {credential.secret.reveal()}".encode()),)
    # GitHub's own API is where the client found it, not at the host of the plan.
    about_user = (_USER_PATH, Swap(headers=headers, drop=_DROPPED))
    host = credential.companions.get("host")
    if not host:
        return Swap(headers=headers, drop=_DROPPED)
    completions = credential.companions.get("proxy") or _completions_host(host)
    beside = Swap(headers=headers, drop=_DROPPED, origin=_origin(completions))
    by_path = (("/v1/engines/", beside), about_user)
    return Swap(headers=headers, drop=_DROPPED, origin=_origin(host), by_path=by_path)


def _completions_host(host: str) -> str:
    """Return where the completions of an API host live."""
    if host == "api.githubcopilot.com":
        return _COMPLETIONS_PROXY
    if host.startswith("api.") and host.endswith(".githubcopilot.com"):
        return "proxy." + host.removeprefix("api.")
    return host


def _origin(text: str) -> Origin:
    """Read `host` or `host:port`. Raises ValueError for anything else."""
    rule = HostRule.parse(text)
    return Origin(rule.host, rule.port)


def holder(credential: Credential) -> str | None:
    """Return the organisation that pays for the seat, if its owner wrote it down.

    Credits of Copilot Business and Enterprise are those of all of its seats.
    """
    return credential.companions.get("organization")


_DROPPED = frozenset({b"authorization", b"x-api-key"})
_CREDENTIAL_HEADERS = frozenset({*_DROPPED, *(name.encode() for name in _SESSION_HEADERS)})

# -- what an answer says


#: Copilot speaks both dialects.
SIGNALS = SignalTable(rules=RULES, judge=anthropic.judge, waits=WAITS)

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


def refusal(status: int, message: str, wait_s: float | None) -> LocalAnswer:
    """`{"error": {message, code}}` with a request id."""
    code = _CODES.get(status, "server_error" if status >= 500 else "bad_request")
    headers = () if wait_s is None else delay(wait_s)
    body = {"error": {"message": message, "code": code}}
    return envelopes.json_answer(status, (_REQUEST_ID, *headers), body)


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
    conversation=sessions.copilot,
    issued=frozenset(sessions.COPILOT_TOKENS),
    made=stored_objects.ids_in_response,
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
