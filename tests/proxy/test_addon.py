"""What mitmproxy calls: configuration, errors in it, hooks."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from mitmproxy import exceptions
from mitmproxy.addons.next_layer import NextLayer
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.addons.serverplayback import ServerPlayback
from mitmproxy.addons.view import View
from mitmproxy.connection import Server
from mitmproxy.log import ALERT
from mitmproxy.proxy import layer, layers
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.events import DataReceived
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.layers.http import HTTPMode, HttpRequestHook
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler
from mitmproxy.proxy.mode_specs import ProxyMode
from mitmproxy.test import taddons, tflow

from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential, Secret
from account_pool.core.lease import RequestFacts
from account_pool.core.steps import Wait
from account_pool.credentials.keeper import Keeper
from account_pool.proxy import replay_handler
from account_pool.proxy.addon import AccountPool
from account_pool.proxy.events import Pause
from account_pool.proxy.fast.handler import HookTable
from account_pool.proxy.fast.known import is_of_replays
from account_pool.proxy.flow_view import ViewRetention
from tests.e2e.harness import FAST
from tests.proxy.fast.known import needs_known
from tests.proxy.helpers import client_connection
from tests.proxy.test_next_layer import client_hello

TWO = """
accounts:
  - {provider: openai, label: Work, token: sk-fake-work-000}
  - {provider: anthropic, label: home, token: sk-fake-home-000}
pool: {max_wait: 7}
"""
ENVIRONMENT = (
    "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY", "GITHUB_TOKEN",
    "GH_TOKEN", "pool_github_token",
)  # fmt: skip


@pytest.fixture
async def load(tmp_path, monkeypatch, caplog):
    """Load the addon in a folder of its own; what is given is accounts.yaml."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    made: list[AccountPool] = []
    with taddons.context(Proxyserver(), NextLayer()) as tctx:

        def build(accounts: str | None = TWO, **options):
            if accounts is not None:
                (tmp_path / "accounts.yaml").write_text(accounts, encoding="utf-8")
            tctx.options.update(confdir=str(tmp_path))
            addon = AccountPool()
            made.append(addon)
            # As mitmproxy does with `--set`: known only once the addon is there.
            named = {"pool_accounts": "accounts.yaml"} if accounts is not None else {}
            tctx.options.update_defer(**(named | options))
            tctx.master.addons.add(addon)
            tctx.configure(addon)
            return addon, tctx

        yield build
        for addon in made:
            addon.done()


def keys(addon) -> list[str]:
    return [str(state.key) for state in addon.service.pool.accounts]


async def started(addon) -> None:
    addon.running()
    if addon._starting is not None:
        await addon._starting


# -- start


async def test_accounts_of_the_file(load, caplog):
    addon, _ = load()
    assert keys(addon) == ["openai/work", "anthropic/home"]
    assert addon.service.settings.limits.max_wait_s == 7.0
    assert addon.service.recognizer.claims("api.openai.com", 443)
    assert not addon.service.recognizer.claims("generativelanguage.googleapis.com", 443)
    await started(addon)
    alerts = [r.getMessage() for r in caplog.records if r.levelno == ALERT]
    assert alerts == [
        "account-pool: ready with 2 accounts of ~/accounts.yaml: openai/work, anthropic/home"
    ]
    assert "sk-fake" not in caplog.text
    assert [bool(s.credentials) for s in addon.service.pool.accounts] == [True, True]


async def test_of_many_accounts_the_first_are_named(load, caplog):
    many = "".join(
        f"  - {{provider: openai, label: a{n}, token: sk-fake-{n}}}\n" for n in range(22)
    )
    addon, _ = load(f"accounts:\n{many}")
    await started(addon)
    [said] = [r.getMessage() for r in caplog.records if r.levelno == ALERT]
    assert said.startswith("account-pool: ready with 22 accounts of ~/accounts.yaml: openai/a0, ")
    assert said.endswith(", openai/a18, openai/a19 and 2 more")


async def test_it_says_at_the_start_which_state_it_shares(load, monkeypatch, caplog):
    pytest.importorskip("redis")
    monkeypatch.setenv("ENGINE_PASSWORD", "fake-password-of-the-engine")
    url = "redis://somebody@127.0.0.1:1/0?pool=team&password=env:ENGINE_PASSWORD"
    addon, _ = load(pool_state=url)
    await started(addon)
    [ready] = [r.getMessage() for r in caplog.records if "ready with" in r.getMessage()]
    assert ready == (
        "account-pool: ready with 2 accounts of ~/accounts.yaml, on the state engine 127.0.0.1:1, "
        "pool team: openai/work, anthropic/home"
    )
    assert "fake-password" not in caplog.text and "somebody" not in caplog.text


