"""What the endpoints do, from a request to its response."""

from __future__ import annotations

import asyncio
import json

import pytest
from mitmproxy import version

from account_pool import __version__
from account_pool.admin import app, routes
from account_pool.admin.auth import MAX_CODES, MAX_FAILURES, Rules
from account_pool.admin.http import MAX_BODY_BYTES
from account_pool.admin.routes import ENDPOINTS
from account_pool.admin.views import iso
from account_pool.config.loader import load
from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential, Secret
from account_pool.core.decision_text import line
from account_pool.core.fleet import AboutProxy, ProxyRow
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.credentials.vendor_logins import VENDORS
from account_pool.store.store import StoreError
from account_pool.supervision import Failed, tasks
from tests.admin.helpers import HOST, TOKEN, FakeProxy, code, told, write
from tests.patience import PATIENCE_S
from tests.proxy.helpers import account, secret

FACTS = RequestFacts(provider="openai", kind="key", model="gpt-5")
LIMIT = Outcome(cls=OutcomeClass.RATE_LIMIT, scope=Scope.ACCOUNT, cooldown_s=60, signal="429")
NEW = {"provider": "openai", "label": "New one", "token": "sk-fake-new-000"}
FILE = "accounts:\n  # the first\n  - {provider: openai, label: one, token: sk-fake-one-000}\n"


def keys(proxy) -> list[str]:
    return [str(state.key) for state in proxy.service.pool.accounts]


def one(proxy):
    return proxy.service.pool.accounts.get(AccountKey("openai", "one"))


# -- to look at


@pytest.mark.parametrize(
    "target",
    ["/account-pool", "/account-pool/openai", "/decisions", "/sessions", "/usage", "/health"],
)
async def test_reading_needs_no_token_here(proxy, target):
    reply = await proxy.ask(target)
    assert reply.status == 200
    assert dict(reply.headers)[b"content-type"] == b"application/json"
    assert dict(reply.headers)[b"cache-control"] == b"no-store"
    assert not [name for name, _ in reply.headers if name.startswith(b"access-control")]


async def test_the_accounts(proxy):
    pool = told(await proxy.ask("/account-pool"))
    assert [a["key"] for a in pool["accounts"]] == ["openai/one", "openai/two"]
    openai = told(await proxy.ask("/account-pool/OpenAI"))
    assert openai["summary"] == pool["summary"] == pool["providers"]["openai"]


async def test_health(proxy):
    lease = proxy.service.pool.acquire(FACTS, now=proxy.clock.now())
    proxy.clock.advance(5)
    health = told(await proxy.ask("/health"))
    assert {"status": "ok", "uptime_s": 5.0, "size": 2, "busy": 1, "ready": True}.items() <= (
        health.items()
    )
    assert health["stopping"] is False
    assert health["instance"] == told(await proxy.ask("/health"))["instance"]
    proxy.service.pool.release(lease, None, now=proxy.clock.now())


async def test_health_tells_of_tasks_that_failed(proxy, monkeypatch):
    failed = {"keeping": Failed(failures=2, error="ValueError", running=True)}
    monkeypatch.setattr(tasks, "failed", failed)
    proxy.service.stop()
    health = told(await proxy.ask("/health"))
    assert health["stopping"]
    assert health["failed_tasks"] == [
        {"name": "keeping", "failures": 2, "error": "ValueError", "running": True}
    ]


async def test_health_tells_why_the_state_is_not_kept(proxy):
    assert told(await proxy.ask("/health"))["state_problem"] is None
    proxy.service.state_problem = lambda: "the state database x is locked"
    for path in ("/health", "/account-pool"):
        assert told(await proxy.ask(path))["state_problem"] == "the state database x is locked"


