"""One request of our own. What is sent and what may go wrong is in `test_copilot.py` as well."""

from __future__ import annotations

import ssl

import pytest
from tests.credentials.fakes import FakeGitHub
from tests.patience import PATIENCE_S

from account_pool.credentials.http import Http, HttpAnswer, HttpFailed


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b"[" * 200_000])
def test_a_body_that_is_no_json_says_nothing(body: bytes) -> None:
    assert HttpAnswer(status=200, body=body).json() is None


async def test_a_question_and_its_answer(github: FakeGitHub) -> None:
    github.script = [(201, {"X-Name": "value"}, {"a": 1})]
    made: list[ssl.SSLContext] = []

    def trust() -> ssl.SSLContext:
        made.append(ssl.create_default_context())
        return made[-1]

    http = Http(trust=trust)
    assert made == []
    answer = await http.ask(
        "POST", github.url, headers={"x-secret": "secret"}, content=b"secret", timeout_s=PATIENCE_S
    )
    assert (answer.status, answer.headers["x-name"], answer.json()) == (201, "value", {"a": 1})
    assert "secret" not in repr(answer)
    assert github.requests[0][0] == "POST /copilot_internal/v2/token HTTP/1.1"


async def test_what_went_wrong_quotes_nothing(github: FakeGitHub) -> None:
    http = Http(trust=ssl.create_default_context)
    with pytest.raises(
        HttpFailed, match=r"cannot reach 127.0.0.1 \(LocalProtocolError\)"
    ) as caught:
        await http.ask("GET", github.url, headers={"x-secret": "sec\nret"}, timeout_s=PATIENCE_S)
    assert "sec" not in str(caught.value) and caught.value.__cause__ is None
