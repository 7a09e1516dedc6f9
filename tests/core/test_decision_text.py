"""The lines people read of decisions."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from account_pool.core.account import AccountKey
from account_pool.core.decision_text import duration, line
from account_pool.core.decisions import By, Decision, Kind
from account_pool.core.outcome import BY_HAND, Cause, OutcomeClass, Scope

WORK, SPARE = AccountKey("openai", "work"), AccountKey("openai", "spare")
LIMIT = Cause(
    signal="429 code=slow: rate limit",
    cls=OutcomeClass.RATE_LIMIT,
    scope=Scope.ACCOUNT,
    evidence={"retry-after": "38"},
    hinted=True,
)
SUSPENDED = Cause(signal="403: refused", cls=OutcomeClass.FORBIDDEN_ACCOUNT, scope=Scope.ACCOUNT)
BROKEN = Cause(signal="connection lost", cls=OutcomeClass.TRANSPORT, scope=Scope.NONE)
IN_STREAM = replace(LIMIT, signal="in stream code=slow: rate limit", evidence={})


def decision(kind: Kind, by: By = By.ANSWER, **rest: object) -> Decision:
    fields: dict[str, object] = {"account": WORK, "cause": LIMIT, "at": 100.0} | rest
    return Decision(kind=kind, by=by, provider="openai", **fields)


COOLS = {"effect": Kind.COOLDOWN, "until": 138.0}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (
            decision(Kind.MOVE, to=SPARE, **COOLS),
            "openai/work: 429 rate_limit, on cooldown for 38 s -> openai/spare "
            "(429 code=slow: rate limit; retry-after: 38)",
        ),
        (
            decision(Kind.MOVE, to=SPARE, covers="gpt-5", **COOLS),
            "openai/work: 429 rate_limit, on cooldown for 38 s (gpt-5) -> openai/spare "
            "(429 code=slow: rate limit; retry-after: 38)",
        ),
        (
            decision(Kind.MOVE, to=SPARE, effect=Kind.DISABLE, cause=SUSPENDED),
            "openai/work: 403 forbidden_account, disabled -> openai/spare (403: refused)",
        ),
        (
            decision(Kind.MOVE, to=SPARE, cause=IN_STREAM),
            "openai/work: rate_limit -> openai/spare (in stream code=slow: rate limit)",
        ),
        (
            decision(Kind.MOVE, By.SHORTAGE, to=SPARE, **COOLS),
            "openai/work: on cooldown for 38 s: conversation moves -> openai/spare "
            "(429 code=slow: rate limit; retry-after: 38)",
        ),
        (
            decision(Kind.MOVE, By.SHORTAGE, to=SPARE, cause=None, reason="1 full"),
            "openai/work: conversation moves -> openai/spare (1 full)",
        ),
        (
            decision(Kind.RETRY, to=WORK),
            "openai/work: 429 rate_limit -> openai/work "
            "(429 code=slow: rate limit; retry-after: 38)",
        ),
        (
            decision(Kind.REFUSAL, told_s=37.2, **COOLS),
            "openai/work: 429 rate_limit, on cooldown for 38 s: delivered to the client, retry "
            "after 38 s "
            "(429 code=slow: rate limit; retry-after: 38)",
        ),
        (
            decision(Kind.REFUSAL, By.SHORTAGE, told_s=37.2, reason="1 on cooldown", **COOLS),
            "openai: 1 on cooldown; request refused, retry after 38 s "
            "(openai/work returns first: 429 code=slow: rate limit; retry-after: 38)",
        ),
        (
            decision(Kind.REFUSAL, By.SHORTAGE, account=None, cause=None, reason="1 disabled"),
            "openai: 1 disabled; request refused",
        ),
        (
            decision(Kind.REFUSAL, cause=BROKEN, reason="the upstream connection broke"),
            "openai/work: the upstream connection broke; request refused",
        ),
        (
            decision(
                Kind.REFUSAL, By.SOCKET, reason="closed so that its client opens another", **COOLS
            ),
            "openai/work: 429 rate_limit, on cooldown for 38 s: in a WebSocket, closed so that "
            "its client opens another (429 code=slow: rate limit; retry-after: 38)",
        ),
        (
            decision(Kind.WAIT, By.SHORTAGE, until=130.0, reason="1 on cooldown"),
            "openai: a request is waiting, at most 30 s (1 on cooldown)",
        ),
        (
            decision(
                *(Kind.WAIT, By.SHORTAGE),
                reason="1 on cooldown",
                ended_at=112.0,
                released_by=By.ACCOUNT,
            ),
            "openai: a request waited 12 s and continues (1 on cooldown)",
        ),
        (
            decision(Kind.WAIT, until=130.0, ended_at=101.5, released_by=By.CLIENT),
            "openai/work: 429 rate_limit: a request waited 2 s until its client disconnected "
            "(429 code=slow: rate limit; retry-after: 38)",
        ),
        (
            decision(Kind.COOLDOWN, By.HAND, until=190.0, cause=replace(LIMIT, signal=BY_HAND)),
            "openai/work: on cooldown for 90 s, by hand",
        ),
        (
            decision(Kind.COOLDOWN, By.PROXY, until=138.0),
            "openai/work: 429 rate_limit, on cooldown for 38 s, by another proxy "
            "(429 code=slow: rate limit; retry-after: 38)",
        ),
        (
            decision(Kind.RELEASE, By.HAND, until=820.0, covers="gpt-5"),
            "openai/work: back in use for gpt-5, 12 min early, by hand "
            "(429 code=slow: rate limit; retry-after: 38)",
        ),
        (
            decision(Kind.DISABLE, By.WITNESS, cause=SUSPENDED),
            "openai/work: 403 forbidden_account, disabled, by a comparison with other accounts "
            "(403: refused)",
        ),
        (
            decision(Kind.ENABLE, By.CREDENTIAL, cause=SUSPENDED),
            "openai/work: back in use, by a new credential (403: refused)",
        ),
        (
            decision(Kind.PROBE, By.SHORTAGE, **COOLS),
            "openai/work: on cooldown for 38 s: probed "
            "(429 code=slow: rate limit; retry-after: 38)",
        ),
    ],
)
def test_line(made: Decision, expected: str) -> None:
    assert line(made) == expected


def test_a_line_shows_the_first_header_values() -> None:
    many = replace(LIMIT, evidence={f"x-{number}": "0" for number in range(9)})
    assert line(decision(Kind.COOLDOWN, By.PROXY, cause=many)).endswith("x-0: 0, x-1: 0, x-2: 0)")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 ms"),
        (0, "0 ms"),
        (0.64, "640 ms"),
        (1, "1 s"),
        (37.2, "38 s"),
        (119.5, "2 min"),
        (170, "3 min"),
        (7199, "2 h"),
        (18180, "5 h 3 min"),
        (187200, "2 d 4 h"),
        (172800, "2 d"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
