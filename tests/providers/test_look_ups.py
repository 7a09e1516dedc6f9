"""What vendors say that an account has left, in their own forms; strange ones say nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core.credential import Credential, Secret
from account_pool.core.headroom_parsing import ResponseContext
from account_pool.providers.look_ups import LOOK_UPS, USER_AGENT
from account_pool.providers.registry import BUILT_IN

NOW = 1000.0
WALL = datetime(2026, 11, 29, 12, 0, tzinfo=UTC).timestamp()
CONTEXT = ResponseContext(model=None, now=NOW, wall_now=WALL)
HOUR = 3600.0


def read(provider: str, value: Any) -> dict[tuple[str, str | None], tuple[float, float]]:
    """Return share and seconds to the reset by name and model."""
    shown = LOOK_UPS[provider].read(value, CONTEXT)
    return {(w.name, w.model): (w.share, w.reset_at - NOW) for w in shown.windows}


def test_claude() -> None:
    value = {
        "five_hour": {"utilization": 12.0, "resets_at": "2026-11-29T14:00:00+00:00"},
        "seven_day": {"utilization": 100, "resets_at": "2026-11-30T12:00:00Z"},
        "seven_day_opus": {"utilization": 40, "resets_at": None},
        "seven_day_sonnet": None,
        "seven_day_oauth_apps": {"utilization": 90, "resets_at": None},
        "extra_usage": {"is_enabled": False, "utilization": None},
        "limits": [
            {"kind": "session", "percent": 12, "resets_at": "2026-11-29T14:00:00Z"},
            {"kind": "weekly_scoped", "percent": 75, "resets_at": "2026-11-30T12:00:00Z",
             "scope": {"model": {"display_name": "Haiku"}}},
            {"kind": "weekly_scoped", "percent": 1},
            {"kind": "of tomorrow", "percent": 1},
        ],
    }  # fmt: skip
    assert read("claude-code", value) == {
        ("5h", None): (0.88, 2 * HOUR),
        ("7d", None): (0.0, 24 * HOUR),
        ("7d", "*opus*"): (0.6, inf),
        ("7d", "*haiku*"): (0.25, 24 * HOUR),
    }


def test_codex() -> None:
    def limit(used: float, length_s: int | None, **reset: float) -> dict[str, Any]:
        return {"used_percent": used, "limit_window_seconds": length_s, **reset}

    value = {
        "plan_type": "plus",
        "rate_limit": {
            "allowed": True,
            "primary_window": limit(6, 18_000, reset_at=WALL + HOUR),
            "secondary_window": limit(24, 604_800, reset_after_seconds=2 * HOUR),
        },
        "additional_rate_limits": [
            {"limit_name": "GPT-5.3-Codex-Spark",
             "rate_limit": {"primary_window": limit(100, 604_800, reset_at=WALL + HOUR)}},
            {"rate_limit": {"primary_window": limit(100, 604_800)}},
        ],
        "rate_limit_reset_credits": {"available_count": 2},
    }  # fmt: skip
    assert read("codex", value) == {
        ("5h", None): (0.94, HOUR),
        ("7d", None): (0.76, 2 * HOUR),
        ("7d", "gpt-5.3-codex-spark"): (0.0, HOUR),
    }
    assert LOOK_UPS["codex"].read(value, CONTEXT).reset_credits == 2


def test_copilot() -> None:
    value = {
        "copilot_plan": "individual",
        "quota_reset_date_utc": "2026-12-01T00:00:00.000Z",
        "quota_snapshots": {
            "chat": {"entitlement": 0, "unlimited": True, "percent_remaining": 100.0},
            "completions": {"entitlement": 2000, "percent_remaining": 95},
            "premium_interactions": {"entitlement": 300, "percent_remaining": 25.5},
            "of_tokens": {"entitlement": 0, "percent_remaining": 0},
        },
    }
    assert read("copilot", value) == {
        ("completions", "completions"): (0.95, 36 * HOUR),
        ("premium_interactions", None): (0.255, 36 * HOUR),
    }


@pytest.mark.parametrize(
    ("period", "reset_s"),
    [("daily", 12 * HOUR), ("weekly", 12 * HOUR), ("monthly", 36 * HOUR), (None, inf)],
)
def test_openrouter(period: str | None, reset_s: float) -> None:
    data = {"limit": 100, "limit_remaining": 74.5, "limit_reset": period, "usage": 25.5}
    assert read("openrouter", {"data": data}) == {("credit", None): (0.745, reset_s)}
    for unlimited in ({"limit": None, "limit_remaining": None}, {"limit": 0, "limit_remaining": 0}):
        assert read("openrouter", {"data": unlimited}) == {}


def test_each_is_asked_at_its_own_provider_with_its_own_credential() -> None:
    secret = Secret("sk-fake-one-000")
    for name, how in LOOK_UPS.items():
        credential = Credential(
            kind=how.kind, secret=secret, companions={"account_id": "fake-account"}
        )
        headers = how.headers(credential)
        assert headers["authorization"].split()[-1] == "sk-fake-one-000"
        assert how.url.startswith("https://")
        assert name in BUILT_IN
        # Nothing in it is the name of a client of theirs.
        assert not {"user-agent", "originator", "editor-version"} & headers.keys()
    assert USER_AGENT.startswith("account-pool/")


NAMES = [
    "data", "limit", "limit_remaining", "limit_reset", "rate_limit", "primary_window",
    "used_percent", "reset_at", "limit_window_seconds", "five_hour", "seven_day", "utilization",
    "limits", "kind", "percent", "scope", "model", "display_name", "resets_at", "chat",
    "quota_snapshots", "entitlement", "percent_remaining", "limit_name", "available_count",
    "rate_limit_reset_credits", "additional_rate_limits",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6)
    ),
    max_leaves=20,
)


@pytest.mark.parametrize("provider", LOOK_UPS)
@given(
    value=st.dictionaries(st.text(max_size=8), JSON) | JSON.filter(lambda v: isinstance(v, dict))
)
def test_nothing_strange_raises(provider: str, value: Any) -> None:
    for window in LOOK_UPS[provider].read(value, CONTEXT).windows:
        assert 0.0 <= window.share <= 1.0


@pytest.mark.parametrize("number", [10**400, -(10**400), inf, -inf, nan, True, "1"])
def test_a_number_that_is_none_shows_nothing(number: Any) -> None:
    claude = {"five_hour": {"utilization": number}, "seven_day": {"utilization": 50}}
    assert read("claude-code", claude) == {("7d", None): (0.5, inf)}
    for said in ({"limit": number, "limit_remaining": 1}, {"limit": 1, "limit_remaining": number}):
        assert read("openrouter", {"data": said}) == {}
    window = {"used_percent": 50, "limit_window_seconds": number}
    [share] = [s for s, _ in read("codex", {"rate_limit": {"primary_window": window}}).values()]
    assert share == 0.5
