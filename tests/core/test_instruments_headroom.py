"""What accounts had left over the day."""

from __future__ import annotations

from account_pool.core.instruments import EVERY_S, KEPT_S, HeadroomHistory
from account_pool.core.pool import Pool
from tests.core.helpers import key, pool_of, rate_limit, window


def noted(pool: Pool, now: float = 1.0) -> dict[str, float]:
    history = HeadroomHistory()
    history.note(pool.accounts, now, 1e9)
    return {**history.samples[-1].left}


def test_a_provider_has_what_its_best_account_has():
    pool = pool_of("a", "b", "c")
    for label, shares in (("a", (0.4, 0.9)), ("b", (0.7, 0.6))):
        windows = [window(share, name=f"{n}h", reset_at=1e6) for n, share in enumerate(shares)]
        pool.observe_headroom(key(label), windows, now=0.0)
    assert noted(pool) == {"openai": 0.6}


def test_what_cannot_serve_has_nothing_left():
    pool = pool_of("a")
    pool.observe_headroom(key("a"), [window(0.4, reset_at=1e6)], now=0.0)
    pool.health.mark_cooldown(key("a"), rate_limit(600), now=0.0)
    assert noted(pool) == {"openai": 0.0}


def test_nothing_is_said_where_nothing_is_known():
    assert noted(pool_of("a")) == {}


def test_samples_are_apart_and_of_one_day():
    history, pool = HeadroomHistory(), pool_of("a")
    for now in range(0, int(2 * KEPT_S), 60):
        history.note(pool.accounts, float(now), float(now))
    times = [sample.wall_at for sample in history.samples]
    assert times[1] - times[0] == EVERY_S
    assert times[-1] - times[0] == KEPT_S - EVERY_S
