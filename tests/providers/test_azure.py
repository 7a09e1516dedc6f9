"""Azure: hosts of accounts only, deployments mapped in path and body, key or Entra token."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core.account import Account
from account_pool.core.credential import Credential, Secret
from account_pool.providers.azure import PROVIDER
from account_pool.providers.base import CannotSwap, Origin, RequestHead, Route, Swap

HOST = "second.openai.azure.com"
JWT = "eyJfake.eyJfake.sig"


def head(method: str, path: str, **fields: Any) -> RequestHead:
    return RequestHead(method=method, host="first.openai.azure.com", port=443, path=path, **fields)


def swap(token: str = "fake-key", deployments: dict[str, str] | None = None) -> Swap:
    companions = {"host": HOST}
    if deployments is not None:
        companions["deployments"] = json.dumps(deployments)
    account = Account(provider="azure", label="second", companions=companions)
    return PROVIDER.swap(account, Credential(kind="key", secret=Secret(token)))


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/openai/deployments/gpt/chat/completions", Route.POOL),
        ("POST", "/openai/deployments/my%20gpt/embeddings", Route.POOL),
        ("POST", "/openai/deployments/w/audio/transcriptions", Route.POOL),
        ("POST", "/openai/v1/chat/completions", Route.POOL),
        ("POST", "/openai/v1/responses", Route.POOL),
        ("POST", "/openai/responses", Route.POOL),
        ("POST", "/models/chat/completions", Route.POOL),
        ("POST", "/anthropic/v1/messages", Route.POOL),
        ("GET", "/openai/v1/models", Route.POOL),
        ("GET", "/openai/models/gpt", Route.POOL),
        ("GET", "/openai/v1/responses/resp_1", Route.POOL),
        ("POST", "/openai/v1/files", Route.POOL),
        ("POST", "/openai/assistants", Route.PASS),
        ("POST", "/openai/v1/batches", Route.POOL),
        ("PUT", "/openai/deployments/gpt", Route.PASS),
        ("POST", "/openai/deployments/a/b/chat/completions", Route.PASS),
        ("POST", "/vision/v3.2/analyze", Route.PASS),
        ("GET", "/openai/realtime", Route.PASS),
    ],
)
def test_route(method: str, path: str, expected: Route) -> None:
    assert PROVIDER.route(head(method, path)) is expected


def test_the_model_is_the_deployment() -> None:
    body = b'{"model":"in-body"}'
    path = "/openai/deployments/my%20gpt/chat/completions"
    assert PROVIDER.model(head("POST", path, body=body)) == "my gpt"
    assert PROVIDER.model(head("POST", "/openai/v1/responses", body=body)) == "in-body"


def test_a_key_goes_in_api_key_and_to_its_own_resource() -> None:
    made = swap()
    assert made.headers == ((b"api-key", b"fake-key"),)
    assert made.origin == Origin(HOST)
    assert {b"api-key", b"authorization", b"x-api-key"} <= made.drop
    assert (made.path, made.body) == (None, None)
    assert made.for_path("/anthropic/v1/messages").headers == ((b"x-api-key", b"fake-key"),)
    assert made.for_path("/anthropic/v1/messages").origin == Origin(HOST)


def test_a_token_of_entra_goes_in_authorization() -> None:
    made = swap(JWT)
    assert made.headers == ((b"authorization", f"Bearer {JWT}".encode()),)
    assert made.for_path("/anthropic/v1/messages").headers == made.headers


def test_an_account_without_a_host_serves_nobody() -> None:
    account = Account(provider="azure", label="lost")
    with pytest.raises(CannotSwap, match="azure/lost has no host"):
        PROVIDER.swap(account, Credential(kind="key", secret=Secret("x")))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/openai/deployments/gpt/chat/completions", "/openai/deployments/gpt-eu/chat/completions"),
        ("/openai/deployments/my%20gpt/embeddings", "/openai/deployments/a%2Fb%20c/embeddings"),
        ("/openai/deployments/other/embeddings", "/openai/deployments/other/embeddings"),
        ("/openai/deployments/gpt", "/openai/deployments/gpt"),
        ("/openai/v1/chat/completions", "/openai/v1/chat/completions"),
    ],
)
def test_deployments_in_the_path(path: str, expected: str) -> None:
    made = swap(deployments={"gpt": "gpt-eu", "my gpt": "a/b c"}).for_path(path)
    assert (made.path(path) if made.path else path) == expected


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (
            "/openai/v1/chat/completions",
            b'{"n": 1.10, "model" : "gpt","big":12345678901234567890,"u":"\\u00e4\\/"}',
            b'{"n":1.10,"model":"gpt-eu","big":12345678901234567890,"u":"\\u00e4\\/"}',
        ),
        ("/models/chat/completions", b'{"model":"gpt"}', b'{"model":"gpt-eu"}'),
        ("/openai/responses", b'{"model":"gpt"}', b'{"model":"gpt-eu"}'),
    ],
)
def test_deployments_in_the_body(path: str, body: bytes, expected: bytes) -> None:
    made = swap(deployments={"gpt": "gpt-eu"})
    assert made.body is not None
    assert made.body(path, body) == expected


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/openai/v1/chat/completions", b'{"model":"other"}'),
        ("/openai/v1/chat/completions", b'{"input":"gpt"}'),
        ("/openai/v1/chat/completions", b'{"model":5}'),
        ("/openai/v1/audio/transcriptions", b"--form\r\n\xff"),
        ("/openai/v1/chat/completions", b""),
    ],
)
def test_a_body_that_needs_no_change_is_the_same_object(path: str, body: bytes) -> None:
    made = swap(deployments={"gpt": "gpt-eu"})
    assert made.body is not None
    assert made.body(path, body) is body


def test_where_the_path_names_the_deployment_the_body_is_left_unread() -> None:
    made = swap(deployments={"gpt": "gpt-eu"}).for_path("/openai/deployments/gpt/audio/speech")
    assert made.body is None
    assert made.headers == ((b"api-key", b"fake-key"),)
    assert made.origin == Origin(HOST)


@given(st.binary(max_size=60), st.text(max_size=60))
def test_no_request_breaks_the_swap(body: bytes, path: str) -> None:
    made = swap(deployments={"gpt": "gpt-eu"})
    assert made.body is not None
    made.body("/openai/v1/responses", b"{" + body)
    in_path = made.for_path("/openai/deployments/x").path
    assert in_path is not None
    in_path("/openai/deployments/" + path)


def test_hosts_are_those_of_accounts() -> None:
    assert PROVIDER.host_per_account
    assert {"host", "deployments"} == PROVIDER.companions
    assert all(rule.subdomains for rule in PROVIDER.hosts)
    assert PROVIDER.env == ()


def test_refusal() -> None:
    answer = PROVIDER.refusal(429, "no account", 12)
    assert json.loads(answer.body) == {"error": {"code": "429", "message": "no account"}}
    assert dict(answer.headers)["retry-after-ms"] == "12000"
