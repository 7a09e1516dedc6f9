"""What a client gets that exchanges its own token."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from tests.credentials.fakes import REAL_TOKEN, START, answer

from account_pool.credentials.placeholder import (
    no_token_answer,
    shown_to_clients,
    token_answer,
)


def test_the_answer_has_the_features_of_the_account_and_nothing_of_its_identity() -> None:
    shown = shown_to_clients(answer(), REAL_TOKEN, api_is_trusted=True)
    local = token_answer(shown, START)
    assert local.status == 200
    assert dict(local.headers)["content-type"] == "application/json; charset=utf-8"
    assert "x-github-request-id" in dict(local.headers)
    assert json.loads(local.body) == {
        "individual": True,
        "chat_enabled": True,
        "sku": "plus_monthly",
        "public_suggestions": "enabled",
        "telemetry": "disabled",
        "limited_user_quotas": None,
        "limited_user_reset_date": None,
        "endpoints": {
            "api": "https://api.individual.githubcopilot.com",
            "proxy": "https://proxy.individual.githubcopilot.com",
            "telemetry": "https://telemetry.individual.githubcopilot.com",
            "origin-tracker": "https://origin-tracker.individual.githubcopilot.com",
        },
        "expires_at": START + 1800,
        "refresh_in": 1500,
        "token": "tid=pool;exp=1800001800;sku=plus_monthly;st=dotcom;chat=1;mcp=1;8kp=1:pool",
    }


def test_an_endpoint_that_is_not_trusted_is_not_named() -> None:
    shown = shown_to_clients(
        answer(endpoints={"api": "https://x.example", "proxy": "javascript:x"}),
        REAL_TOKEN,
        api_is_trusted=False,
    )
    assert "endpoints" not in shown


@given(
    st.dictionaries(st.text(max_size=20), st.text(min_size=3, max_size=50) | st.booleans()),
    st.text(alphabet="abcdefghij=;:0123456789", max_size=80),
)
def test_unknown_texts_never_pass(extra: dict[str, str | bool], token: str) -> None:
    private = {f"x_{name}": value for name, value in extra.items()}
    shown = shown_to_clients(
        private, f"tid=private;{token};ip=private:private", api_is_trusted=True
    )
    body = json.loads(token_answer(shown, START).body)
    assert "private" not in json.dumps(body)
    assert {type(value) for name, value in body.items() if name.startswith("x_")} <= {bool}


def test_without_a_token_the_refusal_is_githubs() -> None:
    local = no_token_answer("none", 5)
    assert local.status == 503
    assert json.loads(local.body) == {"message": "none"}
    assert dict(local.headers)["retry-after"] == "5"