async def test_proxies(proxy):
    clock, fleet = proxy.clock, proxy.service.fleet
    about = AboutProxy(
        name="host-b:8080", instance="b", version="9.9", mitmproxy="12.3.1", uptime_s=60.0
    )
    rows = [
        ProxyRow(proxy="b", about=about, seen_s=2.0, in_flight=3, is_running=True),
        ProxyRow(proxy="c", about=AboutProxy(name="host-c"), seen_s=80.0, is_running=False),
    ]
    fleet.kind, fleet.port = "file", 8080
    fleet.heard(rows, clock.now())
    clock.advance(1)
    answer = told(await proxy.ask("/proxies"))
    mine, theirs, gone = answer["proxies"]
    assert (mine["this"], mine["state"], mine["seen_s"]) == (True, "running", 0.0)
    assert (mine["version"], mine["mitmproxy"]) == (__version__, version.VERSION)
    assert theirs == {
        "key": theirs["key"], "name": "host-b:8080", "this": False, "state": "running",
        "version": "9.9", "mitmproxy": "12.3.1", "started_s": 63.0, "seen_s": 3.0, "workers": 1,
        "started_at": iso(clock.wall_now() - 63), "seen_at": iso(clock.wall_now() - 3),
        "in_flight": 3, "problem": None, "same_accounts": None,
    }  # fmt: skip
    assert (gone["name"], gone["state"], gone["version"]) == ("host-c", "gone", "unknown")
    assert gone["started_at"] is None
    assert answer["summary"] == {
        "running": 2, "stopping": 0, "gone": 1, "unknown": 0, "in_flight": 3,
    }  # fmt: skip
    assert answer["versions"] == sorted([__version__, "9.9"])
    file = {"kind": "file", "server": None, "problem": None, "is_known": True}
    assert answer["store"] == file
    fleet.kind, fleet.server = "engine", "state.example:6379"
    assert told(await proxy.ask("/proxies"))["store"] == {
        **file, "kind": "engine", "server": "state.example:6379",
    }  # fmt: skip


async def test_proxies_where_the_store_cannot_be_asked(proxy):
    row = ProxyRow(proxy="b", about=AboutProxy(name="b"), seen_s=2.0, is_running=True)
    proxy.service.fleet.heard([row], proxy.clock.now())
    proxy.service.fleet.lost()
    proxy.service.state_problem = lambda: "the state database x is locked"
    answer = told(await proxy.ask("/proxies"))
    assert [one["state"] for one in answer["proxies"]] == ["running", "unknown"]
    assert answer["proxies"][0]["problem"] == answer["store"]["problem"]
    assert (answer["store"]["is_known"], answer["summary"]["unknown"]) == (False, 1)


async def test_decisions(proxy):
    pool, now = proxy.service.pool, proxy.clock.now()
    for label in ("one", "two"):
        pool.health.mark_cooldown(AccountKey("openai", label), LIMIT, now=now)
    await proxy.ask("/account-pool/clear-cooldown", {"provider": "openai", "label": "one"})
    everything = told(await proxy.ask("/decisions"))
    rows = everything["decisions"]
    assert [(r["number"], r["kind"], r["account"]) for r in rows] == [
        (3, "release", "openai/one"), (2, "cooldown", "openai/two"), (1, "cooldown", "openai/one"),
    ]  # fmt: skip
    assert rows[1]["at"] == "2023-11-14T22:30:00.000Z"
    assert rows[1]["until"] == "2023-11-14T22:31:00.000Z"
    assert rows[1]["text"] == next(line(d) for d in pool.decisions if d.number == 2)
    assert (rows[2]["released_by"], rows[1]["released_by"]) == ("hand", None)
    assert everything["next"] == 3
    for query, numbers in (
        ("since=2", [3]), ("since=3", []), ("limit=1", [3]), ("kind=cooldown", [2, 1]),
        ("account=openai/one", [3, 1]), ("account=openai/one&kind=cooldown&limit=5", [1]),
    ):  # fmt: skip
        found = told(await proxy.ask(f"/decisions?{query}"))["decisions"]
        assert [row["number"] for row in found] == numbers
    metrics = (await proxy.ask("/metrics")).body.decode()
    assert 'account_pool_decisions_total{kind="cooldown",provider="openai"} 2.0' in metrics


async def test_usage(proxy):
    wall_now = proxy.clock.wall_now()
    assert wall_now == 1_700_001_000  # 2023-11-14
    for day in ("2023-11-14", "2023-11-13", "2023-10-01"):
        proxy.sums[day, "openai/one", "gpt-5"] = {"requests": 1}
    assert len(told(await proxy.ask("/usage?days=400"))["days"]) == 3
    assert [d["day"] for d in told(await proxy.ask("/usage?days=1"))["days"]] == ["2023-11-14"]
    pool = told(await proxy.ask("/account-pool"))
    assert [a["usage"]["requests"] for a in pool["accounts"]] == [1, 0]


async def test_the_dashboard_has_a_policy_of_its_own(proxy):
    reply = await proxy.ask("/")
    policies = [value for name, value in reply.headers if name == b"content-security-policy"]
    assert reply.status == 200
    assert len(policies) == 1
    assert b"script-src 'sha256-" in policies[0]


# -- what is refused


