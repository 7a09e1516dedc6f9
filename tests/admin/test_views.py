"""The pool as JSON."""

from __future__ import annotations

from math import inf, nan

import pytest

from account_pool.admin import views
from account_pool.admin.views import AccountExtras, Clocks
from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential, Secret
from account_pool.core.fleet import AboutProxy, ProxyRow, view_fleet
from account_pool.core.headroom import HeadroomSnapshot, Window
from account_pool.core.lease import RequestFacts
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.pool import Pool
from account_pool.core.sessions import Pins, Sessions
from tests.proxy.helpers import account

#: 2026-11-21T12:00:00Z, and the monotonic clock then.
MOMENT = Clocks(1000.0, 1795262400.0)
ONE = AccountKey("openai", "one")
NO_EXTRAS = AccountExtras()


def pool_of(**changes) -> Pool:
    pool = Pool()
    credential = Credential(kind="key", secret=Secret("sk-fake-one-000"))
    pool.accounts.add(account("one", **changes), {"key": credential}, now=MOMENT.now)
    return pool


def limit(**changes) -> Outcome:
    values = {
        "cls": OutcomeClass.RATE_LIMIT,
        "scope": Scope.ACCOUNT,
        "cooldown_s": 38.0,
        "signal": "429 code=rate_limit_exceeded",
        "evidence": {"retry-after": "38"},
    }
    return Outcome(**{**values, **changes})


def shown(pool: Pool) -> dict:
    return views.account_view(pool.accounts.get(ONE), MOMENT, NO_EXTRAS)


def test_an_account_as_it_was_written():
    one = shown(pool_of(priority=2, weight=3, max_concurrent=4, min_interval_s=0.5))
    expected = {
        "key": "openai/one",
        "provider": "openai",
        "label": "one",
        "state": "available",
        "reason": "",
        "priority": 2,
        "weight": 3,
        "max_concurrent": 4,
        "min_interval_s": 0.5,
        "placeholder": "pool:openai/one",
        "cooldowns": [],
        "asked_last": [],
        "disabled": None,
        "problem": None,
        "headroom": [],
        "tightest": None,
        "usage": dict.fromkeys(views.AMOUNTS, 0),
    }
    assert expected.items() <= one.items()


def test_what_makes_an_account_the_last_to_be_asked():
    pool = pool_of()
    refusal = Outcome(cls=OutcomeClass.AUTH_INVALID, scope=Scope.ACCOUNT, signal="401: no")
    lease = pool.acquire(RequestFacts(provider="openai", kind="key"), now=MOMENT.now - 60)
    pool.release(lease, refusal, now=MOMENT.now - 60)
    (told,) = shown(pool)["asked_last"]
    assert (told["model"], told["class"], told["signal"]) == (None, "auth_invalid", "401: no")
    assert told["remaining_s"] == 540.0
    assert shown(pool)["state"] == "available"


def test_a_cooldown_with_its_cause():
    pool = pool_of()
    pool.health.mark_cooldown(ONE, limit(), now=MOMENT.now - 8)
    one = shown(pool)
    assert (one["state"], one["reason"]) == ("cooling", "429 code=rate_limit_exceeded")
    assert one["cooldowns"] == [
        {
            "model": None,
            "class": "rate_limit",
            "signal": "429 code=rate_limit_exceeded",
            "evidence": {"retry-after": "38"},
            "since_at": "2026-11-21T11:59:52.000Z",
            "until_at": "2026-11-21T12:00:30.000Z",
            "remaining_s": 30.0,
            "streak": 1,
        }
    ]


def test_one_model_cools():
    pool = pool_of()
    pool.health.mark_cooldown(ONE, limit(scope=Scope.MODEL), now=MOMENT.now, model="gpt-5")
    one = shown(pool)
    assert one["state"] == "available"
    assert [c["model"] for c in one["cooldowns"]] == ["gpt-5"]


def test_what_is_over_is_not_shown():
    pool = pool_of()
    pool.health.mark_cooldown(ONE, limit(), now=MOMENT.now - 100)
    assert shown(pool)["cooldowns"] == []


def test_headroom():
    pool = pool_of()
    windows = [
        Window("5h", 0.25, MOMENT.now, reset_at=MOMENT.now + 3600),
        Window("tokens", 0.5, MOMENT.now, model="gpt-5"),
        Window("old", 0.1, MOMENT.now - 100, reset_at=MOMENT.now - 1),
    ]
    pool.accounts.get(ONE).headroom = HeadroomSnapshot.of(windows, MOMENT.now)
    assert shown(pool)["headroom"] == [
        {
            "window": "5h",
            "model": None,
            "remaining": 0.25,
            "resets_at": "2026-11-21T13:00:00.000Z",
            "resets_s": 3600.0,
        },
        {
            "window": "tokens",
            "model": "gpt-5",
            "remaining": 0.5,
            "resets_at": None,
            "resets_s": None,
        },
    ]
    assert shown(pool)["tightest"] == shown(pool)["headroom"][0]


