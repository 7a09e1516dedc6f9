"""This proxy's decisions in the log that proxies share."""

from __future__ import annotations

import contextlib
from contextlib import closing
from pathlib import Path
from threading import Thread, current_thread, main_thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from account_pool.core.decisions import By, Kind
from account_pool.proxy import decision_log
from account_pool.store.database import IN_MEMORY
from account_pool.store.sqlite_state import SqliteState
from account_pool.store.store import StoreError
from tests.patience import PATIENCE_S
from tests.proxy.deciding import Proxy


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pool.sqlite"


@pytest.fixture
def store(path):
    with closing(SqliteState(path)) as made:
        yield made


def test_proxies_tell_one_story(store):
    here, there = Proxy("here"), Proxy("there")
    here.decide(reason="1")
    here.shared.write(store)
    there.decide(reason="2")
    here.decide(reason="3")
    # Whoever asks writes its own first: its answer has all that was decided.
    story = [(1, "here", "1"), (2, "there", "2")]
    assert there.sees(store) == story
    assert here.sees(store) == [*story, (3, "here", "3")] == there.sees(store)


def test_a_decision_that_changes_keeps_its_number(store):
    here, there = Proxy("here"), Proxy("there")
    wait = here.decide(Kind.WAIT)
    assert there.sees(store) == []
    assert [r["waited_s"] for r in here.shared.sync(store).rows] == [None]
    here.decisions.end(wait.number, By.ACCOUNT, 15.0)
    assert here.shared.waiting
    here.shared.write(store)
    assert not here.shared.waiting
    assert [(r["number"], r["waited_s"]) for r in there.shared.sync(store).rows] == [(1, 5.0)]


@pytest.mark.parametrize("by", [By.PROXY, By.RESTART])
def test_what_was_taken_over_is_not_said_again(store, by):
    here, there = Proxy("here"), Proxy("there")
    here.decide(Kind.COOLDOWN, until=500.0)
    echo = there.decide(Kind.COOLDOWN, until=500.0, by=by)
    there.decisions.end(echo.number, By.SUCCESS, 20.0)
    there.decide(Kind.RELEASE, ends=echo.number, at=20.0, by=By.SUCCESS)
    assert here.sees(store) == [(1, "here", None)]
    there.sees(store)
    begun, ended = here.shared.sync(store).rows
    assert (ended["proxy"], ended["ends"], begun["released_by"]) == ("there", 1, "a good answer")


def test_without_a_store_its_own_are_known(store):
    here = Proxy("here")
    here.decide(reason="1")
    here.decide(reason="2", by=By.PROXY)
    assert here.sees(None) == [(1, "here", "1"), (2, "here", "2")]
    assert here.shared.own().upto == 2


def test_a_store_that_cannot_be_asked_leaves_what_was_read(store):
    here, there = Proxy("here"), Proxy("there")
    there.decide(reason="1")
    there.sees(store)
    here.sees(store)
    here.decide(reason="2")
    assert here.sees(None) == [(1, "there", "1"), (2, "here", "2")]
    assert here.shared.own().upto == 1


class Failing:
    """A log whose answer is lost, before or after it has done what it was asked."""

    def __init__(self, store: SqliteState) -> None:
        self.store, self.lost = store, ""

    def __getattr__(self, name: str) -> Any:
        return self if name == "decisions" else getattr(self.store, name)

    def add(self, *args: Any) -> str:
        log = "" if self.lost == "before" else self.store.decisions.add(*args)
        if self.lost:
            raise StoreError("no answer")
        return log

    def read(self, after: int) -> Any:
        return self.store.decisions.read(after)


def test_what_takes_long_to_read_keeps_nobody_from_writing(store):
    here = Proxy("here")

    class Slow(Failing):
        def read(self, after: int) -> Any:
            if not after:
                here.decide(reason="1")
                writing = Thread(target=here.shared.write, args=(self,))
                writing.start()
                writing.join(PATIENCE_S)
                assert not here.shared.waiting
            return super().read(after)

    slow: Any = Slow(store)
    assert here.sees(slow) == [(1, "here", "1")]