@pytest.mark.parametrize(
    ("target", "status", "expected"),
    [
        ("/nothing", 404, "not_found"),
        ("//account-pool", 404, "not_found"),
        ("/account-pool/", 404, "not_found"),
        ("/./account-pool", 404, "not_found"),
        ("/account-pool/../health", 404, "not_found"),
        ("/account-pool/..%2fhealth", 404, "not_found"),
        ("/account-pool%2fopenai", 200, ""),
        ("/account-pool/openai%00", 404, "unknown_provider"),
        ("/account-pool/%ff%fe", 404, "unknown_provider"),
        ("/account-pool/%0d%0ax-injected:1", 404, "unknown_provider"),
        ("*", 404, "not_found"),
        ("", 404, "not_found"),
        ("http://evil.example/account-pool", 404, "not_found"),
        ("/account-pool/nobody", 404, "unknown_provider"),
        ("/account-pool/add", 405, "wrong_method"),
        ("/sessions/close", 405, "wrong_method"),
        ("/decisions?limit=0", 422, "invalid"),
        ("/decisions?limit=many", 422, "invalid"),
        ("/decisions?since=-1", 422, "invalid"),
        ("/decisions?kind=nothing", 422, "invalid"),
        ("/decisions?unknown=1", 422, "invalid"),
        ("/decisions?limit=1&limit=2", 422, "invalid"),
        ("/usage?days=100000", 422, "invalid"),
        ("/sessions?limit=-5", 422, "invalid"),
    ],
)
async def test_addresses(proxy, target, status, expected):
    reply = await proxy.ask(target)
    assert reply.status == status
    assert not expected or code(reply) == expected
    assert b"x-injected" not in dict(reply.headers)


def guarded():
    return [e for e in ENDPOINTS if e.body and not e.open]


@pytest.mark.parametrize("endpoint", guarded(), ids=lambda e: e.name)
async def test_no_change_without_the_token(proxy, endpoint):
    before, proxy.rules = keys(proxy), Rules(reveal=True)
    for settings in ({"token": ""}, {"token": "wrong"}, {"method": "PUT"}, {"method": "DELETE"}):
        reply = await proxy.ask(endpoint.path, {}, **settings)
        assert reply.status in (401, 405)
    assert (await proxy.ask(endpoint.path, {"what": 1})).status == 422
    form = {"content-type": "text/plain"}
    assert (await proxy.ask(endpoint.path, b"{}", headers=form)).status == 415
    assert (await proxy.ask(endpoint.path, {}, headers={"origin": "http://evil"})).status == 403
    assert (await proxy.ask(endpoint.path, {}, headers={"host": "evil:8080"})).status == 421
    assert (await proxy.ask(endpoint.path, b" " * (MAX_BODY_BYTES + 1))).status == 413
    assert keys(proxy) == before


@pytest.mark.parametrize("target", ["/health", "/account-pool", "/", "/metrics", "/openapi.json"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"])
async def test_what_reads_takes_no_other_method(proxy, target, method):
    reply = await proxy.ask(target, {}, method=method)
    assert (reply.status, code(reply)) == (405, "wrong_method")
    assert dict(reply.headers)[b"allow"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"{", 400), (b"\xff\xfe", 400), (b'{"provider": NaN}', 400),
        (b'{"provider": "\\ud800"}', 400), (b"[" * 60_000, 400),
        (b'{"provider":' * 200 + b"1" + b"}" * 200, 422),
        (b"[]", 422), (b'"text"', 422), (b"null", 422), (b"{}", 422),
        (b'{"provider": 1, "label": "x"}', 422), (b'{"provider": "openai"}', 422),
        (b'{"provider": "", "label": "x"}', 422),
        (b'{"provider": "openai", "label": "  "}', 422),
        (b'{"provider": "openai", "label": "one", "more": 1}', 422),
        (b'{"provider": "openai", "label": "nobody"}', 404),
        (b'{"provider": "nobody", "label": "one"}', 404),
    ],
)  # fmt: skip
async def test_bodies(proxy, body, status):
    reply = await proxy.ask("/account-pool/disable", body)
    assert reply.status == status
    assert one(proxy).enabled


async def test_from_another_machine(proxy):
    place = {"peer": "192.168.1.9", "address": ("192.168.1.5", 8080)}
    named = {"host": "192.168.1.5:8080"}
    assert code(await proxy.ask("/account-pool", headers=named, **place)) == "not_local"
    proxy.rules = Rules(remote=True)
    assert code(await proxy.ask("/account-pool", headers=named, **place)) == "no_token"
    reply = await proxy.ask("/account-pool", headers=named, token=TOKEN, **place)
    assert reply.status == 200


