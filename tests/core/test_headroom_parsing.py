"""What headers, events and frames say of windows."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core import headroom_parsing
from account_pool.core.headroom import Window
from account_pool.core.headroom_parsing import ResponseContext
from account_pool.providers import codex, copilot

WALL = 1_767_225_600.0  # 2026-01-01T00:00:00Z
NOW = 1000.0
HOUR = 3600.0
DAY = 86_400.0


def read(headers: dict[str, str], model: str | None = "gpt-5") -> list[Window]:
    fields = tuple((name.encode(), value.encode("latin-1")) for name, value in headers.items())
    return headroom_parsing.from_headers(fields, ResponseContext(model, NOW, WALL))


def told(name: str, share: float, reset_s: float = inf, **changes: Any) -> Window:
    return Window(name, share, NOW, reset_at=NOW + reset_s, **changes)


def counts(name: str, limit: float, left: float, reset_s: float = inf, **changes: Any) -> Window:
    fields = {"model": "gpt-5", "limit": limit, "remaining": left}
    return told(name, left / limit, reset_s, **(fields | changes))


@pytest.mark.parametrize(
    ("headers", "windows"),
    [
        # 2.3: Go durations, per model; any case of letters.
        (
            {
                "x-ratelimit-limit-requests": "500",
                "x-ratelimit-remaining-requests": "499",
                "x-ratelimit-reset-requests": "120ms",
                "X-RateLimit-Limit-Tokens": "30000",
                "X-RateLimit-Remaining-Tokens": "3000",
                "X-RateLimit-Reset-Tokens": "6m0s",
            },
            [counts("requests", 500, 499, 0.12), counts("tokens", 30000, 3000, 360.0)],
        ),
        # 8, Groq: requests are of a day, which their reset shows.
        (
            {
                "x-ratelimit-limit-requests": "14400",
                "x-ratelimit-remaining-requests": "100",
                "x-ratelimit-reset-requests": "23h50m0.5s",
            },
            [counts("requests", 14400, 100, 85_800.5)],
        ),
        # 8, Cerebras: float seconds, the window in the name.
        (
            {
                "x-ratelimit-limit-tokens-day": "1000000",
                "x-ratelimit-remaining-tokens-day": "10000",
                "x-ratelimit-reset-tokens-day": "33011.5",
                "x-ratelimit-remaining-requests-minute": "0",
                "x-ratelimit-reset-requests-minute": "7.3",
            },
            [
                counts("tokens-day", 1000000, 10000, 33011.5, length_s=DAY),
                told("requests-minute", 0.0, 7.3, model="gpt-5", length_s=60.0, remaining=0.0),
            ],
        ),
        # 8, Mistral: by size, no reset.
        (
            {
                "x-ratelimitbysize-limit-month": "1000",
                "x-ratelimitbysize-remaining-month": "250",
                "ratelimitbysize-reset": "12",
            },
            [counts("month", 1000, 250, length_s=2_592_000.0)],
        ),
        # 8, OpenRouter: one window, epoch milliseconds.
        (
            {
                "X-RateLimit-Limit": "50",
                "X-RateLimit-Remaining": "0",
                "X-RateLimit-Reset": "1767229200000",
            },
            [counts("requests", 50, 0, HOUR)],
        ),
        # 8, Azure: what remains, without a limit: it says nothing unless it is 0.
        ({"x-ratelimit-remaining-tokens": "1000"}, []),
        (
            {"x-ratelimit-remaining-tokens": "0"},
            [told("tokens", 0.0, model="gpt-5", remaining=0.0)],
        ),
        # 4: RFC 3339, perhaps before `date`, by which it is read.
        (
            {
                "date": "Thu, 01 Jan 2026 00:00:30 GMT",
                "anthropic-ratelimit-input-tokens-limit": "1000",
                "anthropic-ratelimit-input-tokens-remaining": "250",
                "anthropic-ratelimit-input-tokens-reset": "2026-01-01T00:01:00Z",
                "anthropic-ratelimit-requests-limit": "50",
                "anthropic-ratelimit-requests-remaining": "49",
                "anthropic-ratelimit-requests-reset": "2026-01-01T00:00:29Z",
            },
            [counts("input-tokens", 1000, 250, 30.0), counts("requests", 50, 49, 0.0)],
        ),
        # 5: utilisation of the account's windows and of a family's, epoch seconds.
        (
            {
                "anthropic-ratelimit-unified-status": "allowed_warning",
                "anthropic-ratelimit-unified-reset": "1767229200",
                "anthropic-ratelimit-unified-5h-status": "allowed",
                "anthropic-ratelimit-unified-5h-reset": "1767229200",
                "anthropic-ratelimit-unified-5h-utilization": "0.25",
                "anthropic-ratelimit-unified-7d-status": "allowed_warning",
                "anthropic-ratelimit-unified-7d-reset": "1767312000",
                "anthropic-ratelimit-unified-7d-utilization": "1.01",
                "anthropic-ratelimit-unified-7d-surpassed-threshold": "0.9",
                "anthropic-ratelimit-unified-7d_opus-status": "rejected",
                "anthropic-ratelimit-unified-7d_opus-reset": "1767312000",
                "anthropic-ratelimit-unified-representative-claim": "seven_day",
            },
            [
                told("5h", 0.75, HOUR, length_s=5 * HOUR),
                told("7d", 0.0, DAY, length_s=7 * DAY),
                told("7d", 0.0, DAY, length_s=7 * DAY, model="*opus*"),
            ],
        ),
        # 3.4: two windows of the plan, and those of a named limit.
        (
            {
                "x-codex-active-limit": "premium",
                "x-codex-primary-used-percent": "12.5",
                "x-codex-primary-window-minutes": "300",
                "x-codex-primary-reset-at": "1767229200",
                "x-codex-secondary-used-percent": "98.0",
                "x-codex-secondary-window-minutes": "10080",
                "x-codex-secondary-reset-at": "1767100000",
                "x-codex-secondary-reset-after-seconds": "86400",
                "x-codex-primary-over-secondary-limit-percent": "60",
                "x-codex-bengalfox-limit-name": "GPT-5.3-Codex-Spark",
                "x-codex-bengalfox-primary-used-percent": "100",
                "x-codex-bengalfox-primary-window-minutes": "30",
                "x-image-gen-primary-used-percent": "100",
            },
            [
                told("5h", 0.875, HOUR, length_s=5 * HOUR),
                told("7d", 0.02, DAY, length_s=7 * DAY),
                told("30m", 0.0, length_s=1800.0, model="gpt-5.3-codex-spark"),
                told("primary", 0.0, model="image-gen"),
            ],
        ),
        # 3.4: the limit in force is that of the model that was asked for.
        (
            {
                "x-codex-active-limit": "codex_bengalfox",
                "x-codex-bengalfox-primary-used-percent": "40",
            },
            [told("primary", 0.6, model="gpt-5")],
        ),
        # 1.5: `rem` is a percentage; unlimited ones say nothing.
        (
            {
                "x-usage-ratelimit-session": "rem=5.7&rst=2026-01-01T01%3A00%3A00Z",
                "x-usage-ratelimit-weekly": "ent=0&rst=2026-01-02T00:00:00Z&rem=89.0",
                "x-quota-snapshot-chat": "ent=500&ov=0.0&ovPerm=false&rem=80.0",
                "x-quota-snapshot-completions": "ent=2000&rem=10.0",
                "x-quota-snapshot-premium_interactions": "ent=-1&rem=100.0",
                "x-ratelimit-exceeded": "chat:global-usage-5-hour-key:userID:plan",
                "x-ratelimit-user-retry-after": "6311",
            },
            [
                told("5h", 0.057, HOUR, length_s=5 * HOUR),
                told("7d", 0.89, DAY, length_s=7 * DAY),
                told("chat", 0.8, length_s=2_592_000.0),
                told("completions", 0.1, length_s=2_592_000.0, model="completions"),
            ],
        ),
    ],
)
def test_told(headers: dict[str, str], windows: list[Window]) -> None:
    found = read(headers)
    assert [w._replace(share=round(w.share, 6), reset_at=round(w.reset_at, 6)) for w in found] == [
        w._replace(share=round(w.share, 6)) for w in windows
    ]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "application/json", "retry-after": "5"},
        {"x-ratelimit-limit-requests": "500"},
        # 8, Mistral: nothing is provisioned; there is no share of nothing.
        {"x-ratelimit-limit-req-minute": "0", "x-ratelimit-remaining-req-minute": "0"},
        {"x-ratelimit-limit-requests": "inf", "x-ratelimit-remaining-requests": "nan"},
        {"x-ratelimit-limit-requests": "5", "x-ratelimit-remaining-requests": "-1"},
        {"x-ratelimit-over-limit": "yes"},
        {"anthropic-ratelimit-unified-5h-status": "allowed"},
        {"anthropic-ratelimit-unified-5h-reset": "1767229200"},
        {"x-codex-primary-window-minutes": "300"},
        {"x-codex-turn-state": "sticky", "x-codex-credits-balance": ""},
        {"x-quota-snapshot-chat": ""},
        {"x-quota-snapshot-chat": "rem=many"},
    ],
)
def test_nothing_told(headers: dict[str, str]) -> None:
    assert read(headers) == []


def test_without_a_model_what_is_counted_per_model_counts_for_the_account() -> None:
    headers = {"x-ratelimit-limit-requests": "10", "x-ratelimit-remaining-requests": "1"}
    assert read(headers, None)[0].model is None


def test_98_percent_is_not_above_98_percent() -> None:
    (plan,) = read({"x-codex-primary-used-percent": "98.0"})
    (unified,) = read({"anthropic-ratelimit-unified-7d-utilization": "0.98"})
    assert plan.share == unified.share == 0.02


NAMES = [
    *("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    *("x-ratelimit-limit", "x-ratelimit-remaining", "anthropic-ratelimit-tokens-reset"),
    *("anthropic-ratelimit-unified-5h-utilization", "anthropic-ratelimit-unified-5h-reset"),
    *("anthropic-ratelimit-unified-000d_x-status", "x-codex-active-limit", "x-codex-limit-name"),
    *("x-codex-primary-used-percent", "x-codex-primary-window-minutes", "x-a-limit-name"),
    *("x-codex-primary-reset-at", "x-codex-primary-reset-after-seconds"),
    *("x-a-secondary-used-percent", "x-quota-snapshot-chat", "x-usage-ratelimit-weekly", "date"),
]
VALUES = st.one_of(
    st.binary(max_size=30),
    st.floats().map(lambda number: str(number).encode()),
    st.sampled_from([b"rem=5&rst=9", b"rem=1e9&ent=-1", b"rejected", b"1767229200", b"9" * 600]),
    st.sampled_from([b"0", b"0.0", b"1", b"999999999999999", b"0.000000000000001", b"120ms"]),
)


@given(
    st.lists(st.tuples(st.sampled_from([name.encode() for name in NAMES]), VALUES)),
    st.sampled_from([None, 0.0, WALL]),
)
def test_hostile_headers_are_survived(
    hostile: list[tuple[bytes, bytes]], wall_now: float | None
) -> None:
    for window in headroom_parsing.from_headers(
        tuple(hostile), ResponseContext("gpt-5", NOW, wall_now)
    ):
        assert 0.0 <= window.share <= 1.0
        assert window.reset_at >= NOW
        assert NOW <= window.expires_at < inf
        assert window.length_s is None or 0.0 <= window.length_s < inf


@given(st.lists(st.tuples(st.binary(max_size=200), st.binary(max_size=20))))
def test_names_that_nobody_knows_are_survived(hostile: list[tuple[bytes, bytes]]) -> None:
    headroom_parsing.from_headers(tuple(hostile), ResponseContext(None, NOW, None))


ASKED = ResponseContext("gpt-5", 1000.0, WALL)
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
        # Headers inside an error frame.
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
        # Both spellings of a snapshot in a frame.
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
def test_told_by_events(marks: tuple[bytes, ...], content: bytes, windows: list[Window]) -> None:
    found = headroom_parsing.from_events(content, marks, ASKED)
    assert [w._replace(share=round(w.share, 6)) for w in found] == windows


def test_a_recorded_socket_tells_of_its_windows() -> None:
    recorded = [json.loads(line) for line in LIMITS.read_text(encoding="utf-8").splitlines()]
    (first,) = [row for row in recorded if row["id"] == "codex-ws-ok-rate-limits-first"]
    frames = [text.encode() for text in first["ws"]]
    told = [headroom_parsing.from_events(content, CODEX, ASKED) for content in frames]
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
    for window in headroom_parsing.from_event(value, ASKED):
        assert 0.0 <= window.share <= 1.0
        assert window.reset_at >= 1000.0
        assert window.expires_at < inf
