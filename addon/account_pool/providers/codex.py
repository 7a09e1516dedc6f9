"""Codex with a ChatGPT login: chatgpt.com/backend-api/codex.

Hosts, paths and headers are those of the Codex client (openai/codex `codex-rs/core/src/
client.rs`, `codex-rs/codex-api`). A ChatGPT token only serves these paths, and goes with
the id of its account.

Windows of a plan come in headers on every response (`x-codex-primary-*`, `-secondary-*`),
in frames of a WebSocket and, when one is spent, as `usage_limit_reached` with the moment it
ends. `x-codex-active-limit` says which limit that is: with a header family of its own
(`x-codex-other-*`, `x-image-gen-*`) it is one of a model family or a feature.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from typing import Any

from account_pool.core import reset_hints
from account_pool.core.account import Account
from account_pool.core.credential import Credential
from account_pool.core.json_values import decoded, members, text_in
from account_pool.core.meaning import LazyPattern
from account_pool.core.outcome import ErrorFacts, Scope
from account_pool.core.signals import (
    AUTH_EXPIRED,
    FORBIDDEN_ACCOUNT,
    MODEL,
    QUOTA,
    RATE_LIMIT,
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
    retry_after_ms,
    rules,
)
from account_pool.providers import envelopes, openai, sessions
from account_pool.providers.base import (
    CannotSwap,
    HostRule,
    LocalResponse,
    Provider,
    RequestHead,
    Route,
    Swap,
    bearer,
    is_websocket,
)
from account_pool.providers.common_signals import COMPATIBLE_RULES
from account_pool.providers.token_forms import jwt_claims, jwt_expires_at

# -- who serves a request

_PREFIX = "/backend-api/codex"
_POOL_POST = frozenset({f"{_PREFIX}/responses", f"{_PREFIX}/responses/compact"})
_MODELS = f"{_PREFIX}/models"
_WEBSOCKET = f"{_PREFIX}/responses"


def route(head: RequestHead) -> Route:
    """Say who serves a request.

    Inference and the list of models are pooled. Everything else under `/backend-api` is about
    the login the client holds: Codex looks for its own account in `/wham/accounts/check` and
    does not start without it. With an API key it asks here for its models; what is signed
    (agent identity) cannot be made another account's.
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