async def test_guesses_end_in_429(proxy):
    for _ in range(MAX_FAILURES):
        assert (await proxy.ask("/account-pool/next", {}, token="guess")).status == 401
    reply = await proxy.ask("/account-pool/next", {"provider": "openai"})
    assert reply.status == 429
    assert dict(reply.headers)[b"retry-after"] == b"61"
    assert (await proxy.ask("/account-pool")).status == 200


async def test_a_mistake_of_ours_is_a_500_without_its_text(proxy, caplog):
    async def fail():
        raise RuntimeError("sk-fake-one-000")

    await proxy.ask("/health")
    proxy._usage = fail
    proxy.service.pool.accounts.providers = None
    reply = await proxy.ask("/account-pool")
    assert (reply.status, code(reply)) == (500, "internal")
    assert "in an admin page at" in caplog.text
    assert "sk-fake" not in caplog.text


# -- to change


async def test_next(proxy):
    key = Credential(kind="key", secret=Secret("sk-fake-peer-000"))
    proxy.service.pool.accounts.add(account("peer"), {"key": key}, now=proxy.clock.now())
    reply = await proxy.ask("/account-pool/next", {"provider": "OpenAI"})
    assert told(reply) == {"next": "openai/peer"}
    assert code(await proxy.ask("/account-pool/next", {"provider": "x"})) == "unknown_provider"


async def test_clear_cooldown(proxy):
    proxy.service.pool.health.mark_cooldown(one(proxy).key, LIMIT, now=proxy.clock.now())
    reply = told(
        await proxy.ask("/account-pool/clear-cooldown", {"provider": "openai", "label": " ONE "})
    )
    assert [(c["signal"], c["remaining_s"]) for c in reply["cleared"]] == [("429", 60.0)]
    assert reply["account"]["state"] == "available"


async def test_disable_and_enable(proxy):
    name = {"provider": "openai", "label": "one"}
    proxy.service.pool.health.mark_cooldown(one(proxy).key, LIMIT, now=proxy.clock.now())
    reply = told(await proxy.ask("/account-pool/disable", name))
    assert (reply["account"]["state"], reply["account"]["reason"]) == ("disabled", "by hand")
    lease = proxy.service.pool.acquire(FACTS, now=proxy.clock.now())
    assert lease.key.label == "two"
    proxy.service.pool.release(lease, None, now=proxy.clock.now())
    # What cools goes on cooling.
    assert told(await proxy.ask("/account-pool/enable", name))["account"]["state"] == "cooling"


async def test_what_accounts_yaml_switched_off_is_switched_on_there(tmp_path):
    proxy = FakeProxy(tmp_path)
    write(proxy.main, FILE + "  - {provider: openai, label: x, token: t, enabled: false}\n")
    await proxy._read_again()
    reply = await proxy.ask("/account-pool/enable", {"provider": "openai", "label": "x"})
    assert (reply.status, code(reply)) == (409, "off")


async def test_close_a_session(proxy):
    proxy.service.sessions.bind("abc", one(proxy).key, proxy.clock.now())
    assert [s["key"] for s in told(await proxy.ask("/sessions"))["sessions"]] == ["abc"]
    assert told(await proxy.ask("/sessions/close", {"key": "abc"})) == {"closed": "abc"}
    assert code(await proxy.ask("/sessions/close", {"key": "abc"})) == "unknown_session"


async def test_pin_a_session(proxy):
    sessions, now = proxy.service.sessions, proxy.clock.now()
    sessions.bind("abc:openai", one(proxy).key, now)
    sessions.bind("abc:openai:gpt-5", one(proxy).key, now)
    two = {"provider": "openai", "label": "two"}
    pinned = {"key": "abc:openai", "account": "openai/two"}
    assert told(await proxy.ask("/sessions/pin", {**two, "key": "abc:openai:gpt-5"})) == pinned
    rows = told(await proxy.ask("/sessions"))["sessions"]
    assert {row["pinned"] for row in rows} == {True}
    # Also the key of a model that another account has served.
    assert {row["account"] for row in rows} == {"openai/two"}
    assert proxy.service.pins.session_owner("openai", "abc") == AccountKey("openai", "two")
    # One that has not begun, by the client's own id.
    assert told(await proxy.ask("/sessions/pin", {**two, "session": "new"}))["key"] == "new:openai"
    assert proxy.service.pins.pinned_to("openai", "new")
    # Closed, it is pinned no more.
    assert (await proxy.ask("/sessions/close", {"key": "abc:openai"})).status == 200
    assert not proxy.service.pins.pinned_to("openai", "abc")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"label": "two"}, "invalid"),
        ({"label": "two", "key": "abc:openai", "session": "abc"}, "invalid"),
        ({"label": "two", "key": ""}, "invalid"),
        ({"label": "nobody", "session": "abc"}, "unknown_account"),
        ({"label": "two", "key": "unknown:openai"}, "unknown_session"),
        ({"label": "two", "key": "abc:azure"}, "unknown_session"),
    ],
)
async def test_what_cannot_be_pinned(proxy, body, expected):
    proxy.service.sessions.bind("abc:openai", one(proxy).key, proxy.clock.now())
    reply = await proxy.ask("/sessions/pin", {"provider": "openai", **body})
    assert code(reply) == expected
    assert not proxy.service.pins.has_sessions


