"""Who made what only it knows."""

from __future__ import annotations

from account_pool.core.sessions import Pins, pin_of
from tests.core.helpers import key

A, B = key("a"), key("b")


def test_what_an_account_made_is_its_own() -> None:
    pins = Pins()
    pins.remember(A, "resp_1", 10.0)
    assert pins.owner("openai", "resp_1") == A
    assert pins.owner("openai", "resp_2") is None
    assert pins.owner("azure", "resp_1") is None


def test_the_one_not_named_for_longest_is_forgotten_first() -> None:
    told: list[str] = []
    pins = Pins(max_pins=2, changed=told.append)
    pins.remember(A, "one", 1.0)
    pins.remember(A, "two", 2.0)
    assert pins.owner("openai", "one") == A
    pins.remember(B, "three", 3.0)
    assert [pins.owner("openai", x) for x in ("one", "two", "three")] == [A, None, B]
    assert told == [pin_of("openai", x) for x in ("one", "two", "three", "two")]


def test_an_account_that_is_gone_takes_what_it_made_with_it() -> None:
    pins = Pins()
    pins.remember(A, "one", 1.0)
    pins.remember(B, "two", 1.0)
    pins.forget(A)
    assert [pins.owner("openai", x) for x in ("one", "two")] == [None, B]


def test_rows_outlive_a_restart_and_hold_no_token() -> None:
    before = Pins()
    before.remember(A, "tok-secret", 1.0)
    before.remember(B, "two", 2.0)
    rows = before.snapshot(5.0, 1005.0)
    assert "secret" not in repr(rows)
    assert rows == [before.row(pin_of("openai", x), 5.0, 1005.0) for x in ("tok-secret", "two")]
    after = Pins(max_pins=1)
    after.adopt(rows, 1.0, 1006.0)
    assert [after.owner("openai", x) for x in ("tok-secret", "two")] == [None, B]


def test_what_others_learnt_later_is_taken_over() -> None:
    told: list[str] = []
    pins = Pins(changed=told.append)
    pins.remember(A, "one", 10.0)
    pins.remember(A, "two", 30.0)
    told.clear()
    rows = [(pin_of("openai", name), "openai/b", 1020.0) for name in ("one", "two", "three")]
    pins.adopt(rows, 40.0, 1040.0)
    assert [pins.owner("openai", name) for name in ("one", "two", "three")] == [B, A, B]
    assert not told


def test_a_conversation_is_pinned_until_it_is_not() -> None:
    told: list[str] = []
    pins = Pins(changed=told.append)
    assert not pins.has_sessions
    pins.pin_session(A, "chat", 1.0)
    assert pins.session_owner("openai", "chat") == A
    pins.pin_session(B, "chat", 2.0)
    assert pins.session_owner("openai", "chat") == B
    assert pins.pinned_to("openai", "chat")
    assert not pins.pinned_to("azure", "chat")
    # It is not a thing of that name.
    assert pins.owner("openai", "chat") is None
    assert pins.unpin_session("openai", "chat")
    assert not pins.unpin_session("openai", "chat")
    assert not pins.pinned_to("openai", "chat")
    assert len(told) == 3


def test_pinned_conversations_outlive_a_restart() -> None:
    before, after = Pins(), Pins()
    before.pin_session(A, "chat", 1.0)
    after.adopt(before.snapshot(5.0, 1005.0), 1.0, 1006.0)
    assert after.has_sessions
    assert after.session_owner("openai", "chat") == A