@pytest.mark.parametrize("lost", ["before", "after"])
def test_what_may_have_been_written_is_there_once(store, lost):
    failing: Any = Failing(store)
    here = Proxy("here")
    here.decide(reason="1")
    failing.lost = lost
    with pytest.raises(StoreError):
        here.shared.write(failing)
    assert here.shared.waiting
    here.decide(reason="2")
    failing.lost = ""
    assert here.sees(failing) == [(1, "here", "1"), (2, "here", "2")]


def test_a_log_that_was_lost_gets_what_is_known(store, tmp_path):
    here, there = Proxy("here"), Proxy("there")
    here.decide(reason="1")
    there.decide(reason="2")
    there.decide(reason="3", by=By.PROXY)
    here.sees(store)
    there.sees(store)
    with closing(SqliteState(tmp_path / "another.sqlite")) as another:
        assert here.sees(another) == [(1, "here", "1")]
        assert there.sees(another) == [(1, "here", "1"), (2, "there", "2")]


class TakingTurns:
    """Another log with each write, as two engines behind one address have."""

    def __init__(self, store: SqliteState) -> None:
        self.store, self.writes = store, 0

    def __getattr__(self, name: str) -> Any:
        return self if name == "decisions" else getattr(self.store, name)

    def add(self, *_: Any) -> str:
        self.writes += 1
        return f"log {self.writes}"


def test_logs_that_take_turns_are_written_again_in_the_next_round(store):
    turning: Any = TakingTurns(store)
    here = Proxy("here")
    for number, writes in enumerate([1, 3, 5], 1):
        here.decide(reason=str(number))
        here.shared.write(turning)
        assert turning.writes == writes
    assert here.shared.waiting
    assert [reason for _, _, reason in here.sees(store)] == ["1", "2", "3"]


def test_a_log_that_was_lost_gets_it_also_of_proxies_that_nobody_asks(store, tmp_path):
    writing, idle, quiet = Proxy("writing"), Proxy("idle"), Proxy("quiet")
    for proxy in (writing, idle):
        proxy.decide(reason="1")
        proxy.shared.write(store)
    with closing(SqliteState(tmp_path / "another.sqlite")) as another:
        for proxy in (writing, idle, quiet):
            proxy.shared.begin()
        writing.decide(reason="2")
        for proxy in (writing, idle, quiet):
            proxy.shared.write(another)
            assert not proxy.shared.waiting
        story = [(1, "writing", "1"), (2, "writing", "2"), (3, "idle", "1")]
        assert quiet.sees(another) == writing.sees(another) == story
        idle.shared.begin()
        idle.shared.write(another)
        assert idle.sees(another) == story


def test_a_log_that_was_replaced_unnoticed_gets_all_the_same(store, tmp_path):
    here = Proxy("here")
    here.decide(reason="1")
    here.shared.write(store)
    with closing(SqliteState(tmp_path / "another.sqlite")) as another:
        here.decide(reason="2")
        here.shared.write(another)
        assert not here.shared.waiting
        assert sorted(reason for *_, reason in here.sees(another)) == ["1", "2"]


def test_what_is_decided_while_a_log_is_found_lost_loses_nothing(store, tmp_path, monkeypatch):
    here = Proxy("here")
    here.decide(reason="1")
    here.decide(reason="2")
    here.sees(store)
    deciders: list[Thread] = []

    class Meanwhile:
        """The event loop decides while another thread looks what to write again."""

        def __contains__(self, by: By) -> bool:
            if not deciders and current_thread() is main_thread():
                deciders.append(Thread(target=here.decide, kwargs={"reason": "3"}, daemon=True))
                deciders[0].start()
                while here.decisions.made < 3 or len(here.decisions) < 3:
                    deciders[0].join(0.001)
            return False

    monkeypatch.setattr(decision_log, "ECHOES", Meanwhile())
    with closing(SqliteState(tmp_path / "another.sqlite")) as other:
        here.shared.sync(other)
        deciders[0].join(PATIENCE_S)
        assert [reason for _, _, reason in here.sees(other)] == ["1", "2", "3"]