async def test_credentials_are_shown_when_the_owner_says_so(proxy):
    name = {"provider": "openai", "label": "one"}
    for path in ("/account-pool/reveal", "/account-pool/revea%6c"):
        assert code(await proxy.ask(path, name)) == "not_shown"
    proxy.rules = Rules(remote=True, reveal=True)
    assert (await proxy.ask("/account-pool/reveal", name, token="")).status == 401
    place = {"peer": "192.168.1.9", "headers": {"host": HOST}}
    assert code(await proxy.ask("/account-pool/reveal", name, **place)) == "not_local"
    shown = told(await proxy.ask("/account-pool/reveal", name))
    assert shown == {"key": "openai/one", "credentials": {"key": secret("one")}}


# -- accounts

#: What sent any variable to any address.
ELSEWHERE = {"refresh_token": "${FAKE_VARIABLE}", "token_url": "https://elsewhere.example/token"}


def nested(depth: int) -> dict:
    value: dict = {}
    for _ in range(depth):
        value = {"a": value}
    return value


async def test_an_addition_is_written_to_accounts_yaml(tmp_path):
    proxy = FakeProxy(tmp_path)
    write(proxy.main, FILE)
    await proxy._read_again()
    reply = await proxy.ask("/account-pool/add", {**NEW, "priority": 3, "models": ["gpt-*"]})
    assert reply.status == 201
    assert told(reply)["written_to"] == "accounts.yaml"
    added = told(reply)["account"]
    assert (added["key"], added["priority"], added["models"]) == (
        "openai/new-one", 3, ["gpt-*"],
    )  # fmt: skip
    assert proxy.main.read_text().startswith(FILE)
    assert (tmp_path / "accounts.yaml.bak").read_text() == FILE
    assert keys(proxy) == ["openai/one", "openai/new-one"]
    assert b"sk-fake" not in reply.body
    assert code(await proxy.ask("/account-pool/add", NEW)) == "exists"


@pytest.mark.parametrize("text", [None, FILE])
async def test_an_addition_is_written_to_the_store(tmp_path, text):
    """Where there is no accounts.yaml, or it is read-only."""
    proxy = FakeProxy(tmp_path)
    if text is not None:
        write(proxy.main, text)
        proxy.main.chmod(0o400)
    reply = told(await proxy.ask("/account-pool/add", NEW))
    assert reply["written_to"] == "store"
    assert "openai/new-one" in keys(proxy)
    assert (proxy.main.read_text() if text else None) == text
    written = tmp_path / "state.sqlite.accounts.yaml"
    assert written.stat().st_mode & 0o777 == 0o600
    assert [str(e.account.key) for e in load(written, {}).accounts] == ["openai/new-one"]
    # The last one takes the file along: an empty list is a mistake.
    name = {"provider": "openai", "label": "new-one"}
    assert told(await proxy.ask("/account-pool/remove", name))["written_to"] == "store"
    assert not written.exists()


