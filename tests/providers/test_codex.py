"""Codex with a ChatGPT login: whose request, whole swaps, named limits."""

# ruff: noqa: E501 - a table reads better with a row in a line

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.providers.outcomes import brief, classify

from account_pool.core.account import Account
from account_pool.core.credential import Credential, Secret
from account_pool.core.outcome import UpstreamResponse
from account_pool.core.sse import Verdict
from account_pool.providers.base import CannotSwap, RequestHead, Route
from account_pool.providers.codex import PROVIDER
from account_pool.providers.token_forms import jwt_expires_at

NOW = 1_790_000_000
ACCOUNT_ID = "11111111-2222-4333-8444-555555555555"


def token(**claims: Any) -> str:
    """Return a JWT with these claims, signed by nobody."""
    parts = [json.dumps({"alg": "none"}), json.dumps(claims)]
    texts = [base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts]
    return ".".join([*texts, "sk-fake-signature"])


def of_account(account_id: str = ACCOUNT_ID, **more: Any) -> str:
    auth = {"chatgpt_account_id": account_id, **more}
    return token(exp=NOW + 3600, **{"https://api.openai.com/auth": auth})


def head(method: str, path: str, **headers: str) -> RequestHead:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RequestHead(method=method, host="chatgpt.com", port=443, path=path, headers=named)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/backend-api/codex/responses", Route.POOL),
        ("POST", "/backend-api/codex/responses/compact", Route.POOL),
        ("GET", "/backend-api/codex/models", Route.POOL),
        ("GET", "/backend-api/codex/responses", Route.PASS),
        ("POST", "/backend-api/codex/models", Route.PASS),
        ("POST", "/backend-api/codex/realtime/calls", Route.PASS),
        ("POST", "/backend-api/codex/analytics-events/events", Route.PASS),
        # Codex looks for its own account there, and does not start without it.
        ("GET", "/backend-api/wham/accounts/check", Route.PASS),
        ("GET", "/backend-api/wham/usage", Route.PASS),
        ("POST", "/backend-api/ps/mcp", Route.PASS),
        ("POST", "/backend-api/conversation", Route.PASS),
        ("GET", "/", Route.PASS),
    ],
)
def test_route(method: str, path: str, expected: Route) -> None:
    asked = head(method, path, authorization=f"Bearer {of_account()}")
    assert PROVIDER.route(asked) is expected


def test_a_websocket_is_pooled_and_better_avoided() -> None:
    headers = {"upgrade": "websocket", "openai_beta": "responses_websockets=2026-02-06"}
    asked = head("GET", "/backend-api/codex/responses", **headers)
    assert PROVIDER.route(asked) is Route.POOL
    assert PROVIDER.avoids_websocket(asked)
    assert PROVIDER.route(head("GET", "/backend-api/codex/models", **headers)) is Route.PASS


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        ("Bearer placeholder", Route.POOL),
        ("bearer eyJ.eyJ.x", Route.POOL),
        # Codex in API-key mode asks here for its models.
        ("Bearer sk-proj-x", Route.PASS),
        # agent identity: signed for this task
        ("AgentAssertion eyJ", Route.PASS),
    ],
)
def test_what_cannot_be_swapped_passes(authorization: str, expected: Route) -> None:
    asked = head("GET", "/backend-api/codex/models", authorization=authorization)
    assert PROVIDER.route(asked) is expected
    assert PROVIDER.route(head("GET", "/backend-api/codex/models")) is Route.POOL


def credential(secret: str = "sk-fake-token", **companions: str) -> Credential:
    return Credential(kind="oauth", secret=Secret(secret), companions=companions)


def test_token_and_account_move_together() -> None:
    account = Account(provider="codex", label="plus")
    made = PROVIDER.swap(account, credential(account_id=ACCOUNT_ID))
    assert made.headers == (
        (b"authorization", b"Bearer sk-fake-token"),
        (b"chatgpt-account-id", ACCOUNT_ID.encode()),
    )
    # A sticky token of another account, and the mark of another kind of account, go.
    assert {b"x-codex-turn-state", b"x-openai-fedramp", b"chatgpt-account-id"} <= made.drop
    assert b"x-openai-account-routing-override" in made.drop
    fedramp = PROVIDER.swap(account, credential(account_id=ACCOUNT_ID, fedramp="true"))
    assert fedramp.headers[-1] == (b"x-openai-fedramp", b"true")


def test_half_a_swap_is_refused() -> None:
    assert "account_id" in (PROVIDER.lacking(credential()) or "")
    assert PROVIDER.lacking(credential(account_id=ACCOUNT_ID)) is None
    made = PROVIDER.swap(Account(provider="codex", label="plus"), credential())
    assert made.path is not None
    with pytest.raises(CannotSwap, match="account_id"):
        made.path("/backend-api/codex/responses")


def test_a_token_tells_its_account_and_its_end() -> None:
    made = of_account(chatgpt_account_is_fedramp=True)
    assert PROVIDER.token_companions(made) == {"account_id": ACCOUNT_ID, "fedramp": "true"}
    assert PROVIDER.token_expiry(made) == NOW + 3600
    assert PROVIDER.token_companions(of_account(chatgpt_account_is_fedramp=False)) == {
        "account_id": ACCOUNT_ID
    }


