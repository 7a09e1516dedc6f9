"""Numbers that only grow, until they are taken to be written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from account_pool.core import usage as module
from account_pool.core.usage import Counted, Counts, add_to

amounts = st.dictionaries(st.sampled_from(["requests", "tokens"]), st.integers(0, 100))
keys = st.tuples(st.sampled_from(["2026-08-01", "2026-08-02"]), st.sampled_from(["a", "b"]))


@given(st.lists(st.tuples(keys, amounts, st.sampled_from(["", "written", "failed"]))))
def test_nothing_is_lost_or_counted_twice_whenever_it_is_written(steps) -> None:
    counts, stored, expected = Counts(), {}, {}
    for key, more, then in steps:
        counts.add(key, more)
        add_to(expected, {key: more})
        if then:
            taken = counts.take()
            assert not counts.waiting
            if then == "written":
                add_to(stored, taken)
            else:
                counts.put_back(taken)
    add_to(stored, counts.take())
    assert stored == expected


def test_whoever_keeps_it_is_told() -> None:
    told: list[None] = []
    counts = Counts(changed=lambda: told.append(None))
    counts.add(("a",), {"requests": 1})
    counts.add(("a",), {"requests": 1})
    assert len(told) == 2


def test_clients_that_invent_models_do_not_fill_the_memory(monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    counts = Counts()
    for name in ("a", "b", "c", "a"):
        counts.add((name,), {"requests": 1})
    assert counts.waiting == {("a",): {"requests": 2}, ("b",): {"requests": 1}}


def test_what_is_added_stays_what_it_was() -> None:
    more: Counted = {("a",): {"requests": 1}}
    sums: Counted = {}
    add_to(sums, more)
    add_to(sums, more)
    assert more == {("a",): {"requests": 1}}