async def test_without_a_store_it_goes_with_the_proxy(tmp_path):
    proxy = FakeProxy(tmp_path, in_memory=True)
    reply = told(await proxy.ask("/account-pool/add", NEW))
    assert reply["written_to"] == "memory"
    assert keys(proxy) == ["openai/new-one"]
    folder = proxy.added.path.parent
    proxy.added.close()
    assert not folder.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "status", "expected"),
    [
        ({"provider": "nobody"}, 422, "invalid_account"),
        ({"prioriti": 1}, 422, "invalid_account"),
        ({"token": {"env": "FAKE_KEY"}}, 422, "source"),
        ({"token": {"file": "/etc/hosts"}}, 422, "source"),
        ({"token": {"file": "/etc/hosts", "pointer": "/a"}}, 422, "source"),
        ({"token": {"keychain": "Claude Code-credentials"}}, 422, "source"),
        ({"token": {"command": "touch /tmp/x"}}, 422, "command"),
        ({"token": {"command": "touch /tmp/x", "oauth": {}}}, 422, "command"),
        ({"token": {"pointer": "/a"}}, 422, "invalid"),
        ({"token": {"sk-fake-as-key": "x"}}, 422, "invalid"),
        ({"token": {}}, 422, "invalid"),
        ({"token": ""}, 422, "invalid"),
        ({"token": "  "}, 422, "invalid"),
        ({"token": None}, 422, "invalid"),
        ({"token": ["sk-fake-in-list"]}, 422, "invalid"),
        ({"token": "sk-fake new-000"}, 422, "invalid_account"),
        ({"token": {"oauth": None}}, 422, "invalid"),
        ({"token": {"oauth": {}}}, 422, "invalid"),
        ({"token": {"oauth": {"refresh_token": "sk-fake-r"}}}, 422, "source"),
        ({"token": {"oauth": {"refresh_token": "sk-fake-r"}}, "provider": "like"}, 422, "source"),
        ({"token": {"oauth": {"refresh_token": 7}}, "provider": "codex"}, 422, "invalid"),
        ({"token": {"oauth": {"access_token": "sk-fake"}}, "provider": "codex"}, 422, "invalid"),
        ({"token": {"oauth": ELSEWHERE}, "provider": "codex"}, 422, "source"),
        ({"token": {"oauth": ELSEWHERE}, "provider": "openai"}, 422, "source"),
        (
            {
                "token": {"oauth": {"refresh_token": "a", "sk-fake-as-key": "b"}},
                "provider": "codex",
            },
            422,
            "invalid",
        ),
        (
            {
                "token": {"oauth": {"refresh_token": "a", "expires_at": "sk-fake"}},
                "provider": "codex",
            },
            422,
            "invalid_account",
        ),
        ({"label": "sk-fake-pasted-0001"}, 422, "invalid_account"),
        ({"provider": "sk-fake-pasted-0001"}, 422, "invalid_account"),
        ({"priority": "sk-fake-pasted-0001"}, 422, "invalid_account"),
        ({"sk-fake-pasted-0001": 1}, 422, "invalid_account"),
        ({"token": 7}, 422, "invalid"),
        ({"token": nested(200)}, 422, "invalid"),
        ({"token": nested(9)}, 422, "invalid"),
        ({"token": nested(5)}, 422, "invalid"),
        ({"more": nested(200)}, 422, "invalid"),
        ({"label": "x" * 300}, 422, "invalid"),
        ({"label": "a\x00b"}, 422, "invalid"),
        ({"label": "a\u2028b"}, 201, ""),
        ({"label": "/"}, 201, ""),
    ],
)
async def test_additions_that_are_no_accounts(tmp_path, changes, status, expected):
    proxy = FakeProxy(tmp_path)
    write(proxy.main, FILE)
    reply = await proxy.ask("/account-pool/add", {**NEW, **changes})
    assert reply.status == status
    assert b"sk-fake" not in reply.body
    assert b"FAKE_VARIABLE" not in reply.body
    if expected:
        assert code(reply) == expected
        assert proxy.main.read_text() == FILE


@pytest.mark.parametrize(
    "token", ["sk-fake-$HOME-${FAKE_VARIABLE}", "sk-fake-$$-${", " sk-fake-$ "]
)
async def test_a_dollar_sign_is_an_ordinary_character(tmp_path, token):
    proxy = FakeProxy(tmp_path)
    write(proxy.main, FILE)
    assert (await proxy.ask("/account-pool/add", {**NEW, "token": token})).status == 201
    [_, added] = load(proxy.main, {"FAKE_VARIABLE": "read", "HOME": "read"}).accounts
    assert added.source.read_now().secret.reveal() == token.strip()


async def test_a_login_is_taken_as_it_is_sent(tmp_path):
    proxy = FakeProxy(tmp_path)
    write(proxy.main, FILE)
    names = ("refresh_token", "access_token", "client_id", "client_secret")
    sent = {name: f"fake-{name}-${{FAKE_VARIABLE}}" for name in names}
    body = {"provider": " Gemini-CLI", "label": "a", "token": {"oauth": {**sent, "scope": "$x"}}}
    reply = await proxy.ask("/account-pool/add", body)
    assert reply.status == 201, reply.body
    [_, added] = load(proxy.main, {"FAKE_VARIABLE": "read"}).accounts
    tokens, settings = added.source.tokens(), added.source.settings_now()
    held = (tokens.refresh, tokens.access, settings.client_id, settings.client_secret)
    assert [getattr(one, "reveal", lambda one=one: one)() for one in held] == list(sent.values())
    assert settings.scope == "$x"
    assert settings.token_url == VENDORS["gemini-cli"]["token_url"]


