"""Who is on a store: what each proxy says of itself, and for how long it is known."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.store.backends import WALL, Backend, EngineBackend
from tests.store.servers import KINDS

from account_pool.core.account import AccountKey
from account_pool.core.fleet import SHOWN_S, AboutProxy, ProxyRow
from account_pool.store import schema
from account_pool.store.sqlite import MemoryStore
from account_pool.store.store import GRACE_S, StateStore

WORK, HOME = AccountKey("openai", "work"), AccountKey("openai", "home")
A, B = (
    AboutProxy(name=name, instance=name, version="1.0", mitmproxy="12.3.1", uptime_s=5.0)
    for name in ("a:8080", "b:8080")
)
Open = Callable[[], StateStore]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pool.sqlite"


@pytest.fixture
def another(backend: Backend) -> Open:
    """Open the same store once more."""
    return backend.open


in_file = pytest.mark.parametrize("backend", ["file"], indirect=True)


def by_name(store: StateStore, at: float = WALL) -> dict[str, ProxyRow]:
    return {row.about.name: row for row in store.proxies(wall_now=at)}


def test_each_knows_what_the_others_say(another: Open) -> None:
    mine, theirs = another(), another()
    assert mine.proxies(wall_now=WALL) == []
    mine.beat({WORK: 2, HOME: 1}, wall_now=WALL - 4, about=A)
    theirs.beat({}, wall_now=WALL - 1, about=B)
    for store, me in ((mine, "a:8080"), (theirs, "b:8080")):
        rows = by_name(store)
        assert {name: row.about for name, row in rows.items()} == {"a:8080": A, "b:8080": B}
        assert [name for name, row in rows.items() if row.is_me] == [me]
        assert all(row.is_running for row in rows.values())
        assert (rows["a:8080"].seen_s, rows["a:8080"].in_flight) == (pytest.approx(4), 3)
        assert (rows["b:8080"].seen_s, rows["b:8080"].in_flight) == (pytest.approx(1), 0)


def test_requests_in_flight_are_those_of_the_last_write(another: Open) -> None:
    mine, theirs = another(), another()
    mine.beat({WORK: 2}, wall_now=WALL, about=A)
    mine.exchange([], wall_now=WALL, in_flight={WORK: 7, HOME: 1})
    assert by_name(theirs)["a:8080"].in_flight == 8


def test_a_heartbeat_that_says_nothing_leaves_what_was_said(another: Open) -> None:
    store = another()
    store.beat({}, wall_now=WALL, about=A)
    store.beat({WORK: 1}, wall_now=WALL + 5)
    [row] = store.proxies(wall_now=WALL + 6)
    assert (row.about, row.seen_s, row.in_flight) == (A, pytest.approx(1), 1)


def test_one_that_stops_its_heartbeat_is_missed_for_a_while(another: Open) -> None:
    mine, theirs = another(), another()
    theirs.beat({WORK: 1}, wall_now=WALL, about=B)
    mine.beat({}, wall_now=WALL + GRACE_S - 1, about=A)
    assert by_name(mine, WALL + GRACE_S - 1)["b:8080"].is_running
    for later in (GRACE_S, SHOWN_S - 1):
        mine.beat({}, wall_now=WALL + later, about=A)
        row = by_name(mine, WALL + later)["b:8080"]
        assert (row.is_running, row.seen_s) == (False, pytest.approx(later))
    mine.beat({}, wall_now=WALL + SHOWN_S, about=A)
    assert [*by_name(mine, WALL + SHOWN_S)] == ["a:8080"]
    # It had hung, and goes on.
    theirs.beat({}, wall_now=WALL + SHOWN_S + 1, about=B)
    assert by_name(mine, WALL + SHOWN_S + 2)["b:8080"].is_running


def test_one_that_is_known_to_be_dead_is_missed_at_once(another: Open) -> None:
    mine, theirs = another(), another()
    theirs.beat({WORK: 1}, wall_now=WALL, about=B)
    mine.beat({}, wall_now=WALL, about=A)
    mine.reap([by_name(mine)["b:8080"].proxy])
    row = by_name(mine)["b:8080"]
    assert (row.is_running, row.in_flight) == (False, 0)


def test_one_whose_place_was_taken_is_missed_no_more(another: Open) -> None:
    mine, theirs = another(), another()
    theirs.beat({WORK: 1}, wall_now=WALL, about=B)
    mine.beat({}, wall_now=WALL + GRACE_S, about=A)
    row = by_name(mine, WALL + GRACE_S)["b:8080"]
    mine.forget([row.proxy, "of nobody"])
    assert [*by_name(mine, WALL + GRACE_S)] == ["a:8080"]
    mine.forget([])


def test_one_that_ends_in_good_order_is_not_missed(another: Open) -> None:
    mine, theirs = another(), another()
    theirs.beat({WORK: 1}, wall_now=WALL, about=B)
    mine.beat({}, wall_now=WALL, about=A)
    theirs.close()
    assert [*by_name(mine)] == ["a:8080"]


def test_in_memory_it_is_alone() -> None:
    store = MemoryStore().state()
    store.beat({WORK: 1}, wall_now=WALL, about=A)
    [row] = store.proxies(wall_now=WALL + 1)
    assert (row.about, row.is_me, row.is_running, row.in_flight) == (A, True, True, 1)


@in_file
@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE proxy_reports SET about = 'nonsense' {}",
        "UPDATE proxy_reports SET about = x'fffe' {}",
        "UPDATE proxy_reports SET about = CAST(x'fffe' AS TEXT) {}",
        "UPDATE proxy_reports SET about = 7, seen_at = 'then' {}",
        "DELETE FROM proxy_reports {}",
    ],
)
def test_a_row_that_cannot_be_read_is_a_proxy_of_which_little_is_known(
    another: Open, path: Path, edit: str
) -> None:
    mine, theirs = another(), another()
    mine.beat({}, wall_now=WALL, about=A)
    theirs.beat({WORK: 1}, wall_now=WALL, about=B)
    [row] = [row for row in theirs.proxies(wall_now=WALL) if row.is_me]
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(edit.format("WHERE proxy = ?"), (row.proxy,))
        connection.commit()
    found = {row.proxy: row for row in mine.proxies(wall_now=WALL)}
    broken = found.pop(row.proxy)
    assert [row.about for row in found.values()] == [A]
    # Its host, as an older version has it.
    assert (broken.about.version, broken.is_running, broken.in_flight) == ("", True, 1)
    assert broken.about.name


@in_file
def test_times_that_are_none_are_not_known(another: Open, path: Path) -> None:
    store = another()
    store.beat({WORK: 1}, wall_now=WALL, about=A)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE proxies SET seen_at = 'then', started_at = 9e999, host = x'ff'")
        connection.execute("UPDATE in_flight SET requests = 9e999")
        connection.execute("UPDATE proxy_reports SET seen_at = 'then'")
        connection.commit()
    [row] = store.proxies(wall_now=WALL)
    assert (row.about, row.seen_s, row.in_flight) == (A, None, 0)


@in_file
def test_a_file_of_before_gets_the_table(path: Path, another: Open) -> None:
    steps = schema.MIGRATIONS[:11]
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE schema (version INTEGER NOT NULL)")
        connection.execute("INSERT INTO schema VALUES (?)", (len(steps),))
        for statement in (statement for step in steps for statement in step):
            connection.execute(statement)
        connection.execute("INSERT INTO proxies VALUES ('old', 'host', 7, ?, ?)", (WALL - 9, WALL))
        connection.commit()
    store = another()
    [row] = store.proxies(wall_now=WALL + 1)
    assert row == ProxyRow(
        proxy="old",
        about=AboutProxy(name="host", uptime_s=10.0),
        seen_s=1.0,
        is_running=True,
    )


@pytest.mark.parametrize("backend", KINDS, indirect=True)
@pytest.mark.parametrize("broken", [b"nonsense", b"\xff\xfe", b"", b"[" * 5000, b"7 7 {}"])
def test_a_row_of_an_engine_that_cannot_be_read_harms_no_other(
    backend: EngineBackend, broken: bytes
) -> None:
    mine, theirs = backend.open(), backend.open()
    mine.beat({}, wall_now=WALL, about=A)
    theirs.beat({WORK: 1}, wall_now=WALL, about=B)
    client = backend.client
    for name, about in client.hgetall(backend.key("about")).items():
        if B.name.encode() in about:
            client.hset(backend.key("about"), name, broken)
    found = {row.about.name: row for row in mine.proxies(wall_now=WALL)}
    assert found.pop(A.name).about == A
    [row] = found.values()
    # Of its process its host is known.
    assert row.about.name
    assert (row.about.version, row.is_running, row.in_flight) == ("", True, 1)
    for name in client.hkeys(backend.key("who")):
        for hash_ in ("who", "f"):
            client.hset(backend.key(hash_), name, broken)
    rows = mine.proxies(wall_now=WALL)
    assert [row.in_flight for row in rows] == [0, 0]
    assert {row.about.name for row in rows} == {A.name, ""}
