"""What a pool has learnt, in a file: damage, files of earlier versions, what is read again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec.structs import replace
from tests.store.backends import WALL
from tests.store.samples import CAUSE, COOLS, FULL, PLAIN, UNKNOWN, WORK, keep, write

from account_pool.core.account import AccountKey
from account_pool.core.claims import Claim, Taken
from account_pool.core.cooldown import Endings
from account_pool.core.credential import Secret
from account_pool.core.headroom import MAX_WINDOWS, Key, Window
from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.store import account_rows, schema
from account_pool.store.machine import Moment
from account_pool.store.sqlite import SqliteTokens
from account_pool.store.sqlite_state import SqliteState
from account_pool.store.store import StoreError, Tokens


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pool.sqlite"


@pytest.fixture
def two(path: Path) -> Iterator[tuple[SqliteState, SqliteState]]:
    stores = SqliteState(path), SqliteState(path)
    yield stores
    for store in stores:
        store.close()


@pytest.mark.parametrize("edit", ["UPDATE cooldowns SET cause = '{}'", "DELETE FROM writes"])
def test_a_value_that_nobody_wrote_is_damage(path: Path, two, edit: str) -> None:
    one, _ = two
    keep(one, FULL)
    with sqlite3.connect(path) as connection:
        connection.execute(edit)
    connection.close()
    with pytest.raises(StoreError, match="is damaged; keep it"):
        keep(one, FULL)


def test_a_table_with_no_account_is_damage(path: Path, two) -> None:
    one, _ = two
    write(one, "pins", [("a", "nobody", WALL)])
    with pytest.raises(StoreError, match="is damaged; keep it"):
        one.read_table("pins")


def test_windows_that_stay_are_not_put_into_words_again(two, monkeypatch) -> None:
    """However many accounts have as many as are kept of one."""
    one, other = two
    limits = {each.key: float(n) for n, each in enumerate((FULL, PLAIN), start=1)}

    def windows(key: AccountKey, shares: Iterable[float]) -> dict[Key, Window]:
        found = [
            Window("tokens", share, WALL, f"model-{n}", WALL + 60.0, limit=limits[key])
            for n, share in enumerate(shares)
        ]
        return {(window.name, window.model): window for window in found}

    shares = [0.5] * MAX_WINDOWS
    accounts = [replace(each, windows=windows(each.key, shares)) for each in (FULL, PLAIN)]
    keep(one, *accounts)
    said: list[object] = []

    def dumps(value: object) -> str:
        said.append(value)
        return json.dumps(value)

    monkeypatch.setattr(account_rows, "json", SimpleNamespace(dumps=dumps, loads=json.loads))
    new = [windows(account.key, [0.25]) for account in accounts]
    accounts = [
        replace(account, windows=account.windows | changed)
        for account, changed in zip(accounts, new, strict=True)
    ]
    keep(one, *accounts)
    texts = [value for value in said if isinstance(value, dict) and "share" in value]
    assert texts == [window._asdict() for changed in new for window in changed.values()]
    assert [a.windows for a in keep(other, *accounts)] == [a.windows for a in accounts]


def older(path: Path, steps: int, statement: str, *values: object) -> None:
    """Make a file as a version with so many *steps* did, with something in it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE schema (version INTEGER NOT NULL)")
        connection.execute("INSERT INTO schema VALUES (?)", (steps,))
        for step in schema.MIGRATIONS[:steps]:
            for each in step:
                connection.execute(each)
        connection.execute(statement, values)
        connection.commit()


def test_a_file_that_held_only_tokens_keeps_them(path: Path) -> None:
    tokens = Tokens(access=None, refresh=Secret("rt-1"))
    older(path, 1, "INSERT INTO tokens VALUES ('family', NULL, 'rt-1', NULL, NULL, '{}')")
    store = SqliteState(path)
    assert keep(store, FULL) == [FULL]
    store.close()
    again = SqliteTokens(path)
    assert again.load("family") == tokens
    again.close()


