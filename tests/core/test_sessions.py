"""Where conversations live: tables, and any order of events against a plain model."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from account_pool.core.sessions import IDLE_S, Session, Sessions
from tests.core.helpers import key
from tests.patience import tries

A, B = key("a"), key("b")


def test_a_session_is_made_when_it_is_bound_and_stays() -> None:
    sessions = Sessions()
    assert sessions.get("s", 0.0) is None
    session = sessions.bind("s", A, 0.0)
    assert sessions.get("s", 1.0) is session
    assert session.account == A
    sessions.bind("s", B, 2.0)
    assert session.account == B


def test_get_refreshes_and_peek_does_not() -> None:
    sessions = Sessions(idle_s=10.0)
    sessions.bind("s", A, 0.0)
    assert sessions.peek("s", 9.0)
    assert sessions.peek("s", 10.0) is None
    sessions.bind("t", A, 0.0)
    assert sessions.get("t", 9.0)
    assert sessions.peek("t", 18.0)


def test_both_ends_of_a_turn_count_as_use_and_a_busy_session_is_never_idle() -> None:
    sessions = Sessions(idle_s=10.0)
    session = sessions.bind("s", A, 0.0)
    session.begin(5.0)
    assert sessions.sweep(1000.0).removed == ()
    session.end(1000.0)
    assert sessions.peek("s", 1009.0)
    assert sessions.sweep(1010.0).removed == ("s",)


def test_a_closed_session_lets_its_requests_finish() -> None:
    sessions = Sessions()
    session = sessions.bind("s", A, 0.0)
    session.begin(0.0)
    assert sessions.close_session("s")
    assert not sessions.close_session("s")
    again = sessions.bind("s", B, 1.0)
    session.end(2.0)
    assert (again.in_flight, again.account) == (0, B)


def test_the_one_not_used_for_longest_makes_room_but_never_a_busy_one() -> None:
    sessions = Sessions(max_sessions=2)
    first = sessions.bind("first", A, 0.0)
    first.begin(0.0)
    sessions.bind("second", A, 1.0)
    sessions.bind("third", A, 2.0)
    assert list(sessions) == ["first", "third"]
    third = sessions.bind("third", A, 3.0)
    third.begin(3.0)
    sessions.bind("fourth", A, 4.0)
    assert list(sessions) == ["first", "third", "fourth"]


def test_a_sweep_looks_again_before_it_removes_and_outlives_who_fails_to_hear_of_it() -> None:
    sessions = Sessions(idle_s=10.0)
    for name in ("a", "b", "c"):
        sessions.bind(name, A, 0.0)

    def changed(name: str) -> None:
        if name == "b":
            return
        # What happens meanwhile: one is used again, another sweep begins.
        sessions.bind("b", B, 20.0)
        assert sessions.sweep(20.0).removed == ()
        raise OSError(name)

    sessions.changed = changed
    swept = sessions.sweep(20.0)
    assert swept.removed == ("a", "c")
    assert [str(e) for e in swept.failures] == ["a", "c"]
    assert list(sessions) == ["b"]


def test_rows_outlive_a_restart() -> None:
    before = Sessions()
    before.bind("old", A, 100.0)
    before.bind("new", B, 100.0 + IDLE_S - 10)
    rows = before.snapshot(100.0 + IDLE_S, 5000.0)
    assert rows == [("old", "openai/a", 5000.0 - IDLE_S), ("new", "openai/b", 4990.0)]
    after = Sessions()
    after.adopt(rows, 7.0, 5001.0)
    session = after.peek("new", 7.0)
    assert session is not None
    assert (session.account, session.settled) == (B, True)
    assert list(after) == ["new"]


def test_a_clock_that_was_set_back_makes_no_session_of_the_future() -> None:
    sessions = Sessions()
    sessions.adopt([("s", "openai/a", 9000.0)], 7.0, 5000.0)
    assert sessions.peek("s", 7.0 + IDLE_S) is None


def test_what_others_did_later_is_taken_over_but_not_under_a_request() -> None:
    told: list[str] = []
    sessions = Sessions(changed=told.append)
    for name in ("here later", "there later", "busy"):
        sessions.bind(name, A, 10.0)
    sessions.get("here later", 30.0)
    sessions.bind("busy", A, 10.0).begin(10.0)
    told.clear()
    rows = [(name, "openai/b", 1020.0) for name in ("here later", "there later", "busy", "new")]
    sessions.adopt(rows, 50.0, 1050.0)
    homes = {name: s.account for name in sessions if (s := sessions.peek(name, 50.0))}
    assert homes == {"here later": A, "there later": B, "busy": A, "new": B}
    assert list(sessions) == ["busy", "there later", "new", "here later"], "in order of use"
    assert not told


def test_who_wants_to_know_is_told_of_what_is_new_and_what_is_gone() -> None:
    told: list[str] = []
    sessions = Sessions(changed=told.append, max_sessions=1)
    session = sessions.bind("s", A, 0.0)
    sessions.get("s", 1.0)
    sessions.settle("s", session)
    sessions.settle("s", session)
    sessions.bind("t", A, 2.0)
    assert told == ["s", "s", "s", "t"]


KEYS = st.sampled_from(["s", "t", "u", "v"])


class SessionsMachine(RuleBasedStateMachine):
    """Sessions against a plain dict that knows who was used when, and who is busy."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.sessions = Sessions(idle_s=10.0, max_sessions=3)
        self.open: list[tuple[str, Session]] = []

    def busy(self, name: str) -> bool:
        return any(n == name and self.sessions._known.get(n) is s for n, s in self.open)

    @rule(seconds=st.sampled_from([0.0, 1.0, 9.0, 10.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=KEYS, account=st.sampled_from([A, B]))
    def bind(self, name: str, account: object) -> None:
        before = [n for n in self.sessions if self.busy(n)]
        session = self.sessions.bind(name, account, self.now)  # type: ignore[arg-type]
        assert session.account == account
        assert self.sessions.peek(name, self.now) is session
        assert set(before) <= set(self.sessions)

    @rule(name=KEYS)
    def get(self, name: str) -> None:
        seen = self.sessions.peek(name, self.now)
        assert self.sessions.get(name, self.now) is seen
        assert seen is None or seen.used_at == self.now

    @rule(name=KEYS)
    def start(self, name: str) -> None:
        session = self.sessions.peek(name, self.now)
        if session is not None:
            session.begin(self.now)
            self.open.append((name, session))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.open) - 1))
        _, session = self.open.pop(at)
        session.end(self.now)

    @rule(name=KEYS)
    def close(self, name: str) -> None:
        self.sessions.close_session(name)
        assert self.sessions.peek(name, self.now) is None

    @rule()
    def sweep(self) -> None:
        busy = {n for n in self.sessions if self.busy(n)}
        removed = self.sessions.sweep(self.now).removed
        assert not busy & set(removed)
        # Idle ones are gone, whatever stood before them.
        assert all(self.sessions.peek(n, self.now) for n in self.sessions)

    @invariant()
    def requests_are_counted(self) -> None:
        for name in self.sessions:
            session = self.sessions._known[name]
            assert session.in_flight == sum(s is session for _, s in self.open)

    @invariant()
    def bounded_and_in_order_of_use(self) -> None:
        known = list(self.sessions._known.values())
        idle = [s for s in known if not s.in_flight]
        assert len(known) <= 3 or not idle or len(known) - len(idle) >= 3
        in_order = [session for _, session in self.sessions._oldest_first()]
        assert {id(s) for s in in_order} == {id(s) for s in known}
        assert [s.used_at for s in in_order] == sorted(s.used_at for s in known)


