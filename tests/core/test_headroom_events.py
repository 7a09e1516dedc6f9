"""What events and frames say of windows."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core import headroom_events
from account_pool.core.headroom import Window
from account_pool.core.headroom_words import Asked
from account_pool.providers import codex, copilot

WALL = 1_767_225_600.0  # 2026-01-01T00:00:00Z
ASKED = Asked("gpt-5", 1000.0, WALL)
CODEX, COPILOT = codex.PROVIDER.headroom_marks, copilot.PROVIDER.headroom_marks
LIMITS = Path(__file__).parents[1] / "data" / "limits.jsonl"

RATE_LIMITS = {
    "type": "codex.rate_limits",
    "plan_type": "plus",
    "rate_limits": {
        "allowed": True,
        "limit_reached": False,
        "primary": {"used_percent": 42, "window_minutes": 300, "reset_at": 1767229200},
        "secondary": {"used_percent": 99.5, "window_minutes": 10080, "reset_after_seconds": 60},
    },
}
PLAN = [
    Window("5h", 0.58, 1000.0, None, 4600.0, 18000.0),
    Window("7d", 0.005, 1000.0, None, 1060.0, 604800.0),
]


def frame(event: Any) -> bytes:
    return json.dumps(event).encode()


@pytest.mark.parametrize(
    ("marks", "content", "windows"),
    [
        (CODEX, frame(RATE_LIMITS), PLAN),
        (CODEX, frame(RATE_LIMITS | {"metered_limit_name": "codex", "limit_name": "Codex"}), PLAN),
        # In the events that a stream begins with.
        (
            CODEX,
            b'event: x\ndata: {"type":"response.created"}\r\n\r\ndata: %b\r\n\r\ndata: {"a'
            % frame(RATE_LIMITS),
            PLAN,
        ),
        # Of a limit that is not the account's own.
        (
            CODEX,
            frame(
                {
                    "type": "codex.rate_limits",
                    "metered_limit_name": "codex_bengalfox",
                    "limit_name": "GPT-5.3-Codex-Spark",
                    "rate_limits": {"primary": {"used_percent": 100}, "secondary": None},
                }
            ),
            [Window("primary", 0.0, 1000.0, "gpt-5.3-codex-spark", inf)],
        ),
        # Headers inside an error frame (providers.md, 3.4).
        (
            CODEX,
            frame(
                {
                    "type": "error",
                    "status": 429,
                    "headers": {
                        "x-codex-primary-used-percent": "100.0",
                        "x-codex-primary-window-minutes": 300,
                    },
                }
            ),
            [Window("5h", 0.0, 1000.0, None, inf, 18000.0)],
        ),
        # Both spellings of a snapshot in a frame (providers.md, 1.4 and 1.5).
        (
            COPILOT,
            frame(
                {
                    "type": "error",
                    "error": {"code": "user_global_rate_limited"},
                    "copilot_quota_snapshots": {
                        "5Hour-Session-RateLimits": "ent=0&rem=0.0&rst=2026-01-01T01%3A00%3A00Z",
                        "Weekly-Session-RateLimits": {
                            "entitlement": 0,
                            "percent_remaining": 89.0,
                            "reset_date": "2026-01-02T00:00:00Z",
                        },
                        "chat": {"entitlement": "-1", "percent_remaining": 100.0},
                    },
                }
            ),
            [
                Window("5h", 0.0, 1000.0, None, 4600.0, 18000.0),
                Window("7d", 0.89, 1000.0, None, 87400.0, 604800.0),
            ],
        ),
        # What a model says is none of it.
        (CODEX, frame({"type": "x.delta", "delta": '"codex.rate_limits" "x-codex-a"'}), []),
        (COPILOT, b'"copilot_quota_snapshots"', []),
        (COPILOT, b'{"copilot_quota_snapshots": [', []),
    ],
)
def test_told(marks: tuple[bytes, ...], content: bytes, windows: list[Window]) -> None:
    found = headroom_events.read(content, marks, ASKED)
    assert [w._replace(share=round(w.share, 6)) for w in found] == windows


def test_a_recorded_socket_tells_of_its_windows() -> None:
    recorded = [json.loads(line) for line in LIMITS.read_text(encoding="utf-8").splitlines()]
    (first,) = [row for row in recorded if row["id"] == "codex-ws-ok-rate-limits-first"]
    frames = [text.encode() for text in first["ws"]]
    told = [headroom_events.read(content, CODEX, ASKED) for content in frames]
    assert [[(w.name, w.share) for w in windows] for windows in told] == [[("1h", 0.58)], []]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *("type", "rate_limits", "primary", "used_percent", "window_minutes"),
                    *("reset_at", "copilot_quota_snapshots", "headers", "percent_remaining"),
                    *("reset_date", "x-codex-primary-used-percent", "metered_limit_name", "chat"),
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_any_json_is_survived(value: Any) -> None:
    if isinstance(value, dict):
        value["type"] = "codex.rate_limits"
    for window in headroom_events.told(value, ASKED):
        assert 0.0 <= window.share <= 1.0
        assert window.reset_at >= 1000.0
        assert window.expires_at < inf