@given(st.text(max_size=40) | st.text("e.yJ0=_-", max_size=20))
def test_what_is_no_token_says_nothing(text: str) -> None:
    assert PROVIDER.token_companions(text) == {}
    assert PROVIDER.token_expiry(text) is None


@pytest.mark.parametrize("exp", [True, "soon", -1, 0, 1e300, None, [1]])
def test_a_hostile_end_is_no_end(exp: Any) -> None:
    assert jwt_expires_at(token(exp=exp)) is None


def test_the_members_of_a_workspace_share_its_credits_only() -> None:
    assert PROVIDER.holder(credential(account_id=ACCOUNT_ID)) == ACCOUNT_ID
    for kind, shared in (
        ("workspace_owner_credits_depleted", True),
        ("workspace_member_credits_depleted", True),
        ("workspace_member_usage_limit_reached", False),
        ("rate_limit_reached", False),
    ):
        headers = {"x-codex-rate-limit-reached-type": kind}
        outcome = PROVIDER.classify(UpstreamResponse(status=429, headers=headers, payload=SPENT))
        assert (brief(outcome), outcome.shared) == ("quota account -", shared)


SPENT = {"error": {"type": "usage_limit_reached", "message": "The usage limit has been reached"}}


def spent(**fields: Any) -> dict[str, Any]:
    return {"error": {**SPENT["error"], **fields}}


def windows(one: float, two: float, family: str = "codex", /, **ends: int) -> dict[str, str]:
    """Return the headers of both windows: used percent, and seconds until they end."""
    named = {"primary": one, "secondary": two}
    used = {f"x-{family}-{name}-used-percent": str(value) for name, value in named.items()}
    return used | {f"x-{family}-{name}-reset-at": str(NOW + s) for name, s in ends.items()}


@pytest.mark.parametrize(
    ("status", "headers", "payload", "expected"),
    [
        # just-every/code codex-api/src/api_bridge_tests.rs; CLIProxyAPI codex_executor_retry_test.go
        (429, {}, spent(resets_at=NOW + 900), "quota account 900"),
        (429, {}, spent(resets_in_seconds=77, resets_at=NOW - 60), "quota account 77"),
        (429, {}, spent(resets_at=NOW - 60), "quota account 0"),
        (400, {}, spent(resets_in_seconds=120), "quota account 120"),
        (402, {}, spent(), "quota account -"),
        (429, {"retry-after": "33"}, spent(), "quota account 33"),
        # the latest window that is spent; a reset of another one is information
        (429, windows(100, 100, primary=600, secondary=90000), spent(resets_in_seconds=600), "quota account 90000"),
        (429, windows(100, 40, primary=600, secondary=90000), spent(), "quota account 600"),
        (429, windows(12, 100.5, primary=600, secondary=90000), None, "quota account 90000"),
        (429, windows(12, 40, primary=600, secondary=90000), None, "rate_limit none -"),
        (429, {"x-codex-primary-used-percent": "100", "x-codex-primary-reset-after-seconds": "60"}, spent(), "quota account 60"),
        (429, {}, None, "rate_limit none -"),
        (429, {"retry-after": "5"}, {"detail": "Too many requests"}, "rate_limit account 5"),
        # named limits
        (429, {"x-codex-active-limit": "premium", **windows(100, 4, primary=60)}, spent(), "quota account 60"),
        (429, {"x-codex-active-limit": "codex"}, spent(), "quota account -"),
        (429, {"x-codex-active-limit": "codex_bengalfox", "x-codex-bengalfox-limit-name": "GPT-5.3-Codex-Spark"}, spent(), "quota account+model -"),
        (429, {"x-codex-active-limit": "Image_Gen", **windows(100, 4, "image-gen", primary=70), **windows(1, 1, primary=9)}, spent(), "quota account+model 70"),
        # a plan or an account that will not do
        (429, {}, {"error": {"type": "usage_not_included"}}, "forbidden_account account -"),
        (429, {}, {"error": {"type": "usage_not_included", "message": "This model is not included in your current plan"}}, "forbidden_account account+model -"),
        (402, {}, {"detail": {"code": "deactivated_workspace"}}, "forbidden_account account -"),
        (401, {}, {"error": {"code": "account_deactivated"}}, "forbidden_account account -"),
        (400, {}, {"detail": "The 'gpt-5-pro' model is not supported when using Codex with a ChatGPT account."}, "forbidden_account account+model -"),
        # tokens
        (401, {}, {"error": {"code": "token_expired"}}, "auth_expired account -"),
        (401, {}, {"error": {"code": "token_invalidated", "message": "has been invalidated"}}, "auth_invalid account -"),
        (401, {}, {"error": {"code": "app_session_terminated"}}, "auth_invalid account -"),
        (401, {"x-openai-authorization-error": "token_expired"}, None, "auth_expired account -"),
        (401, {"x-error-json": base64.b64encode(b'{"error":{"code":"token_expired"}}').decode()}, None, "auth_expired account -"),
        (401, {"x-error-json": base64.b64encode(b'{"error":{"code":"account_deactivated"}}').decode()}, None, "forbidden_account account -"),
        (401, {"x-error-json": "%%%"}, {"detail": "Unauthorized"}, "auth_invalid account -"),
        (400, {}, {"error": {"code": "refresh_token_reused"}}, "auth_invalid account -"),
        # nobody's limit
        (403, {}, "<html><body>Sorry, you have been blocked</body></html>", "server_error server -"),
        (429, {}, "<!DOCTYPE html><title>Error 1015</title>", "server_error server -"),
        (400, {}, {"error": {"message": "Selected model is at capacity. Please try a different model."}}, "overloaded server -"),
        (503, {}, {"error": {"code": "server_is_overloaded"}}, "overloaded server -"),
        (400, {}, {"error": {"type": "invalid_request", "code": "cyber_policy"}}, "request_error none -"),
        (400, {}, {"error": {"code": "invalid_encrypted_content"}}, "request_error none -"),
        (400, {}, {"detail": "Instructions are not valid: usage_limit_reached"}, "request_error none -"),
        (500, {}, None, "server_error server -"),
        (200, windows(100, 100, primary=600), {"id": "resp_1"}, "ok none -"),
    ],
)  # fmt: skip
def test_classify(status: int, headers: dict[str, str], payload: Any, expected: str) -> None:
    assert classify(PROVIDER, status, headers, payload, wall_now=float(NOW)) == expected


