"""The log of decisions that proxies share."""

from __future__ import annotations

import pytest
from tests.proxy.deciding import Proxy
from tests.store.servers import KINDS

from account_pool.core.decision_history import LoggedDecision
from account_pool.core.decisions import KEPT, By, Kind


def one(own: int, origin: str = "a", record: str = "{}") -> LoggedDecision:
    return LoggedDecision(origin, own, "host", record)


def test_decisions_are_numbered_in_the_order_of_the_store(state):
    log = state.decisions
    assert log.read(0).rows == []
    log.add([one(1), one(2)], [])
    log.add([one(1, "b")], [])
    page = log.read(0)
    assert sorted(page.rows) == [(1, one(1)), (2, one(2)), (3, one(1, "b"))]
    assert page.log
    assert log.read(page.upto) == page._replace(rows=[])


def test_what_is_added_again_is_there_once(state):
    for _ in range(3):
        state.decisions.add([one(1), one(2)], [])
    state.decisions.add([one(2), one(3)], [])
    assert sorted(state.decisions.read(0).rows) == [(1, one(1)), (2, one(2)), (3, one(3))]


def test_a_change_is_read_by_who_knows_the_rest(state):
    state.decisions.add([one(1), one(2)], [])
    upto = state.decisions.read(0).upto
    state.decisions.add([one(3)], [one(1, record="changed")])
    assert sorted(state.decisions.read(upto).rows) == [(1, one(1, record="changed")), (3, one(3))]


def test_the_last_thousand_are_kept_and_a_change_brings_none_back(state):
    state.decisions.add([one(n) for n in range(1, KEPT + 3)], [])
    state.decisions.add([], [one(1, record="changed"), one(KEPT, record="changed")])
    rows = dict(state.decisions.read(0).rows)
    assert (len(rows), min(rows), max(rows)) == (KEPT, 3, KEPT + 2)
    assert rows[KEPT].record == "changed"
    state.decisions.add([one(KEPT + 3)], [])
    assert max(dict(state.decisions.read(0).rows)) == KEPT + 3, "no number is left out"


def test_proxies_have_one_log(backend):
    one_of_them, other = backend.open(), backend.open()
    one_of_them.decisions.add([one(1, "a")], [])
    other.decisions.add([one(1, "b")], [])
    page = one_of_them.decisions.read(0)
    assert page == other.decisions.read(0)
    one_of_them.close()
    assert backend.open().decisions.read(0) == page


def test_any_text_is_kept(state):
    odd = one(1, record='{"a": "\\ud800 \u2603\u0000"}')._replace(proxy="h\u00f4te\n")
    state.decisions.add([odd], [])
    assert state.decisions.read(0).rows == [(1, odd)]


# -- as proxies use it


def test_proxies_tell_one_story(backend):
    here, there = Proxy("here"), Proxy("there")
    one_of_them, other = backend.open(), backend.open()
    here.decide(reason="1")
    here.shared.write(one_of_them)
    there.decide(reason="2")
    wait = here.decide(Kind.WAIT, reason="3")
    assert there.sees(other) == [(1, "here", "1"), (2, "there", "2")]
    story = [(1, "here", "1"), (2, "there", "2"), (3, "here", "3")]
    assert here.sees(one_of_them) == there.sees(other) == story
    here.decisions.end(wait.number, By.ACCOUNT, 15.0)
    assert here.sees(one_of_them) == there.sees(other) == story
    assert there.shared.sync(other).rows[-1]["waited_s"] == 5.0


@pytest.mark.parametrize("backend", KINDS, indirect=True)
def test_an_engine_that_has_lost_all_gets_what_its_proxies_know(backend):
    here, there, state = Proxy("here"), Proxy("there"), backend.open()
    here.decide(reason="1")
    there.decide(reason="2")
    there.decide(reason="3")
    assert len(there.sees(state)) == 2
    assert len(here.sees(state)) == 3
    keys = backend.client.keys(backend.key("decided*").replace("{", "\\{"))
    assert backend.client.delete(*keys) == 4
    assert here.sees(state) == [(1, "here", "1")]
    assert there.sees(state) == [(1, "here", "1"), (2, "there", "2"), (3, "there", "3")]


@pytest.mark.parametrize("backend", KINDS, indirect=True)
def test_what_no_proxy_has_written_is_left_out(backend):
    state, hash_ = backend.open(), backend.key("decided")
    state.decisions.add([one(1)], [])
    for name, said in (
        (b"x", b"2 1 []"), (b"a:x", b'3 1 ["a", "b"]'), (b"a:7", b'4 1 ["a"]'), (b"a:8", b"5"),
        (b"a:9", b"\xff"), (b"\xff:1", b"6 1 {}"), (b"a:10", b"7 1 " + b"[" * 10_000),
    ):  # fmt: skip
        backend.client.hset(hash_, name, said)
        backend.client.zadd(hash_ + ":c", {name: 1})
    backend.client.zadd(hash_ + ":c", {"a:99": 1})
    assert state.decisions.read(0).rows == [(1, one(1))]
