"""What stands under `oauth:`, and every way it can be wrong."""

from __future__ import annotations

import asyncio
import math
import time
from datetime import UTC, date, datetime
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.credentials.token_server import said
from tests.patience import PATIENCE_S

from account_pool.core.account import AccountKey
from account_pool.core.credential import Secret
from account_pool.credentials import oauth
from account_pool.credentials.http import (
    ExchangeFailed,
    ExchangeRefused,
    Http,
    HttpFailed,
    HttpResponse,
)
from account_pool.credentials.oauth import LoginEnded, OAuthSettings, OAuthSource, Stop, post_with
from account_pool.credentials.sources import CredentialError, Reading, read_instant
from account_pool.store.store import Tokens

DECEMBER = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
OWN = {"token_url": "https://login.example.com/token", "client_id": "client"}


def written(provider: str = "codex", environ: dict[str, str] | None = None, **keys: Any) -> Any:
    return OAuthSource.from_written(provider, " My Login ", keys, environ or {})


def test_a_vendor_login_needs_its_refresh_token_only() -> None:
    source = written(refresh_token="rt", access_token="at")
    assert source.key == AccountKey("codex", "my-login")
    assert source.settings == OAuthSettings(
        token_url="https://auth.openai.com/oauth/token",
        client_id="app_EMoamEEZ73f0CkXaXp7hrann",
        style="json",
        refresh_after_s=8 * 86400,
    )
    assert source.tokens() == Tokens(access=Secret("at"), refresh=Secret("rt"))
    assert source.read_now() == Reading(secret=Secret("at"))
    assert source.describe() == "accounts.yaml"
    assert "'rt'" not in repr(source) and "'at'" not in repr(source)
    claude = written("claude-code", refresh_token="rt")
    assert claude.settings.token_url == "https://platform.claude.com/v1/oauth/token"
    assert claude.read_now() is None


def test_any_other_login_says_where_it_is_refreshed() -> None:
    environ = {"SECRET": "s3cret of mine", "RT": "rt"}
    source = written(
        "mine", environ, refresh_token="${RT}", client_secret="${SECRET}", scope="a b", **OWN
    )
    assert source.settings_now() == OAuthSettings(
        **OWN, client_secret=Secret("s3cret of mine"), scope="a b", style="form"
    )
    assert source.tokens().refresh == Secret("rt")


@pytest.mark.parametrize(
    ("provider", "keys", "wrong"),
    [
        ("codex", {}, "oauth has no refresh_token"),
        ("codex", {"refresh_token": " "}, "the value of refresh_token is not text"),
        ("codex", {"refresh_token": 5}, "the value of refresh_token is not text"),
        ("codex", {"refresh_token": "x", "sk-secret": "y"}, "oauth has an unknown key"),
        ("codex", {"refresh_token": "x", "style": "xml"}, "neither json nor form"),
        ("codex", {"refresh_token": "x", "expires_at": "soon"}, "not a point in time"),
        ("codex", {"refresh_token": "x", "token_url": "http://a.b/c"}, "travel unencrypted"),
        ("codex", {"refresh_token": "x", "client_id": "${NO}"}, "NO is not set"),
        ("mine", {"refresh_token": "x"}, "oauth has no token_url and no client_id"),
        ("gemini-cli", {"refresh_token": "x"}, "oauth has no client_id"),
    ],
)
def test_what_is_wrong(provider: str, keys: dict[str, Any], wrong: str) -> None:
    with pytest.raises(CredentialError, match=wrong) as caught:
        written(provider, **keys).read_now()
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "2026-12-01T00:00:00Z",
        "2026-12-01T01:00:00+01:00",
        "2026-12-01",
        datetime(2026, 12, 1, tzinfo=UTC),
        datetime(2026, 12, 1),
        date(2026, 12, 1),
        DECEMBER,
        int(DECEMBER),
        int(DECEMBER * 1000),
        str(int(DECEMBER)),
    ],
)
def test_spellings_of_an_instant(value: Any) -> None:
    assert read_instant(value) == DECEMBER


@pytest.mark.parametrize("value", [True, -1, float("nan"), float("inf"), 1e20, "", [], {}])
def test_what_is_no_instant(value: Any) -> None:
    with pytest.raises(CredentialError, match="not a point in time"):
        read_instant(value)


answers = st.one_of(
    st.binary(),
    st.text(),
    st.fixed_dictionaries(
        {},
        optional={
            "access_token": st.text() | st.integers() | st.none(),
            "refresh_token": st.text() | st.integers() | st.none(),
            "expires_in": st.floats() | st.integers() | st.text() | st.none() | st.booleans(),
            "error": st.text() | st.dictionaries(st.sampled_from(["code", "message"]), st.text()),
            "error_description": st.text() | st.integers(),
            "account": st.text() | st.dictionaries(st.just("uuid"), st.text() | st.integers()),
        },
    ),
)


@given(st.sampled_from([200, 400, 401, 403, 429, 500]), answers)
def test_any_answer_is_tokens_or_an_error_that_shows_none(status: int, body: Any) -> None:
    asked_with = Tokens(access=Secret("at-secret"), refresh=Secret("rt-secret"))
    answer = said(status, body.decode("latin-1") if isinstance(body, bytes) else body)
    try:
        tokens = oauth.read_tokens(answer, asked_with, 1000.0)
    except (LoginEnded, ExchangeFailed, ExchangeRefused) as error:
        assert "secret" not in str(error).replace("[secret]", "").replace("client_secret", "")
        assert str(error).isprintable()
        return
    assert status == 200
    assert tokens.refresh.reveal()
    assert tokens.expires_at is None or tokens.expires_at > 1000


# -- a proxy that stops waits for the answer of a token server, but not for ever

ANSWER = HttpResponse(status=200, headers={}, body=b"{}")


class Server:
    """Stands for `Http`: stops the proxy while it is asked, and answers when told to."""

    def __init__(self, stop: Stop, by: float, *, leaves: bool, answers: bool) -> None:
        self.stop, self.by, self.leaves, self.answers = stop, by, leaves, answers

    async def ask(self, *_: Any, sending: Any, **how: Any) -> HttpResponse:
        if self.leaves:
            sending()
        self.stop.by = self.by
        if self.answers:
            return ANSWER
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.Event().wait()
        raise AssertionError("nobody gave up")


def ask(by: float, *, leaves: bool = True, answers: bool = False) -> HttpResponse:
    stop = Stop()
    server = Server(stop, by, leaves=leaves, answers=answers)
    return post_with(cast(Http, server), stop)("https://x.test/", {}, b"", lambda: None)


def test_an_answer_that_comes_in_time_counts() -> None:
    assert ask(math.inf, answers=True) == ANSWER
    assert ask(0.0, answers=True) == ANSWER


def test_one_that_does_not_is_not_waited_for() -> None:
    by = time.monotonic() + 0.3
    with pytest.raises(HttpFailed, match="shutting down") as failed:
        ask(by)
    assert failed.value.sent
    assert time.monotonic() >= by


def test_what_has_not_left_is_not_waited_for() -> None:
    with pytest.raises(HttpFailed, match="shutting down") as failed:
        ask(math.inf, leaves=False)
    assert not failed.value.sent
