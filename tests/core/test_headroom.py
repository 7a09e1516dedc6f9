"""How much an account has left, from the headers of its answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core import headroom

NOW = 1_767_225_600.0  # 2026-01-01T00:00:00Z


def fields(**headers: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]


@pytest.mark.parametrize(
    ("headers", "share", "reset_s"),
    [
        # The tightest window counts (providers.md 2.3).
        (
            {
                "x_ratelimit_limit_requests": "500",
                "x_ratelimit_remaining_requests": "499",
                "X_RateLimit_Limit_Tokens": "30000",
                "x_ratelimit_remaining_tokens": "3000",
                "x_ratelimit_reset_tokens": "6m0s",
            },
            0.1,
            360.0,
        ),
        # RFC 3339 resets (providers.md 4).
        (
            {
                "anthropic_ratelimit_input_tokens_limit": "1000",
                "anthropic_ratelimit_input_tokens_remaining": "250",
                "anthropic_ratelimit_input_tokens_reset": "2026-01-01T00:01:00Z",
            },
            0.25,
            60.0,
        ),
        # `rem` is a percentage (providers.md 1.5).
        ({"x_usage_ratelimit_session": "rem=5.7&rst=2026-01-01T01%3A00%3A00Z"}, 0.057, 3600.0),
        ({"x_quota_snapshot_chat": "ent=500&rem=80.0"}, 0.8, None),
    ],
)
def test_told(headers: dict[str, str], share: float, reset_s: float | None) -> None:
    told = headroom.read(fields(**headers), NOW)
    assert told is not None
    assert told.share == pytest.approx(share)
    assert told.reset_s == reset_s


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content_type": "application/json"},
        {"x_ratelimit_limit_requests": "500"},
        {"x_ratelimit_limit_requests": "0", "x_ratelimit_remaining_requests": "0"},
        {"x_ratelimit_limit_requests": "inf", "x_ratelimit_remaining_requests": "nan"},
        {"x_quota_snapshot_premium_interactions": "ent=-1&rem=100.0"},  # unlimited
    ],
)
def test_nothing_told(headers: dict[str, str]) -> None:
    assert headroom.read(fields(**headers), NOW) is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    b"x-ratelimit-limit-tokens",
                    b"x-ratelimit-remaining-tokens",
                    b"x-ratelimit-reset-tokens",
                    b"anthropic-ratelimit-tokens-reset",
                    b"x-quota-snapshot-chat",
                ]
            ),
            st.binary(max_size=30),
        )
    )
)
def test_hostile_headers_are_survived(hostile: list[tuple[bytes, bytes]]) -> None:
    told = headroom.read(hostile, NOW)
    assert told is None or 0.0 <= told.share <= 1.0