def test_disabled():
    pool = pool_of()
    refused = Outcome(cls=OutcomeClass.AUTH_INVALID, scope=Scope.ACCOUNT, signal="401")
    pool.health.mark_failure(ONE, refused, now=MOMENT.now - 60)
    one = shown(pool)
    assert (one["state"], one["reason"]) == ("disabled", "401")
    assert one["disabled"] == {
        "class": "auth_invalid",
        "signal": "401",
        "evidence": {},
        "since_at": "2026-11-21T11:59:00.000Z",
    }


def test_off_without_credential_and_full():
    assert shown(pool_of(enabled=False))["state"] == "off"
    pool = pool_of()
    pool.accounts.set_credentials(ONE, {}, now=MOMENT.now, problem="no such file")
    one = shown(pool)
    assert (one["state"], one["reason"], one["problem"]) == (
        "no_credential", "no such file", "no such file",
    )  # fmt: skip
    pool = pool_of(max_concurrent=1)
    pool.accounts.get(ONE).in_flight = 1
    assert (shown(pool)["state"], shown(pool)["reason"]) == ("full", "max_concurrent: 1")


def test_the_pool_and_one_provider():
    pool = pool_of()
    pool.accounts.add(account("two", "anthropic"), now=MOMENT.now)
    everything = views.pool_view(pool, MOMENT, NO_EXTRAS)
    assert [one["key"] for one in everything["accounts"]] == ["openai/one", "anthropic/two"]
    assert everything["summary"]["total"] == 2
    assert everything["summary"]["available"] == 1
    assert everything["providers"]["anthropic"]["available"] == 0
    one = views.provider_view(pool, "openai", MOMENT, NO_EXTRAS)
    assert [account["key"] for account in one["accounts"]] == ["openai/one"]
    assert one["summary"] == everything["providers"]["openai"]


def test_sessions_the_newest_first():
    sessions = Sessions()
    for number, key in enumerate(("a", "b", "c")):
        sessions.bind(key, ONE, MOMENT.now - 30 + number)
    told = views.sessions_view(sessions, Pins(), MOMENT, 2)
    assert [row["key"] for row in told["sessions"]] == ["c", "b"]
    assert told["total"] == 3
    assert told["sessions"][0] == {
        "key": "c",
        "account": "openai/one",
        "used_at": "2026-11-21T11:59:32.000Z",
        "idle_s": 28.0,
        "turns": 0,
        "pinned": False,
        "session": None,
    }
    assert views.sessions_by_account(sessions, MOMENT.now) == {ONE: 3}


SUMS = {
    ("2026-11-20", "openai/one", "gpt-5"): {"requests": 1, "input_tokens": 5},
    ("2026-11-21", "openai/one", "gpt-5"): {"requests": 2, "input_tokens": 10, "cached_tokens": 4},
    ("2026-11-21", "openai/one", "a"): {"requests": 3, "output_tokens": 7.0, "else": 1},
}


def test_usage_by_day():
    days = views.usage_view(SUMS, {})["days"]
    assert [(row["day"], row["model"], row["requests"]) for row in days] == [
        ("2026-11-21", "a", 3), ("2026-11-21", "gpt-5", 2), ("2026-11-20", "gpt-5", 1),
    ]  # fmt: skip
    assert set(days[0]) == {
        "day",
        "account",
        "model",
        *views.AMOUNTS,
        *views.COSTS,
        "unpriced_requests",
    }


def test_what_was_left_of_windows_when_they_were_reset():
    resets = {
        ("2026-11-20", "openai/one", "7d"): {"resets": 1, "left": 0.5},
        ("2026-11-21", "openai/one", "5h"): {"resets": 4, "left": 1.0},
        ("2026-11-21", "openai/two", "5h"): {"left": 1.0},
    }
    assert views.usage_view({}, resets)["windows"] == [
        {"day": "2026-11-21", "account": "openai/one", "window": "5h", "resets": 4, "left": 0.25},
        {"day": "2026-11-20", "account": "openai/one", "window": "7d", "resets": 1, "left": 0.5},
    ]


def test_usage_of_today():
    assert views.day_of(MOMENT.wall_now) == "2026-11-21"
    today = views.usage_of_day(SUMS, "2026-11-21")
    assert today["openai/one"] == {
        "requests": 5, "input_tokens": 10, "cached_tokens": 4, "output_tokens": 7,
        "reasoning_tokens": 0, "cache_write_tokens": 0,
    }  # fmt: skip


@pytest.mark.parametrize("at", [inf, -inf, nan, 1e20, -1e20])
def test_what_is_no_date(at):
    assert views.iso(at) is None


def test_the_last_heartbeat_of_a_proxy_was_at_one_instant_whenever_it_is_asked_for() -> None:
    row = ProxyRow(proxy="b", about=AboutProxy(name="b"), seen_s=30.0, is_running=False)
    found = set()
    # Two clocks are read one after the other.
    for later_s, between_s in ((0.0, 0.0002), (1.0, 0.0013), (2.0, 0.0001)):
        proxies = view_fleet([row], AboutProxy(name="a"), 0, since_s=later_s)
        clocks = Clocks(MOMENT.now + later_s, MOMENT.wall_now + later_s + between_s)
        found.add(views.fleet_view(proxies, clocks, {})["proxies"][1]["seen_at"])
    assert found == {"2026-11-21T11:59:30.000Z"}