def unknown_login_response(head: RequestHead) -> LocalResponse | None:
    """Tell a Codex with a placeholder login that its account is there.

    It looks for that before its first prompt, and without it sends none. A login that is
    good gets the real response. NO_CONSTRAINT: its requests go to this host, whoever
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
    return envelopes.json_response(200, (), body)


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
    auth = jwt_claims(token).get(_AUTH_CLAIM)
    if not isinstance(auth, dict):
        return {}
    companions = {}
    for name in ("account_id", "user_id"):
        if value := text_in(auth.get(f"chatgpt_{name}")):
            companions[name] = value
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
_API_KEY = LazyPattern(r"sk-(?:proj|svcacct|admin)-|sk-[A-Za-z0-9]{48}")


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
        # The region of the client's workspace, from /wham/accounts/check.
        b"x-openai-account-routing-override",
        b"x-openai-fedramp",
    }
)


def holder(credential: Credential) -> str | None:
    """Return the workspace: its credits are those of all of its members."""
    return credential.companions.get("account_id")


# -- what a response says

_I = re.IGNORECASE
_BRIDGE = "just-every/code codex-api/src/api_bridge.rs, api_bridge_tests.rs"
_LB = "Soju06/codex-lb app/core/balancer/logic.py"

# -- windows

_USED = LazyPattern(r"(?P<window>x-.+-(?:primary|secondary))-used-percent")
_MAIN = "x-codex"


def _limit_name(facts: ErrorFacts) -> str | None:
    """Return the limit that is spent if it is not the account's own.

    The value names the limit in force, on an ordinary account something like `premium`;
    one with headers of its own, or a part of Codex, is narrower than the account.
    """
    name = facts.headers.get("x-codex-active-limit", "").strip().lower()
    if name in ("", "codex"):
        return None
    family = _family(name)
    named = any(header.startswith(family + "-") for header in facts.headers)
    return name if named or name.startswith("codex_") or _FEATURE.search(name) else None


def _family(name: str) -> str:
    """Return how the headers of a limit begin: `image_gen` -> `x-image-gen`."""
    return "x-" + name.replace("_", "-")


# What a request uses besides its model. Other limits are of the model that was asked for.
_FEATURE = LazyPattern(r"image|video|audio|voice|realtime|review|search|browser|cloud_task", _I)


def _feature(facts: ErrorFacts) -> str | None:
    name = _limit_name(facts)
    return name if name and _FEATURE.search(name) else None


def _spent_windows(facts: ErrorFacts) -> list[str]:
    """Return how the headers of the spent windows begin, of the limit in force only."""
    name = _limit_name(facts)
    family = _family(name) if name else _MAIN
    return [
        found["window"]
        for header, value in facts.headers.items()
        if (found := _USED.fullmatch(header))
        and found["window"].rpartition("-")[0] == family
        and (reset_hints.seconds(value) or 0.0) >= 100.0
    ]


def _windows_end(facts: ErrorFacts) -> float | None:
    """The latest reset among the spent windows."""
    waits = []
    for window in _spent_windows(facts):
        wait = reset_hints.instant(facts.headers.get(f"{window}-reset-at"), facts.now)
        if not wait:
            after = reset_hints.seconds(facts.headers.get(f"{window}-reset-after-seconds"))
            wait = wait if after is None else after
        waits.append(wait)
    return latest(waits)


def _latest(facts: ErrorFacts) -> float | None:
    """The end of what is spent: the body's window and those of the headers, the latest."""
    waits = (body_reset(facts), _windows_end(facts))
    return max((wait for wait in waits if wait), default=None)


WAITS: tuple[Wait, ...] = (_latest, body_reset, retry_after_ms, retry_after, prose)


def _reached(facts: ErrorFacts, *types: str) -> bool:
    """Say whether `x-codex-rate-limit-reached-type` is one of *types*."""
    return facts.headers.get("x-codex-rate-limit-reached-type", "").strip().lower() in types


# -- errors of the login, in headers


def _header_error(*codes: str) -> Callable[[ErrorFacts], bool]:
    """Return a condition on the code in `x-error-json` or `x-openai-authorization-error`."""
    return lambda facts: not _header_codes(facts).isdisjoint(codes)


def _header_codes(facts: ErrorFacts) -> frozenset[str]:
    inner = members(_decoded(facts.headers.get("x-error-json", ""))).get("error")
    named = [inner.get("code"), inner.get("type")] if isinstance(inner, dict) else [inner]
    named.append(facts.headers.get("x-openai-authorization-error"))
    return frozenset(name.strip().lower() for name in named if isinstance(name, str))


def _decoded(text: str) -> Any:
    """Read JSON in base64."""
    try:
        return decoded(base64.b64decode(text[:4096] + "==", validate=False))
    except ValueError:
        return None


# -- the rules

_SPENT = frozenset({"usage_limit_reached", "usage_limit_exceeded"})
_NAMED_MODEL = LazyPattern(r"\bthe ['\"`]?([\w./:-]{1,80}?)['\"`]? model is not supported\b", _I)


def _refused_model(facts: ErrorFacts) -> str | None:
    found = _NAMED_MODEL.search(facts.message)
    return found[1] if found else None


def _is_limit(facts: ErrorFacts) -> bool:
    return facts.status == 429 or not _SPENT.isdisjoint(facts.words)


def _credits_spent(facts: ErrorFacts) -> bool:
    return _is_limit(facts) and _reached(
        facts, "workspace_owner_credits_depleted", "workspace_member_credits_depleted"
    )


