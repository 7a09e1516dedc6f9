"""What a pool has learnt, in a file that proxies share."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from account_pool.core.account import AccountKey
from account_pool.core.claims import Claim, Taken
from account_pool.core.cooldown import Cause, Cooldown
from account_pool.core.credential import Secret
from account_pool.core.headroom import Window
from account_pool.core.notifications import Event, Subject, Verdict
from account_pool.core.outcome import OutcomeClass, Scope
from account_pool.core.snapshot import AccountSnapshot, DisablingSnapshot
from account_pool.store import schema
from account_pool.store.database import IN_MEMORY
from account_pool.store.machine import Moment
from account_pool.store.sqlite import SqliteTokens
from account_pool.store.sqlite_state import (
    COUNTS_KEPT_S,
    GONE_KEPT_S,
    ROUNDED_S,
    TABLE_KEPT_S,
    SqliteState,
)
from account_pool.store.store import (
    GRACE_S,
    News,
    Row,
    StateStore,
    StoreError,
    TableChanges,
    Tokens,
)

WALL = 1_800_000_000.0
WORK, HOME = AccountKey("openai", "work"), AccountKey("openai", "home")
CAUSE = Cause(
    signal="429 code=x",
    cls=OutcomeClass.QUOTA,
    scope=Scope.MODEL,
    evidence={"retry-after": "60", "odd": "\xff"},
    hinted=True,
    unknown=True,
    money=True,
)
COOLS = Cooldown(
    model=None, since=WALL, until=WALL + 60.125, streak=2, cause=CAUSE, probed_at=WALL + 30.5
)
# A client may ask for a model with half a character in its name.
ODD = replace(COOLS, model="gpt-5\ud800")
HOURS = Window("5h", 0.25, WALL, reset_at=WALL + 7)
TOKENS = Window("tokens", 0.5, WALL, model="gpt-*", limit=10.0, remaining=5.0)
FULL = AccountSnapshot(
    key=WORK,
    cooldowns={None: COOLS, ODD.model: ODD},
    disabled=DisablingSnapshot(cause=CAUSE, since=WALL - 5),
    refused="abc",
    owner="org-1",
    windows={("5h", None): HOURS, ("tokens", "gpt-*"): TOKENS},
    served=3,
)
PLAIN = AccountSnapshot(key=HOME, served=1)
UNKNOWN = AccountSnapshot(key=WORK)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pool.sqlite"


@pytest.fixture
def two(path: Path) -> Iterator[tuple[SqliteState, SqliteState]]:
    stores = SqliteState(path), SqliteState(path)
    yield stores
    for store in stores:
        store.close()


@pytest.fixture(params=["memory", "sqlite"])
def state(path: Path, request: pytest.FixtureRequest) -> Iterator[StateStore]:
    """Each store there is: what they promise is the same."""
    made = SqliteState(IN_MEMORY if request.param == "memory" else path)
    yield made
    made.close()


def keep(store: StateStore, *accounts: AccountSnapshot, at: float = WALL) -> list[AccountSnapshot]:
    return list(store.exchange(accounts, (), wall_now=at).accounts)


def news(store: StateStore, at: float = WALL) -> News:
    return store.changed(wall_now=at)


def write(
    store: StateStore, table: str, rows: Collection[Row], gone: Mapping[str, float] | None = None
) -> None:
    store.exchange((), wall_now=WALL, lines={table: TableChanges(rows, gone or {})})


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
    news(one), news(other)
    assert news(one) == News()
    cooling = replace(UNKNOWN, cooldowns={None: COOLS})
    keep(one, cooling)
    assert news(other).accounts == {WORK}
    assert news(other) == News()
    assert keep(other, UNKNOWN) == [cooling]
    assert news(one) == News(), "adopting writes nothing"


def test_what_one_releases_does_not_come_back_from_the_other(two) -> None:
    one, other = two
    cooling = replace(UNKNOWN, cooldowns={None: COOLS})
    keep(one, cooling)
    keep(other, UNKNOWN)
    keep(one, UNKNOWN)
    assert keep(other, replace(cooling, served=5)) == [replace(UNKNOWN, served=5)]
    assert keep(one, UNKNOWN) == [replace(UNKNOWN, served=5)]


def test_an_account_that_comes_back_is_as_it_was(state) -> None:
    keep(state, FULL)
    assert state.exchange([], [WORK], wall_now=WALL).accounts == ()
    assert keep(state, UNKNOWN) == [FULL], "not a release by one who knew of it"


def test_one_that_goes_and_comes_back_at_once_too(state) -> None:
    keep(state, FULL)
    assert state.exchange([UNKNOWN], [WORK], wall_now=WALL).accounts == (FULL,)


def test_a_write_that_fails_counts_nothing_twice(two) -> None:
    one, _ = two
    keep(one, replace(UNKNOWN, served=2))
    one._database._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="cannot be written"):
        keep(one, replace(UNKNOWN, served=5))
    one._database._connection.execute("PRAGMA query_only = OFF")
    assert keep(one, replace(UNKNOWN, served=6)) == [replace(UNKNOWN, served=6)]


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


def test_tables_keep_the_latest_row_of_a_key(two) -> None:
    one, other = two
    for table in TABLE_KEPT_S:
        write(one, table, [("a", "openai/work", WALL), ("b", "openai/work", WALL - 1)])
        write(other, table, [("a", "openai/home", WALL + 1), ("odd\ud800", "x/y", WALL)])
        write(one, table, [("a", "openai/work", WALL)], gone={"b": WALL - 1})
        assert one.read_table(table) == [("a", "openai/home", WALL + 1)]


def test_a_line_another_has_used_since_stays(state) -> None:
    write(state, "sessions", [("a", "openai/work", WALL), ("b", "openai/work", WALL)])
    write(state, "sessions", [("b", "openai/work", WALL + 9)])
    write(state, "sessions", [], gone={"a": WALL, "b": WALL, "unknown": WALL})
    assert state.read_table("sessions") == [("b", "openai/work", WALL + 9)]


def test_a_key_that_moves_at_the_moment_of_its_last_use_is_moved(state) -> None:
    write(state, "sessions", [("a", "openai/work", WALL)])
    write(state, "sessions", [("a", "openai/home", WALL)])
    assert state.read_table("sessions") == [("a", "openai/home", WALL)]


def test_what_is_taken_out_is_news_once_also_if_two_do_it(two) -> None:
    """Else each would tell the other for ever, and the line would never be swept."""
    one, other = two
    write(one, "sessions", [("a", "openai/work", WALL)])
    news(one), news(other)
    write(one, "sessions", [], gone={"a": WALL})
    assert news(other).gone == {"sessions": {"a": WALL}}
    write(other, "sessions", [], gone={"a": WALL})
    assert news(one).gone == news(other).gone == {}


def test_times_that_differ_by_their_rounding_are_the_same_use(two) -> None:
    one, other = two
    write(one, "sessions", [("a", "openai/work", WALL + ROUNDED_S / 2)])
    write(other, "sessions", [], gone={"a": WALL})
    assert one.read_table("sessions") == []
    # Whoever still has it has not used it since.
    write(one, "sessions", [("a", "openai/work", WALL + ROUNDED_S)])
    assert one.read_table("sessions") == []
    write(one, "sessions", [("a", "openai/work", WALL + 1)])
    assert one.read_table("sessions") == [("a", "openai/work", WALL + 1)]


def test_what_was_taken_out_is_known_for_a_while(two, path: Path) -> None:
    one, _ = two
    write(one, "pins", [("a", "openai/work", WALL), ("b", "openai/work", WALL)])
    write(one, "pins", [], gone={"a": WALL})

    def known() -> object:
        with closing(SqliteState(path)) as late:
            return news(late).gone, late.read_table("pins")

    left = [("b", "openai/work", WALL)]
    one.sweep([], wall_now=WALL + GONE_KEPT_S - 1)
    assert known() == ({"pins": {"a": WALL}}, left)
    one.sweep([], wall_now=WALL + GONE_KEPT_S + 1)
    assert known() == ({}, left)


def test_what_one_binds_is_news_to_the_other(two) -> None:
    one, other = two
    news(one), news(other)
    bound = ("a", "openai/work", WALL)
    write(one, "sessions", [bound])
    assert news(other).lines == {"sessions": [bound]}
    assert news(other) == news(one) == News()
    write(other, "sessions", [("a", "openai/home", WALL + 1)])
    assert news(one).lines == {"sessions": [("a", "openai/home", WALL + 1)]}


def test_old_rows_are_swept(two) -> None:
    one, _ = two
    keep(one, FULL, PLAIN)
    for table in TABLE_KEPT_S:
        write(one, table, [("old", "openai/work", WALL), ("new", "openai/work", WALL + 1e8)])
    one.exchange((), wall_now=WALL, counts={"usage": {("2026-08-01", "old"): {"n": 1}}})
    late = WALL + COUNTS_KEPT_S
    one.exchange((), wall_now=late, counts={"usage": {("2027-09-05", "new"): {"n": 1}}})
    one.sweep([HOME], wall_now=late + 1)
    one._base.clear()
    assert keep(one, UNKNOWN, AccountSnapshot(key=HOME)) == [UNKNOWN, PLAIN]
    assert [[row[0] for row in one.read_table(table)] for table in TABLE_KEPT_S] == [["new"]] * 2
    assert list(one.read_counts("usage")) == [("2027-09-05", "new")]


# -- counters


def test_counters_add_up(state) -> None:
    key = ("2026-08-01", "openai/work", "gpt-5\ud800")
    for counts in ({key: {"requests": 1, "tokens": 7}}, {key: {"requests": 1, "cost": 0.5}}):
        state.exchange((), wall_now=WALL, counts={"usage": counts})
    state.exchange((), wall_now=WALL, counts={"other": {key: {"requests": 9}}})
    assert state.read_counts("usage") == {key: {"requests": 2, "tokens": 7, "cost": 0.5}}
    assert state.read_counts("nothing") == {}


def test_counters_of_all_proxies_add_up(two) -> None:
    for store in two:
        store.exchange((), wall_now=WALL, counts={"usage": {("a",): {"requests": 2}}})
    assert [store.read_counts("usage") for store in two] == [{("a",): {"requests": 4}}] * 2


def test_what_fails_is_not_done_in_part(two) -> None:
    one, _ = two
    keep(one, FULL)
    more = {"usage": {("a",): {"requests": 1}}}
    one._database._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError):
        one.exchange([PLAIN], wall_now=WALL, counts=more)
    one._database._connection.execute("PRAGMA query_only = OFF")
    assert one.read_counts("usage") == {}


# -- other proxies


def test_others_know_what_one_has_in_flight(two) -> None:
    one, other = two
    one.beat({WORK: 2}, wall_now=WALL)
    one.exchange((), wall_now=WALL, in_flight={HOME: 1})
    told = news(other)
    assert told.in_flight_remote == {WORK: 2, HOME: 1}
    assert told.proxies == (one._me,)
    one.exchange((), wall_now=WALL, in_flight={WORK: 0})
    assert news(other).in_flight_remote == {WORK: 0, HOME: 1}
    assert news(one).in_flight_remote == {}


@pytest.mark.parametrize("later", [GRACE_S, -3600.0], ids=["after a grace", "clock set back"])
def test_what_a_dead_proxy_held_is_free(two, later: float) -> None:
    dead, other = two
    dead.beat({WORK: 2}, wall_now=WALL)
    assert news(other).in_flight_remote == {WORK: 2}
    other.beat({}, wall_now=WALL + later / 2 if later > 0 else WALL)
    assert news(other, WALL).in_flight_remote == {WORK: 2}
    other.beat({}, wall_now=WALL + later)
    assert news(other, WALL + later) == News(in_flight_remote={}, proxies=())


def test_one_that_hung_is_there_again(two) -> None:
    hung, other = two
    hung.beat({WORK: 2}, wall_now=WALL)
    assert hung.beat({WORK: 2}, wall_now=WALL)
    other.beat({}, wall_now=WALL + GRACE_S)
    assert not hung.beat({WORK: 1}, wall_now=WALL + GRACE_S + 1)
    assert news(other, WALL + GRACE_S + 1).in_flight_remote == {WORK: 1}


def test_one_that_ends_or_is_known_to_be_dead_holds_nothing(two) -> None:
    one, other = two
    one.beat({WORK: 2}, wall_now=WALL)
    (proxy,) = news(other).proxies or ()
    other.reap([proxy])
    other.beat({}, wall_now=WALL)
    assert news(other).proxies == ()
    one.beat({WORK: 2}, wall_now=WALL)
    assert news(other).in_flight_remote == {WORK: 2}
    one.close()
    assert news(other) == News(in_flight_remote={}, proxies=())


# -- another credential under the same name

OLD, NEW = replace(FULL, source="old"), replace(UNKNOWN, source="new")


def test_what_was_learnt_with_another_credential_is_dropped(state) -> None:
    keep(state, OLD)
    state.exchange([], [WORK], wall_now=WALL)
    found = state.exchange([NEW], wall_now=WALL)
    assert found.accounts == (replace(NEW, served=OLD.served),)
    assert found.replaced == {WORK}
    assert state.exchange(found.accounts, wall_now=WALL).replaced == frozenset()


def test_two_with_other_credentials_do_not_write_in_turns(two) -> None:
    one, other = two
    keep(one, OLD)
    (mine,) = keep(other, NEW)
    assert (mine.cooldowns, mine.source) == ({}, "new")
    news(one), news(other)
    assert keep(one, OLD) == [replace(OLD, served=OLD.served)]
    assert news(other) == News()


def test_who_has_taken_over_the_new_credential_shares_again(two) -> None:
    one, other = two
    for store in two:
        keep(store, replace(OLD, served=0))
    keep(one, NEW)
    cooling = replace(NEW, cooldowns={None: COOLS})
    keep(one, cooling)
    assert keep(other, NEW) == [cooling]


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


# -- what the owner was notified of


def test_of_two_proxies_one_tells(two, path: Path) -> None:
    one, other = two
    gone = Subject(Event.DISABLED, str(WORK))
    assert one.notices.note([gone], [], wall_now=WALL) == {gone: Verdict.TELL}
    assert other.notices.note([gone], [], wall_now=WALL) == {gone: Verdict.KNOWN}
    assert other.notices.noted() == [gone]
    assert other.notices.note([], [gone], wall_now=WALL + 1) == {gone: Verdict.TELL}
    assert one.notices.note([], [gone], wall_now=WALL + 1) == {gone: Verdict.KNOWN}
    assert one.notices.note([gone], [], wall_now=WALL + 2) == {gone: Verdict.LATER}
    assert one.notices.noted() == []
    with closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO notices VALUES ('of a newer version', '', '', 1, 0)")
        database.commit()
    assert one.notices.noted() == []


def test_a_turn_is_taken_by_one_and_comes_again(two) -> None:
    one, other = two
    assert one.notices.take_turn("look-up", 300.0, wall_now=WALL)
    assert not other.notices.take_turn("look-up", 300.0, wall_now=WALL + 299.0)
    assert other.notices.take_turn("another", 300.0, wall_now=WALL)
    assert other.notices.take_turn("look-up", 300.0, wall_now=WALL + 300.0)
    # The clock was set back.
    assert one.notices.take_turn("look-up", 300.0, wall_now=WALL - 9000.0)
