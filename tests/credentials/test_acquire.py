"""The project of a gemini-cli account, asked over real HTTP."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from tests.credentials.fakes import FakeClock, FakeGitHub

from account_pool.core.credential import Secret
from account_pool.credentials.acquire import CodeAssist
from account_pool.credentials.http import ExchangeFailed, ExchangeRefused, Http

TOKEN = Secret("ya29.secret")


def asking(url: str) -> CodeAssist:
    return CodeAssist(
        {"gemini-cli": url},
        wall_clock=FakeClock(),
        http=Http(trust=ssl.create_default_context),
    )


@pytest.mark.parametrize(
    "body",
    [
        {"cloudaicompanionProject": "my-project-1", "currentTier": {"id": "free-tier"}},
        {"cloudaicompanionProject": {"id": "my-project-1", "name": "x"}},
    ],
)
async def test_the_project_is_named(github: FakeGitHub, body: Any) -> None:
    github.script = [(200, {}, body)]
    code_assist = asking(github.url.partition("/copilot")[0])
    assert code_assist.handles("gemini-cli") and not code_assist.handles("gemini")
    assert await code_assist.project("gemini-cli", TOKEN) == "my-project-1"
    ((line, headers),) = github.requests
    assert line == "POST /v1internal:loadCodeAssist HTTP/1.1"
    assert headers["authorization"] == "bearer ya29.secret"
    assert headers["user-agent"].startswith("mitmproxy-account-pool/")


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        ((200, {}, {"currentTier": {"id": "standard-tier"}}), ExchangeRefused, "write project:"),
        ((200, {}, {"cloudaicompanionProject": "a b"}), ExchangeRefused, "names no project"),
        (
            (200, {}, {"ineligibleTiers": [{"reasonMessage": "UNSUPPORTED"}]}),
            ExchangeRefused,
            "does not serve this account: UNSUPPORTED",
        ),
        ((200, {}, "<html>"), ExchangeFailed, "answered with 200, and no JSON"),
        ((302, {"location": "/login"}, ""), ExchangeFailed, "answered with 302"),
        (
            (403, {}, {"error": {"message": "no ya29.secret\nhere"}}),
            ExchangeRefused,
            r"answered with 403: no \[secret\] here; write project",
        ),
        (
            (401, {}, {"error": {"message": "expired"}}),
            ExchangeFailed,
            ("answered with 401: expired"),
        ),
        ((503, {"retry-after": "9"}, ""), ExchangeFailed, "answered with 503"),
    ],
)
async def test_it_is_not(
    github: FakeGitHub, answer: Any, error: type[Exception], text: str
) -> None:
    github.script = [answer]
    with pytest.raises(error, match=text):
        await asking(github.url.partition("/copilot")[0]).project("gemini-cli", TOKEN)


async def test_nobody_there() -> None:
    with pytest.raises(ExchangeFailed, match=r"asking for its project: cannot reach 127\.0\.0\.1"):
        await asking("http://127.0.0.1:9").project("gemini-cli", TOKEN)


def test_a_token_goes_nowhere_unencrypted() -> None:
    with pytest.raises(ValueError, match="unencrypted"):
        asking("http://10.0.0.1")
