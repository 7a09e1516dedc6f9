"""A store in an engine as a whole: what it opens, and why it does not."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from tests.store.servers import Server, StartServer, new_pool

from account_pool.core.credential import Secret
from account_pool.store.fleet import fleet_store
from account_pool.store.fleet.fleet_store import FORMAT, FleetStore, facts, inspect
from account_pool.store.pool_state import Fact, parse
from account_pool.store.sqlite import SqliteTokens
from account_pool.store.store import StoreError, Tokens

TOKENS = Tokens(access=Secret("at-fake"), refresh=Secret("rt-fake"))


def store_of(server: Server, tmp_path, *, rest: str = "", pool: str = "") -> FleetStore:
    return FleetStore(parse(server.url(pool or new_pool()) + rest), tmp_path / "unsaved")


def test_logins_are_kept_with_the_key_that_the_url_refers_to(server: Server, tmp_path) -> None:
    key = tmp_path / "key"
    key.write_text("ab" * 32)
    pool = new_pool()
    for _ in range(2):
        store = store_of(server, tmp_path, rest=f"&sealing_key=file:{key}", pool=pool)
        tokens = store.tokens()
        tokens.save("family", TOKENS)
        tokens.close()
    loaded = tokens.load("family")
    assert loaded is not None and loaded.refresh == TOKENS.refresh
    store.engine.close()


def test_logins_of_a_file_go_on_in_an_engine_that_does_not_know_them(
    server: Server, tmp_path, monkeypatch
) -> None:
    file, key = tmp_path / "before.sqlite", tmp_path / "key"
    key.write_text("ab" * 32)
    before = SqliteTokens(file)
    before.save("moved", TOKENS)
    before.save("known", replace(TOKENS, refresh=Secret("rt-old-fake")))
    before.close()
    url = server.url(new_pool()) + f"&sealing_key=file:{key}"
    FleetStore(parse(url), tmp_path / "a").tokens().save("known", TOKENS)
    for machine in "bc":
        store = FleetStore(parse(url), tmp_path / machine, before=file)
        tokens = store.tokens()
        for family in ("moved", "known"):
            loaded = tokens.load(family)
            assert loaded is not None and loaded.refresh == TOKENS.refresh, family
        assert tokens.load("other") is None
        store.engine.close()
        file = tmp_path / "none.sqlite"
    assert not file.exists()


@pytest.mark.parametrize(
    ("rest", "wrong"),
    [
        ("", "only sealed; make one with: openssl .* and write sealing_key=file:PATH"),
        ("&sealing_key=env:FAKE_KEY", "sealing_key: "),
    ],
)
def test_without_a_key_no_login_is_kept(
    server: Server, tmp_path, monkeypatch, rest: str, wrong: str
) -> None:
    monkeypatch.setenv("FAKE_KEY", "fake-secret-hunter2")
    with pytest.raises(StoreError, match=wrong) as error:
        store_of(server, tmp_path, rest=rest).tokens()
    assert "hunter2" not in str(error.value)


def test_a_pool_of_another_format_is_not_touched(server: Server, tmp_path, monkeypatch) -> None:
    pool = new_pool()
    monkeypatch.setattr(fleet_store, "FORMAT", FORMAT + 1)
    store_of(server, tmp_path, pool=pool).open()
    monkeypatch.undo()
    with pytest.raises(StoreError, match=f"pool {pool} .* another version .*; upgrade, or name"):
        store_of(server, tmp_path, pool=pool).open()


def test_without_the_extra_it_is_said_which(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(StoreError, match=r"pip install 'mitmproxy-account-pool\[fleet\]'"):
        FleetStore(parse("redis://localhost"), tmp_path)


# -- what is said of an engine: its version, and settings that would lose logins

ADDRESS = parse("redis://localhost/?sealing_key=env:KEY")
GOOD = {"redis_version": "7.0.15", "aof_enabled": "1", "maxmemory": "0", "used_memory": "9"}
SAFE = {"appendfsync": "always", "maxmemory-policy": "noeviction", "min-replicas-to-write": "0"}
OK = Fact("ok", "Redis 7.0.15 at localhost:6379, pool default")


@pytest.mark.parametrize(
    ("info", "settings", "expected"),
    [
        ({}, {}, []),
        ({"aof_enabled": "0"}, {"save": ""}, ["bad it keeps nothing on its disk"]),
        ({"aof_enabled": "0"}, {"save": "3600 1"}, ["bad it keeps only snapshots"]),
        ({}, {"appendfsync": "everysec"}, ["note appendfsync is everysec: a power failure loses"]),
        ({}, {"appendfsync": "no"}, ["bad appendfsync is no"]),
        ({"maxmemory": "100"}, {"maxmemory-policy": "allkeys-lru"}, ["bad maxmemory-policy is"]),
        ({}, {"maxmemory-policy": "volatile-ttl"}, ["note maxmemory-policy is volatile-ttl"]),
        ({"maxmemory": "10"}, {}, ["bad 90% of its memory is in use"]),
        ({"aof_last_write_status": "err"}, {}, ["bad it could not write to its disk"]),
        ({"rdb_last_bgsave_status": "err"}, {}, ["bad it could not write to its disk"]),
        ({"connected_slaves": "1"}, {}, ["note min-replicas-to-write is 0"]),
        ({"connected_slaves": "1"}, {"min-replicas-to-write": "1"}, []),
        ({"maxmemory": "fake", "used_memory": ""}, {}, []),
    ],
)
def test_settings_that_lose_logins_are_said_with_a_remedy(info, settings, expected) -> None:
    found = list(facts({**GOOD, **info}, {**SAFE, **settings}, ADDRESS))
    assert found[0] == OK
    assert [
        f"{one.level} {one.text}"[: len(e)] for one, e in zip(found[1:], expected, strict=True)
    ] == expected
    assert all(one.remedy for one in found[1:])


def test_an_old_server_is_said_and_valkey_is_none() -> None:
    [old] = facts({**GOOD, "redis_version": "6.2.1"}, SAFE, ADDRESS)
    assert (old.level, old.remedy[:14]) == ("bad", "it is too old:")
    [valkey] = facts({**GOOD, "redis_version": "7.2.4", "valkey_version": "9.1.2"}, SAFE, ADDRESS)
    assert valkey == Fact("ok", "Valkey 9.1.2 at localhost:6379, pool default")


def test_what_an_engine_says_of_itself_is_data() -> None:
    [found] = facts({**GOOD, "redis_version": "7.0\x1b[31m" + "x" * 999}, SAFE, ADDRESS)
    assert "\x1b" not in found.text
    assert len(found.text) < 100


def test_a_real_engine_is_looked_at(server: Server, tmp_path) -> None:
    pool = new_pool()
    found = inspect(FleetStore(parse(server.url(pool)), tmp_path))
    name = {"redis": "Redis 7", "valkey": "Valkey 9"}[server.kind]
    assert found[0].text.startswith(name)
    assert [one.text.partition(":")[0] for one in found[1:]] == [
        "it keeps nothing on its disk",
        "the URL names no sealing_key",
    ]


def test_an_engine_that_says_little_of_itself_is_used(start_server: StartServer, tmp_path) -> None:
    server = start_server("redis", "user default on nopass ~* &* +@all -config")
    found = inspect(FleetStore(parse(server.url(new_pool())), tmp_path))
    assert [one.text for one in found if "CONFIG GET is refused" in one.text]
    server = start_server("redis", "user default on nopass ~* &* +@all -config -info -function")
    found = inspect(FleetStore(parse(server.url(new_pool())), tmp_path))
    assert found[0].text.startswith("Redis of an unknown version")


def test_another_sealing_key_is_said_and_nothing_is_changed(server: Server, tmp_path) -> None:
    pool, files = new_pool(), [tmp_path / "one", tmp_path / "other"]
    stores = []
    for n, file in enumerate(files):
        file.write_text(f"{n}a" * 32)
        stores.append(FleetStore(parse(f"{server.url(pool)}&sealing_key=file:{file}"), tmp_path))
    for store in stores:
        assert "sealing" not in str(inspect(store)), "a new pool has no key"
    assert server.ask("KEYS", f"{{ap:{pool}}}*") == []
    stores[0].tokens().keep()
    assert inspect(stores[0])[0].level == "ok"
    [found] = inspect(stores[1])
    assert found.level == "bad"
    assert "give it the sealing key that the other proxies have" in found.remedy
    for store in stores:
        store.engine.close()