async def test_accounts_of_the_environment(load, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-fake-env-000")
    addon, _ = load(None)
    assert keys(addon) == ["openai/default"]
    await started(addon)
    assert "ready with 1 account of the environment: openai/default" in caplog.text
    assert "sk-fake" not in caplog.text


async def test_nothing_at_all_is_one_line(load, caplog):
    addon, _ = load(None)
    await started(addon)
    (record,) = [
        r for r in caplog.records if r.name.startswith("account_pool") and r.levelno > logging.DEBUG
    ]
    assert record.levelno == ALERT
    assert "traffic passes untouched" in record.getMessage()
    assert not addon.service.recognizer.claims("api.openai.com", 443)


async def test_every_error_of_the_file_is_an_error_with_all_its_lines(load, caplog):
    addon, _ = load(
        "accounts:\n"
        "  - {provider: nobody, label: a, token: sk-fake-a-000}\n"
        "  - {provider: openai, label: b}\n"
        "  - {provider: openai, label: c, token: sk-fake-c-000, priorty: 1}\n"
    )
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    for part in ("nobody", "token", "priorty"):
        assert any(part in line for line in errors), errors
    assert all(line.startswith("account-pool: ") for line in errors)
    assert "sk-fake" not in caplog.text
    assert keys(addon) == []
    before = len(caplog.records)
    addon.running()
    assert len(caplog.records) == before


@pytest.mark.parametrize("looks", [True, False])
async def test_flows_are_removed_where_somebody_looks(load, looks: bool):
    addon, tctx = load()
    if looks:
        tctx.master.addons.add(View())
    await started(addon)
    there = tctx.master.addons.get(ViewRetention.name)
    assert isinstance(there, ViewRetention) is looks
    addon.done()
    await asyncio.sleep(0)
    assert tctx.master.addons.get(ViewRetention.name) is None


async def test_a_file_that_was_named_must_exist(load, caplog):
    addon, _ = load(None, pool_accounts="missing.yaml")
    assert any("missing.yaml" in r.getMessage() for r in caplog.records if r.levelname == "ERROR")
    assert addon._failed


async def test_a_directory_of_mitmproxy_that_is_a_file(load, caplog, tmp_path):
    (tmp_path / "file").touch()
    addon, _ = load(confdir=str(tmp_path / "file"))
    assert f"confdir: {tmp_path / 'file'} is not a directory; name another" in caplog.text
    assert addon._failed


async def test_a_directory_of_mitmproxy_that_cannot_be_made(load, caplog, tmp_path):
    (tmp_path / "file").touch()
    confdir = tmp_path / "file" / "mitmproxy"
    addon, _ = load(confdir=str(confdir))
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == [
        f"account-pool: confdir: {confdir} cannot be made (not a directory); name another"
    ]
    assert addon._failed


async def test_a_wrong_option_at_the_start(load, caplog):
    addon, _ = load(pool_max_wait="soon")
    assert any("pool_max_wait" in r.getMessage() for r in caplog.records if r.levelname == "ERROR")
    assert addon._failed
    assert keys(addon) == []


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("pool_max_attempts", "abc", '"abc" is not a whole number; write a number of 1 or more'),
        ("pool_notify", "http://", "the address is malformed; write https://..."),
    ],
)
async def test_an_option_that_cannot_be_read_is_one_line(load, caplog, option, value, said):
    addon, tctx = load(**{option: value})
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert [line.startswith(f"account-pool: {option}: {said}") for line in errors] == [True]
    assert addon.running() is None
    assert not tctx.options.server


async def test_proxy_debug_at_the_start_is_refused(load, caplog):
    addon, _ = load(proxy_debug=True)
    assert any("proxy_debug" in r.getMessage() for r in caplog.records if r.levelname == "ERROR")
    assert addon._failed


async def test_it_listens_on_this_machine_only(load):
    _, tctx = load()
    assert tctx.options.listen_host == "127.0.0.1"


