"""Claude subscriptions: whom they serve, whole swaps, windows."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.providers.outcomes import classify

from account_pool.core.account import Account
from account_pool.core.credential import Credential, Secret
from account_pool.core.outcome import UpstreamResponse
from account_pool.providers.anthropic import PROVIDER as ANTHROPIC
from account_pool.providers.base import RequestHead, Route, Swap
from account_pool.providers.claude_code import PROVIDER, with_flag

CLAUDE = "claude-cli/2.1.329 (external, cli)"
OURS = "11111111-2222-4333-8444-555555555555"
THEIRS = "99999999-2222-4333-8444-555555555555"
SESSION = "77777777-2222-4333-8444-555555555555"


def head(method: str = "POST", path: str = "/v1/messages", **headers: str) -> RequestHead:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named.setdefault("user-agent", CLAUDE)
    return RequestHead(method=method, host="api.anthropic.com", port=443, path=path, headers=named)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/v1/messages", Route.POOL),
        ("POST", "/v1/messages/count_tokens", Route.POOL),
        ("GET", "/v1/models", Route.POOL),
        ("GET", "/api/oauth/profile", Route.POOL),
        ("GET", "/api/oauth/claude_cli/roles", Route.POOL),
        # limited by itself: its 429 is not one of the subscription
        ("GET", "/api/oauth/usage", Route.PASS),
        ("POST", "/v1/messages/batches", Route.PASS),
        ("POST", "/v1/files", Route.PASS),
        ("GET", "/v1/files", Route.PASS),
        ("POST", "/v1/chat/completions", Route.PASS),
        ("GET", "/api/claude_code/settings", Route.PASS),
        ("POST", "/api/event_logging/v2/batch", Route.PASS),
        ("DELETE", "/v1/messages", Route.PASS),
    ],
)
def test_route(method: str, path: str, expected: Route) -> None:
    assert PROVIDER.route(head(method, path)) is expected


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (CLAUDE, Route.POOL),
        ("claude-cli/3.0.0 (external, sdk-ts)", Route.POOL),
        ("Anthropic/Python 2.11.0", Route.PASS),
        ("curl/8.5.0", Route.PASS),
        ("not-claude-cli/1", Route.PASS),
        ("", Route.PASS),
    ],
)
def test_only_claude_code_is_served(client: str, expected: Route) -> None:
    assert PROVIDER.route(head(user_agent=client, x_api_key="placeholder")) is expected


def test_a_real_login_is_asked_about_itself() -> None:
    asked = head("GET", "/api/oauth/profile", authorization="Bearer sk-ant-oat01-x")
    assert PROVIDER.route(asked) is Route.PASS


def test_clients_with_keys_are_first_offered_keys() -> None:
    """Both providers want a Claude Code with a key, only one a login."""
    with_key, with_login = head(x_api_key="k"), head(authorization="Bearer sk-ant-oat01-x")
    routes = [(p.route(with_key), p.route(with_login)) for p in (ANTHROPIC, PROVIDER)]
    assert routes == [(Route.POOL, Route.PASS), (Route.POOL, Route.POOL)]


def made(account_id: str | None = OURS) -> Swap:
    companions = {"account_id": account_id} if account_id else {}
    credential = Credential(kind="oauth", secret=Secret("sk-ant-oat01-new"), companions=companions)
    return PROVIDER.swap(Account(provider="claude-code", label="max"), credential)


def test_exactly_one_credential_header_remains() -> None:
    for path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/models"):
        swap = made().for_path(path)
        assert swap.headers == ((b"authorization", b"Bearer sk-ant-oat01-new"),)
        assert swap.drop == {b"authorization", b"x-api-key"}
        assert [name for name, _ in swap.edit] == [b"anthropic-beta"]
    assert made().for_path("/v1/models").body is None


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (None, b"oauth-2025-04-20"),
        (b"", b"oauth-2025-04-20"),
        (b"claude-code-20250219", b"claude-code-20250219,oauth-2025-04-20"),
        (b"a, oauth-2025-04-20 ,b", b"a, oauth-2025-04-20 ,b"),
    ],
)
def test_the_flag_is_added_to_those_of_the_client(sent: bytes | None, expected: bytes) -> None:
    assert with_flag(sent) == expected


OLD = "user_" + "0a" * 32 + "_account_{}_session_" + SESSION


def new(account: str) -> str:
    return json.dumps({"device_id": "d" * 64, "account_uuid": account, "session_id": SESSION})


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (rb'"user_a\u005faccount_11_session_2"', "user_a_account_OURS_session_2"),
        (rb'"user_a_account_\u0031_session_2"', "user_a_account_OURS_session_2"),
        (rb'"{\"account_uuid\":\n\"11\"}"', '{"account_uuid":"OURS"}'),
        (rb'"{\"\\u0061ccount_uuid\":\"11\",\"x\":1}"', '{"account_uuid":"OURS","x":1}'),
        (rb'"my account"', "my account"),
        (rb'"\ud800 account"', None),
    ],
)
def test_unusual_spellings_name_the_account_too(sent: bytes, expected: str | None) -> None:
    content = b'{"metadata":{"user_id":' + sent + b"}}"
    body = made("OURS").for_path("/v1/messages").body
    assert body is not None
    changed = body("/v1/messages", content)
    if expected is None:
        assert changed is content
    else:
        assert json.loads(changed) == {"metadata": {"user_id": expected}}


def request(user_id: Any) -> bytes:
    """Return a body in which the same words stand in other places as well."""
    decoy = {"metadata": {"user_id": new(THEIRS)}, "account_uuid": THEIRS}
    content = [{"type": "tool_use", "input": decoy}, {"type": "text", "text": json.dumps(decoy)}]
    body = {"model": "m", "messages": [{"content": content}], "metadata": {"user_id": user_id}}
    return json.dumps({**body, "temperature": 1.0}, indent=1, ensure_ascii=False).encode()


@pytest.mark.parametrize("theirs", [THEIRS, ""])
@pytest.mark.parametrize("ours", [OURS, None])
@pytest.mark.parametrize("spelling", [OLD.format, new])
def test_the_account_part_moves_and_nothing_else(
    spelling: Any, ours: str | None, theirs: str
) -> None:
    body = made(ours).for_path("/v1/messages").body
    assert body is not None
    assert body("/v1/messages", request(spelling(theirs))) == request(spelling(ours or ""))


def test_a_body_that_names_no_account_stays_the_same_object() -> None:
    body = made().for_path("/v1/messages").body
    assert body is not None
    for content in (
        request("somebody"),
        b"{}",
        b"",
        b"[1]",
        b'{"metadata":null}',
        b'{"metadata":{"user_id":7}}',
        b'{"metadata":{"user_id":"' + OLD.format(OURS).encode(),
    ):
        assert body("/v1/messages", content) is content


@given(st.binary(max_size=60))
def test_a_body_that_is_no_json_is_left_alone(content: bytes) -> None:
    body = made().for_path("/v1/messages").body
    assert body is not None
    assert body("/v1/messages", b"{" + content) == b"{" + content


@pytest.mark.parametrize(
    ("token", "word"),
    [
        ("sk-ant-oat01-x", None),
        ("sk-fake-x", None),
        ("sk-ant-api03-x", "anthropic"),
        ("sk-ant-ort01-x", "refresh_token"),
    ],
)
def test_misplaced_tokens_are_told_where_they_belong(token: str, word: str | None) -> None:
    where = PROVIDER.misplaced(token)
    assert (where is None) if word is None else (where is not None and word in where)
    assert where is None or token not in where


def error(kind: str, message: str = "") -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "r"}


LIMIT = error("rate_limit_error", "Rate limited.")
NOW = 1_785_510_000.0
UNIFIED = "anthropic-ratelimit-unified-"


def window(**headers: str) -> dict[str, str]:
    return {UNIFIED + name.strip("_").replace("__", "-"): v for name, v in headers.items()}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        # tombii/better-ccflare docs/routing-architecture.md
        (
            window(_5h__status="rejected", _5h__reset=f"{NOW + 600:.0f}", _7d__status="allowed"),
            "quota account 600",
        ),
        (
            window(
                _5h__status="rejected",
                _5h__reset=f"{NOW + 600:.0f}",
                _7d__status="blocked",
                _7d__reset=f"{NOW + 90000:.0f}",
            ),
            "quota account 90000",
        ),
        # The reset of an allowed window is information only.
        (
            window(
                _5h__status="rejected",
                _5h__reset=f"{NOW + 600:.0f}",
                _7d__status="allowed_warning",
                _7d__reset=f"{NOW + 90000:.0f}",
            ),
            "quota account 600",
        ),
        (
            {**window(_7d__status="rejected", _5h__status="allowed"), "retry-after": "5000"},
            "quota account 5000",
        ),
        # Both are spent, one has no reset of its own.
        (
            {
                **window(
                    _5h__status="rejected",
                    _5h__reset=f"{NOW + 600:.0f}",
                    _7d__status="rejected",
                ),
                "retry-after": "400000",
            },
            "quota account 400000",
        ),
        (
            window(
                status="rejected",
                _5h__status="allowed",
                _7d__status="allowed",
                _7d_opus__status="rejected",
                _7d_opus__reset=f"{NOW + 700:.0f}",
            ),
            "quota account+model 700",
        ),
        (
            window(status="rejected", representative__claim="seven_day", reset=f"{NOW + 60:.0f}"),
            "quota account 60",
        ),
        (
            window(
                status="rejected", representative__claim="seven_day_sonnet", _5h__status="allowed"
            ),
            "quota account+model -",
        ),
        (
            window(status="rejected", representative__claim="seven_day", _5h__status="allowed"),
            "quota account -",
        ),
        (window(status="Rejected"), "quota account -"),
        (window(_1h__status="rejected", _1h__reset=f"{NOW + 60:.0f}"), "rate_limit account 60"),
        (window(overage__disabled__reason="out_of_credits"), "quota account+model -"),
        # No window is spent: the request's own limit, or the address's.
        (window(overage__status="rejected", _5h__status="allowed"), "rate_limit none -"),
        (window(status="allowed_warning", _5h__status="allowed_warning"), "rate_limit none -"),
        ({**window(status="allowed"), "retry-after": "20"}, "rate_limit account 20"),
    ],
)
def test_windows_of_a_subscription(headers: dict[str, str], expected: str) -> None:
    assert classify(PROVIDER, 429, headers, LIMIT, wall_now=NOW) == expected


def test_a_spent_window_does_not_make_another_error_a_limit() -> None:
    headers = window(_5h__status="rejected", _5h__reset=f"{NOW + 600:.0f}")
    bad = error("invalid_request_error", "max_tokens: field required")
    assert classify(PROVIDER, 400, headers, bad, wall_now=NOW) == "request_error none -"
    overloaded = error("overloaded_error")
    got = classify(PROVIDER, 200, headers, overloaded, in_stream=True, event="error")
    assert got == "overloaded server -"


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (401, "OAuth token has expired. Please obtain a new token", "auth_expired account -"),
        (403, "OAuth token has been revoked.", "auth_invalid account -"),
        (401, "OAuth authentication is currently not supported.", "request_error none -"),
        (
            403,
            "OAuth authentication is currently not allowed for this organization.",
            "forbidden_account account -",
        ),
        (
            403,
            "This credential is only authorized for use with Claude Code and cannot be used",
            "request_error none -",
        ),
        (
            403,
            "OAuth token does not meet scope requirement user:profile",
            "request_error none -",
        ),
        (401, "Invalid bearer token", "auth_invalid account -"),
        (
            429,
            "Extra usage is required for long context requests.",
            "quota account+model -",
        ),
        (
            400,
            "The long context beta is not yet available for this subscription.",
            "forbidden_account account+model -",
        ),
    ],
)
def test_subscription_tokens(status: int, message: str, expected: str) -> None:
    assert classify(PROVIDER, status, {}, error("permission_error", message)) == expected


@pytest.mark.parametrize(
    ("window_name", "model", "covered"),
    [
        ("7d_opus", "claude-opus-5-5", "claude-*opus*"),
        ("7d_opus", None, "claude-*opus*"),
        ("7d_sonnet", "claude-sonnet-5-5", "claude-*sonnet*"),
        # A code name, and another family: what is certain is the model of the request.
        ("7d_oi", "claude-fable-5", None),
        ("7d_opus", "claude-sonnet-5-5", None),
    ],
)
def test_a_family_is_cooled_by_its_name(
    window_name: str, model: str | None, covered: str | None
) -> None:
    headers = {f"{UNIFIED}status": "rejected", f"{UNIFIED}{window_name}-status": "rejected"}
    outcome = PROVIDER.classify(
        UpstreamResponse(status=429, headers=headers, payload=LIMIT, model=model)
    )
    assert (outcome.scope, outcome.model) == ("account+model", covered)
    assert not outcome.shared


def test_what_is_no_model_does_not_cool_one() -> None:
    message = "Extra usage is required for long context requests."
    payload = error("rate_limit_error", message)
    outcome = PROVIDER.classify(
        UpstreamResponse(status=429, payload=payload, model="claude-opus-5-5")
    )
    assert outcome.model == "long-context"


def test_windows_are_told_anew_in_seconds() -> None:
    assert PROVIDER.instants[UNIFIED + "reset"](NOW + 0.5) == str(int(NOW) + 1)
    assert UNIFIED + "5h-reset" in PROVIDER.instants