def test_nothing_in_the_log_is_nothing(store):
    here = Proxy("here")
    here.decide(reason="1", by=By.PROXY)
    assert here.sees(store) == []
    assert here.sees(None) == []


def test_what_is_there_already_is_not_written_to_a_store_that_is_opened_anew(store, path):
    here = Proxy("here")
    here.decide(reason="1")
    here.sees(store)
    with closing(SqliteState(path)) as again:
        assert here.sees(again) == [(1, "here", "1")]
    assert not here.shared.waiting


def test_no_more_wait_than_are_kept(store):
    here = Proxy("here")
    for _ in range(1200):
        here.decide()
    rows = here.shared.sync(store).rows
    assert (len(rows), rows[0]["id"].split("-")[1]) == (1000, "201")


def test_a_change_while_it_is_written_is_written_again(store):
    here = Proxy("here")
    wait = here.decide(Kind.WAIT)
    failing: Any = Failing(store)

    def add(*args: Any) -> str:
        here.decisions.end(wait.number, By.ACCOUNT, 15.0)
        return str(store.decisions.add(*args))

    failing.add = add
    here.shared.write(failing)
    assert here.shared.waiting
    assert [row["waited_s"] for row in here.shared.sync(store).rows] == [5.0]


def test_in_memory_too():
    here = Proxy("here")
    here.decide(reason="1")
    with closing(SqliteState(IN_MEMORY)) as store:
        assert here.sees(store) == [(1, "here", "1")]
        assert [row["at"] for row in here.shared.sync(store).rows] == [1e9 + 10.0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["decide", "decide", "end", "write", "ask"]),
            st.sampled_from(["", "before", "after"]),
        ),
        max_size=40,
    )
)
def test_whatever_is_lost_each_decision_is_told_once_and_in_one_order(steps):
    first = SqliteState(IN_MEMORY)
    proxies = [Proxy(f"{n}") for n in range(3)]
    stores: list[Any] = [Failing(first) for _ in proxies]
    seen: dict[str, int] = {}
    for n, what, lost in steps:
        proxy, store = proxies[n], stores[n]
        store.lost = lost if what in ("write", "ask") else ""
        with contextlib.suppress(StoreError):
            match what:
                case "decide":
                    proxy.decide(Kind.WAIT, reason=f"{n}.{proxy.decisions.made + 1}")
                case "end" if len(proxy.decisions):
                    proxy.decisions.end(proxy.decisions.made, By.ACCOUNT, 15.0)
                case "write":
                    proxy.shared.write(store)
                case "ask":
                    for row in proxy.shared.sync(store).rows:
                        # What was told has the same number for ever.
                        assert seen.setdefault(row["id"], row["number"]) == row["number"]
        store.lost = ""
    for proxy, store in zip(proxies, stores, strict=True):
        proxy.shared.write(store)
    stories = [proxy.shared.sync(store).rows for proxy, store in zip(proxies, stores, strict=True)]
    assert stories[0] == stories[1] == stories[2]
    told = [row["reason"] for row in stories[0]]
    for n, proxy in enumerate(proxies):
        own = [reason for reason in told if reason.startswith(f"{n}.")]
        assert own == [f"{n}.{k}" for k in range(1, proxy.decisions.made + 1)]
        ended = {d.number for d in proxy.decisions if d.ended_at is not None}
        shown = {
            int(r["id"].split("-")[1]) for r in stories[0] if r["proxy"] == f"{n}" and r["ended_at"]
        }
        assert shown == ended
    first.close()