async def test_a_removal_is_written_too(tmp_path):
    proxy = FakeProxy(tmp_path)
    write(proxy.main, FILE + "  - {provider: openai, label: x, token: t}\n")
    await proxy._read_again()
    name = {"provider": "openai", "label": "x"}
    assert told(await proxy.ask("/account-pool/remove", name)) == {
        "removed": "openai/x", "written_to": "accounts.yaml",
    }  # fmt: skip
    assert proxy.main.read_text() == FILE
    assert keys(proxy) == ["openai/one"]
    # The last one stays written: a file without any is a mistake.
    name["label"] = "one"
    assert told(await proxy.ask("/account-pool/remove", name))["written_to"] is None
    assert proxy.main.read_text() == FILE
    assert keys(proxy) == []


async def test_no_answer_holds_a_secret(tmp_path):
    proxy = FakeProxy(tmp_path)
    write(proxy.main, FILE)
    await proxy._read_again()
    bodies = [(await proxy.ask("/account-pool/add", NEW)).body]
    for endpoint in ENDPOINTS:
        path = endpoint.path.replace("{provider}", "openai")
        for body in ({"provider": "openai", "label": "one"}, NEW, {"key": "sk-fake-one-000"}):
            asked = None if endpoint.body is None else body
            bodies.append((await proxy.ask(path, asked)).body)
    others = [await proxy.ask(target) for target in ("/metrics", "/", "/openapi.json")]
    bodies += [reply.body for reply in others]
    everything = b"\n".join(bodies)
    assert b"sk-fake" not in everything
    assert TOKEN.encode() not in everything
    assert json.dumps(HOST).encode() not in everything


# -- a link to the dashboard


async def redeemed(proxy, url, **how):
    return await proxy.ask("/link/redeem", {"code": url.partition("#code=")[2]}, token="", **how)


async def test_a_link_gives_the_token_once(proxy):
    made = await proxy.ask("/link", {})
    assert made.status == 201
    link = told(made)
    assert link["url"].startswith(f"http://{HOST}/#code=")
    assert link["expires_in_s"] == 60
    assert TOKEN not in link["url"]
    assert told(await redeemed(proxy, link["url"])) == {"token": TOKEN}
    again = await redeemed(proxy, link["url"])
    assert (again.status, code(again)) == (401, "wrong_code")


async def test_a_link_leads_to_the_name_we_were_asked_by(proxy):
    made = await proxy.ask("/link", {}, headers={"host": "pool.mitm.it"}, tls=True)
    assert told(made)["url"].startswith("https://pool.mitm.it/#code=")


async def test_a_link_is_valid_for_a_minute(proxy):
    links = [told(await proxy.ask("/link", {}))["url"] for _ in range(2)]
    proxy.clock.advance(59)
    assert (await redeemed(proxy, links[0])).status == 200
    proxy.clock.advance(1)
    assert code(await redeemed(proxy, links[1])) == "wrong_code"


async def test_codes_are_not_guessed(proxy):
    link = told(await proxy.ask("/link", {}))["url"]
    for _ in range(MAX_FAILURES):
        assert code(await redeemed(proxy, "#code=guess")) == "wrong_code"
    refused = await redeemed(proxy, link)
    assert (refused.status, code(refused)) == (429, "too_many_failures")
    assert code(await proxy.ask("/link", {})) == "too_many_failures"


async def test_other_pages_redeem_nothing(proxy):
    link = told(await proxy.ask("/link", {}))["url"]
    foreign = await redeemed(proxy, link, headers={"origin": "http://evil.example"})
    assert code(foreign) == "wrong_origin"
    assert (await redeemed(proxy, link)).status == 200


async def test_there_are_never_many_codes(proxy):
    links = [told(await proxy.ask("/link", {}))["url"] for _ in range(MAX_CODES + 1)]
    assert code(await redeemed(proxy, links[0])) == "wrong_code"
    assert (await redeemed(proxy, links[-1])).status == 200


async def test_metrics_have_what_requests_cost_and_need_no_store(proxy, monkeypatch):
    proxy.sums[("2026-11-29", "openai/one", "gpt-5")] = {"cost_usd": 1.5}
    line_of_cost = b'account_pool_cost_usd_total{account="openai/one",model="gpt-5"} 1.5'
    assert line_of_cost in (await proxy.ask("/metrics")).body

    class Locked(dict):
        def __iter__(self):
            raise StoreError("the disk is full")

    monkeypatch.setattr(proxy, "sums", Locked())
    answer = await proxy.ask("/metrics")
    assert answer.status == 200
    assert b"account_pool_up 1.0" in answer.body


