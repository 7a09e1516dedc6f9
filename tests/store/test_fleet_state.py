"""What a pool has learnt, in an engine: lost answers, rows that nobody wrote, many rows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from msgspec.structs import replace
from tests.store.backends import WALL, EngineBackend
from tests.store.samples import COOLS, FULL, HOME, PLAIN, UNKNOWN, WORK, keep, news, write
from tests.store.servers import KINDS

from account_pool.core.account import AccountKey
from account_pool.core.notifications import Event, Subject, Verdict
from account_pool.core.outcome import OutcomeClass
from account_pool.core.shares import ME, Ask
from account_pool.core.snapshot import AccountSnapshot
from account_pool.store.fleet.link import MAX_UNANSWERED
from account_pool.store.fleet.state import AT_ONCE
from account_pool.store.store import (
    GRACE_S,
    DamagedError,
    FullError,
    MovedError,
    Numbered,
    StoreError,
    TableChanges,
    UnfitError,
)

pytestmark = pytest.mark.parametrize("backend", KINDS, indirect=True)


def link_of(state: Any) -> Any:
    return state._part._link


@contextmanager
def losing(state: Any, when: str, function: str = "commit") -> Iterator[list[Callable[[], object]]]:
    """Have a call of *function* fail: it is not sent, its answer is lost, or it comes late.

    Yields the calls that come late, to be made.
    """
    link, late = link_of(state), list[Callable[[], object]]()
    engine = link.engine

    class Losing:
        address = engine.address

        def call(self, name: str, *args: Any) -> Any:
            if name != function:
                return engine.call(name, *args)
            if when == "late":
                late.append(lambda: engine.call(name, *args))
            elif when == "lost":
                engine.call(name, *args)
            raise StoreError("no answer")

    link.engine = Losing()
    try:
        yield late
    finally:
        link.engine = engine


FAULTS = pytest.mark.parametrize("when", ["unsent", "lost", "late"])
BATCH = Numbered("me", 1)
ONE = {"usage": {("a",): {"requests": 1}}}


class TestAnAnswerThatIsLost:
    @FAULTS
    def test_nothing_is_counted_twice_or_not_at_all(self, two, when: str) -> None:
        one, other = two
        keep(one, replace(UNKNOWN, served=2))
        batch = Numbered("me", 1)
        with losing(one, when) as late, pytest.raises(StoreError):
            one.exchange([replace(UNKNOWN, served=5)], wall_now=WALL, counts=ONE, batch=batch)
        keep(other, replace(UNKNOWN, served=10))
        for call in late:
            call()
        again = one.exchange([replace(UNKNOWN, served=6)], wall_now=WALL, counts=ONE, batch=batch)
        assert again.accounts == (replace(UNKNOWN, served=16),)
        assert other.read_counts("usage") == ONE["usage"]

    @FAULTS
    def test_what_others_made_of_it_meanwhile_stays(self, two, when: str) -> None:
        """Our pool does not know of it yet: it would look as if we had ended it."""
        one, other = two
        keep(one, UNKNOWN), keep(other, UNKNOWN)
        keep(other, replace(UNKNOWN, cooldowns={None: COOLS}))
        mine = replace(UNKNOWN, owner="org-1")
        with losing(one, when) as late, pytest.raises(StoreError):
            keep(one, mine)
        for call in late:
            call()
        assert keep(one, mine) == [replace(mine, cooldowns={None: COOLS})]

    def test_a_write_that_comes_after_the_next_does_nothing(self, state) -> None:
        keep(state, replace(UNKNOWN, served=2))
        with losing(state, "late") as late, pytest.raises(StoreError):
            state.exchange([replace(UNKNOWN, served=5)], wall_now=WALL, counts=ONE)
        assert keep(state, replace(UNKNOWN, served=6)) == [replace(UNKNOWN, served=6)]
        for call in late:
            assert call()[0] == b"last"
        assert keep(state, replace(UNKNOWN, served=6)) == [replace(UNKNOWN, served=6)]
        assert state.read_counts("usage") == {}

    @FAULTS
    def test_a_share_is_held_once(self, two, when: str) -> None:
        one, other = two
        one.beat({}, wall_now=WALL), other.beat({}, wall_now=WALL)
        with losing(one, when) as late, pytest.raises(StoreError):
            one.share({WORK: Ask(3, 0, 2)}, wall_now=WALL)
        for call in late:
            call()
        assert one.share({WORK: Ask(3, 0, 2)}, wall_now=WALL)[WORK].slots == 2
        assert other.share({WORK: Ask(3, 0, 2)}, wall_now=WALL)[WORK].slots == 1

    @FAULTS
    def test_an_account_that_came_back_meanwhile_is_as_it_was(self, two, when: str) -> None:
        one, _ = two
        keep(one, FULL)
        with losing(one, when) as late, pytest.raises(StoreError):
            keep(one, replace(FULL, served=4))
        for call in late:
            call()
        [found] = one.exchange([UNKNOWN], [WORK], wall_now=WALL).accounts
        assert found == replace(FULL, served=3 if when == "unsent" else 4)

    def test_one_that_hung_knows_itself_by_another_name(self, two) -> None:
        one, other = two
        one.beat({WORK: 1}, wall_now=WALL)
        with losing(one, "lost", "beat"), pytest.raises(StoreError):
            one.beat({WORK: 2}, wall_now=WALL + GRACE_S)
        one.beat({WORK: 3}, wall_now=WALL + GRACE_S)
        found = news(other, WALL + GRACE_S)
        assert found.in_flight_remote == {WORK: 3}
        assert found.proxies is not None and len(found.proxies) == 1


def test_what_one_held_that_hung_is_free_when_it_is_back(two) -> None:
    one, other = two
    one.beat({}, wall_now=WALL), other.beat({}, wall_now=WALL)
    assert one.share({WORK: Ask(3, 0, 3)}, wall_now=WALL)[WORK].slots == 3
    later = WALL + GRACE_S
    other.beat({}, wall_now=later)
    assert not one.beat({}, wall_now=later)
    assert other.share({WORK: Ask(3, 0, 3)}, wall_now=later)[WORK].slots == 3
    assert one.share({WORK: Ask(3, 0, 3)}, wall_now=later)[WORK].slots == 0


class TestWhatTheEngineHasLost:
    def test_all_of_it_is_told_and_counted_once(self, backend: EngineBackend) -> None:
        stores = [backend.store(), backend.store()]
        one, other = (backend.open(store) for store in stores)
        keep(one, replace(UNKNOWN, served=3, cooldowns={None: COOLS}))
        keep(other, UNKNOWN)
        news(one), news(other)
        backend.server.ask("FLUSHDB")
        backend.set_time(WALL)
        with pytest.raises(MovedError, match="has lost what it had"):
            news(one)
        with pytest.raises(MovedError, match="what is there now gets what this proxy knows"):
            keep(other, UNKNOWN)
        with pytest.raises(MovedError):
            one.beat({}, wall_now=WALL)
        one, other = (backend.open(store) for store in stores)
        cooling = replace(UNKNOWN, cooldowns={None: COOLS})
        assert keep(one, replace(cooling, served=4)) == [replace(cooling, served=4)]
        # Of what the other knows only its own is added.
        assert keep(other, replace(UNKNOWN, served=5)) == [replace(cooling, served=6)]

    def test_a_state_that_is_opened_again_counts_nothing_twice(
        self, backend: EngineBackend
    ) -> None:
        store = backend.store()
        state = backend.open(store)
        keep(state, replace(UNKNOWN, served=3))
        state.close()
        state = backend.open(store)
        assert keep(state, replace(UNKNOWN, served=5)) == [replace(UNKNOWN, served=5)]

    def test_functions_that_are_gone_are_loaded(self, backend: EngineBackend, state) -> None:
        keep(state, FULL)
        backend.server.ask("FUNCTION", "FLUSH")
        assert keep(state, replace(FULL, served=4)) == [replace(FULL, served=4)]

    def test_a_server_that_takes_over_gets_what_it_has_missed(
        self, backend: EngineBackend, start_server: Any
    ) -> None:
        first, second = (start_server(backend.server.kind) for _ in range(2))
        own = EngineBackend(first, backend.folder)
        store = own.store()
        state: Any = own.open(store)
        state.exchange([replace(UNKNOWN, served=1)], wall_now=WALL, counts=ONE, batch=BATCH)
        second.ask("REPLICAOF", "127.0.0.1", str(first.port))
        while "master_link_status:up" not in str(second.ask("INFO", "replication")):
            pass
        first.ask("WAIT", "1", "0")
        second.ask("REPLICAOF", "NO", "ONE")
        later = BATCH._replace(number=2)
        state.exchange([replace(FULL, served=2)], wall_now=WALL, counts=ONE, batch=later)
        store.engine = store._link.engine = second.engine(own.pool)
        with pytest.raises(MovedError):
            state.exchange([replace(FULL, served=3)], wall_now=WALL)
        state = own.open(store)
        for batch in (BATCH, later):
            state.exchange([replace(FULL, served=3)], wall_now=WALL, counts=ONE, batch=batch)
        assert state.read_counts("usage") == {("a",): {"requests": 2}}
        assert keep(state, replace(FULL, served=3)) == [replace(FULL, served=3)]
        state.close()
        own.client.close()

    def test_a_server_that_was_started_again_may_have_lost_something(
        self, backend: EngineBackend, start_server: Any
    ) -> None:
        server = start_server(backend.server.kind, "appendonly yes", "appendfsync always")
        own = EngineBackend(server, backend.folder)
        state = own.open()
        keep(state, FULL), news(state)
        server.kill()
        server.start()
        with pytest.raises(MovedError):
            while True:
                try:
                    news(state)
                except MovedError:
                    raise
                except StoreError:
                    continue
        state.close()


class TestWhatNobodyWrote:
    """A row that makes no sense harms that row alone, and is told once."""

    BAD = (
        b"",
        b"nonsense",
        b"\xff\xfe",
        b"7",
        b"-1 0 {}",
        b"1 nan {}",
        b"1 1e999 {}",
        b"1 0x10 {}",
        b"99999999999999999999 1 {}",
        b"5 1.0 ",
        b"5 1.0 []",
        b"5 1.0 {",
        b"5 1.0 " + b"[" * 100_000,
        b'5 1.0 {"served": -1}',
        b'5 1.0 {"served": 1e999, "owner": 7, "source": [], "refused": null}',
        b'5 1.0 {"cooldowns": {"until": NaN}}',
        b'5 1.0 {"cooldowns": [null, {"model": null, "since": "then"}], "windows": [[]]}',
        b'5 1.0 {"disabled": true}',
        b"5 1.0 " + b"9" * 10_000,
        b"5 1.0 " + b"9" * 400,
        b'5 1.0 [["disabled", "", true, 1e999]]',
        b'5 1.0 {"openai/work": [1e999]}',
    )

    @pytest.mark.parametrize("row", BAD, ids=range(len(BAD)))
    def test_an_account_is_as_if_it_had_no_row(
        self, backend: EngineBackend, two, row: bytes, caplog
    ) -> None:
        one, other = two
        keep(one, FULL, PLAIN)
        backend.client.hset(backend.key("a"), str(WORK), row)
        news(other)
        mine = replace(UNKNOWN, owner="org-2")
        assert keep(other, mine, AccountSnapshot(key=HOME)) == [mine, PLAIN]
        assert keep(other, mine, PLAIN) == [mine, PLAIN]
        assert sum("makes no sense" in line for line in caplog.messages) <= 1

    @pytest.mark.parametrize("row", BAD, ids=range(len(BAD)))
    def test_nor_is_what_is_new_of_it(self, backend: EngineBackend, two, row: bytes) -> None:
        """The index says that it has changed."""
        one, other = two
        news(other)
        keep(one, PLAIN)
        names = {"a": str(WORK), "sessions": "key", "f": "px", "who": "px", "share": str(WORK)}
        for table, name in names.items():
            index = "i" if table in ("a", "sessions") else "j"
            backend.client.hset(backend.key(table), name, row)
            backend.client.zadd(backend.key(index), {f"{table}:{name}": 1})
        found = news(other)
        assert HOME in found.accounts
        assert found.lines == found.gone == {}
        assert other.share({WORK: Ask(2, 0, 2)}, wall_now=WALL)[WORK].slots == 2
        assert other.read_table("sessions") == []
        write(other, "sessions", [("key", "openai/work", WALL)])
        assert other.read_table("sessions") == [("key", "openai/work", WALL)]

    def test_lines_sums_and_turns(self, backend: EngineBackend, state, caplog) -> None:
        write(state, "pins", [("a", "openai/work", WALL)])
        state.exchange((), wall_now=WALL, counts=ONE)
        for n, row in enumerate(self.BAD):
            backend.client.hset(backend.key("pins"), f"bad-{n}", row)
            backend.client.hset(backend.key("notices"), f"bad-{n}", row)
            backend.client.hset(backend.key("turns"), f"bad-{n}", row)
            backend.client.hset(backend.key("b"), f"bad-{n}", row)
            backend.client.zadd(backend.key("c:usage"), {row: 1})
            backend.client.hset(backend.key(f'c:usage:["{n}"]'), "requests", row)
            backend.client.zadd(backend.key("c:usage"), {f'["{n}"]': 1})
        for key in ('[["a"]]', "[{}]", "[1]"):
            backend.client.hset(backend.key(f"c:usage:{key}"), "requests", 1)
            backend.client.zadd(backend.key("c:usage"), {key: 1})
        backend.client.hset(backend.key('c:usage:["long"]'), "requests", "9" * 400)
        backend.client.zadd(backend.key("c:usage"), {'["long"]': 1})
        backend.client.hset(backend.key("pins"), "nobody", "5 1.0 - nobody")
        assert state.read_table("pins") == [("a", "openai/work", WALL)]
        assert state.read_counts("usage")[("a",)] == {"requests": 1}
        assert state.notices.noted() == []
        told = len(caplog.messages)
        state.read_table("pins")
        assert len(caplog.messages) == told
        for n in range(len(self.BAD)):
            gone = Subject(Event.DISABLED, f"bad-{n}")
            assert state.notices.note([gone], [], wall_now=WALL) == {gone: Verdict.TELL}
            assert state.notices.take_turn(f"bad-{n}", 300.0, wall_now=WALL)
        again = {"usage": {("1",): {"requests": 1}}}
        state.exchange((), wall_now=WALL, counts=again, batch=Numbered("bad-1", 1))
        assert state.read_counts("usage")[("1",)] == {"requests": 1}
        state.sweep([WORK], wall_now=WALL)

    @pytest.mark.parametrize("name", ["m", "a", "i", "j", "px", "b", "c", "sessions"])
    def test_a_key_of_another_type_is_put_aside(self, backend: EngineBackend, name: str) -> None:
        store = backend.store()
        state = backend.open(store)
        keep(state, FULL)
        backend.client.delete(backend.key(name))
        backend.client.set(backend.key(name), "of another program")
        with pytest.raises(DamagedError):
            state.exchange([UNKNOWN], wall_now=WALL, counts=ONE)
        assert store.put_aside() == "1 keys that end in :damaged"
        assert backend.client.get(backend.key(f"{name}:damaged")) == b"of another program"
        state = backend.open(store)
        state.exchange([UNKNOWN], wall_now=WALL, counts=ONE)
        assert state.read_counts("usage") == ONE["usage"]

    @pytest.mark.parametrize("v", ["", "x", "-1", "1e300", "0.5", "9007199254740993", "nan"])
    def test_the_number_of_the_last_write_is_found_again(
        self, backend: EngineBackend, two, v: str
    ) -> None:
        one, other = two
        keep(one, FULL), news(other)
        backend.client.hset(backend.key("m"), "v", v)
        keep(one, replace(FULL, served=4))
        assert news(other).accounts == {WORK}

    @pytest.mark.parametrize("at", ["", "x", "0x10", "nan", "1e999"])
    def test_nor_does_its_time_matter(self, backend: EngineBackend, two, at: str) -> None:
        one, other = two
        news(other)
        keep(one, FULL)
        backend.client.hset(backend.key("m"), "at", at)
        assert news(other).accounts == {WORK}
        backend.client.hset(backend.key("m"), "at", at)
        keep(one, replace(FULL, served=4))

    def test_what_a_share_says_more_hinders_no_other(self, backend: EngineBackend, two) -> None:
        one, other = two
        one.beat({}, wall_now=WALL), other.beat({}, wall_now=WALL)
        one.share({WORK: Ask(3, 0, 1)}, wall_now=WALL)
        row = backend.client.hget(backend.key("share"), str(WORK))
        odd = row.replace(b"]", b', 1e999, {"x": [1e999]}]')
        backend.client.hset(backend.key("share"), str(WORK), odd)
        assert other.share({WORK: Ask(3, 0, 3)}, wall_now=WALL)[WORK].slots == 2

    def test_an_engine_without_memory_has_written_nothing(
        self, backend: EngineBackend, start_server: Any
    ) -> None:
        server = start_server(backend.server.kind)
        own = EngineBackend(server, backend.folder)
        state: Any = own.open()
        keep(state, replace(UNKNOWN, served=1))
        server.ask("CONFIG", "SET", "maxmemory", "1")
        for _ in range(3):
            with pytest.raises(FullError):
                keep(state, replace(UNKNOWN, served=3))
        assert link_of(state)._unanswered == {}
        news(state)
        server.ask("CONFIG", "SET", "maxmemory", "0")
        assert keep(state, replace(UNKNOWN, served=3)) == [replace(UNKNOWN, served=3)]
        state.close()
        own.client.close()

    def test_what_does_not_fit_is_unfit(self, state) -> None:
        with pytest.raises(UnfitError):
            keep(state, replace(UNKNOWN, cooldowns={None: replace(COOLS, until=float("nan"))}))
        with pytest.raises(UnfitError):
            write(state, "pins", [("a", "openai/work", float("inf"))])
        with pytest.raises(UnfitError):
            keep(state, AccountSnapshot(key=AccountKey("openai", "half\ud800")))
        keep(state, FULL)


class TestAnotherVersion:
    def test_what_it_knows_more_stays(self, backend: EngineBackend, two) -> None:
        one, other = two
        keep(one, FULL)
        row = backend.client.hget(backend.key("a"), str(WORK))
        version, at, data = row.split(b" ", 2)
        newer = json.loads(data)
        newer["mood"] = {"of": "a newer version"}
        for part in (*newer["cooldowns"], *newer["windows"], newer["disabled"]):
            part["more"] = [1]
        newer["cooldowns"][0]["cause"]["class"] = "of_a_newer_version"
        newer["cooldowns"][0]["cause"]["scope"] = "galaxy"
        backend.client.hset(
            backend.key("a"), str(WORK), b" ".join([version, at, json.dumps(newer).encode()])
        )
        [found] = keep(other, UNKNOWN)
        # It is a limit, whatever its class is.
        assert found.cooldowns[None].until == COOLS.until
        assert found.cooldowns[None].cause.cls is OutcomeClass.RATE_LIMIT
        keep(other, replace(found, served=9))
        kept = json.loads(backend.client.hget(backend.key("a"), str(WORK)).split(b" ", 2)[2])
        assert kept == newer | {"served": 9}

    def test_notices_of_its_own_stay(self, backend: EngineBackend, state) -> None:
        known = [["of a newer version", "", True, 1.0], ["disabled", "", True, 1.0]]
        backend.client.hset(backend.key("notices"), "openai/work", f"1 1 {json.dumps(known)}")
        gone = Subject(Event.DISABLED, str(WORK))
        assert state.notices.noted() == [gone]
        assert state.notices.note([], [gone], wall_now=WALL)[gone] is Verdict.TELL
        row = backend.client.hget(backend.key("notices"), str(WORK))
        assert json.loads(row.split(b" ", 2)[2])[0] == known[0]

    def test_what_its_shares_say_more_stays(self, backend: EngineBackend, two) -> None:
        one, other = two
        one.beat({}, wall_now=WALL), other.beat({}, wall_now=WALL)
        one.share({WORK: Ask(3, 0, 2)}, wall_now=WALL)
        version, at, data = backend.client.hget(backend.key("share"), str(WORK)).split(b" ", 2)
        newer = {proxy: [*share, "more"] for proxy, share in json.loads(data).items()}
        row = b" ".join([version, at, json.dumps(newer).encode()])
        backend.client.hset(backend.key("share"), str(WORK), row)
        assert other.share({WORK: Ask(3, 0, 3)}, wall_now=WALL)[WORK].slots == 1
        row = backend.client.hget(backend.key("share"), str(WORK))
        kept = json.loads(row.split(b" ", 2)[2])
        assert len(kept) == 2 and newer.items() <= kept.items()

    def test_a_table_of_its_own_is_no_news(self, backend: EngineBackend, two) -> None:
        one, other = two
        news(other)
        one.exchange((), wall_now=WALL, lines={"of": TableChanges([("a", "openai/work", WALL)])})
        found = news(other)
        assert (found.lines, found.accounts) == ({}, set())


class TestManyRows:
    def test_accounts_and_lines_come_in_parts(self, backend: EngineBackend, two) -> None:
        one, other = two
        news(other)
        accounts = [
            AccountSnapshot(key=AccountKey("openai", f"a-{n}"), served=n) for n in range(2500)
        ]
        rows = [(f"s-{n}", "openai/a-1", WALL + n) for n in range(3500)]
        one.exchange(accounts, wall_now=WALL, lines={"sessions": TableChanges(rows)})
        biggest = 0
        engine = link_of(other).engine
        call = engine.call

        def counted(name: str, *args: Any) -> Any:
            nonlocal biggest
            reply = call(name, *args)
            biggest = max(biggest, len(reply[-1]) if isinstance(reply[-1], list) else 0)
            return reply

        engine.call = counted
        found = news(other)
        assert found.accounts == {account.key for account in accounts}
        assert found.lines == {"sessions": rows}
        assert other.read_table("sessions") == rows
        assert biggest <= 6000
        del engine.call
        unknown = [AccountSnapshot(key=account.key) for account in accounts]
        assert list(other.exchange(unknown, wall_now=WALL).accounts) == accounts
        other.sweep([], wall_now=WALL + 1e9)
        assert other.read_table("sessions") == []

    def test_shares_are_asked_for_in_parts(self, two) -> None:
        one, other = two
        asks = {AccountKey("openai", f"a-{n}"): Ask(3, 0, 2) for n in range(2 * AT_ONCE + 1)}
        biggest = 0
        engine = link_of(one).engine
        call = engine.call

        def counted(name: str, *args: Any) -> Any:
            nonlocal biggest
            biggest = max(biggest, len(args))
            return call(name, *args)

        engine.call = counted
        granted = one.share(asks, wall_now=WALL)
        del engine.call
        assert {key: share.slots for key, share in granted.items()} == dict.fromkeys(asks, 2)
        assert biggest < 5 * AT_ONCE
        assert {share.slots for share in other.share(asks, wall_now=WALL).values()} == {1}

    @FAULTS
    def test_a_part_that_fails_is_counted_once(self, two, when: str) -> None:
        one, _ = two
        keys = [AccountKey("openai", f"a-{n}") for n in range(AT_ONCE + 1)]
        served = [AccountSnapshot(key=key, served=1) for key in keys]
        link, calls = link_of(one), 0
        commit = link.commit

        def second(*args: Any, **how: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 1:
                return commit(*args, **how)
            with losing(one, when) as late:
                try:
                    return commit(*args, **how)
                finally:
                    for call in late:
                        call()

        link.commit = second
        with pytest.raises(StoreError):
            keep(one, *served)
        link.commit = commit
        assert keep(one, *served) == served

    def test_a_row_that_fills_a_part_hides_nothing_of_the_other_index(self, two) -> None:
        one, other = two
        news(other)
        one.beat({WORK: 1}, wall_now=WALL)
        long = replace(COOLS, cause=replace(COOLS.cause, evidence={"odd": "x" * 300_000}))
        account = replace(UNKNOWN, cooldowns={None: long})
        keep(one, account)
        found = news(other)
        assert (found.accounts, found.in_flight_remote) == ({WORK}, {WORK: 1})
        assert keep(other, UNKNOWN) == [account]

    def test_a_long_row_is_not_read(self, backend: EngineBackend, two) -> None:
        one, other = two
        news(other)
        keep(one, FULL)
        backend.client.hset(backend.key("a"), str(WORK), b"9 1.0 " + b"x" * 2_000_000)
        assert news(other).accounts == set()
        assert keep(other, UNKNOWN) == [UNKNOWN]


ODD_ANSWERS = (
    7, None, b"", [], [b"ok"], [b"ok", b"h", b"x", b"1", b"0"], [b"ok", b"h", b"1", b"2", b"then"],
    [b"last", b"x"], [b"more"], DamagedError("that is no answer", "look at it"),
)  # fmt: skip


@pytest.mark.parametrize("odd", ODD_ANSWERS, ids=range(len(ODD_ANSWERS)))
def test_a_write_whose_answer_makes_no_sense_is_known_later(two, odd: Any) -> None:
    one, _ = two
    keep(one, UNKNOWN)
    engine = link_of(one).engine
    call = engine.call

    def garbled(name: str, *args: Any) -> Any:
        reply = call(name, *args)
        if name == "commit" and isinstance(odd, Exception):
            raise odd
        return odd if name == "commit" else reply

    engine.call = garbled
    with pytest.raises(StoreError):
        one.exchange([replace(UNKNOWN, served=1)], wall_now=WALL, counts=ONE, batch=BATCH)
    del engine.call
    more = [replace(UNKNOWN, served=2)]
    saved = one.exchange(more, wall_now=WALL, counts=ONE, batch=BATCH)
    assert list(saved.accounts) == more
    assert one.read_counts("usage") == ONE["usage"]


def test_an_engine_that_takes_no_writes_for_long_does_not_fill_the_memory(two) -> None:
    one, other = two
    keep(one, UNKNOWN)
    with losing(one, "unsent"):
        for n in range(2 * MAX_UNANSWERED):
            with pytest.raises(StoreError):
                keep(one, replace(UNKNOWN, served=n))
    with losing(one, "lost"), pytest.raises(StoreError):
        keep(one, replace(UNKNOWN, served=500))
    assert len(link_of(one)._unanswered) == MAX_UNANSWERED
    assert keep(one, replace(UNKNOWN, served=501)) == [replace(UNKNOWN, served=501)]
    assert keep(other, UNKNOWN) == [replace(UNKNOWN, served=501)]


def test_names_that_look_like_keys_are_names(two) -> None:
    one, other = two
    news(other)
    names = ["{ap:x}:a", "a:b}{", "i", "}", "*", "[a-z]", "a\r\n$3\r\n", "\0", "ü €"]
    rows = [(name, "openai/work", WALL + n) for n, name in enumerate(names)]
    keys = [AccountKey("openai", name) for name in ("{ap:x}", "a:b", "ü", "}:v")]
    accounts = [AccountSnapshot(key=key, served=1) for key in keys]
    counts = {"usage": {tuple(names): dict.fromkeys(names, 1)}}
    lines = {"sessions": TableChanges(rows)}
    one.exchange(accounts, wall_now=WALL, lines=lines, counts=counts)
    found = news(other)
    assert (found.lines, found.accounts) == ({"sessions": rows}, set(keys))
    assert other.read_table("sessions") == rows
    assert other.read_counts("usage") == counts["usage"]
    one.share({key: Ask(2, 0, 1) for key in keys}, wall_now=WALL)
    other.share({key: Ask(2, 0, 2) for key in keys}, wall_now=WALL)
    held = {key: share[ME].slots for key, share in (news(one).shares or {}).items()}
    assert held == dict.fromkeys(keys, 1)


def test_wall_clocks_of_proxies_do_not_matter(backend: EngineBackend, monkeypatch) -> None:
    """Who is a minute ahead declares nobody dead, and is not dead."""
    monkeypatch.undo()  # the engine has its own time
    states = [backend.open()._part for _ in range(3)]
    skews = (-60.0, 0.0, 60.0)
    for state, skew in zip(states, skews, strict=True):
        state.beat({WORK: 1}, wall_now=time.time() + skew)
    for state, skew in zip(states, skews, strict=True):
        assert state.beat({WORK: 1}, wall_now=time.time() + skew)
        found = state.changed(wall_now=time.time() + skew)
        assert found.in_flight_remote == {WORK: 2}
        assert len(found.proxies or ()) == 2
        assert abs((state.now() or 0) - time.time()) < 5


@pytest.mark.parametrize("writes", [1, 3])
def test_how_many_calls_it_takes(two, writes: int) -> None:
    one, other = two
    calls: list[str] = []
    engine = link_of(one).engine
    call = engine.call

    def counted(name: str, *args: Any) -> Any:
        calls.append(name)
        return call(name, *args)

    keep(one, FULL), keep(other, UNKNOWN), news(one)
    engine.call = counted
    news(one)
    assert calls == ["look"]
    calls.clear()
    for n in range(writes):
        keep(other, replace(FULL, served=10 + n))
    keep(one, replace(FULL, served=4))
    assert calls == ["commit", "commit"], "what others have written is told by the first"
    calls.clear()
    keep(one, replace(FULL, served=5))
    assert calls == ["commit"]
    del engine.call


def test_what_others_have_written_is_taken_over_without_a_write(two) -> None:
    """Each proxy would make one for each cooldown of any other, and all would hear of it."""
    one, other = two
    keep(one, UNKNOWN), keep(other, UNKNOWN)
    other.beat({}, wall_now=WALL)
    news(one), news(other)
    cooling = replace(UNKNOWN, cooldowns={None: COOLS})
    one.exchange([cooling], wall_now=WALL, urgent=True)
    assert news(other).accounts == {WORK}
    with losing(other, "unsent"):
        taken = other.exchange([UNKNOWN], wall_now=WALL, in_flight={WORK: 0}, urgent=True)
        assert taken.accounts == (cooling,)
        with pytest.raises(StoreError):
            other.exchange([cooling], wall_now=WALL, in_flight={WORK: 1})
    released = replace(UNKNOWN, served=1)
    assert keep(other, released) == [released]
    assert news(one).accounts == {WORK}
    assert keep(one, cooling) == [released]
