"""Rows about requests in a file that proxies share."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.store.request_samples import DAY, numbers, row, write

from account_pool.store import schema, sqlite_history
from account_pool.store.database import IN_MEMORY
from account_pool.store.sqlite_state import SqliteState
from account_pool.store.store import StoreError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pool.sqlite"


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, path: Path) -> Iterator[SqliteState]:
    made = SqliteState(path if request.param == "file" else IN_MEMORY)
    yield made
    made.close()


def test_many_old_rows_go_in_parts(store, monkeypatch):
    monkeypatch.setattr(sqlite_history, "PRUNED_AT_ONCE", 2)
    write(store, *[row()] * 5)
    assert store.requests.prune(1, wall_now=DAY + 10)
    assert numbers(store) == [5, 4, 3]
    assert store.requests.prune(1, wall_now=DAY + 10)
    assert not store.requests.prune(1, wall_now=DAY + 10)
    assert not store.requests.prune(1, wall_now=DAY + 10)
    assert numbers(store) == []


def test_more_rows_than_there_may_be(store, monkeypatch):
    monkeypatch.setattr(sqlite_history, "MAX_ROWS", 3)
    monkeypatch.setattr(sqlite_history, "MAX_ROWS_IN_MEMORY", 3)
    write(store, *[row()] * 5)
    store.requests.prune(1e9, wall_now=DAY)
    assert numbers(store) == [5, 4, 3]


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
