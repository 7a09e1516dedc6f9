"""docs/fleet.md: what it tells its reader to write was tried as it stands there."""

from __future__ import annotations

import contextlib
import queue
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tests.patience import PATIENCE_S
from tests.store.request_samples import row
from tests.store.servers import Server, StartServer

from account_pool.core.account import AccountKey
from account_pool.core.credential import Secret
from account_pool.core.decision_history import LoggedDecision
from account_pool.core.prices import Cost
from account_pool.core.shares import Ask
from account_pool.core.snapshot import AccountSnapshot
from account_pool.store.fleet.fleet_store import FORMAT, FleetStore, inspect
from account_pool.store.pool_state import parse
from account_pool.store.store import Numbered, RequestQuery, TableChanges, Tokens

redis = pytest.importorskip("redis")
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8")
COMPOSE = YAML(typ="safe").load(ROOT / "compose.fleet.yaml")
FUNCTIONS = ROOT / "addon" / "account_pool" / "store" / "fleet" / "functions"
PASSWORD = "fake-password-hunter2"
[USER] = re.findall(r"^    (user pool on >PASSWORD .*)$", PAGE, re.MULTILINE)
[DEFAULT] = re.findall(r'^    echo "(user default .*)" > fleet/users.acl$', PAGE, re.MULTILINE)
WORK = AccountKey("openai", "work")


def user_line(*without: str) -> str:
    words = USER.replace("PASSWORD", PASSWORD).split()
    assert set(without) <= set(words)
    return " ".join(word for word in words if word not in without)


@pytest.fixture
def password(monkeypatch, tmp_path) -> Iterator[str]:
    """What a URL says of secrets."""
    monkeypatch.setenv("FAKE_PASSWORD", PASSWORD)
    key = tmp_path / "sealing-key"
    key.write_text("ab" * 32)
    yield f"&password=env:FAKE_PASSWORD&sealing_key=file:{key}"


def use(store: FleetStore) -> None:
    """Do all that a proxy does in an engine."""
    heard = queue.Queue[str]()
    with contextlib.closing(store.engine.listen(heard.put)):
        assert heard.get(timeout=PATIENCE_S) == ""
    tokens = store.tokens()
    tokens.keep()
    tokens.load("family")
    tokens.claim("family", "owner", token=Secret("rt-fake"), is_over=True)
    assert tokens.save("family", Tokens(access=None, refresh=Secret("rt-fake")))
    assert tokens.load("family") is not None
    state = store.state()
    now = state.now() or time.time()
    state.beat({WORK: 1}, wall_now=now)
    state.changed(wall_now=now)
    state.exchange(
        [AccountSnapshot(key=WORK, served=1)],
        wall_now=now,
        lines={"sessions": TableChanges([("session", "openai/work", now)], {"gone": now})},
        counts={"usage": {("a",): {"requests": 1.0}}},
        batch=Numbered("me", 1),
        requests=[row(), row()],
    )
    state.requests.price([(1, Cost(0.5, "list", 0, None)), (2, Cost(None, "", 0, None))])
    state.requests.reprice()
    assert len(state.requests.read(RequestQuery()).rows) == 2
    assert [number for number, _ in state.requests.unpriced(0, 10)] == [2]
    state.requests.prune(60.0, wall_now=now)
    state.decisions.add([LoggedDecision("me", 1, "me", "{}")], [])
    assert len(state.decisions.read(0).rows) == 1
    state.share({WORK: Ask(limit=2, wants=1, slots=0)}, wall_now=now)
    state.read_table("sessions")
    state.read_counts("usage")
    state.notices.take_turn("turn", 60.0, wall_now=now)
    state.notices.note([], [], wall_now=now)
    state.sweep([WORK], wall_now=now)
    state.reap(["nobody"])
    state.close()
    tokens.close()


