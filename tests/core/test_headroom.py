"""Windows, and what they say of an account together."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core.headroom import (
    MAX_WINDOWS,
    NO_RESET_S,
    UNKNOWN,
    UNNAMED_S,
    HeadroomSnapshot,
    Window,
    shown,
    tightest_window,
)
from tests.core.helpers import instructions, window

WINDOWS = st.lists(
    st.builds(
        Window,
        name=st.sampled_from(["5h", "7d", "requests"]),
        share=st.floats(0.0, 1.0),
        told_at=st.floats(0.0, 100.0),
        model=st.sampled_from([None, "gpt-5", "gpt-5-mini", "gpt-*"]),
        reset_at=st.one_of(st.just(inf), st.floats(0.0, 1e7)),
        length_s=st.sampled_from([None, 60.0, 3600.0, 18000.0]),
    ),
    max_size=8,
)


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ([], None),
        ([window(0.6, name="5h"), window(0.2, name="7d")], "7d"),
        # What has been reset counts no longer, however little of it was left.
        ([window(0.0, name="5h", reset_at=10.0), window(0.2, name="7d", reset_at=900.0)], "7d"),
        # A model's own window counts like any other ...
        ([window(0.6, name="5h"), window(0.1, name="tokens", model="gpt-5")], "tokens"),
        # ... and of equals the last one to be reset, then the one of all models.
        ([window(0.0, name="5h", reset_at=500.0), window(0.0, name="7d", reset_at=900.0)], "7d"),
        ([window(0.5, name="a", model="gpt-5"), window(0.5, name="b")], "b"),
        # Full is not the same as unknown.
        ([window(1.0, name="5h")], "5h"),
    ],
)
def test_the_tightest_window_of_an_account(windows, expected) -> None:
    tightest = tightest_window(windows, 50.0)
    assert (tightest and tightest.name) == expected


@pytest.mark.parametrize(
    ("changes", "expires_at"),
    [
        ({"reset_at": 500.0}, 500.0),
        ({"reset_at": 500.0, "length_s": 18000.0}, 500.0),
        ({}, 100.0 + UNNAMED_S),
        ({"length_s": 600.0}, 700.0),
        ({"length_s": 604800.0}, 100.0 + NO_RESET_S),
    ],
)
def test_a_window_is_believed_until_its_reset(changes: dict[str, float], expires_at: float) -> None:
    assert window(0.5, told_at=100.0, **changes).expires_at == expires_at


def test_of_two_that_differ_the_new_one_is_true() -> None:
    headroom = UNKNOWN.updated([window(0.2), window(0.9, name="7d")], 0.0).updated(
        [window(0.8)], 1.0
    )
    assert (headroom.share, len(headroom.windows)) == (0.8, 2)


def test_what_is_not_mentioned_stays_until_it_expires() -> None:
    """Copilot tells of its windows only above half of their use."""
    headroom = UNKNOWN.updated([window(0.2, reset_at=60.0)], 0.0)
    assert headroom.updated([window(0.9, name="7d")], 59.0).share == 0.2
    assert headroom.updated([window(0.9, name="7d", told_at=60.0)], 60.0).share == 0.9


def test_a_reset_in_the_past_ends_what_was_known() -> None:
    headroom = UNKNOWN.updated([window(0.2, reset_at=60.0)], 0.0)
    assert headroom.updated([window(0.1, reset_at=5.0)], 5.0) == UNKNOWN


def test_the_tightest_window_counts_and_the_last_reset_of_equals() -> None:
    headroom = UNKNOWN.updated(
        [window(0.5, reset_at=60.0), window(0.5, name="7d", reset_at=90.0), window(0.7, name="x")],
        0.0,
    )
    assert headroom.tightest("gpt-5") == (0.5, 90.0)


@given(
    st.lists(WINDOWS, max_size=3),
    st.lists(st.floats(0.0, 1e7), min_size=4, max_size=4).map(sorted),
    st.sampled_from([None, "gpt-5", "o3"]),
)
def test_what_has_expired_is_never_used(
    told: list[list[Window]], times: list[float], model: str | None
) -> None:
    """And what responses report one by one counts as if one had reported it all."""
    headroom = UNKNOWN
    for windows, at in zip(told, times, strict=False):
        headroom = headroom.updated([w._replace(told_at=at) for w in windows], at)
    now = times[-1]
    headroom = headroom.at(now)
    assert all(now < w.expires_at for w in headroom.windows.values())
    assert headroom == HeadroomSnapshot.of(headroom.windows.values(), now)
    expiries = [w.expires_at for w in headroom.windows.values()]
    assert headroom.changes_at == min(expiries, default=inf)
    share, reset_at = headroom.tightest(model)
    assert 0.0 <= share <= 1.0
    covering = [
        w
        for w in headroom.windows.values()
        if w.model is None or (model and w.model[:3] == model[:3])
    ]
    assert share >= min((w.share for w in covering), default=1.0)
    assert reset_at == inf or reset_at > now
    if headroom.is_spent(model):
        assert share < 0.02


def test_windows_are_bounded() -> None:
    """Clients choose the names of models."""
    headroom = UNKNOWN
    for n in range(MAX_WINDOWS + 9):
        left = window(0.5, model=f"m{n}", told_at=float(n), reset_at=1e6)
        headroom = headroom.updated([left], float(n))
    assert len(headroom.windows) == MAX_WINDOWS
    assert ("5h", f"m{MAX_WINDOWS + 8}") in headroom.windows
    assert ("5h", "m8") not in headroom.windows


def test_a_report_costs_the_same_however_many_models_are_known() -> None:
    def cost(models: int) -> int:
        told = [window(0.5, model=f"m{n}", reset_at=1e6 + n) for n in range(models)]
        headroom = UNKNOWN.updated(told, 0.0)
        return instructions(lambda: headroom.updated([window(0.4, reset_at=1e6, model="m2")], 1.0))

    assert cost(120) <= cost(4) + 50


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ([], ""),
        ([window(0.5, reset_at=10.0)], ""),
        (
            [window(0.81, name="7d", length_s=604800.0), window(0.629, length_s=18000.0)],
            "5h 62% 7d 81%",
        ),
        (
            [window(0.0, name="7d", model="*opus*"), window(1.0)],
            "5h 100% *opus*: 7d 0%",
        ),
        ([window(0.29, name="completions", model="completions")], "completions 29%"),
        ([window(0.5, name=f"w{n}") for n in range(6)], "w0 50% w1 50% w2 50% w3 50% +2"),
    ],
)
def test_shown(told: list[Window], text: str) -> None:
    assert shown(told, 10.0) == text