def test_a_file_whose_claims_had_no_number_keeps_its_logins(path: Path) -> None:
    """An older proxy may have died with its claim: it ends by itself."""
    at = Moment("one", 50.0, WALL)
    older(path, 4, "INSERT INTO claims VALUES ('family', 'host:1:uuid', ?)", WALL + 25)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "INSERT INTO tokens VALUES ('family', 'at', 'rt', ?, NULL, '{}')", (WALL,)
        )
        connection.commit()
    store = SqliteTokens(path, clock=lambda: at)
    kept = Tokens(access=Secret("at"), refresh=Secret("rt"), expires_at=WALL)
    assert store.load("family") == kept
    found = store.claim("family", "me", token=kept.refresh, is_over=True)
    assert found == Taken(25.0, False)
    at = Moment("one", 75.0, WALL + 25)
    assert isinstance(store.claim("family", "me", token=kept.refresh, is_over=True), Claim)
    store.close()


def test_a_file_that_knew_one_share_of_each_account_keeps_the_rest(path: Path) -> None:
    older(
        path,
        3,
        "INSERT INTO accounts (account, first_seen, last_seen, served, owner, headroom, write) "
        "VALUES (?, 1, 2, 3, ?, 0.25, 4)",
        str(WORK),
        '"org-1"',
    )
    store = SqliteState(path)
    assert keep(store, UNKNOWN) == [replace(UNKNOWN, served=3, owner="org-1")]
    store.close()


def test_a_version_that_knows_no_endings_goes_on_with_the_file(path: Path) -> None:
    row = "INSERT OR REPLACE INTO accounts VALUES (?, 1, 2, 3, NULL, NULL, NULL, '', ?, '', '[]')"
    older(path, len(schema.MIGRATIONS), row, str(WORK), 4)
    store = SqliteState(path)
    endings = Endings(cooldowns=WALL)
    [found] = keep(store, replace(UNKNOWN, endings=endings))
    assert found == replace(UNKNOWN, served=3, endings=endings)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT max(version) FROM schema").fetchone() == (
            len(schema.MIGRATIONS),
        )
        other.execute(row, (str(WORK), 5))
        other.commit()
    assert keep(store, found) == [found]
    store.close()


def test_a_cooldown_that_stays_is_neither_read_nor_written_again(two) -> None:
    """An account may cool for a hundred models, and each refusal is one more."""
    store, other = two
    models = [f"gpt-{n}" for n in range(4)]
    for count in (1, 2, 3):
        cooldowns = {model: replace(COOLS, model=model) for model in models[:count]}
        statements: list[str] = []
        with store._database.reading() as connection:
            connection.set_trace_callback(statements.append)
        keep(store, replace(UNKNOWN, cooldowns=cooldowns), at=WALL + count)
        connection.set_trace_callback(None)
        assert sum("INSERT INTO cooldowns" in s for s in statements) == 1
        assert any("FROM cooldowns WHERE account IN" in s for s in statements) == (count == 1)
    # Whatever another connection does, all is read again, and only what is over is taken out.
    keep(other, PLAIN)
    [left] = keep(store, replace(UNKNOWN, cooldowns={models[1]: replace(COOLS, model=models[1])}))
    assert left.cooldowns.keys() == {models[1]}
    [found] = keep(other, UNKNOWN)
    assert found.cooldowns == left.cooldowns


def test_what_a_newer_version_tells_is_left_alone(path: Path) -> None:
    with closing(SqliteState(path)) as store:
        with closing(sqlite3.connect(path)) as database:
            database.execute("INSERT INTO notices VALUES ('of a newer version', '', '', 1, 0)")
            database.commit()
        assert store.notices.noted() == []


def test_what_a_newer_version_says_of_an_account_is_no_damage(path: Path, two) -> None:
    """A proxy that goes back to this version must not lose the file, and its logins with it."""
    one, _ = two
    keep(one, FULL)
    with closing(sqlite3.connect(path)) as database:
        for table, column in (("cooldowns", "cause"), ("accounts", "disabled")):
            database.execute(
                f"UPDATE {table} SET {column} = json_set({column}, '$.class', 'of_a_newer_version',"
                " '$.scope', 'galaxy', '$.mood', 'gloomy')"
            )
        database.execute(
            "UPDATE accounts SET windows = json_set(windows, '$[0].mood', 'gloomy', "
            "'$[#]', json_object('name', 'moons'))"
        )
        database.commit()
    cause = replace(CAUSE, cls=OutcomeClass.RATE_LIMIT, scope=Scope.ACCOUNT)
    with closing(SqliteState(path)) as store:
        [found] = keep(store, UNKNOWN)
    assert (found.windows, found.owner, found.served) == (FULL.windows, FULL.owner, FULL.served)
    assert found.disabled is not None and found.disabled.cause == cause
    assert found.cooldowns[None] == replace(COOLS, cause=cause)