async def test_metrics_do_not_wait_for_a_disk_that_hangs(proxy, monkeypatch):
    monkeypatch.setattr(app, "COSTS_S", 0.0)
    proxy.store_problem = asyncio.Event().wait
    async with asyncio.timeout(PATIENCE_S):
        answer = await proxy.ask("/metrics")
    assert answer.status == 200
    assert b"account_pool_up 1.0" in answer.body


# -- fresh figures


class FakeLookUps:
    """Answers for those accounts that it is asked of."""

    is_on = True

    def __init__(self) -> None:
        self.asked: list[str] = []

    def views(self):
        view = {"age_s": 0.0, "problem": None, "reset_credits": 2}
        return {AccountKey.parse(key): view for key in self.asked}

    async def refresh(self, states):
        self.asked += [str(state.key) for state in states]
        return [state.key for state in states]


async def test_fresh_figures_are_off_by_default(proxy):
    answer = await proxy.ask("/usage/refresh", {})
    assert (answer.status, code(answer)) == (409, "off")


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ({}, ["openai/one", "openai/two"]),
        ({"provider": "openai"}, ["openai/one", "openai/two"]),
        ({"provider": "OpenAI", "label": "two"}, ["openai/two"]),
    ],
)
async def test_fresh_figures(proxy, body, asked):
    proxy.service.look_ups = FakeLookUps()
    answer = told(await proxy.ask("/usage/refresh", body))
    assert [account["key"] for account in answer["accounts"]] == asked
    assert proxy.service.look_ups.asked == asked
    assert answer["accounts"][0]["look_up"]["reset_credits"] == 2
    accounts = told(await proxy.ask("/account-pool"))["accounts"]
    assert [a["key"] for a in accounts if a["look_up"] is not None] == asked
    for wrong in ({"provider": "nobody"}, {"provider": "openai", "label": "three"}):
        assert (await proxy.ask("/usage/refresh", wrong)).status == 404


async def test_a_store_that_fails_or_hangs_keeps_no_account_from_view(proxy, monkeypatch):
    async def fail() -> None:
        raise StoreError("the disk has an error")

    async def hang() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(routes, "USAGE_S", 0.0)
    for problem in (hang, fail):
        proxy.store_problem = problem
        assert len(told(await proxy.ask("/account-pool"))["accounts"]) == 2
    # What is about nothing but its sums says why there are none.
    assert told(await proxy.ask("/usage"))["problem"] == "the disk has an error"


async def test_decisions_of_all_proxies(proxy, tmp_path):
    """Whichever is asked, and without the store what it knows."""
    other = FakeProxy(tmp_path, "one", "two")
    other.store = proxy.store
    proxy.service.fleet.port, other.service.fleet.port = 8080, 8081
    one, two = AccountKey("openai", "one"), AccountKey("openai", "two")
    proxy.service.pool.health.mark_cooldown(one, LIMIT, now=proxy.clock.now())
    await proxy.ask("/decisions")
    other.service.pool.health.mark_cooldown(two, LIMIT, now=other.clock.now())

    async def story(of):
        said = told(await of.ask("/decisions"))
        rows = [
            (row["number"], row["proxy"].split(":")[1], row["account"]) for row in said["decisions"]
        ]
        return rows, said["next"], said["alone"]

    proxy.service.fleet.kind = "file"
    both = [(2, "8081", "openai/two"), (1, "8080", "openai/one")]
    assert await story(other) == await story(proxy) == (both, 2, False)
    for lost in (None, Locked()):
        proxy.store = lost
        assert await story(proxy) == (both, 2, True)
    await proxy.ask("/account-pool/disable", {"provider": "openai", "label": "one"})
    (last, *_), upto, _ = await story(proxy)
    assert (last, upto) == ((3, "8080", "openai/one"), 2), "it comes again once it is written"


async def test_decisions_where_nothing_was_kept_yet(proxy):
    """A proxy without accounts opens no state: nothing is missing."""
    proxy.store, proxy.service.fleet.kind = None, None
    assert told(await proxy.ask("/decisions")) == {"decisions": [], "next": 0, "alone": False}


class Locked:
    """A store that cannot be used."""

    def __getattr__(self, _name):
        raise StoreError("the state database is locked")


async def test_a_log_that_has_begun_anew_is_shown_from_its_beginning(proxy):
    proxy.service.pool.health.mark_cooldown(
        AccountKey("openai", "one"), LIMIT, now=proxy.clock.now()
    )
    said = told(await proxy.ask("/decisions?since=700"))
    assert ([row["number"] for row in said["decisions"]], said["next"]) == ([1], 1)
