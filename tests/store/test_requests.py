"""What every store of requests promises: in a file, in memory, in an engine."""

from __future__ import annotations

import pytest
from tests.store.request_samples import DAY, numbers, row, write

from account_pool.core.prices import Cost
from account_pool.store.store import Numbered, RequestQuery


def test_a_row_is_read_as_it_was_written(state):
    wanted = row(cost_usd=0.125, covered=1, premium_requests=0.33)
    bare = row(account=None, model=None, session=None, http_status=None, first_byte_s=None)
    write(state, wanted, bare)
    page = state.requests.read(RequestQuery())
    assert page.rows == [(2, bare), (1, wanted)]
    assert page.last == 2


def test_pages(state):
    write(state, *[row(DAY + n) for n in range(5)])
    assert numbers(state, limit=2) == [5, 4]
    assert numbers(state, limit=2, before=4) == [3, 2]
    assert numbers(state, since=3) == [5, 4]
    # Nothing is skipped by whoever follows: the oldest come first.
    assert numbers(state, since=0, limit=2) == [2, 1]
    assert numbers(state, since=5) == []


def test_filters(state):
    write(
        state,
        row(),
        row(DAY + 10, account="openai/two", tool="claude-code"),
        row(DAY + 20, provider="gemini", account="gemini/one", model="gemini-3", status="refused"),
    )
    for query, found in (
        ({"account": "openai/two"}, [2]), ({"account": "openai"}, [2, 1]),
        ({"model": "gpt-5"}, [2, 1]),
        ({"tool": "codex"}, [3, 1]), ({"status": "refused"}, [3]), ({"from_at": DAY + 10}, [3, 2]),
        ({"to_at": DAY + 10}, [1]), ({"from_at": DAY + 1, "tool": "codex"}, [3]),
        ({"account": "openai/none"}, []), ({"tool": "' OR 1 --"}, []),
    ):  # fmt: skip
        assert numbers(state, **query) == found, query


def test_a_batch_that_comes_again_is_not_added_again(state):
    batch = Numbered("one", 1)
    write(state, row(), batch=batch)
    write(state, row(), batch=batch)
    assert numbers(state) == [1]
    write(state, row(), batch=batch._replace(number=2))
    assert numbers(state) == [2, 1]


def test_old_rows_go_and_numbers_do_not_come_again(state):
    write(state, row(), row(), wall_now=DAY)
    write(state, row(), wall_now=DAY + 100)
    # By the clock of the store, whatever the clock of a proxy said.
    assert not state.requests.prune(50, wall_now=DAY + 100)
    assert numbers(state) == [3]
    assert not state.requests.prune(0, wall_now=DAY + 100)
    assert numbers(state) == []
    write(state, row())
    assert numbers(state) == [4]


def test_sums(state):
    write(
        state,
        row(),
        row(DAY + 3600),
        row(DAY + 3601, tool="claude-code", input_tokens=None, cost_usd=None),
        row(status="refused", counted=0, input_tokens=7),
    )
    days = state.requests.sums(RequestQuery(), by_hour=False)
    assert {one.key: one.amounts["requests"] for one in days} == {
        ("2027-01-15", "openai/one", "gpt-5", "codex"): 2,
        ("2027-01-15", "openai/one", "gpt-5", "claude-code"): 1,
    }
    [codex] = [one.amounts for one in days if one.key[3] == "codex"]
    assert (codex["input_tokens"], codex["output_tokens"], codex["cost_usd"]) == (200, 20, 0)
    hours = state.requests.sums(RequestQuery(tool="codex"), by_hour=True)
    assert [one.key[0] for one in hours] == ["2027-01-15T00:00:00Z", "2027-01-15T01:00:00Z"]


def test_a_series(state):
    write(
        state,
        *[row(DAY + n, duration_s=float(n), first_byte_s=n / 10) for n in range(1, 101)],
        row(DAY + 899, status="refused", counted=0, failovers=2, duration_s=500.0, wait_s=3.0),
        row(DAY + 1800, status="aborted", duration_s=1.0),
        # The handshake of a WebSocket, beside its turns.
        row(DAY + 1801, http_status=101, counted=0),
    )
    first, third = state.requests.series(RequestQuery(from_at=DAY, to_at=DAY + 3600), 900)
    assert (first.step, first.duration_s, first.first_byte_s) == (0, (50.0, 95.0), (5.0, 9.5))
    amounts = first.amounts
    assert (amounts["requests"], amounts["ok"], amounts["refused"]) == (101, 100, 1)
    assert (amounts["failovers"], amounts["waited"], amounts["wait_s"]) == (2, 1, 3.0)
    assert amounts["input_tokens"] == 101 * 100
    assert (third.step, third.duration_s, third.amounts["requests"]) == (2, None, 1)
    assert state.requests.series(RequestQuery(from_at=DAY, model="none"), 900) == []


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, 0.0), (0.123, 0.12), (1.07, 1.05), (45.7, 45.5), (9e5, 4995.0)]
)
def test_percentiles_are_as_fine_as_needed(state, value, shown):
    write(state, row(duration_s=value))
    [bucket] = state.requests.series(RequestQuery(from_at=DAY), 900)
    assert bucket.duration_s == (shown, shown)


