"""What a proxy says of itself is read whatever it is, and the fleet is seen as it is."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from account_pool.core.fleet import (
    MAX_BYTES,
    MAX_PROBLEM,
    MAX_TEXT,
    SHOWN_S,
    AboutProxy,
    ProxyRow,
    read_about,
    replaced_by,
    versions,
    view_fleet,
)

FULL = AboutProxy(
    name="laptop:8080",
    instance="a",
    worker=2,
    version="1.0",
    mitmproxy="12.3.1",
    uptime_s=7.25,
    stopping=True,
    problem="the disk is full",
    accounts="3 0123456789abcdef",
)
ME = AboutProxy(name="here:8080", instance="me", version="1.0", mitmproxy="12.3.1", uptime_s=60.0)


def row(name: str, **more) -> ProxyRow:
    about = {k: more.pop(k) for k in list(more) if k in AboutProxy.__struct_fields__}
    said = replace(ME, name=name, **{"instance": name, **about})
    usual = {"proxy": f"id of {name}", "seen_s": 1.0, "is_running": True, "in_flight": 1}
    return ProxyRow(about=said, **{**usual, **more})


def view(*rows: ProxyRow, **how):
    return view_fleet(rows, ME, 3, **how)


# -- what it says


def test_what_is_said_is_read():
    assert read_about(FULL.as_text()) == FULL
    assert read_about(FULL.as_text().encode()) == FULL


def test_what_a_newer_version_says_besides_is_left_out():
    said = json.loads(FULL.as_text())
    assert read_about(json.dumps({**said, "colour": {"of": ["its", "hair"]}})) == FULL


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", b"\xff\xfe", None, 7, "[" * 10_000, f'"{"x" * MAX_BYTES}"'],
)
def test_what_makes_no_sense_is_unknown(text):
    assert read_about(text) == AboutProxy()


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("name", 7, ""),
        ("name", "a\x1b[31mb\n", "a[31mb"),
        ("name", "n" * 9_000, "n" * MAX_TEXT),
        ("version", ["1.0"], ""),
        ("problem", "p" * 9_000, "p" * MAX_PROBLEM),
        ("problem", 7, None),
        ("worker", True, 0),
        ("worker", -1, 0),
        ("worker", 10**9, 0),
        ("worker", 1.5, 0),
        ("uptime_s", "7", None),
        ("uptime_s", True, None),
        ("uptime_s", -1, None),
        ("uptime_s", 10**400, None),
        ("uptime_s", math.inf, None),
        ("uptime_s", math.nan, None),
        ("stopping", "yes", False),
    ],
)
def test_a_wrong_value_is_unknown_and_spoils_no_other(name, value, read):
    said = json.loads(FULL.as_text()) | {name: value}
    assert read_about(json.dumps(said)) == replace(FULL, **{name: read})


@given(st.text(), st.text(), st.floats(), st.integers())
def test_whatever_is_said_is_bounded_and_can_be_kept(name, problem, uptime_s, worker):
    about = replace(FULL, name=name * 50, problem=problem * 50, uptime_s=uptime_s, worker=worker)
    text = about.as_text()
    assert len(text.encode()) < MAX_BYTES
    assert read_about(read_about(text).as_text()) == read_about(text)


# -- what is seen


def test_this_one_comes_first_and_is_as_it_is_now():
    stale = row("here:8080", instance="me", is_me=True, in_flight=99, seen_s=5.0)
    first, other = view(row("a:8080", in_flight=2), stale)
    assert (first.name, first.is_this, first.in_flight, first.seen_s) == ("here:8080", True, 3, 0.0)
    assert (other.name, other.is_this, other.state, other.in_flight) == (
        "a:8080", False, "running", 2,
    )  # fmt: skip


def test_alone_it_is_the_fleet():
    assert [one.name for one in view()] == ["here:8080"]


def test_one_that_stopped_its_heartbeat_is_gone_for_a_while_and_comes_last():
    gone = row("a:8080", is_running=False, seen_s=60.0)
    views = view(gone, row("b:8080"))
    assert [(one.name, one.state) for one in views[1:]] == [
        ("b:8080", "running"),
        ("a:8080", "gone"),
    ]
    # It has nothing in flight any more.
    assert views[-1].in_flight == 0
    assert len(view(gone, since_s=SHOWN_S - 61)) == 2
    assert len(view(gone, since_s=SHOWN_S - 59)) == 1


def test_one_that_was_started_again_is_not_missed():
    gone = row("a:8080", instance="before", is_running=False, seen_s=60.0)
    assert [one.state for one in view(gone, row("a:8080", instance="now"))] == ["running"] * 2
    mine = row("here:8080", instance="before", is_running=False, seen_s=60.0)
    assert len(view(mine)) == 1


def test_who_has_the_place_of_another_says_which():
    gone = {"is_running": False, "seen_s": 60.0, "version": "0.9"}
    rows = [
        row("here:8080", instance="before", proxy="before", **gone),
        row("here:8080", instance="before", proxy="a worker", worker=2, **gone),
        row("here:8080", instance="other", proxy="runs"),
        row("a:8080", proxy="elsewhere", **gone),
        row("here:8080", instance="me", proxy="me", is_me=True, **gone),
        row("", proxy="nameless", **gone),
    ]
    assert replaced_by(ME, rows) == ["before", "a worker"]
    assert replaced_by(replace(ME, name=""), rows) == []
    # Of its own workers only itself: the others are still missed.
    mine = [row("here:8080", instance="me", worker=n, proxy=str(n), **gone) for n in (1, 2)]
    assert replaced_by(replace(ME, worker=2), mine) == ["2"]


def test_one_that_ends_in_good_order_says_so():
    assert view(row("a:8080", stopping=True))[1].state == "stopping"


def test_workers_are_one_proxy():
    workers = [
        row("a:8080", worker=1, proxy="1", in_flight=2, seen_s=4.0),
        row("a:8080", worker=2, proxy="2", in_flight=3, problem="no room"),
        # Killed, and started again.
        row("a:8080", worker=3, proxy="3", in_flight=50, is_running=False, seen_s=20.0),
        row("a:8080", worker=3, proxy="4", in_flight=1),
    ]
    one = view(*workers)[1]
    assert (one.workers, one.in_flight, one.seen_s) == (3, 6, 1.0)
    assert one.problem == "worker 2: no room"
    # One of them hangs.
    one = view(replace(workers[0], is_running=False), *workers[1:])[1]
    assert (one.state, one.workers, one.in_flight) == ("running", 2, 4)
    assert one.problem == "worker 1: it has stopped its heartbeat"


def test_a_sibling_of_this_worker_is_this_proxy():
    me = replace(ME, worker=1)
    [one] = view_fleet([row("here:8080", instance="me", worker=2)], me, 3)
    assert (one.is_this, one.workers, one.in_flight) == (True, 2, 4)


def test_without_the_store_nothing_is_known_of_the_others():
    views = view(row("a:8080"), is_known=False)
    assert [one.state for one in views] == ["running", "unknown"]
    assert versions(views) == ["1.0"]


def test_different_versions_are_told():
    rows = [
        row("a", version="1.1"),
        row("b", version=""),
        row("c", version="0.9", is_running=False),
    ]
    assert versions(view(*rows)) == ["1.0", "1.1", "unknown"]


def test_names_that_are_the_same_are_told_apart():
    views = view(row("here:8080", instance="x"), row("here:8080", instance="y"))
    assert len({one.name for one in views}) == 3
    assert all(one.name.startswith("here:8080 (") for one in views)
    assert len({one.key for one in views}) == 3


TEXTS = st.text("ab\ud800\n", max_size=2)
ROWS = st.lists(
    st.builds(
        ProxyRow,
        proxy=TEXTS,
        about=st.builds(
            AboutProxy,
            name=TEXTS,
            instance=TEXTS | st.just(ME.instance),
            worker=st.integers(0, 2),
            uptime_s=st.none() | st.floats(0, 1e6),
            stopping=st.booleans(),
        ),
        seen_s=st.none() | st.floats(0, 2 * SHOWN_S),
        in_flight=st.integers(0, 9),
        is_running=st.booleans(),
        is_me=st.booleans(),
    )
)


@given(ROWS, st.floats(0, 2 * SHOWN_S), st.booleans())
def test_whoever_is_there_each_is_one_and_this_one_is_first(rows, since_s, is_known):
    views = view(*rows, since_s=since_s, is_known=is_known)
    assert [one.is_this for one in views] == [True] + [False] * (len(views) - 1)
    assert len({one.key for one in views}) == len(views)
    assert views[0].state == "running" and views[0].in_flight >= 3
    for one in views[1:]:
        assert (one.state == "unknown") == (not is_known)
        assert (one.seen_s or 0.0) < SHOWN_S
        assert one.workers >= 1


def test_of_which_nothing_is_known_is_there_all_the_same():
    broken = ProxyRow(proxy="\ud800", about=AboutProxy(), seen_s=None, is_running=True)
    one = view(broken)[1]
    assert (one.name, one.version, one.started_s, one.seen_s) == ("unknown", "unknown", None, None)


THREE, TWO = "3 0123456789abcdef", "2 00000000deadbeef"


def seen_by(mine: str, **theirs):
    me = replace(ME, accounts=mine)
    return view_fleet([row("there:8080", **theirs)], me, 0)[1]


def test_who_has_other_accounts_is_said():
    other = seen_by(TWO, accounts=THREE)
    assert other.same_accounts is False
    assert other.problem == "its accounts are not those of here:8080: 3, not 2"
    as_many = seen_by(TWO, accounts="2 0123456789abcdef")
    assert as_many.same_accounts is False
    assert as_many.problem == "its accounts are not those of here:8080, but as many"
    assert seen_by(TWO, accounts=THREE, problem="no room").problem == "no room"
    assert (seen_by(TWO, accounts=TWO).same_accounts, seen_by(TWO, accounts=TWO).problem) == (
        True,
        None,
    )


@pytest.mark.parametrize(
    "said", ["", "3", "3 of them", "x" * 90, "-3 0123456789abcdef", THREE + "0"]
)
def test_who_does_not_say_its_accounts_as_we_do_is_not_compared(said):
    for other in (seen_by(TWO, accounts=said), seen_by(said, accounts=TWO)):
        assert (other.same_accounts, other.problem) == (None, None)


def test_the_accounts_of_one_that_is_gone_are_no_problem():
    other = seen_by(TWO, accounts=THREE, is_running=False)
    assert (other.state, other.same_accounts, other.problem) == ("gone", None, None)