@pytest.mark.parametrize(
    ("address", "name", "first", "kind"),
    [
        # Read from the first piece it would be decrypted, though it is not the pool's.
        (("192.0.2.1", 443), "www.example.com", 60, layers.TCPLayer),
        (("192.0.2.1", 443), "api.openai.com", 60, layers.ServerTLSLayer),
        (("api.openai.com", 443), "api.openai.com", 1, layers.ServerTLSLayer),
    ],
)
async def test_what_a_client_has_not_said_yet_is_waited_for(load, address, name, first, kind):
    addon, tctx = load()
    chain = tctx.master.addons.chain
    chain.insert(0, chain.pop(chain.index(addon)))  # scripts come before mitmproxy's own
    context = Context(client_connection(), tctx.options)
    context.server = Server(address=address)
    modes.HttpProxy(context)
    layers.HttpLayer(context, HTTPMode.regular)
    asked = layer.NextLayer(context)
    hello = client_hello(name)
    for piece in (hello[:first], hello[first:]):
        assert asked.layer is None
        asked.events.append(DataReceived(context.client, piece))
        await tctx.master.addons.trigger_event(layer.NextLayerHook(asked))
    assert isinstance(asked.layer, kind)


# -- live changes


async def test_options_are_taken_over_while_it_runs(load):
    addon, tctx = load()
    tctx.options.update(pool_max_wait="3", pool_strategy="least-busy", pool_cooldown="60")
    assert addon.service.settings.limits.max_wait_s == 3.0
    assert addon.service.pool.health.default_cooldown_s == 60.0
    tctx.options.update(pool_allow_remote=True)
    assert addon.service.settings.remote
    tctx.options.update(ssl_insecure=True)
    assert addon.service.settings.insecure


@pytest.mark.parametrize(
    "change", [{"pool_max_wait": "soon"}, {"pool_max_attempts": 0}, {"proxy_debug": True}]
)
async def test_a_wrong_change_is_refused_and_changes_nothing(load, change):
    addon, tctx = load()
    before = addon.service.settings
    with pytest.raises(exceptions.OptionsError, match=next(iter(change))):
        tctx.options.update(**change)
    assert addon.service.settings == before
    (name,) = change
    assert getattr(tctx.options, name) != change[name]


async def test_options_of_others_change_nothing(load):
    addon, tctx = load()
    before = addon.service.settings
    tctx.options.update(showhost=True)
    assert addon.service.settings is before


@pytest.mark.parametrize("step", ["__init__", "start"])
async def test_a_start_that_fails_is_told_without_its_text(load, monkeypatch, caplog, step):
    """mitmproxy ends at an error during its start, and would print all of it."""

    def start(*_how: object, **_more: object) -> None:
        raise ValueError("sk-fake-inside-000")

    monkeypatch.setattr(Keeper, step, start)
    caplog.clear()
    load()[0].running()
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.message.startswith("account-pool: it cannot start: ValueError at ")
    assert "sk-fake" not in caplog.text


# -- credentials


async def test_credentials_of_an_account_removed_by_hand_are_dropped(load):
    """Its renewal goes on: an error there would end the task, and be printed."""
    addon, _ = load()
    key = AccountKey("openai", "work")
    addon.service.pool.accounts.remove(key, now=addon.service.now())
    addon.wiring.publish(key, {"key": Credential(kind="key", secret=Secret("x"))}, None, None)
    assert keys(addon) == ["anthropic/home"]


async def test_a_problem_is_shown(load):
    addon, _ = load()
    addon.wiring.publish(AccountKey("openai", "work"), {}, "no such file", None)
    assert "no such file" in addon.commands.status()[1]


@pytest.mark.parametrize(
    ("share", "expected"),
    [(None, (False, False)), (0, (True, True)), (1, (True, True)), (1.1, (False, True))],
)
async def test_a_credential_that_comes_by_itself_is_waited_for(load, share, expected):
    """As long as a request is held."""
    addon, _ = load()
    key = AccountKey("openai", "work")
    max_wait_s = addon.service.settings.limits.max_wait_s
    assert max_wait_s > 0
    again_in_s = None if share is None else share * max_wait_s
    addon.wiring.publish(key, {}, "no answer", again_in_s)
    state = addon.service.pool.accounts.get(key)
    assert (state.pending, state.passing) == expected