def test_proxies_have_the_same_rows(two):
    one, other = two
    write(one, row(), batch=Numbered("one", 1))
    write(other, row(DAY + 1), batch=Numbered("other", 1))
    assert numbers(one) == numbers(other) == [2, 1]
    write(one, row(DAY + 2))
    assert numbers(other) == [3, 2, 1]
    one.requests.prune(0, wall_now=DAY)
    assert numbers(other) == []
    write(other, row())
    assert numbers(one) == numbers(other) == [4]


COST = Cost(cost_usd=0.25, price="list 1", covered=0, premium_requests=None)
COVERED = COST._replace(covered=1)
PREMIUM = Cost(cost_usd=None, price="copilot", covered=0, premium_requests=0.33)
NONE = Cost(cost_usd=None, price="", covered=0, premium_requests=None)


def unpriced(state, after=0, limit=10):
    return [number for number, _ in state.requests.unpriced(after, limit)]


def costs(state):
    rows = state.requests.read(RequestQuery()).rows
    return {n: Cost(r.cost_usd, r.price, r.covered, r.premium_requests) for n, r in rows}


def test_rows_without_a_price_are_found_in_their_order(state):
    write(state, row(), row(price=""), row(), row(), row(price="own", cost_usd=1.0))
    assert unpriced(state) == [1, 3, 4]
    assert unpriced(state, limit=2) == [1, 3]
    assert unpriced(state, after=1) == [3, 4]
    [(_, found), *_] = state.requests.unpriced(0, 1)
    assert found == row()
    state.requests.prune(0, wall_now=DAY)
    assert unpriced(state) == []


def test_costs_are_put_into_rows_and_into_the_usage_of_their_day(state):
    late = DAY + 86_399.0
    write(state, row(), row(late), row(model=None), row(), row())
    given = {1: COST, 2: COVERED, 3: COST, 4: NONE, 5: PREMIUM}
    state.requests.price([*given.items()])
    assert costs(state) == given
    assert unpriced(state) == []
    assert state.read_counts("usage") == {
        ("2027-01-15", "openai/one", "gpt-5"): {
            "cost_usd": 0.25, "premium_requests": 0.33, "priced_requests": 2,
        },
        # It ended on the next day.
        ("2027-01-16", "openai/one", "gpt-5"): {"saved_usd": 0.25, "priced_requests": 1},
        ("2027-01-15", "openai/one", "-"): {"cost_usd": 0.25, "priced_requests": 1},
    }  # fmt: skip
    [july] = state.requests.sums(RequestQuery(to_at=DAY + 1, model="gpt-5"), by_hour=False)
    assert (july.amounts["cost_usd"], july.amounts["priced_requests"]) == (0.25, 2)


def test_who_comes_later_with_a_price_changes_nothing(two):
    one, other = two
    write(one, row(), row())
    one.requests.price([(1, COST)])
    other.requests.price([(1, COVERED), (2, COVERED), (99, COST)])
    one.requests.price([(2, COST)])
    for state in two:
        assert costs(state) == {1: COST, 2: COVERED}
        [sums] = state.read_counts("usage").values()
        assert sums == {"cost_usd": 0.25, "saved_usd": 0.25, "priced_requests": 2}


def test_what_had_no_price_is_looked_at_again(two):
    one, other = two
    write(one, row(), row(counted=0), row(), row(), row(price="", counted=0))
    one.requests.price([(1, NONE), (2, NONE), (3, COST), (4, PREMIUM._replace(price=""))])
    for _ in range(2):
        other.requests.reprice()
        assert unpriced(one) == [1]
    one.requests.price([(1, COST)])
    other.requests.reprice()
    assert unpriced(one) == []
    assert costs(one)[1] == costs(other)[1] == COST
    [sums] = one.read_counts("usage").values()
    assert sums["priced_requests"] == 3


def test_nothing_to_price(state):
    state.requests.price([])
    state.requests.reprice()
    assert numbers(state) == unpriced(state) == []


def test_numbers_go_on_after_a_restart(backend):
    first = backend.open()
    write(first, row(), row())
    first.close()
    again = backend.open()
    write(again, row())
    assert numbers(again) == [3, 2, 1]
    assert again.requests.read(RequestQuery()).last == 3