def _window_spent(facts: ErrorFacts) -> bool:
    return bool(_spent_windows(facts)) or _reached(
        facts,
        *("rate_limit_reached", "workspace_owner_usage_limit_reached"),
        "workspace_member_usage_limit_reached",
    )


def _gives_no_reason(facts: ErrorFacts) -> bool:
    return not facts.words and facts.meaning is None and first_wait(facts, WAITS) is None


RULES = rules(
    _BRIDGE,
    Rule("a page of the edge: about the address or the client", SERVER_ERROR,
        status={401, 403, 429}, when=lambda facts: facts.edge),
    Rule("flagged content", REQUEST_ERROR, words={"cyber_policy", "bio_policy"},
        source="router-for-me/CLIProxyAPI codex_executor_retry_test.go"),
    Rule("not a model of this plan", FORBIDDEN_ACCOUNT, MODEL, words={"usage_not_included"},
        when=lambda facts: facts.about_model, source="Codex 429, quoted by its clients' tests"),
    Rule("the plan has no Codex", FORBIDDEN_ACCOUNT, words={"usage_not_included"}),
    Rule("the workspace or account is closed", FORBIDDEN_ACCOUNT,
        words={"deactivated_workspace", "workspace_deactivated"},
        source="Codex 402 detail.code, reported"),
    Rule("the account is closed", FORBIDDEN_ACCOUNT,
        when=_header_error("account_deactivated", "account_suspended"), source=_LB),
    Rule("a limit of a feature or a model family", QUOTA, MODEL,
        when=lambda facts: _is_limit(facts) and _limit_name(facts) is not None, model=_limit_name,
        feature=_feature),
    Rule("the credits of the workspace are spent", QUOTA, when=_credits_spent, shared=True),
    # Also as a 400.
    Rule("a window of the plan is spent", QUOTA, words=_SPENT,
        source=f"{_BRIDGE}; router-for-me/CLIProxyAPI codex_executor_retry_test.go"),
    Rule("a window of the plan is spent", QUOTA, status={429}, when=_window_spent),
    # Windows are on every response: they are no evidence by themselves.
    Rule("no window is spent and no reason given", RATE_LIMIT, Scope.NONE, status={429},
        when=_gives_no_reason, source="just-every/code codex-api/src/api_bridge.rs"),
    Rule("not a model of this plan", FORBIDDEN_ACCOUNT, MODEL, status={0, 400, 403, 404},
        phrase=r"\bmodel is not supported when using codex with a chatgpt account\b",
        model=_refused_model, source="Soju06/codex-lb"),
    Rule("the token has expired", AUTH_EXPIRED, status={401},
        when=_header_error("token_expired", "expired_token"), source=_LB),
    *openai.OPENAI_RULES,
    *COMPATIBLE_RULES,
)  # fmt: skip

SIGNALS = SignalTable(rules=RULES, judge=openai.judge, waits=WAITS)

# -- refusals of our own


def refusal(status: int, message: str, wait_s: float | None) -> LocalResponse:
    """As the OpenAI API; a long wait as the limit at which Codex stops and says so."""
    if status != 429 or wait_s is None or wait_s <= envelopes.LONG_WAIT_S:
        return openai.refusal(status, message, wait_s)
    error = {
        "type": "usage_limit_reached",
        "message": message,
        "resets_in_seconds": envelopes.whole_seconds(wait_s),
    }
    return envelopes.sdk_response(status, wait_s, {"error": error})


_WAIT = LazyPattern(r'("resets_in_seconds"\s*:\s*)-?[0-9][0-9.eE+]*')
_MOMENT = LazyPattern(r'("resets_at"\s*:\s*)-?[0-9][0-9.eE+]*')


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
    credential_headers=_CREDENTIAL_HEADERS,
    conversation=sessions.conversation,
    issued_headers=frozenset({sessions.TURN_STATE}),
    unknown_login_response=unknown_login_response,
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
    token_expiry=jwt_expires_at,
    lacking=lacking,
    holder=holder,
    companions=frozenset({"account_id"}),
)