@pytest.mark.parametrize(
    ("limit", "model", "covered"),
    [
        # of a feature: text of the same model goes on
        ("image_gen", "gpt-5.5", "image_gen"),
        ("code_review", "gpt-5.5", "code_review"),
        # of a family of models: the one that was asked for
        ("codex_bengalfox", "gpt-5.3-codex-spark", None),
        ("codex_bengalfox", None, "codex_bengalfox"),
    ],
)
def test_what_a_named_limit_covers(limit: str, model: str | None, covered: str | None) -> None:
    answer = UpstreamResponse(
        status=429, headers={"x-codex-active-limit": limit}, payload=SPENT, model=model
    )
    outcome = PROVIDER.classify(answer)
    assert (outcome.scope, outcome.model) == ("account+model", covered)


def test_status_and_headers_inside_a_frame() -> None:
    frame = {
        "type": "error",
        "status": 429,
        **spent(plan_type="pro", resets_in_seconds=1234),
        "headers": {
            "x-codex-primary-used-percent": "100.0",
            "x-codex-secondary-used-percent": 87.5,
        },
    }
    assert classify(PROVIDER, 101, {}, frame, in_stream=True) == "quota account 1234"
    failed = {"type": "response.failed", "response": {"error": {"code": "usage_limit_reached"}}}
    assert classify(PROVIDER, 200, {}, failed, in_stream=True) == "quota account -"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"type": "codex.rate_limits", "rate_limits": {"limit_reached": True}}, Verdict.CONTINUE),
        ({"type": "response.metadata"}, Verdict.CONTINUE),
        ({"type": "codex.response.metadata"}, Verdict.CONTINUE),
        ({"type": "response.created"}, Verdict.CONTINUE),
        ({"type": "response.output_item.added"}, Verdict.COMMIT),
        ({"type": "error", "status": 429}, Verdict.REFUSE),
    ],
)
def test_judge(value: Any, expected: Verdict) -> None:
    assert PROVIDER.judge(None, value) is expected


def test_the_end_of_a_limit_is_told_anew() -> None:
    text = json.dumps(spent(resets_at=NOW - 60, resets_in_seconds=-1, plan_type="plus"), indent=1)
    told = json.loads(PROVIDER.delay_body(text, 30.2, NOW + 0.9))
    assert told == spent(resets_at=NOW + 31, resets_in_seconds=31, plan_type="plus")
    assert PROVIDER.instants["x-codex-primary-reset-at"](NOW + 30.2) == str(NOW + 31)


def test_a_long_wait_is_told_as_the_limit_codex_stops_at() -> None:
    short, long = PROVIDER.refusal(429, "m", 5), PROVIDER.refusal(429, "m", 5000)
    assert json.loads(short.body)["error"]["code"] == "rate_limit_exceeded"
    assert json.loads(long.body)["error"]["type"] == "usage_limit_reached"
    assert dict(long.headers)["x-should-retry"] == "false"
    for made in (short, long):
        assert (
            str(PROVIDER.classify(UpstreamResponse(status=429, payload=json.loads(made.body))).cls)
            != "ok"
        )


@pytest.mark.parametrize(
    ("written", "fine"),
    [(of_account(), True), ("sk-fake-x", True), ("sk-proj-x", False), ("sk-" + "a1" * 24, False)],
)
def test_an_api_key_is_told_where_it_belongs(written: str, fine: bool) -> None:
    where = PROVIDER.misplaced(written)
    assert (where is None) is fine
    assert where is None or written not in where
