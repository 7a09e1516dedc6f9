"""The description says what is done: every address is asked as it says, and as it does not."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance

from account_pool.admin.auth import TokenGuard
from account_pool.admin.http import AdminRequest
from account_pool.admin.models import AccountName
from account_pool.admin.openapi import SCHEMAS, document
from account_pool.admin.routes import ENDPOINTS
from account_pool.core.account import AccountKey, normalise_label
from account_pool.core.credential import Secret
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from tests.admin.helpers import HOST, PORT, TOKEN, FakeProxy, write
from tests.patience import tries

FILE = "accounts:\n  - {provider: openai, label: kept, token: sk-fake-kept-000}\n"


def test_every_schema_is_used():
    text = str(document())
    for name in SCHEMAS:
        assert f"#/components/schemas/{name}'" in text


def test_names_are_unique():
    names = [endpoint.name for endpoint in ENDPOINTS]
    assert len(set(names)) == len(names)


KEPT = AccountKey("openai", "kept")


class Hosted:
    """The server as an ASGI app, on a pool that has something of each kind to show."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory()
        self._proxy: FakeProxy | None = None

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            return
        asked = AdminRequest(
            method=scope["method"],
            target=scope["raw_path"].decode("latin-1") + _query(scope),
            headers=tuple((n, HOST.encode() if n == b"host" else v) for n, v in scope["headers"]),
            peer="127.0.0.1",
            address=("127.0.0.1", PORT),
        )
        more = True
        while more:
            message = await receive()
            asked.take(message.get("body", b""))
            more = message.get("more_body", False)
        proxy = await self._made()
        # Wrong codes would have the right token refused, too.
        proxy.guard.failures.clear()
        response = await proxy.server.answer(asked)
        head = {"type": "http.response.start", "status": response.status}
        await send({**head, "headers": list(response.headers)})
        await send({"type": "http.response.body", "body": response.body})

    async def _made(self) -> FakeProxy:
        """Return the proxy; another one when a request has removed what is to be shown."""
        known = self._proxy
        if known is None or KEPT not in [state.key for state in known.service.pool.accounts]:
            known = self._proxy = await _proxy(Path(self._folder.name))
        return known


def _query(scope) -> str:
    query = scope["query_string"].decode("latin-1")
    return f"?{query}" if query else ""


async def _proxy(folder: Path) -> FakeProxy:
    """A pool in which every kind of thing is to be shown."""
    proxy = FakeProxy(folder)
    write(proxy.main, FILE)
    await proxy._read_again()
    pool, now = proxy.service.pool, proxy.clock.now()
    limit = Outcome(cls=OutcomeClass.RATE_LIMIT, scope=Scope.MODEL, cooldown_s=60, signal="429")
    pool.health.mark_cooldown(KEPT, limit, now=now, model="gpt-5")
    proxy.service.sessions.bind("a session", KEPT, now)
    proxy.sums["2023-11-14", "openai/kept", "gpt-5"] = {"requests": 1}
    return proxy


CONFIG = SchemathesisConfig.from_dict({"headers": {"Authorization": f"Bearer {TOKEN}"}})
schema = schemathesis.openapi.from_dict(document(), config=CONFIG)
schema.app = Hosted()


@schema.parametrize()
@settings(
    max_examples=tries(15),
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_as_described(case):
    # Which providers there are, and what fits them, is in no schema.
    case.call_and_validate(
        excluded_checks=[positive_data_acceptance] if case.path == "/account-pool/add" else []
    )


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda e: e.name)
def test_the_description_names_the_refusals(endpoint):
    operation = document()["paths"][endpoint.path][endpoint.method.lower()]
    assert {"401", "403", "421", "429", "500"} <= set(operation["responses"])
    assert ("security" in operation) is (endpoint.body is not None and not endpoint.open)


def test_the_hosted_app_answers():
    """What the tests above ask is what the proxy answers."""
    guard = TokenGuard(Secret(TOKEN))
    assert guard.token.reveal() == TOKEN
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "GET", "raw_path": b"/health", "query_string": b""}
    scope["headers"] = [(b"host", b"testserver")]
    asyncio.run(Hosted()(scope, receive, send))
    assert sent[0]["status"] == 200


@pytest.mark.parametrize(
    "label",
    ["work", "a b", "a\nb\x85c\x1fd", "\x07", "a\x00b", "a\u202eb", "\x9f", " ", "\n", "中 é"],
)
def test_a_label_is_described_as_it_is_taken(label):
    pattern = AccountName.model_json_schema()["properties"]["label"]["pattern"]
    try:
        is_taken = bool(normalise_label(label))
    except ValueError:
        is_taken = False
    assert (re.search(pattern, label) is not None) is is_taken