async def test_a_credential_that_cannot_be_read_stops_nothing(load, caplog, tmp_path):
    bad = "  - {provider: openai, label: bad, token: {file: key}}\npool:"
    addon, _ = load(TWO.replace("pool:", bad))
    await started(addon)
    assert keys(addon) == ["openai/work", "openai/bad", "anthropic/home"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    rows = [row for row in addon.commands.status() if row.startswith("openai/bad")]
    assert "no credential" in rows[0] and "the file key does not exist" in rows[0]
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_text("sk-fake-bad-000")
    # A request that nobody else may serve has it looked for.
    facts = RequestFacts(provider="openai", kind="key", model=None)
    avoid = [AccountKey("openai", "work")]
    lease = addon.service.pool.acquire(facts, now=addon.service.now(), avoid=avoid)
    assert lease.credential.secret == Secret("sk-fake-bad-000")
    assert caplog.messages.count("openai/bad: its credential can be read again") == 1


async def test_the_command_adds_an_account_whose_credential_is_not_there_yet(load):
    addon, tctx = load()
    await started(addon)
    told = tctx.master.commands.call_strings("pool.add", ["openai", "late", "env:FAKE_UNSET"])
    assert told == "openai/late was added (accounts.yaml)"
    assert "FAKE_UNSET is not set" in "".join(addon.commands.status())
    with pytest.raises(exceptions.CommandError, match="not the name of a variable"):
        tctx.master.commands.call_strings("pool.add", ["openai", "worse", "env:NOT A NAME"])


# -- hooks


async def test_turns_are_the_services(load):
    addon, _ = load()
    pause = Pause(Wait(0.0))
    await addon.pool_pause(pause)
    assert pause.failed is None


async def test_a_turn_that_fails_is_told_to_the_stream_and_not_printed(load, caplog):
    """mitmproxy would print the error with its text, and let the request go on."""
    addon, _ = load()
    pause = Pause("nobody")
    await addon.pool_pause(pause)
    assert isinstance(pause.failed, KeyError)
    assert "Traceback" not in caplog.text


async def test_a_client_that_disconnects(load):
    addon, _ = load()
    addon.client_disconnected(tflow.tclient_conn())


@needs_known
@pytest.mark.skipif(FAST == "off", reason="no shorter ways: POOL_TEST_FAST=off")
async def test_a_client_that_connects_before_mitmproxy_is_running(load):
    addon, tctx = load()
    client = tflow.tclient_conn()
    handler = ProxyConnectionHandler(
        tctx.master, *_STREAMS, tctx.options, ProxyMode.parse("regular")
    )
    tctx.master.addons.get("proxyserver").connections[client.id] = handler
    addon.client_connected(client)
    assert "server_event" in vars(handler)


class _Writer:
    def get_extra_info(self, name, default=None):
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)


_STREAMS: Any = (None, _Writer())


def replayed(host="api.openai.com", scheme="https"):
    flow = tflow.tflow()
    flow.request.host, flow.request.port, flow.request.scheme = host, 443, scheme
    flow.request.headers["authorization"] = "Bearer pool:openai/work"
    flow.is_replay = "request"
    return flow


async def hook(addon, flow) -> None:
    addon.request(flow)
    result = addon._replays.request(flow)  # which comes after every other addon
    if asyncio.iscoroutine(result):
        await result


async def test_live_requests_are_left_to_the_layer(load):
    addon, _ = load()
    flow = replayed()
    flow.is_replay = None
    await hook(addon, flow)
    assert flow.response is None


async def test_a_request_that_is_no_replay_is_spared_the_hook(load, monkeypatch):
    seen: list[object] = []
    monkeypatch.setattr(AccountPool, "request", lambda _addon, flow: seen.append(flow))
    addon, tctx = load()
    assert is_of_replays(addon, addon.request)
    assert not is_of_replays(addon, addon.done)
    tctx.master.addons.add(playback := ServerPlayback())
    table, live = HookTable(tctx.master.addons), tflow.tflow()
    await table.trigger_event(HttpRequestHook(live))
    assert seen == []
    await table.trigger_event(HttpRequestHook(again := replayed()))
    playback.load_flows([tflow.tflow(resp=True)])
    await table.trigger_event(HttpRequestHook(live))
    assert seen == [again, live]


async def test_replays_of_other_hosts_are_left_alone(load):
    addon, _ = load()
    flow = replayed("example.com")
    await hook(addon, flow)
    assert flow.response is None


async def test_a_replay_that_fails_goes_nowhere(load, monkeypatch):
    """Else mitmproxy would send the placeholder upstream."""
    addon, _ = load()

    async def answered(_self):
        raise RuntimeError("whatever")

    monkeypatch.setattr(replay_handler.Replay, "answered", answered)
    flow = replayed()
    await hook(addon, flow)
    assert flow.response.status_code == 502


@pytest.mark.parametrize("state", ["answered", "failed", "not live"])
async def test_replays_that_are_over_are_left_alone(load, state):
    addon, _ = load()
    flow = replayed()
    if state == "answered":
        flow.response = tflow.tflow(resp=True).response
    elif state == "failed":
        flow.error = tflow.terr()
    else:
        flow.live = False
    before = flow.response
    await hook(addon, flow)
    assert flow.response is before
