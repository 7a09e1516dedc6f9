"""What a pool has learnt, in a file that proxies share."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import Cause, Cooldown
from account_pool.core.credential import Secret
from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.core.saved import SavedAccount, SavedDisabling
from account_pool.store import database, schema
from account_pool.store.errors import StoreError
from account_pool.store.sqlite import SqliteTokens
from account_pool.store.sqlite_state import ACCOUNT_KEPT_S, BOOK_KEPT_S, SqliteState
from account_pool.store.tokens import Tokens

WALL = 1_800_000_000.0
WORK, HOME = AccountKey("openai", "work"), AccountKey("openai", "home")
CAUSE = Cause(
    signal="429 code=x",
    cls=OutcomeClass.QUOTA,
    scope=Scope.MODEL,
    evidence={"retry-after": "60", "odd": "\xff"},
    hinted=True,
)
COOLS = Cooldown(model=None, since=WALL, until=WALL + 60.125, streak=2, cause=CAUSE)
# A client may ask for a model with half a character in its name.
ODD = replace(COOLS, model="gpt-5\ud800")
FULL = SavedAccount(
    key=WORK,
    cooldowns={None: COOLS, ODD.model: ODD},
    disabled=SavedDisabling(cause=CAUSE, since=WALL - 5, refused="abc"),
    owner="org-1",
    headroom=0.25,
    headroom_reset_at=WALL + 7,
    served=3,
)
PLAIN = SavedAccount(key=HOME, served=1)
UNKNOWN = SavedAccount(key=WORK)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pool.sqlite"


@pytest.fixture
def two(path: Path) -> Iterator[tuple[SqliteState, SqliteState]]:
    stores = SqliteState(path), SqliteState(path)
    yield stores
    for store in stores:
        store.close()


def keep(store: SqliteState, *accounts: SavedAccount, at: float = WALL) -> list[SavedAccount]:
    return list(store.exchange(accounts, (), wall_now=at).accounts)


def test_everything_is_there_after_a_restart(path: Path) -> None:
    store = SqliteState(path)
    assert keep(store, FULL, PLAIN) == [FULL, PLAIN]
    store.close()
    store = SqliteState(path)
    found = store.exchange([UNKNOWN], (), wall_now=WALL + 1)
    store.close()
    assert found.accounts == (FULL,)
    assert found.wall_at == WALL


def test_one_adopts_what_the_other_has_written(two) -> None:
    one, other = two
    keep(one, UNKNOWN)
    keep(other, UNKNOWN)
    one.changed(), other.changed()
    assert not one.changed()
    cooling = replace(UNKNOWN, cooldowns={None: COOLS})
    keep(one, cooling)
    assert set(other.changed()) == {WORK}
    assert not other.changed()
    assert keep(other, UNKNOWN) == [cooling]
    assert not one.changed(), "adopting writes nothing"


def test_what_one_releases_does_not_come_back_from_the_other(two) -> None:
    one, other = two
    cooling = replace(UNKNOWN, cooldowns={None: COOLS})
    keep(one, cooling)
    keep(other, UNKNOWN)
    keep(one, UNKNOWN)
    assert keep(other, replace(cooling, served=5)) == [replace(UNKNOWN, served=5)]
    assert keep(one, UNKNOWN) == [replace(UNKNOWN, served=5)]


def test_what_is_forgotten_is_no_release_for_others(two) -> None:
    one, other = two
    keep(one, FULL)
    keep(other, UNKNOWN)
    one.exchange([], [WORK], wall_now=WALL)
    assert keep(one, UNKNOWN) == [UNKNOWN]
    one.exchange([], [WORK], wall_now=WALL)
    assert keep(other, FULL) == [FULL]


def test_a_write_that_fails_counts_nothing_twice(two) -> None:
    one, _ = two
    keep(one, replace(UNKNOWN, served=2))
    one._database._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="cannot be written"):
        keep(one, replace(UNKNOWN, served=5))
    one._database._connection.execute("PRAGMA query_only = OFF")
    assert keep(one, replace(UNKNOWN, served=6)) == [replace(UNKNOWN, served=6)]


def test_a_value_that_nobody_wrote_is_damage(path: Path, two) -> None:
    one, _ = two
    keep(one, FULL)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE cooldowns SET cause = '{}'")
    connection.close()
    with pytest.raises(StoreError, match="is damaged; keep it"):
        keep(one, FULL)


def test_a_book_with_no_account_is_damage(path: Path, two) -> None:
    one, _ = two
    one.write_book("pins", [("a", "nobody", WALL)])
    with pytest.raises(StoreError, match="is damaged; keep it"):
        one.read_book("pins")


def test_a_file_that_held_only_tokens_keeps_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = Tokens(access=None, refresh=Secret("rt-1"))
    with monkeypatch.context() as before:
        before.setattr(database, "MIGRATIONS", schema.MIGRATIONS[:1])
        older = SqliteTokens(path)
        older.save("family", tokens)
        older.close()
    store = SqliteState(path)
    assert keep(store, FULL) == [FULL]
    store.close()
    again = SqliteTokens(path)
    assert again.load("family") == tokens
    again.close()


def test_books_keep_the_latest_line_of_a_key(two) -> None:
    one, other = two
    for book in BOOK_KEPT_S:
        one.write_book(book, [("a", "openai/work", WALL), ("b", "openai/work", WALL - 1)])
        other.write_book(book, [("a", "openai/home", WALL + 1), ("odd\ud800", "x/y", WALL)])
        one.write_book(book, [("a", "openai/work", WALL)], gone=["b"])
        assert one.read_book(book) == [("a", "openai/home", WALL + 1)]
    one.exchange([], [HOME], wall_now=WALL)
    assert [one.read_book(book) for book in BOOK_KEPT_S] == [[], []]


def test_old_rows_are_swept(two) -> None:
    one, _ = two
    keep(one, FULL, PLAIN)
    for book in BOOK_KEPT_S:
        one.write_book(book, [("old", "openai/work", WALL), ("new", "openai/work", WALL + 1e7)])
    one.sweep([HOME], wall_now=WALL + ACCOUNT_KEPT_S + 1)
    one._base.clear()
    assert keep(one, UNKNOWN, SavedAccount(key=HOME)) == [UNKNOWN, PLAIN]
    assert [[row[0] for row in one.read_book(book)] for book in BOOK_KEPT_S] == [["new"]] * 2
