"""Rows about requests in a file that proxies share."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from account_pool.core.request_rows import RequestRow
from account_pool.store import schema, sqlite_requests
from account_pool.store.database import IN_MEMORY
from account_pool.store.sqlite_state import SqliteState
from account_pool.store.store import Numbered, RequestQuery, StoreError

#: 2027-01-15 00:00:00 UTC
DAY = 1_799_971_200.0


def row(at: float = DAY, **changes: object) -> RequestRow:
    return RequestRow(
        wall_at=at,
        provider="openai",
        account="openai/one",
        model="gpt-5",
        endpoint="/v1/responses",
        tool="codex",
        session="0123abcd",
        status="ok",
        http_status=200,
        attempts=1,
        failovers=0,
        wait_s=0.0,
        first_byte_s=0.5,
        duration_s=2.0,
        counted=1,
        input_tokens=100,
        cached_tokens=40,
        cache_write_tokens=0,
        output_tokens=10,
        reasoning_tokens=5,
    )._replace(**changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pool.sqlite"


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, path: Path) -> Iterator[SqliteState]:
    made = SqliteState(path if request.param == "file" else IN_MEMORY)
    yield made
    made.close()


def write(store: SqliteState, *rows: RequestRow, wall_now: float = DAY, **more: object) -> None:
    store.exchange([], wall_now=wall_now, requests=rows, **more)


def numbers(store: SqliteState, **query: object) -> list[int]:
    return [number for number, _ in store.requests.read(RequestQuery(**query)).rows]


def test_a_row_is_read_as_it_was_written(store):
    wanted = row(cost_usd=0.125, covered=1, premium_requests=0.33)
    bare = row(account=None, model=None, session=None, http_status=None, first_byte_s=None)
    write(store, wanted, bare)
    page = store.requests.read(RequestQuery())
    assert page.rows == [(2, bare), (1, wanted)]
    assert page.last == 2


def test_pages(store):
    write(store, *[row(DAY + n) for n in range(5)])
    assert numbers(store, limit=2) == [5, 4]
    assert numbers(store, limit=2, before=4) == [3, 2]
    assert numbers(store, since=3) == [5, 4]
    # Nothing is skipped by whoever follows: the oldest come first.
    assert numbers(store, since=0, limit=2) == [2, 1]
    assert numbers(store, since=5) == []


def test_filters(store):
    write(
        store,
        row(),
        row(DAY + 10, account="openai/two", tool="claude-code"),
        row(DAY + 20, provider="gemini", account="gemini/one", model="gemini-3", status="refused"),
    )
    for query, found in (
        ({"account": "openai/two"}, [2]), ({"account": "openai"}, [2, 1]),
        ({"model": "gpt-5"}, [2, 1]),
        ({"tool": "codex"}, [3, 1]), ({"status": "refused"}, [3]), ({"from_at": DAY + 10}, [3, 2]),
        ({"to_at": DAY + 10}, [1]), ({"from_at": DAY + 1, "tool": "codex"}, [3]),
        ({"account": "openai/none"}, []), ({"tool": "' OR 1 --"}, []),
    ):  # fmt: skip
        assert numbers(store, **query) == found, query


def test_a_batch_that_comes_again_is_not_added_again(store):
    batch = Numbered("one", 1)
    write(store, row(), batch=batch)
    write(store, row(), batch=batch)
    assert numbers(store) == [1]
    write(store, row(), batch=batch._replace(number=2))
    assert numbers(store) == [2, 1]


def test_two_proxies_on_one_file(path):
    with closing(SqliteState(path)) as one, closing(SqliteState(path)) as other:
        write(one, row(), batch=Numbered("one", 1))
        write(other, row(DAY + 1), batch=Numbered("other", 1))
        assert numbers(one) == numbers(other) == [2, 1]


def test_old_rows_go_and_numbers_do_not_come_again(store):
    write(store, row(), row(), wall_now=DAY)
    write(store, row(), wall_now=DAY + 100)
    # By the clock of the store, whatever the clock of a proxy said.
    assert not store.requests.prune(50, wall_now=DAY + 100)
    assert numbers(store) == [3]
    assert not store.requests.prune(0, wall_now=DAY + 100)
    assert numbers(store) == []
    write(store, row())
    assert numbers(store) == [4]


def test_many_old_rows_go_in_parts(store, monkeypatch):
    monkeypatch.setattr(sqlite_requests, "PRUNED_AT_ONCE", 2)
    write(store, *[row()] * 5)
    assert store.requests.prune(1, wall_now=DAY + 10)
    assert numbers(store) == [5, 4, 3]
    assert store.requests.prune(1, wall_now=DAY + 10)
    assert not store.requests.prune(1, wall_now=DAY + 10)
    assert not store.requests.prune(1, wall_now=DAY + 10)
    assert numbers(store) == []


def test_more_rows_than_there_may_be(store, monkeypatch):
    monkeypatch.setattr(sqlite_requests, "MAX_ROWS", 3)
    monkeypatch.setattr(sqlite_requests, "MAX_ROWS_IN_MEMORY", 3)
    write(store, *[row()] * 5)
    store.requests.prune(1e9, wall_now=DAY)
    assert numbers(store) == [5, 4, 3]


def test_sums(store):
    write(
        store,
        row(),
        row(DAY + 3600),
        row(DAY + 3601, tool="claude-code", input_tokens=None, cost_usd=None),
        row(status="refused", counted=0, input_tokens=7),
    )
    days = store.requests.sums(RequestQuery(), by_hour=False)
    assert {one.key: one.amounts["requests"] for one in days} == {
        ("2027-01-15", "openai/one", "gpt-5", "codex"): 2,
        ("2027-01-15", "openai/one", "gpt-5", "claude-code"): 1,
    }
    [codex] = [one.amounts for one in days if one.key[3] == "codex"]
    assert (codex["input_tokens"], codex["output_tokens"], codex["cost_usd"]) == (200, 20, 0)
    hours = store.requests.sums(RequestQuery(tool="codex"), by_hour=True)
    assert [one.key[0] for one in hours] == ["2027-01-15T00:00:00Z", "2027-01-15T01:00:00Z"]


def test_a_series(store):
    write(
        store,
        *[row(DAY + n, duration_s=float(n), first_byte_s=n / 10) for n in range(1, 101)],
        row(DAY + 899, status="refused", counted=0, failovers=2, duration_s=500.0, wait_s=3.0),
        row(DAY + 1800, status="aborted", duration_s=1.0),
        # The handshake of a WebSocket, beside its turns.
        row(DAY + 1801, http_status=101, counted=0),
    )
    first, third = store.requests.series(RequestQuery(from_at=DAY, to_at=DAY + 3600), 900)
    assert (first.step, first.duration_s, first.first_byte_s) == (0, (50.0, 95.0), (5.0, 9.5))
    amounts = first.amounts
    assert (amounts["requests"], amounts["ok"], amounts["refused"]) == (101, 100, 1)
    assert (amounts["failovers"], amounts["waited"], amounts["wait_s"]) == (2, 1, 3.0)
    assert amounts["input_tokens"] == 101 * 100
    assert (third.step, third.duration_s, third.amounts["requests"]) == (2, None, 1)
    assert store.requests.series(RequestQuery(from_at=DAY, model="none"), 900) == []


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, 0.0), (0.123, 0.12), (1.07, 1.05), (45.7, 45.5), (9e5, 4995.0)]
)
def test_percentiles_are_as_fine_as_needed(store, value, shown):
    write(store, row(duration_s=value))
    [bucket] = store.requests.series(RequestQuery(from_at=DAY), 900)
    assert bucket.duration_s == (shown, shown)


def test_a_file_of_before_gets_the_table(path):
    steps = schema.MIGRATIONS
    with closing(sqlite3.connect(path)) as old:
        old.execute("CREATE TABLE schema (version INTEGER NOT NULL)")
        for statement in [s for step in steps[:7] for s in step]:
            old.execute(statement)
        old.execute("INSERT INTO schema VALUES (7)")
        old.commit()
    with closing(SqliteState(path)) as store:
        write(store, row())
        assert numbers(store) == [1]


def test_what_is_written_does_not_wait_for_a_long_question(path):
    with closing(SqliteState(path)) as store:
        write(store, row())
        with store._database.beside() as connection:
            rows = connection.execute("SELECT number FROM requests")
            write(store, row())
            assert len(rows.fetchall()) >= 1
        assert numbers(store) == [2, 1]


def test_a_question_that_takes_too_long_ends(path, monkeypatch):
    monkeypatch.setattr("account_pool.store.database.LOOK_TIMEOUT_S", -1.0)
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT sum(x) FROM n"
    with (
        closing(SqliteState(path)) as store,
        pytest.raises(StoreError, match="takes too long"),
        store._database.beside() as connection,
    ):
        connection.execute(endless).fetchone()
