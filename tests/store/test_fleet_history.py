"""Requests in an engine: what comes of lost answers, lost data, other data, and many proxies."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.patience import PATIENCE_S
from tests.store.request_samples import DAY, numbers, row, write
from tests.store.servers import KINDS, Server, new_pool

from account_pool.core.prices import Cost
from account_pool.core.request_rows import RequestRow
from account_pool.store.fleet import history
from account_pool.store.fleet.fleet_store import FleetStore
from account_pool.store.fleet.history import Entry, entries_of, row_of
from account_pool.store.pool_state import parse
from account_pool.store.sqlite_state import SqliteState
from account_pool.store.store import DamagedError, FullError, Numbered, RequestQuery, StoreError

COST = Cost(cost_usd=1.0, price="list", covered=0, premium_requests=None)
NONE = COST._replace(cost_usd=None, price="")


class Lossy:
    """Calls the engine; of writes the answer may be lost, before or after they were done."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.lose = ""

    def __call__(self, function: str, *args: Any, **how: Any) -> Any:
        lose, self.lose = (self.lose, "") if function == "commit" else ("", self.lose)
        if lose == "before":
            raise StoreError("no answer")
        reply = self._call(function, *args, **how)
        if lose == "after":
            raise StoreError("no answer")
        return reply


class Fleet:
    """Proxies on one pool of an engine."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder, self.pool = server, folder, new_pool()
        self.client = server.client()
        self.opened: list[Any] = []

    def open(self) -> Any:
        store = FleetStore(parse(self.server.url(self.pool)), self.folder)
        store.engine.call = lossy = Lossy(store.engine.call)  # type: ignore[method-assign]
        state: Any = store.state()
        state.lossy = lossy
        self.opened.append(state)
        return state

    def key(self, name: str) -> str:
        return f"{{ap:{self.pool}}}:{name}"

    def add(self, number: int, kind: str, data: object, at: str = "1.5") -> None:
        """Add an entry, as whoever may write to the engine can."""
        said = data if isinstance(data, bytes) else json.dumps(data)
        entry = {"k": kind, "t": at, "d": said}
        self.client.xadd(self.key("log"), entry, id=f"0-{number}")

    def close(self) -> None:
        for state in self.opened:
            state.close()
        self.client.close()


@pytest.fixture
def fleet(server: Server, tmp_path: Path) -> Iterator[Fleet]:
    with contextlib.closing(Fleet(server, tmp_path)) as made:
        yield made


def sessions(state: Any) -> list[str | None]:
    return [found.session for _, found in reversed(state.requests.read(RequestQuery()).rows)]


# -- answers and data that are lost


@pytest.mark.parametrize("lose", ["before", "after"])
def test_rows_whose_write_was_not_answered_are_there_once(fleet, lose):
    state, batch = fleet.open(), Numbered("one", 1)
    state.lossy.lose = lose
    with pytest.raises(StoreError, match="no answer"):
        write(state, row(session="a"), row(session="b"), batch=batch)
    write(state, row(session="a"), row(session="b"), batch=batch)
    assert sessions(state) == ["a", "b"]


@pytest.mark.parametrize("lose_after", [0, 1, 2, 3])
@pytest.mark.parametrize("lose", ["before", "after"])
def test_many_rows_are_added_in_parts_and_each_once(fleet, monkeypatch, lose, lose_after):
    monkeypatch.setattr(history, "ADDED_AT_ONCE", 3)
    state, wanted = fleet.open(), [f"{n}" for n in range(11)]
    rows, batch = [row(session=name) for name in wanted], Numbered("one", 1)
    call, done = state.lossy._call, []

    def count(function: str, *args: Any, **how: Any) -> Any:
        done.extend([function] if function == "commit" else [])
        state.lossy.lose = lose if len(done) == lose_after else ""
        return call(function, *args, **how)

    state.lossy._call = count
    state.lossy.lose = lose if lose_after == 0 else ""
    with pytest.raises(StoreError, match="no answer"):
        write(state, *rows, batch=batch)
    state.lossy._call, state.lossy.lose = call, ""
    write(state, *rows, batch=batch)
    assert sessions(state) == wanted
    write(state, *rows)
    assert sessions(state) == [*wanted, *wanted]


@pytest.mark.parametrize("lose", ["before", "after"])
def test_costs_whose_write_was_not_answered_are_added_once(fleet, lose):
    state = fleet.open()
    write(state, row(), row())
    state.lossy.lose = lose
    with pytest.raises(StoreError, match="no answer"):
        state.requests.price([(1, COST), (2, COST)])
    state.requests.price([(1, COST), (2, COST)])
    [sums] = state.read_counts("usage").values()
    assert sums == {"cost_usd": 2.0, "priced_requests": 2}


def test_two_who_put_in_a_price_at_the_same_time_do_it_once(fleet):
    one, other = fleet.open(), fleet.open()
    write(one, row(), row())
    call, one.lossy._call = one.lossy._call, None

    def slow(function: str, *args: Any, **how: Any) -> Any:
        reply = call(function, *args, **how)
        if function == "still_unpriced" and len(reply) == 2:
            other.requests.price([(1, COST)])
        return reply

    one.lossy._call = slow
    one.requests.price([(1, COST._replace(cost_usd=5.0)), (2, COST)])
    [sums] = one.read_counts("usage").values()
    assert sums == {"cost_usd": 2.0, "priced_requests": 2}
    assert [found.cost_usd for _, found in one.requests.read(RequestQuery()).rows] == [1.0, 1.0]


def test_an_engine_that_has_lost_all_is_read_anew(fleet):
    one, other = fleet.open(), fleet.open()
    write(one, *[row(session=f"{n}") for n in range(5)])
    one.requests.price([(1, COST)])
    assert len(sessions(one)) == len(sessions(other)) == 5
    for key in fleet.client.keys(fleet.key("*").replace("{", "\\{")):
        fleet.client.delete(key)
    assert sessions(one) == []
    again = fleet.open()
    write(again, *[row(session=f"new {n}") for n in range(7)])
    wanted = [f"new {n}" for n in range(7)]
    assert sessions(one) == sessions(other) == wanted
    one.requests.price([(1, COST)])
    assert sum(one.read_counts("usage")[("2027-01-15", "openai/one", "gpt-5")].values()) == 2.0


def test_another_server_took_over_that_lacks_the_last_rows(fleet):
    state = fleet.open()
    write(state, row(session="a"), row(session="b"))
    assert sessions(state) == ["a", "b"]
    # Whatever came last is another row now, and has the same number.
    fleet.client.delete(fleet.key("log"))
    for number, name in (1, "a"), (2, "c"), (3, "d"):
        fleet.add(number, "row", row(session=name))
    assert sessions(state) == ["a", "c", "d"]


def test_who_was_not_asked_for_long_reads_what_is_left(fleet):
    one, other = fleet.open(), fleet.open()
    write(one, row(session="a"))
    assert sessions(other) == ["a"]
    one.requests.prune(0, wall_now=DAY)
    write(one, row(session="b"), row(session="c"))
    assert sessions(other) == ["b", "c"]


# -- bounds


def test_the_log_is_bounded(fleet, monkeypatch):
    monkeypatch.setattr(history, "MAX_ENTRIES", 150)
    state = fleet.open()
    for _ in range(6):
        write(state, *[row(price="")] * 100)
    # The engine lets go of a hundred at once.
    assert 150 <= fleet.client.xlen(fleet.key("log")) <= 250
    found = numbers(state, limit=1000)
    assert found == list(range(600, 450, -1)), "a proxy keeps what it was told to"
    assert not state.requests.prune(1e9, wall_now=DAY)


def test_prices_of_rows_that_are_gone_are_not_looked_for(fleet, monkeypatch):
    monkeypatch.setattr(history, "MAX_ENTRIES", 100)
    state = fleet.open()
    write(state, *[row()] * 350)
    first, *_ = [number for number, _ in state.requests.unpriced(0, 1000)]
    assert first > 1
    state.requests.price([(1, COST), (first, COST)])
    [sums] = state.read_counts("usage").values()
    assert sums["priced_requests"] == 1
    state.requests.prune(1e9, wall_now=DAY)
    assert fleet.client.zcard(fleet.key("unpriced")) < 350


def test_a_long_log_is_read_in_parts_and_the_next_question_goes_on(fleet, monkeypatch):
    state = fleet.open()
    write(state, *[row()] * 10)
    monkeypatch.setattr(history, "READ_AT_ONCE", 3)
    monkeypatch.setattr(history, "CATCH_UP_S", -1.0)
    for _ in range(3):
        with pytest.raises(StoreError, match="ask again"):
            numbers(state)
    assert numbers(state) == list(range(10, 0, -1))


def test_a_part_of_the_log_is_bounded_in_bytes(fleet):
    state = fleet.open()
    for number in range(1, 5):
        fleet.add(number, "row", b"x" * 2_000_000)
    write(state, row())
    reply = state.lossy("entries", 0, "0", 1000)
    assert sum(map(len, reply)) < 5_000_000
    assert numbers(state) == [5]


def test_a_question_that_takes_too_long_ends(fleet, monkeypatch):
    state = fleet.open()
    write(state, row())
    monkeypatch.setattr(history, "LOOK_TIMEOUT_S", -1.0)
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT sum(x) FROM n"
    copy = state.requests._mirror
    with pytest.raises(StoreError, match="takes too long"), copy.asking() as connection:
        connection.execute(endless).fetchone()
    monkeypatch.undo()
    assert numbers(state) == [1]


def test_where_the_copy_has_no_room_that_is_said_and_it_goes_on_once_there_is(fleet):
    state = fleet.open()
    copy = state.requests._mirror
    with copy.asking() as connection:
        [pages] = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
    write(state, *[row(session=f"{n}") for n in range(500)])
    with pytest.raises(FullError, match="no room for a copy"):
        numbers(state)
    connection.execute("PRAGMA max_page_count = 100000")
    assert len(numbers(state, limit=1000)) == 500


def test_the_copy_begins_anew_after_it_was_closed(fleet):
    state = fleet.open()
    write(state, row())
    assert numbers(state) == [1]
    state.requests.close()
    assert numbers(state) == [1]


def test_the_end_does_not_wait_for_a_question(fleet):
    """Whoever closes a store keeps the state, or ends the proxy."""
    copy = fleet.open().requests._mirror
    with copy.asking() as connection:
        closing = threading.Thread(target=copy.close, daemon=True)
        closing.start()
        closing.join(PATIENCE_S)
        assert not closing.is_alive()
        assert connection.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(sqlite3.ProgrammingError):
        connection.execute("SELECT 1")


# -- what is no proxy's


def test_what_no_proxy_has_written_is_left_out(fleet):
    state = fleet.open()
    good = list(row(session="good"))
    at = list(RequestRow._fields).index
    fleet.add(1, "row", good)
    for number, data in enumerate(
        [
            b"", b"{", b"[]", b"null", b"[" * 10_000, good[:3], {"a": 1},
            [*good[:1], None, *good[2:]],
            [*good[: at("attempts")], 10**30, *good[at("attempts") + 1 :]],
            [*good[: at("counted")], True, *good[at("counted") + 1 :]],
            [float("nan"), *good[1:]],
        ],
        2,
    ):  # fmt: skip
        fleet.add(number, "row", data)
    fleet.add(20, "another kind", good)
    fleet.add(21, "prices", [[1, 2.0, "p", 0, None], ["x"], [1, "y", "p", 0, None], 7, [9], None])
    fleet.add(22, "prices", [[1, float("inf"), "p", 0, None], [10**40, 1.0, "p", 0, None]])
    fleet.add(23, "prices", b"nothing")
    fleet.add(24, "row", good, at="never")
    fleet.add(25, "row", [*good, *[None] * (24 - len(good)), "of a newer version", {}])
    fleet.add(26, "row", good[: at("counted") + 1])
    found = state.requests.read(RequestQuery()).rows
    assert [number for number, _ in found] == [26, 25, 1]
    assert found[-1][1] == row(session="good", cost_usd=2.0, price="p")
    assert (found[0][1].input_tokens, found[0][1].covered) == (None, 0)


def test_a_text_of_the_engine_is_one_line(fleet):
    state = fleet.open()
    fleet.add(1, "row", row(model="a\x1b[2J\nb", tool="\ud800"))
    [(_, found)] = state.requests.read(RequestQuery()).rows
    assert (found.model, found.tool) == ("a?[2J?b", "?")


def test_entries_are_data():
    good = b"1 row 1.5 [1, 2]"
    entry = Entry(1, "row", "1.5", b"[1, 2]")
    assert entries_of([good, b"x row 1 []", good, b"", b"1 row", None, 1]) == [entry, entry]
    for wrong in (b"-1", b"0", b"9" * 30, b"1.5", b"x"):
        assert entries_of([good.replace(b"1", wrong, 1)]) == []
    for wrong in (b"nan", b"inf", b"-", b"\xff"):
        assert entries_of([good.replace(b"1.5", wrong)]) == []
    assert row_of(Entry(1, "row", "1.5", json.dumps(row()).encode())) == row()


@pytest.mark.parametrize("name", ["log", "unpriced", "unknown", "pricing", "decided", "decided:m"])
def test_a_key_of_another_type_is_told_and_moved_away(fleet, name):
    state = fleet.open()
    fleet.client.set(fleet.key(name), "x")
    with pytest.raises(DamagedError):
        write(state, row())
    state.lossy("put_aside")
    write(state, row())
    assert numbers(state) == [1]


def test_strange_answers(fleet, monkeypatch):
    state = fleet.open()
    for reply in (None, b"x", 1, [], [b"1"], [b"x", b"y"], [b"anew"]):
        monkeypatch.setattr(state.requests._mirror, "_read", lambda *_, said=reply: said)
        with pytest.raises(StoreError, match="an unexpected answer"):
            numbers(state)
        state.lossy._call, call = (lambda *_, said=reply: said), state.lossy._call
        assert state.requests.unpriced(0, 10) == []
        with contextlib.suppress(StoreError):
            assert state.decisions.read(0).rows == []
        state.lossy._call = call


# -- many proxies

OPS = (
    *("write", "look", "price") * 3, "again", "no price", "reprice", "prune", "restart",
)  # fmt: skip


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from((*KINDS, "file")),
    steps=st.lists(
        st.tuples(
            st.integers(0, 2), st.sampled_from(OPS), st.sampled_from(("", "before", "after"))
        ),
        min_size=5,
        max_size=30,
    ),
)
def test_whatever_happens_each_row_is_there_once_and_costs_once(
    kind, steps, shared_servers, tmp_path_factory
):
    """Proxies that write, look for prices, lose answers, delete and are started anew."""
    story = Story(kind, shared_servers, tmp_path_factory.mktemp("story"))
    try:
        for proxy, what, lose in steps:
            story.do(proxy, what, "" if kind == "file" else lose)
        story.check()
    finally:
        story.close()


class Story:
    """What was done to a store, and what has to come of it."""

    def __init__(self, kind: str, shared_servers: Any, folder: Path) -> None:
        self.path = folder / "pool.sqlite"
        self.fleet = None if kind == "file" else Fleet(shared_servers(kind), folder)
        self.states = [self.open() for _ in range(3)]
        self.batches = [(Numbered(f"proxy {n}", 0), tuple[RequestRow, ...]()) for n in range(3)]
        #: rows that looked as if they had no price: another may have done it since
        self.found: list[int] = []
        #: what each row was named and has cost; None: it was not looked for yet
        self.rows: dict[str, float | None] = {}
        self.unknown: set[str] = set()
        self.gone: set[str] = set()
        self.usage: Counter[str] = Counter()
        self.named = 0

    def open(self) -> Any:
        return SqliteState(self.path) if self.fleet is None else self.fleet.open()

    def close(self) -> None:
        for state in self.states if self.fleet is None else ():
            state.close()
        if self.fleet is not None:
            self.fleet.close()

    def do(self, n: int, what: str, lose: str) -> None:
        state = self.states[n]
        if self.fleet is not None:
            state.lossy.lose = lose if what not in ("look", "prune", "restart") else ""
        with contextlib.suppress(StoreError):
            getattr(self, f"_{what.replace(' ', '_')}")(n, state, lose != "before")
        if self.fleet is not None:
            state.lossy.lose = ""

    def _write(self, n: int, state: Any, is_done: bool) -> None:
        batch, rows = self.batches[n]
        if rows:
            return self._again(n, state, is_done)
        rows = tuple(row(session=f"{self.named + k}") for k in range(2))
        self.named += 2
        self.batches[n] = batch._replace(number=batch.number + 1), rows
        return self._again(n, state, is_done)

    def _again(self, n: int, state: Any, is_done: bool) -> None:
        batch, rows = self.batches[n]
        if not rows:
            return
        if is_done and str(rows[0].session) not in self.rows | dict.fromkeys(self.gone):
            self.rows |= {str(one.session): None for one in rows}
            self.usage["requests"] += len(rows)
        counted = {("day", "openai/one", "gpt-5"): {"requests": len(rows)}}
        state.exchange(
            [], wall_now=state.now(), requests=rows, batch=batch, counts={"usage": counted}
        )
        self.batches[n] = batch, ()

    def _look(self, _n: int, state: Any, _is_done: bool) -> None:
        self.found = [number for number, _ in state.requests.unpriced(0, 3)]

    def _price(self, _n: int, state: Any, is_done: bool, cost: Cost = COST) -> None:
        names = {number: str(one.session) for number, one in state.requests.unpriced(0, 100)}
        priced = [names[number] for number in self.found if number in names]
        if is_done and priced:
            self.rows |= dict.fromkeys(priced, cost.cost_usd or 0.0)
            if cost.cost_usd is None:
                self.unknown |= {*priced}
            else:
                self.usage["priced_requests"] += len(priced)
                self.usage["cost_usd"] += len(priced)
        state.requests.price([(number, cost) for number in self.found])

    def _no_price(self, n: int, state: Any, is_done: bool) -> None:
        self._price(n, state, is_done, NONE)

    def _reprice(self, _n: int, state: Any, is_done: bool) -> None:
        if is_done:
            self.rows |= dict.fromkeys(self.unknown & self.rows.keys())
            self.unknown.clear()
        state.requests.reprice()

    def _prune(self, _n: int, state: Any, _is_done: bool) -> None:
        self.gone |= self.rows.keys()
        self.rows.clear()
        self.unknown.clear()
        state.requests.prune(0, wall_now=state.now())

    def _restart(self, n: int, state: Any, _is_done: bool) -> None:
        # Its batch goes with it, or is in the store already.
        state.close()
        if self.fleet is not None:
            self.fleet.opened.remove(state)
        batch, _ = self.batches[n]
        self.batches[n] = Numbered(f"{batch.proxy}+", 0), ()
        self.states[n] = self.open()

    def check(self) -> None:
        for n, state in enumerate(self.states):
            self.do(n, "again", "")
            found = state.requests.read(RequestQuery(limit=1000)).rows
            shown = {one.session: one.cost_usd for _, one in found}
            assert len(shown) == len(found), "each is there once"
            if n == len(self.states) - 1:
                assert shown == {name: cost or None for name, cost in self.rows.items()}
        usage: Counter[str] = Counter()
        for sums in self.states[0].read_counts("usage").values():
            usage.update(sums)
        assert usage == self.usage
        pages = [state.requests.read(RequestQuery(limit=1000)) for state in self.states]
        assert pages[0].rows == pages[1].rows == pages[2].rows


def test_without_the_engine_it_is_known_what_was_read_before(fleet):
    state = fleet.open()
    write(state, row(session="a"), row(DAY + 1, session="b"))
    assert sessions(state) == ["a", "b"]
    last = state.requests.read(RequestQuery()).last

    def away(*_args: object) -> None:
        raise StoreError("it is away")

    state.requests._mirror._read = away
    with pytest.raises(StoreError):
        sessions(state)
    # Those that this proxy has written are there once, and none stays.
    for _ in range(2):
        known = state.requests.known([row(DAY + 1, session="b"), row(DAY + 2, session="c")])
        page = known.read(RequestQuery())
        assert [found.session for _, found in page.rows] == ["c", "b", "a"]
        assert page.last == last
    [sums] = known.sums(RequestQuery(), by_hour=False)
    assert sums.amounts["requests"] == 3
    assert known.series(RequestQuery(from_at=DAY), 60.0)