TestSessionsMachine = SessionsMachine.TestCase
TestSessionsMachine.settings = settings(max_examples=tries(60), stateful_step_count=40)


@pytest.mark.parametrize("in_flight", [0, 1])
def test_an_idle_session_that_is_bound_again_is_a_new_one_unless_it_is_busy(in_flight: int) -> None:
    sessions = Sessions(idle_s=10.0)
    session = sessions.bind("s", A, 0.0)
    for _ in range(in_flight):
        session.begin(0.0)
    assert (sessions.bind("s", B, 50.0) is session) is bool(in_flight)


def test_a_session_of_another_proxy_costs_the_same_with_many_known(monkeypatch) -> None:
    """It is put in its place: the others are not sorted anew."""
    sessions = Sessions(max_sessions=100_000)
    sessions.adopt([(f"s{n}", "openai/a", n / 10) for n in range(2_000)], 200.0, 200.0)
    compared = 0

    class Counted(float):
        def __lt__(self, other: float) -> bool:
            nonlocal compared
            compared += 1
            return float(self) < float(other)

        __hash__ = float.__hash__

    monkeypatch.setattr(sessions, "_by_use", [(Counted(t), *rest) for t, *rest in sessions._by_use])
    sessions.adopt([("old", "openai/b", 0.15)], 200.0, 200.0)
    assert list(sessions)[:4] == ["s0", "s1", "old", "s2"]
    assert compared < 50
