"""What is recorded of requests: moves, waits and refusals, each with its cause; else nothing."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from account_pool.core import websocket_moves
from account_pool.core.decisions import NOT_KEPT, By, Decision, Kind
from account_pool.core.errors import CROWDED
from account_pool.core.lease import Conversation
from account_pool.core.pool import Pool
from account_pool.core.steps import Broken
from tests.core.helpers import (
    BARE_429,
    FACTS,
    FORBIDDEN,
    OVERLOADED,
    REQUEST_ERROR,
    SERVER_ERROR,
    UNAUTHORIZED,
    account,
    key,
    quota,
    rate_limit,
)
from tests.core.test_attempts import (
    Play,
    begin,
    broken,
    committed,
    finished,
    left,
    refreshed,
    refused,
    resumed,
)
from tests.core.test_sessions_lease import World

OF_REQUESTS = (Kind.MOVE, Kind.RETRY, Kind.WAIT, Kind.REFUSAL, Kind.PROBE)


def records(pool: Pool) -> list[Decision]:
    """The decisions about requests, oldest first."""
    return [d for d in reversed(list(pool.decisions)) if d.kind in OF_REQUESTS]


def told(pool: Pool) -> list[str]:
    return [_words(d) for d in records(pool)]


def _words(d: Decision) -> str:
    parts: list[str] = [d.kind]
    if d.account is not None:
        parts.append(d.account.label)
    if d.to is not None:
        parts.append(f"-> {d.to.label}")
    parts.append(f"by {d.by}")
    if d.effect is not None:
        parts.append(f"({d.effect}{'' if d.until is None else f' until {d.until:g}'})")
    if d.told_s is not None:
        parts.append(f"told {d.told_s:g} s")
    if d.released_by is not None:
        parts.append(f"for {d.waited_s:g} s, ended by {d.released_by}")
    return " ".join(parts)


def test_an_ordinary_request_is_no_decision() -> None:
    play = Play("a")
    play >> begin >> committed >> finished
    assert told(play.pool) == []


def test_a_failover_is_one_move_with_its_cause() -> None:
    play = Play("a", "b")
    limit = rate_limit(60.0, signal="429 code=slow", evidence={"retry-after": "60"})
    play >> begin >> refused(limit) >> committed >> finished
    (move,) = records(play.pool)
    assert _words(move) == "move a -> b by a refusal (cooldown until 60)"
    assert move.model == "gpt-5"
    assert move.cause is not None
    assert (move.cause.signal, dict(move.cause.evidence)) == (limit.signal, limit.evidence)
    assert move.cause.hinted


def test_the_last_account_is_refused() -> None:
    play = Play("a", max_wait_s=0.0)
    play >> begin >> refused(quota(3600.0))
    assert told(play.pool) == ["refusal a by a refusal (cooldown until 3600) told 3600 s"]


def test_nobody_can_serve_from_the_start() -> None:
    play = Play("a", max_wait_s=0.0)
    play.pool.health.mark_cooldown(key("a"), quota(40.0), now=0.0)
    play >> begin
    (refusal,) = records(play.pool)
    assert _words(refusal) == "refusal a by a shortage (cooldown until 40) told 40 s"
    assert refusal.reason == "no usable account of 1 (1 on cooldown)"


def test_a_body_that_was_not_kept_is_the_reason_of_a_refusal() -> None:
    play = Play("a", "b", replayable=False)
    play >> begin >> refused(quota(3600.0))
    assert [d.reason for d in records(play.pool)] == [NOT_KEPT]
    play = Play("a", "b", replayable=False)
    play >> begin >> refused(SERVER_ERROR)
    assert NOT_KEPT not in [d.reason for d in records(play.pool)]


def test_why_a_request_is_not_held() -> None:
    play = Play("a", max_waiting=0)
    play.pool.health.mark_cooldown(key("a"), quota(20.0), now=0.0)
    play >> begin << "answer 503, 20 s"
    assert [d.reason for d in records(play.pool)] == [CROWDED]


@pytest.mark.parametrize("outcome", [REQUEST_ERROR, SERVER_ERROR, BARE_429, OVERLOADED])
def test_what_is_handed_on(outcome) -> None:
    play = Play("a", max_wait_s=0.0, chance=1.0)
    play >> begin >> refused(outcome)
    expected = [] if outcome is REQUEST_ERROR else [Kind.REFUSAL]
    assert [d.kind for d in records(play.pool)] == expected


def test_a_wait_is_recorded_once_however_often_it_looks() -> None:
    play = Play("a", max_wait_s=30.0)
    play.pool.health.mark_cooldown(key("a"), quota(20.0), now=0.0)
    play >> begin
    assert told(play.pool) == ["wait a by a shortage (cooldown until 30)"]
    play.at(5.0) >> resumed
    play.at(20.0) >> resumed << "send a"
    assert told(play.pool) == [
        "wait a by a shortage (cooldown until 30) for 20 s, ended by an account"
    ]


def test_a_wait_in_vain_is_a_wait_and_a_refusal() -> None:
    play = Play("a", max_wait_s=30.0)
    play.pool.health.mark_cooldown(key("a"), quota(20.0), now=0.0)
    play >> begin
    play.pool.health.mark_cooldown(key("a"), quota(50.0), now=1.0)
    play.at(30.0) >> resumed
    assert told(play.pool) == [
        "wait a by a shortage (cooldown until 30) for 30 s, ended by time",
        "refusal a by a shortage (cooldown until 51) told 21 s",
    ]


def test_the_client_leaves_while_it_waits() -> None:
    play = Play("a")
    play.pool.health.mark_cooldown(key("a"), quota(20.0), now=0.0)
    play >> begin
    play.at(2.0) >> left
    (wait,) = records(play.pool)
    assert (wait.waited_s, wait.released_by) == (2.0, By.CLIENT)


def test_a_pause_before_the_same_account() -> None:
    play = Play("a", chance=0.5)
    play >> begin >> refused(OVERLOADED)
    play.at(0.5) >> resumed << "send a"
    assert told(play.pool) == [
        "wait a by a refusal for 0.5 s, ended by time",
        "retry a -> a by a refusal",
    ]


def test_a_renewed_credential() -> None:
    play = Play("a", "b")
    play >> begin >> refused(UNAUTHORIZED)
    assert told(play.pool) == []
    play >> refreshed(True) << "send a"
    assert told(play.pool) == ["retry a -> a by a refusal"]


def test_a_suspect_is_disabled_once_another_has_served() -> None:
    play = Play("a", "b")
    play >> begin >> refused(UNAUTHORIZED) >> refreshed(False) << "send b"
    play >> committed
    assert [f"{d.kind} {d.account and d.account.label} {d.by}" for d in play.pool.decisions] == [
        "disable a a comparison with other accounts",
        "move a a refusal",
        "suspect a a refusal",
    ]


def test_a_forbidden_account_is_left_and_asked_last() -> None:
    play = Play("a", "b")
    play >> begin >> refused(FORBIDDEN)
    assert told(play.pool) == ["move a -> b by a refusal (suspect until 600)"]


def test_a_stale_connection_is_no_decision_but_no_connection_is() -> None:
    play = Play("a", max_wait_s=0.0)
    play >> begin >> broken(Broken.STALE) << "send a fresh"
    assert told(play.pool) == []
    play >> broken(Broken.MAYBE_RAN)
    (refusal,) = records(play.pool)
    assert refusal.reason == "the upstream connection broke"


S = Conversation(session="conversation-1")


@pytest.mark.parametrize(
    ("cause", "effect", "reason"),
    [
        (
            lambda pool: pool.health.mark_cooldown(key("a"), quota(900.0), now=0.0),
            Kind.COOLDOWN,
            "",
        ),
        (lambda pool: pool.health.mark_failure(key("a"), FORBIDDEN, now=0.0), Kind.DISABLE, ""),
        (lambda pool: pool.accounts.remove(key("a"), now=0.0), None, "it is no longer in the pool"),
        (
            lambda pool: pool.accounts.replace(account("a", "!gpt-5"), now=0.0),
            None,
            "no usable account of 1 (1 not for gpt-5)",
        ),
    ],
)
def test_a_conversation_moves(cause, effect, reason) -> None:
    world = World("a", "b")
    assert world.serve(S) == "a"
    cause(world.pool)
    assert world.serve(S) == "b"
    assert world.serve(S) == "b"
    (move,) = records(world.pool)
    assert (move.kind, move.account, move.to) == (Kind.MOVE, key("a"), key("b"))
    assert (move.by, move.effect, move.reason) == (By.SHORTAGE, effect, reason)
    assert move.session is not None
    assert "conversation" not in move.session


def test_a_probe() -> None:
    play = Play("a", max_wait_s=0.0)
    play.pool.health.mark_cooldown(key("a"), quota(900.0), now=0.0)
    play.at(100.0) >> begin << "send a"
    assert told(play.pool) == ["probe a by a shortage (cooldown until 900)"]


@pytest.mark.parametrize(
    ("may_close", "closes", "reason"),
    [(True, True, "closed so that its client opens another"), (False, False, "")],
)
def test_inside_a_websocket(may_close: bool, closes: bool, reason: str) -> None:
    play = Play("a", "b")
    play >> begin >> committed
    limit = rate_limit(60.0)
    assert (
        websocket_moves.refused_inside(play.attempts, limit, "gpt-5", 1.0, may_close=may_close)
        is closes
    )
    (refusal,) = records(play.pool)
    assert (refusal.by, refusal.reason) == (By.SOCKET, reason)
    assert refusal.until == 61.0


def test_an_echoed_secret_is_masked_in_any_case() -> None:
    play = Play("a", "b")
    echo = quota(
        60.0,
        signal="429 code=SK-A: limit",
        evidence={"retry-after": "60", "x-ratelimit-key": "its sk-a!"},
        model="sk-a",
        owner="org-Sk-A",
    )
    play >> begin >> refused(echo)
    assert "sk-a" not in repr([d.as_dict(0.0) for d in play.pool.decisions]).lower()
    assert (play.pool.accounts.owners.get(key("a")) or "").lower() == "org-[secret]"


def test_a_model_is_one_line_wherever_it_is_named() -> None:
    facts = replace(FACTS, model="m\nopenai/forged: line\x1b[2J" + "x" * 999)
    play = Play(account("a", "gpt-*"), facts=facts, max_wait_s=0.0)
    play >> begin
    (refusal,) = records(play.pool)
    assert "forged" in refusal.reason
    assert refusal.reason.isprintable()
    assert len(refusal.reason) <= 500