@pytest.mark.parametrize(
    "without", [(), ("+fcall", "+function|load"), ("+config|get", "+info")], ids=str
)
def test_the_user_of_the_page_can_do_all_that_a_proxy_does(
    start_server: StartServer, password: str, tmp_path: Path, without
) -> None:
    server = start_server("redis", user_line(*without))
    url = server.url("team").replace("redis://", "redis://pool@") + password
    store = FleetStore(parse(url), tmp_path)
    with contextlib.closing(store.engine):
        use(store)
        assert inspect(store)[0].level == "ok"
    log = server.ask("ACL", "LOG")
    refused = {entry[entry.index("object") + 1] for entry in log}
    assert refused <= {word[1:] for word in without} | {"client|setinfo"}


def test_the_user_may_run_each_command_of_the_functions(start_server: StartServer) -> None:
    server = start_server("redis", user_line())
    text = "".join(file.read_text() for file in FUNCTIONS.iterdir())
    commands = set(re.findall(r'redis\.p?call\("(\w+)"', text)) - {"INFO"}
    assert len(commands) > 10
    before = {"PUBLISH": ["{ap:team}:news"], "XINFO": ["STREAM"]}
    for command in commands:
        dry_run = ["ACL", "DRYRUN", "pool", command, *before.get(command, [])]
        # How many arguments each takes is the server's to know.
        assert "OK" in {answer(server, *dry_run, *["{ap:team}:k"] * n) for n in range(5)}, command


def answer(server: Server, *command: str) -> str:
    try:
        return str(server.ask(*command))
    except redis.ResponseError as error:
        return str(error)


def test_the_user_has_no_other_pool(start_server: StartServer) -> None:
    server = start_server("redis", user_line())
    for key in ("{ap:other}:a", "{ap:team", "else"):
        assert "access" in server.ask("ACL", "DRYRUN", "pool", "GET", key)
    for command in ("FLUSHALL", "KEYS x", "SHUTDOWN", "CONFIG SET a b", "DEBUG x"):
        assert "no permission" in answer(server, "ACL", "DRYRUN", "pool", *command.split())


def test_both_proxies_of_the_compose_file_are_one_pool() -> None:
    services = COMPOSE["services"]
    one, other = services["pool-1"], services["pool-2"]
    assert one["command"] == other["command"]
    address = parse(one["command"][-1].removeprefix("pool_state="))
    assert address.tls
    assert address.user == "pool"
    assert f"{{ap:{address.pool}}}" in USER
    files = {address.ca, *(reference.value for reference in address.references.values())}
    assert files == {f"/run/secrets/{name}" for name in one["secrets"]}
    assert {one["ports"][0], other["ports"][0]} == {"127.0.0.1:8080:8080", "127.0.0.1:8081:8080"}
    assert one["volumes"] != other["volumes"], "what only one machine has"


def test_the_valkey_of_the_compose_file_loses_no_login(
    start_server: StartServer, certificate, password: str, tmp_path: Path
) -> None:
    """Its settings, in the server that is here."""
    words = COMPOSE["services"]["valkey"]["command"][1:]
    settings = {words[n].removeprefix("--"): words[n + 1] for n in range(0, len(words), 2)}
    (tmp_path / "users.acl").write_text(f"{DEFAULT}\n{user_line()}\n")
    settings |= {
        "tls-port": "{port}",
        "tls-cert-file": certificate.chain,
        "tls-key-file": certificate.key,
        "tls-ca-cert-file": certificate.authority,
        "aclfile": tmp_path / "users.acl",
    }
    server: Server = start_server("redis", *(f"{name} {value}" for name, value in settings.items()))
    url = f"rediss://pool@localhost:{server.port}/?pool=team&timeout=60&ca={certificate.authority}"
    store = FleetStore(parse(url + password), tmp_path)
    with contextlib.closing(store.engine):
        use(store)
        assert [fact.level for fact in inspect(store)] == ["ok"]
        server.kill()
        server.start()
        # A server may read its appendonly file with the rights of the default user.
        assert store.tokens().load("family") is not None
        with contextlib.closing(store.state()) as state:
            assert len(state.requests.read(RequestQuery()).rows) == 2
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis.Redis(
            "localhost", server.port, ssl=True, ssl_ca_certs=str(certificate.authority)
        ).ping()


def test_the_page_says_what_versions_share() -> None:
    assert FORMAT == 1, "say in docs/fleet.md what becomes of a pool of the format before"
