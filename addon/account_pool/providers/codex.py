"""Codex with a ChatGPT login: chatgpt.com/backend-api/codex.

Hosts, paths and headers are those of the Codex client (openai/codex `codex-rs/core/src/
client.rs`, `codex-rs/codex-api`). A ChatGPT token only serves these paths, and goes with
the id of its account. Limits are in `codex_signals.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from account_pool.core.account import Account
from account_pool.core.credential import Credential
from account_pool.core.signals import SignalTable
from account_pool.providers import envelopes, jwt, openai, sessions
from account_pool.providers.base import (
    CannotSwap,
    HostRule,
    LocalAnswer,
    Provider,
    RequestHead,
    Route,
    Swap,
)
from account_pool.providers.codex_signals import RULES, WAITS
from account_pool.providers.request_head import bearer, body_model, is_websocket

# -- whose business a request is

_PREFIX = "/backend-api/codex"
_POOL_POST = frozenset({f"{_PREFIX}/responses", f"{_PREFIX}/responses/compact"})
_MODELS = f"{_PREFIX}/models"
_WEBSOCKET = f"{_PREFIX}/responses"


def route(head: RequestHead) -> Route:
    """Say whose business a request is.

    Everything else under `/backend-api` is about the login the client holds: Codex looks
    for its own account in `/wham/accounts/check` and does not start without it. With an
    API key it asks here for its models; what is signed (agent identity) cannot be made
    another account's.
    """
    if bearer(head).startswith("sk-") or _is_signed(head):
        return Route.PASS
    if head.method == "POST":
        return Route.POOL if head.path in _POOL_POST else Route.PASS
    if head.method != "GET":
        return Route.PASS
    return (
        Route.POOL if head.path == (_WEBSOCKET if is_websocket(head) else _MODELS) else Route.PASS
    )


_CHECK = "/backend-api/wham/accounts/check"
_ACCOUNT = "chatgpt-account-id"


def instead(head: RequestHead) -> LocalAnswer | None:
    """Tell a Codex with a placeholder login that its account is there.

    It looks for that before its first prompt, and without it sends none. A login that is
    good gets the real answer. NO_CONSTRAINT: its requests go to this host, whoever
    serves them (null is fatal to Codex 0.169).
    """
    account_id = head.headers.get(_ACCOUNT)
    if head.method != "GET" or head.path != _CHECK or not account_id:
        return None
    account = {
        "id": account_id,
        "workspace_backend_origin": f"https://{head.host}",
        "account_routing_override": "NO_CONSTRAINT",
    }
    body = {
        "accounts": [account],
        "account_ordering": [account_id],
        "default_account_id": account_id,
    }
    return envelopes.json_answer(200, (), body)


def _is_signed(head: RequestHead) -> bool:
    """Say whether `Authorization` is not a token: `AgentAssertion <signed>`."""
    scheme = head.headers.get("authorization", "").strip().partition(" ")[0]
    return scheme.lower() not in ("", "bearer")


# -- the credential

_AUTH_CLAIM = "https://api.openai.com/auth"
_LACKS_ACCOUNT = (
    "the token does not name its ChatGPT account; write account_id: beside it "
    "(tokens.account_id in ~/.codex/auth.json)"
)


def token_companions(token: str) -> Mapping[str, str]:
    """Return the account and the user a token names, and whether it is one of FedRAMP."""
    auth = jwt.claims(token).get(_AUTH_CLAIM)
    if not isinstance(auth, dict):
        return {}
    companions = {}
    if isinstance(account_id := auth.get("chatgpt_account_id"), str) and account_id:
        companions["account_id"] = account_id
    if isinstance(user_id := auth.get("chatgpt_user_id"), str) and user_id:
        companions["user_id"] = user_id
    if auth.get("chatgpt_account_is_fedramp") is True:
        companions["fedramp"] = "true"
    return companions


def lacking(credential: Credential) -> str | None:
    """Say that the account id is missing: with a token alone every request is refused."""
    return None if credential.companions.get("account_id") else _LACKS_ACCOUNT


def misplaced(token: str) -> str | None:
    """Say where an API key belongs."""
    if _API_KEY.match(token):
        return "it is an API key: write provider: openai"
    return None


# https://platform.openai.com/docs/api-reference/authentication, and the keys before 2024.
_API_KEY = re.compile(r"sk-(?:proj|svcacct|admin)-|sk-[A-Za-z0-9]{48}")


def swap(_account: Account, credential: Credential) -> Swap:
    """Put token and account id in place of the client's, together or not at all.

    `x-codex-turn-state` is a sticky token of the account that gave it out: another
    account must not see it, and without it a turn goes on all the same.
    """
    companions = credential.companions
    if lacking(credential):
        return Swap(headers=(), drop=_CREDENTIAL_HEADERS, path=_refuse)
    headers = [
        (b"authorization", f"Bearer {credential.secret.reveal()}".encode()),
        (b"chatgpt-account-id", companions["account_id"].encode()),
    ]
    if companions.get("fedramp") == "true":
        headers.append((b"x-openai-fedramp", b"true"))
    return Swap(headers=tuple(headers), drop=_CREDENTIAL_HEADERS)


def _refuse(_path: str) -> str:
    raise CannotSwap(_LACKS_ACCOUNT)


_CREDENTIAL_HEADERS = frozenset(
    {
        b"authorization",
        b"chatgpt-account-id",
        b"openai-organization",
        b"openai-project",
        b"x-codex-turn-state",
        # The region of the client's workspace, as /wham/accounts/check told it.
        b"x-openai-account-routing-override",
        b"x-openai-fedramp",
    }
)


def holder(credential: Credential) -> str | None:
    """Return the workspace: its credits are those of all of its members."""
    return credential.companions.get("account_id")


# -- what an answer says

SIGNALS = SignalTable(rules=RULES, judge=openai.judge, waits=WAITS)

# -- refusals of our own


def refusal(status: int, message: str, wait_s: float | None) -> LocalAnswer:
    """As the OpenAI API; a long wait as the limit at which Codex stops and says so."""
    if status != 429 or wait_s is None or wait_s <= envelopes.LONG_WAIT_S:
        return openai.refusal(status, message, wait_s)
    error = {
        "type": "usage_limit_reached",
        "message": message,
        "resets_in_seconds": envelopes.whole_seconds(wait_s),
    }
    return envelopes.sdk_answer(status, wait_s, {"error": error})


_WAIT = re.compile(r'("resets_in_seconds"\s*:\s*)-?[0-9][0-9.eE+]*')
_MOMENT = re.compile(r'("resets_at"\s*:\s*)-?[0-9][0-9.eE+]*')


def delay_body(text: str, wait_s: float, wall_now: float) -> str:
    """Rewrite when the limit ends: Codex shows `resets_at` to its user."""
    seconds = envelopes.whole_seconds(wait_s)
    text = _WAIT.sub(rf"\g<1>{seconds}", text)
    return _MOMENT.sub(rf"\g<1>{int(wall_now) + seconds}", text)


PROVIDER = Provider(
    name="codex",
    hosts=(HostRule("chatgpt.com"),),
    env=(),
    route=route,
    kind=lambda _head: "oauth",
    model=body_model,
    credential_headers=_CREDENTIAL_HEADERS,
    conversation=sessions.conversation,
    issued=frozenset({sessions.TURN_STATE}),
    instead=instead,
    windows=("5h", "7d", "primary", "secondary"),
    swap=swap,
    judge=openai.judge,
    headroom_marks=(b'"codex.rate_limits"', b'"x-codex-'),
    classify=SIGNALS.classify,
    signals=SIGNALS,
    refusal=refusal,
    delay=envelopes.sdk_delay,
    delay_headers=envelopes.SDK_DELAY_HEADERS,
    avoids_websocket=openai.avoids_websocket,
    delay_body=delay_body,
    instants={
        "x-codex-primary-reset-at": envelopes.epoch_seconds,
        "x-codex-secondary-reset-at": envelopes.epoch_seconds,
    },
    token_kind="oauth",  # noqa: S106 - the word
    misplaced=misplaced,
    token_companions=token_companions,
    token_expiry=jwt.expires_at,
    lacking=lacking,
    holder=holder,
    companions=frozenset({"account_id"}),
)
