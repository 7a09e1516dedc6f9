"""One request as a script: `>> event`, `<< exact step`, in the manner of mitmproxy's Playbook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from account_pool.core import reactions, websocket_moves
from account_pool.core.accounts import summary
from account_pool.core.attempts import Attempts
from account_pool.core.errors import IllegalEvent
from account_pool.core.lease import MAX_BODY_BYTES, Conversation, RequestFacts
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.pool import Pool
from account_pool.core.steps import (
    STALE_WITHIN_S,
    TRIES,
    Broken,
    Deliver,
    Limits,
    Phase,
    Refresh,
    Send,
    Step,
    Synthesize,
    Wait,
    how_broken,
    how_unconnected,
)
from tests.core.helpers import (
    BARE_429,
    EXPIRED,
    FACTS,
    FORBIDDEN,
    FORBIDDEN_MODEL,
    INVALID_KEY,
    OK,
    OVERLOADED,
    PROVIDER,
    REQUEST_ERROR,
    SERVER_ERROR,
    UNAUTHORIZED,
    UNKNOWN_401,
    UNKNOWN_402,
    UNKNOWN_403,
    account,
    available,
    key,
    keys_of,
    pool_of,
    quota,
    rate_limit,
)

Event = Callable[[Attempts, float], Step | None]
MODEL_LIMIT = rate_limit(60.0, scope=Scope.MODEL)


def begin(attempts: Attempts, now: float) -> Step:
    return attempts.begin(now)


def refused(outcome: Outcome) -> Event:
    return lambda attempts, now: reactions.refused(attempts, outcome, now)


def broken(how: Broken, reason: str = "") -> Event:
    return lambda attempts, now: reactions.broken(attempts, how, now, reason)


def refreshed(changed: bool | None) -> Event:
    return lambda attempts, now: reactions.refreshed(attempts, changed, now)


FORBIDDEN_TOO = refused(FORBIDDEN)


def resumed(attempts: Attempts, now: float) -> Step:
    return attempts.resumed(now)


def stopped(attempts: Attempts, now: float) -> Step:
    return reactions.stopped(attempts, now)


def committed(attempts: Attempts, now: float) -> None:
    attempts.committed(now)


def finished(attempts: Attempts, now: float) -> None:
    attempts.finished(now)


def left(attempts: Attempts, now: float) -> None:
    attempts.left(now)


def shown(step: Step | None) -> str | None:
    """A step in words, complete."""
    match step:
        case Send(lease, fresh):
            return f"send {lease.key.label}{' fresh' if fresh else ''}"
        case Wait(until, ticket):
            return f"wait until {until:g}{' or change' if ticket is not None else ''}"
        case Refresh(lease):
            return f"refresh {lease.key.label}"
        case Deliver(retry_after_s):
            return "deliver" if retry_after_s is None else f"deliver, {retry_after_s:g} s"
        case Synthesize():
            wait = "" if step.retry_after_s is None else f", {step.retry_after_s:g} s"
            like = f", like {step.like.label}" if step.like else ""
            return f"answer {step.status}{wait}{like}"
        case None:
            return None


class Play:
    """A request and its pool: `play >> event << "step"`; `play.at(5)` moves the clock."""

    def __init__(self, *members: Any, strategy: str = "round-robin", **options: Any) -> None:
        pool: Pool | None = options.pop("pool", None)
        self.pool = pool or pool_of(*members, strategy=strategy)
        self.alone = pool is None
        chance: float = options.pop("chance", 0.5)
        replayable: bool = options.pop("replayable", True)
        facts: RequestFacts = options.pop("facts", FACTS)
        self.attempts = Attempts(
            pool=self.pool,
            facts=facts,
            limits=Limits(**options),
            chance=lambda: chance,
            replayable=replayable,
        )
        self.now = 0.0
        self.step: Step | None = None

    def at(self, now: float) -> Play:
        self.now = now
        return self

    def __rshift__(self, event: Event) -> Play:
        self.step = event(self.attempts, self.now)
        attempts = self.attempts
        assert attempts.over is (attempts.phase is Phase.OVER)
        assert attempts.lease is None or not attempts.lease.returned
        if attempts.over:
            assert attempts.lease is None
            assert not self.alone or self.in_flight == 0
        return self

    def __lshift__(self, step: str | None) -> Play:
        assert shown(self.step) == step
        return self

    @property
    def in_flight(self) -> int:
        return summary(self.pool.accounts, now=self.now)["in_flight"]

    @property
    def benched(self) -> list[str]:
        return [s.key.label for s in self.pool.accounts if s.disabled]

    @property
    def suspects(self) -> list[str]:
        """Labels of those that are asked after all others."""
        model = self.attempts.facts.model
        return [s.key.label for s in self.pool.accounts if s.is_suspect(model)]

    @property
    def cooling(self) -> list[str]:
        return [s.key.label for s in self.pool.accounts if s.cooling_until(None, self.now) > 0]

    @property
    def tried(self) -> list[tuple[str, OutcomeClass | None]]:
        history = self.attempts.history
        assert [attempt.number for attempt in history] == list(range(1, len(history) + 1))
        return [(a.key.label, a.outcome.cls if a.outcome else None) for a in history]


# -- the good way


def test_an_ordinary_request_looks_nothing_up_that_is_not_there(monkeypatch) -> None:
    """No key is built for what all refused, or who did not answer, while nobody did."""

    def needed(_facts: RequestFacts) -> None:
        raise AssertionError

    monkeypatch.setattr("account_pool.core.members._what", needed)
    Play("a", "b") >> begin << "send a" >> committed >> finished


def test_good_answer() -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> committed << None
    assert play.in_flight == 1
    play.at(9.0) >> finished << None
    assert play.tried == [("a", OutcomeClass.OK)]
    assert play.attempts.over
    assert play.pool.accounts.get(key("a")).served == 1


# -- rate_limit, quota: cool, and move


@pytest.mark.parametrize("outcome", [rate_limit(60.0), quota(86400.0), quota(), MODEL_LIMIT])
def test_limit_cools_and_moves(outcome: Outcome) -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> refused(outcome) << "send b"
    play >> committed << None >> finished << None
    assert play.tried == [("a", outcome.cls), ("b", OutcomeClass.OK)]
    assert play.pool.accounts.get(key("a")).cooling_until("gpt-5", 0.0) > 0


def test_the_answer_is_held_while_the_first_account_returns_soon() -> None:
    play = Play("a")
    play >> begin << "send a" >> refused(rate_limit(5.0)) << "wait until 5 or change"
    assert play.in_flight == 0
    play.at(5.0) >> resumed << "send a" >> committed >> finished << None


def test_every_account_limited_is_delivered_with_the_soonest_return() -> None:
    play = Play("a", "b", "c")
    play >> begin << "send a" >> refused(quota(500.0)) << "send b"
    play >> refused(quota(100.0)) << "send c" >> refused(quota(900.0)) << "deliver, 100 s"


def test_a_limit_that_is_not_replayable_is_delivered_with_the_soonest_return() -> None:
    limit = rate_limit(60.0, replayable=False)
    Play("a", "b") >> begin << "send a" >> refused(limit) << "deliver, 0 s"
    Play("a") >> begin << "send a" >> refused(limit) << "deliver, 60 s"


# -- a bare 429: some others, one after the other


def test_bare_429_asks_four_accounts_and_pauses_between_them() -> None:
    play = Play(*"abcdef")
    play >> begin << "send a" >> refused(BARE_429) << "wait until 0.15"
    play.at(0.15) >> resumed << "send b" >> refused(BARE_429) << "wait until 0.3"
    play.at(0.3) >> resumed << "send c" >> refused(BARE_429) << "wait until 0.45"
    play.at(0.45) >> resumed << "send d" >> refused(BARE_429) << "deliver"
    assert play.cooling == ["a", "b", "c", "d"]
    assert play.pool.accounts.get(key("a")).cooling_until(None, 0.0) == 1.0


@pytest.mark.parametrize(("chance", "until"), [(0.0, "0.05"), (1.0, "0.25")])
def test_bare_429_pause(chance: float, until: str) -> None:
    Play("a", "b", chance=chance) >> begin >> refused(BARE_429) << f"wait until {until}"


def test_bare_429_of_all_is_taken_for_the_addresss() -> None:
    """For half a minute others try one account; whoever is served ends it."""
    play = Play("a", "b", "c")
    play >> begin << "send a" >> refused(BARE_429) << "wait until 0.15"
    play.at(0.15) >> resumed << "send b" >> refused(BARE_429) << "wait until 0.3"
    play.at(0.3) >> resumed << "send c" >> refused(BARE_429) << "deliver"
    Play(pool=play.pool).at(30.0) >> begin << "send a" >> refused(BARE_429) << "deliver"
    served = Play(pool=play.pool).at(30.1) >> begin << "send b" >> committed >> finished
    again = Play(pool=play.pool).at(30.2) >> begin << "send c" >> refused(BARE_429)
    again << "wait until 30.35"
    assert served.tried == [("b", OutcomeClass.OK)]


def test_a_limit_of_the_address_is_believed_for_half_a_minute() -> None:
    pool = pool_of("a", "b")
    pool.failures(PROVIDER).limit_address(0.0)
    Play(pool=pool).at(29.9) >> begin << "send a" >> refused(BARE_429) << "deliver"
    Play(pool=pool).at(40.0) >> begin << "send b" >> refused(BARE_429) << "wait until 40.15"


def test_bare_429_of_the_address_still_asks_who_has_not_said_it() -> None:
    """One account a request, and each time one that nobody has heard of yet."""
    labels = "abcdef"
    first = Play(*labels, strategy="fill-first", max_wait_s=0.0) >> begin
    for number in range(4):
        if number:
            first.at(first.now + 0.3) >> resumed
        first >> refused(BARE_429)
    assert [label for label, _ in first.tried] == list("abcd")
    assert first.attempts.over
    # The pauses of the four are over, or not yet.
    for seconds, label in ((1.5, "e"), (3.0, "f")):
        play = Play(pool=first.pool, max_wait_s=0.0).at(first.now + seconds)
        play >> begin << f"send {label}" >> refused(BARE_429) << "deliver"
    # When all have, it is whoever comes first.
    play = Play(pool=first.pool, max_wait_s=0.0).at(first.now + 20.0)
    play >> begin << "send a" >> committed >> finished
    assert not first.pool.failures(PROVIDER).is_address_limited(play.now)


def test_bare_429_of_one_while_the_others_are_busy_is_not_the_addresss() -> None:
    pool = pool_of(account("a", max_concurrent=1), account("b", max_concurrent=1))
    Play(pool=pool) >> begin << "send a"
    Play(pool=pool) >> begin << "send b" >> refused(BARE_429)
    assert not pool.failures(PROVIDER).is_address_limited(0.0)


def test_bare_429_then_a_good_answer() -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> refused(BARE_429) << "wait until 0.15"
    play.at(0.15) >> resumed << "send b" >> committed >> finished << None
    assert play.cooling == ["a"]
    assert not play.pool.failures(PROVIDER).is_address_limited(0.2)


def test_bare_429_then_a_limit_with_evidence_goes_on() -> None:
    play = Play("a", "b", "c")
    play >> begin << "send a" >> refused(BARE_429) << "wait until 0.15"
    play.at(0.15) >> resumed << "send b" >> refused(quota(60.0)) << "send c"
    play >> refused(BARE_429) << "deliver"
    # Not all said so: the address is not to blame.
    assert not play.pool.failures(PROVIDER).is_address_limited(0.2)


def test_a_paused_account_is_asked_when_no_other_can_serve() -> None:
    pool = pool_of("a")
    for step in ["deliver, 1 s", *["deliver"] * 8]:
        Play(pool=pool, max_wait_s=0.0) >> begin << "send a" >> refused(BARE_429) << step


# -- "come back at once", on every account


def test_a_wait_of_0_counts_as_a_second_and_all_are_asked_before_any_twice() -> None:
    session = replace(FACTS, conversation=Conversation(session="s"))
    play = Play("a", "b", "c", strategy="fill-first", facts=session)
    for label in "ab":
        play.step = play.step or play.attempts.begin(0.0)
        play << f"send {label}" >> refused(rate_limit(0.0))
    play << "send c" >> refused(rate_limit(0.0)) << "wait until 1 or change"
    play.at(1.0) >> resumed << "send a" >> refused(rate_limit(0.0)) << "send b"
    assert play.pool.accounts.get(key("a")).cooling_until(None, 1.0) == 3.0


def test_bare_429_of_the_only_account_waits_its_pause_once() -> None:
    play = Play("a")
    play >> begin << "send a" >> refused(BARE_429) << "wait until 1 or change"
    play.at(1.0) >> resumed << "send a" >> refused(BARE_429) << "deliver"


# -- overloaded, or failing: one try in place, one other account; then delivered


@pytest.mark.parametrize("outcome", [OVERLOADED, SERVER_ERROR])
def test_an_overload_is_tried_in_place_and_on_one_other_account(outcome: Outcome) -> None:
    play = Play("a", "b", "c", chance=0.5)
    play >> begin << "send a" >> refused(outcome) << "wait until 0.5"
    assert play.in_flight == 1
    play.at(0.5) >> resumed << "send a" >> refused(outcome) << "send b"
    play >> refused(outcome) << "deliver"
    assert (play.benched, play.cooling) == ([], [])


def test_a_limit_on_the_other_account_goes_on_to_the_next() -> None:
    play = Play("a", "b", "c", chance=0.0)
    play >> begin >> refused(OVERLOADED) << "wait until 0"
    play >> resumed << "send a" >> refused(OVERLOADED) << "send b"
    play >> refused(quota(60.0)) << "send c" >> committed >> finished


def test_the_next_request_begins_where_nobody_was_overloaded() -> None:
    pool = pool_of("a", "b", strategy="fill-first")
    first = Play(pool=pool, chance=0.0)
    first >> begin << "send a" >> refused(OVERLOADED) >> resumed >> refused(OVERLOADED) << "send b"
    first >> committed >> finished
    Play(pool=pool).at(59.0) >> begin << "send b"
    # Another model, or a minute later: it says nothing.
    other = replace(FACTS, model="gpt-5-mini")
    Play(pool=pool, facts=other).at(59.0) >> begin << "send a"
    Play(pool=pool).at(60.0) >> begin << "send a"


def test_when_two_are_overloaded_it_is_the_servers_and_everybody_stays() -> None:
    pool = pool_of("a", "b", "c", strategy="fill-first")
    first = Play(pool=pool, chance=0.0)
    first >> begin >> refused(OVERLOADED) >> resumed >> refused(OVERLOADED) << "send b"
    first >> refused(OVERLOADED) << "deliver"
    Play(pool=pool).at(1.0) >> begin << "send a"


def test_an_overloaded_account_serves_who_has_nowhere_else_to_go() -> None:
    pool = pool_of("a", "b", strategy="fill-first")
    pool.health.mark_cooldown(key("b"), quota(60.0), now=0.0)
    first = Play(pool=pool, chance=0.0)
    first >> begin >> refused(OVERLOADED) >> resumed >> refused(OVERLOADED) << "deliver"
    Play(pool=pool).at(1.0) >> begin << "send a"


# -- silence: the next request begins elsewhere


def test_what_broke_is_not_where_the_next_request_begins() -> None:
    pool = pool_of("a", "b", strategy="fill-first")
    Play(pool=pool) >> begin << "send a" >> broken(Broken.MAYBE_RAN) << "answer 502"
    assert pool.accounts.get(key("a")).broken == 1
    Play(pool=pool).at(1.0) >> begin << "send b" >> committed >> finished
    # It was answered: the next goes where the strategy says.
    Play(pool=pool).at(2.0) >> begin << "send a"


@pytest.mark.parametrize(("silence", "following"), [(29.0, "send a"), (31.0, "send b")])
def test_a_client_that_leaves_moves_on_only_after_a_long_silence(
    silence: float, following: str
) -> None:
    pool = pool_of("a", "b", strategy="fill-first")
    Play(pool=pool) >> begin << "send a"
    left_play = Play(pool=pool)
    left_play >> begin << "send a"
    left_play.at(silence) >> left
    assert pool.accounts.get(key("a")).departures == 1
    Play(pool=pool).at(silence + 1) >> begin << following


def test_a_long_silence_is_four_times_the_usual() -> None:
    pool = pool_of("a", "b", strategy="fill-first")
    for _ in range(20):
        play = Play(pool=pool)
        play >> begin << "send a"
        play.at(0.5) >> committed >> finished
    waiting = Play(pool=pool)
    waiting >> begin << "send a"
    waiting.at(2.5) >> left
    Play(pool=pool).at(3.0) >> begin << "send b"


def test_the_usual_is_the_first_byte_not_what_it_was_handed_on_with() -> None:
    """A head that is held back until it is known what the answer is, is no silence."""
    pool = pool_of("a", "b", strategy="fill-first")
    for _ in range(20):
        play = Play(pool=pool)
        play >> begin << "send a"
        play.attempts.began(0.5)
        play.at(5.5) >> committed >> finished
    waiting = Play(pool=pool)
    waiting >> begin << "send a"
    waiting.at(2.5) >> left
    Play(pool=pool).at(3.0) >> begin << "send b"


def test_an_answer_that_has_begun_is_not_silent() -> None:
    pool = pool_of("a", "b", strategy="fill-first")
    play = Play(pool=pool)
    play >> begin << "send a"
    play.attempts.began(1.0)
    play.at(40.0) >> left
    Play(pool=pool).at(41.0) >> begin << "send a"


def test_other_requests_stay_where_one_was_not_answered() -> None:
    pool = pool_of("a", "b", strategy="fill-first")
    Play(pool=pool) >> begin << "send a" >> broken(Broken.MAYBE_RAN) << "answer 502"
    other = replace(FACTS, conversation=Conversation(session="another"))
    Play(pool=pool, facts=other) >> begin << "send a"


@pytest.mark.parametrize(("chance", "until"), [(0.0, "0"), (0.25, "0.25"), (1.0, "1")])
def test_overloaded_jitter_is_full(chance: float, until: str) -> None:
    Play("a", chance=chance) >> begin >> refused(OVERLOADED) << f"wait until {until}"


def test_overloaded_then_good() -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> refused(OVERLOADED) << "wait until 0.5"
    play.at(0.5) >> resumed << "send a" >> committed >> finished << None


@pytest.mark.parametrize(
    ("hint", "step"),
    [
        (3.0, "wait until 3"),
        # Longer than it is worth waiting: another account is asked at once.
        (3.5, "send b"),
        (30.0, "send b"),
        (-5.0, "wait until 0.5"),
        (float("nan"), "wait until 0.5"),
        (float("inf"), "wait until 0.5"),
    ],
)
def test_overloaded_waits_as_told_within_patience(hint: float, step: str) -> None:
    told = Outcome(cls=OutcomeClass.OVERLOADED, scope=Scope.SERVER, cooldown_s=hint)
    Play("a", "b") >> begin << "send a" >> refused(told) << step


def test_overloaded_goes_to_another_account_if_its_own_became_limited() -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> refused(OVERLOADED) << "wait until 0.5"
    play.pool.health.mark_cooldown(key("a"), quota(60.0), now=0.2)
    play.at(0.5) >> resumed << "send b"
    assert play.pool.accounts.get(key("a")).in_flight == 0


def test_overloaded_uses_the_credential_renewed_meanwhile() -> None:
    play = Play("a")
    play >> begin >> refused(OVERLOADED)
    play.pool.accounts.set_credentials(key("a"), keys_of("new"), now=0.2)
    play.at(0.5) >> resumed << "send a"
    assert play.attempts.lease is not None
    assert play.attempts.lease.credential == keys_of("new")["key"]


# -- 401: refresh, try once more, one hop


@pytest.mark.parametrize("refusal", [UNAUTHORIZED, EXPIRED])
def test_refused_credential_is_renewed_and_tried_once_more(refusal: Outcome) -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> refused(refusal) << "refresh a"
    assert play.in_flight == 1
    play.pool.accounts.set_credentials(key("a"), keys_of("new"), now=0.0)
    play >> refreshed(True) << "send a"
    assert play.attempts.lease is not None
    assert play.attempts.lease.credential == keys_of("new")["key"]
    play >> committed >> finished << None
    assert play.benched == []


@pytest.mark.parametrize("refusal", [UNAUTHORIZED, EXPIRED])
def test_first_is_benched_when_the_second_succeeds(refusal: Outcome) -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> refused(refusal) << "refresh a" >> refreshed(True) << "send a"
    play >> refused(refusal) << "send b"
    assert play.benched == []
    play >> committed << None
    assert play.benched == ["a"]
    play >> finished << None


def test_an_unchanged_credential_is_not_sent_again() -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> refused(UNAUTHORIZED) << "refresh a"
    play >> refreshed(False) << "send b" >> committed >> finished << None
    assert play.benched == ["a"]


def test_a_renewal_that_goes_on_is_not_waited_for() -> None:
    """It is nobody's fault: the next account serves, and the first is as good as before."""
    play = Play("a", "b")
    play >> begin << "send a" >> refused(EXPIRED) << "refresh a"
    play.pool.accounts.set_credentials(key("a"), {}, now=0.0, pending=True)
    play >> refreshed(None) << "send b" >> committed >> finished << None
    assert (play.benched, play.suspects) == ([], [])


def test_without_another_account_it_is_held_until_the_renewal_is_over() -> None:
    play = Play("a")
    play >> begin << "send a" >> refused(EXPIRED) << "refresh a"
    play.pool.accounts.set_credentials(key("a"), {}, now=0.0, pending=True)
    play >> refreshed(None) << "wait until 30 or change"
    assert play.in_flight == 0
    play.pool.accounts.set_credentials(key("a"), keys_of("new"), now=1.0)
    play.at(1.0) >> resumed << "send a" >> committed >> finished << None


@pytest.mark.parametrize("pending", [True, False])
def test_a_refusal_is_not_delivered_while_the_renewal_is_tried_for(pending: bool) -> None:
    """Told that its credential is bad, a client would log out."""
    play = Play("a", max_wait_s=0.0)
    play >> begin << "send a" >> refused(EXPIRED) << "refresh a"
    play.pool.accounts.set_credentials(
        key("a"), {}, now=0.0, problem="x", pending=pending, passing=True
    )
    play >> refreshed(None) << "answer 503"


def test_a_renewal_that_leaves_the_refused_credential_in_use_has_failed() -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> refused(EXPIRED) << "refresh a"
    play >> refreshed(None) << "send b" >> committed >> finished << None
    assert play.benched == ["a"]


def test_nobody_is_benched_when_all_refuse() -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> refused(UNAUTHORIZED) << "refresh a" >> refreshed(True) << "send a"
    play >> refused(UNAUTHORIZED) << "send b" >> refused(UNAUTHORIZED) << "refresh b"
    play >> refreshed(True) << "send b" >> refused(UNAUTHORIZED) << "deliver"
    assert play.benched == []
    assert play.cooling == []
    assert play.suspects == []


def test_second_of_two_refused_credentials_is_healed_by_its_refresh() -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> refused(EXPIRED) << "refresh a" >> refreshed(False) << "send b"
    play >> refused(EXPIRED) << "refresh b" >> refreshed(True) << "send b"
    play >> committed >> finished << None
    assert play.benched == ["a"]


@pytest.mark.parametrize(
    ("event", "step"),
    [
        (refused(quota(60.0)), "deliver, 60 s"),
        (refused(REQUEST_ERROR), "deliver"),
        (refused(SERVER_ERROR), "wait until 0.5"),
        (FORBIDDEN_TOO, "deliver"),
        (broken(Broken.MAYBE_RAN), "deliver"),
    ],
)
def test_only_an_answer_is_a_witness(event: Event, step: str) -> None:
    """A second that ends otherwise leaves the verdict open: the first is asked last."""
    play = Play("a", "b")
    play >> begin >> refused(UNAUTHORIZED) >> refreshed(False) << "send b" >> event << step
    assert play.benched == []
    assert play.suspects == ([] if event is FORBIDDEN_TOO else ["a"])


def test_the_only_account_is_not_benched_when_its_refresh_does_not_help() -> None:
    play = Play("a")
    play >> begin >> refused(UNAUTHORIZED) << "refresh a" >> refreshed(False) << "deliver"
    assert (play.benched, play.cooling) == ([], [])
    Play(pool=play.pool) >> begin << "send a"


def test_a_suspect_is_not_asked_again_while_waiting_for_others() -> None:
    play = Play("a", "b")
    play.pool.health.mark_cooldown(key("b"), rate_limit(5.0), now=0.0)
    play >> begin << "send a" >> refused(UNAUTHORIZED) << "refresh a"
    play >> refreshed(False) << "wait until 5 or change"
    play.at(1.0) >> resumed << "wait until 5 or change"
    play.at(5.0) >> resumed << "send b" >> committed >> finished << None
    assert play.benched == ["a"]


def test_a_credential_replaced_since_is_not_benched_for_the_old_one() -> None:
    play = Play("a", "b")
    play >> begin >> refused(UNAUTHORIZED) >> refreshed(False) << "send b"
    play.pool.accounts.set_credentials(key("a"), keys_of("new"), now=1.0)
    play >> committed >> finished << None
    assert play.benched == []


def test_a_key_replaced_since_is_not_benched_for_the_name_of_the_old_one() -> None:
    play = Play("a", "b")
    play >> begin >> refused(INVALID_KEY) >> refreshed(False) << "send b"
    play.pool.accounts.set_credentials(key("a"), keys_of("new"), now=1.0)
    play >> left
    assert available(play.pool, now=1.0) == {"a", "b"}


def renewed(play: Play, now: float) -> None:
    """The owner writes another credential for account a."""
    play.pool.accounts.renewed(key("a"), now=now)
    play.pool.accounts.set_credentials(key("a"), keys_of("new"), now=now)


BLAMES = [FORBIDDEN, UNKNOWN_402, UNKNOWN_403, FORBIDDEN_MODEL]


@pytest.mark.parametrize("blame", BLAMES)
@pytest.mark.parametrize("late", [False, True], ids=["before the refusal", "before the witness"])
def test_what_was_refused_with_the_old_credential_is_not_the_new_ones_fault(
    blame: Outcome, late: bool
) -> None:
    play = Play("a", "b")
    play >> begin << "send a"
    if not late:
        renewed(play, 1.0)
    play.at(2.0) >> refused(blame) << "send b"
    if late:
        renewed(play, 2.5)
    assert play.suspects == []
    play.at(3.0) >> committed >> finished
    assert (play.benched, play.suspects) == ([], [])
    assert available(play.pool, now=3.0) == {"a", "b"}


@pytest.mark.parametrize("outcome", [quota(600.0), FORBIDDEN, UNKNOWN_403])
def test_a_socket_of_the_old_credential_says_nothing_of_the_new_one(outcome: Outcome) -> None:
    play = Play("a", "b", facts=SOCKET)
    play >> begin << "send a" >> committed
    renewed(play, 1.0)
    assert websocket_moves.refused_inside(play.attempts, outcome, "gpt-5", 2.0)
    assert available(play.pool, now=2.0, facts=SOCKET) == {"a", "b"}
    assert play.suspects == []


def test_a_response_to_the_old_credential_that_ends_in_a_limit() -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> committed
    renewed(play, 1.0)
    reactions.refused_late(play.attempts, quota(600.0), 2.0)
    assert available(play.pool, now=2.0) == {"a", "b"}


def test_a_response_that_ends_in_what_was_not_understood_benches_nobody_alone() -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> committed
    reactions.refused_late(play.attempts, UNKNOWN_402, 2.0)
    assert available(play.pool, now=2.0) == {"a", "b"}
    assert play.suspects == ["a"]


def test_a_suspect_removed_meanwhile() -> None:
    play = Play("a", "b")
    play >> begin >> refused(UNAUTHORIZED) >> refreshed(False) << "send b"
    play.pool.accounts.remove(key("a"), now=play.now)
    play >> committed >> finished << None


def test_an_account_removed_while_its_credential_is_renewed() -> None:
    play = Play("a", "b")
    play >> begin >> refused(UNAUTHORIZED) << "refresh a"
    play.pool.accounts.remove(key("a"), now=play.now)
    play >> refreshed(True) << "send b"


# -- forbidden: benched with its cause, and move


def test_forbidden_accounts_are_benched_when_another_serves() -> None:
    play = Play("a", "b", "c")
    play >> begin << "send a" >> refused(FORBIDDEN) << "send b" >> refused(FORBIDDEN) << "send c"
    play >> committed >> finished << None
    assert play.benched == ["a", "b"]


def test_forbidden_model_cools_that_model_only_once_another_serves_it() -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> refused(FORBIDDEN_MODEL) << "send b"
    assert without(play) == []
    play >> committed
    assert (play.benched, play.cooling) == ([], [])
    assert without(play) == ["a"]


# -- the request's own fault: delivered as it is


def test_delivered_as_it_is() -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> refused(REQUEST_ERROR) << "deliver"
    assert len(play.tried) == 1
    assert (play.benched, play.cooling) == ([], [])


# -- transport


def test_connect_error_is_tried_once_more() -> None:
    play = Play("a", "b", chance=0.5)
    play >> begin << "send a" >> broken(Broken.CONNECT) << "wait until 0.25"
    play.at(0.25) >> resumed << "send a" >> broken(Broken.CONNECT) << "answer 502"
    assert (play.benched, play.cooling) == ([], [])
    assert play.tried == [("a", OutcomeClass.TRANSPORT)] * 2


@pytest.mark.parametrize("how", [Broken.CONNECT, Broken.STALE, Broken.NOT_RUN])
def test_where_one_host_cannot_be_reached_an_account_at_another_is_asked(how: Broken) -> None:
    hosts = {"a": "one.example", "b": "one.example", "c": "two.example", "d": "three.example"}
    members = [account(label, companions={"host": at}) for label, at in hosts.items()]
    play = Play(*members, chance=0.5)
    play >> begin << "send a"
    for _ in range(TRIES[how] - 1):
        play >> broken(how)
        if how is Broken.CONNECT:
            play >> resumed
    play >> broken(how) << "send c fresh"
    served = Play(pool=play.pool)
    # Once only: then it is more than one host's trouble.
    play >> broken(how) << "answer 502"
    assert (play.benched, play.cooling) == ([], [])
    # Nor does the next request begin where nobody was reached.
    served >> begin << "send d"


@pytest.mark.parametrize("host", [None, "one.example"])
def test_where_all_are_at_one_host_nobody_is_looked_for(host, monkeypatch) -> None:
    """Why none of ten thousand can serve takes a look at each, and in an outage each asks."""
    members = [account(label, companions={"host": host} if host else {}) for label in "ab"]
    play = Play(*members, chance=0.5)
    play >> begin << "send a" >> broken(Broken.CONNECT) >> resumed << "send a"
    monkeypatch.setattr(Pool, "acquire", None)
    play >> broken(Broken.CONNECT) << "answer 502"


def test_what_may_have_run_goes_to_no_other_host() -> None:
    members = [account(label, companions={"host": f"{label}.example"}) for label in "ab"]
    play = Play(*members)
    play >> begin << "send a" >> broken(Broken.MAYBE_RAN) << "answer 502"


def test_a_way_that_is_barred_is_tried_once() -> None:
    """Three wrong passwords lock their owner out; no other account gets through, either."""
    play = Play("a", "b")
    play >> begin << "send a" >> broken(Broken.UNREACHABLE, "it is not trusted") << "answer 502"
    step = play.step
    assert isinstance(step, Synthesize)
    assert (step.message, step.final) == ("openai/a: it is not trusted", True)
    assert (play.benched, play.cooling) == ([], [])
    # Nor does its conversation leave the account.
    assert play.pool.failures(PROVIDER).avoided(FACTS, 0.0) == set()


def test_what_this_machine_is_short_of_says_nothing_of_the_account() -> None:
    play = Play("a", "b", chance=0.5)
    play >> begin << "send a" >> broken(Broken.SHORT) << "wait until 0.25"
    play.at(0.25) >> resumed << "send a" >> broken(Broken.SHORT, "too many open") << "answer 502"
    step = play.step
    assert isinstance(step, Synthesize)
    assert (step.message, step.final) == ("openai/a: too many open", False)
    assert (play.benched, play.cooling) == ([], [])
    assert play.pool.failures(PROVIDER).avoided(FACTS, 0.25) == set()


def test_what_may_pass_is_not_final() -> None:
    play = Play("a")
    play >> begin >> broken(Broken.MAYBE_RAN, "closed")
    assert isinstance(play.step, Synthesize)
    assert (play.step.message, play.step.final) == (
        "openai/a: the upstream connection broke (closed)",
        False,
    )


def test_stale_connection_is_replaced_by_a_fresh_one() -> None:
    play = Play("a", "b")
    play >> begin << "send a"
    for _ in range(TRIES[Broken.STALE] - 1):
        play >> broken(Broken.STALE) << "send a fresh"
        assert play.in_flight == 1
    play >> broken(Broken.STALE) << "answer 502"


def test_stale_then_good() -> None:
    play = Play("a")
    play >> begin >> broken(Broken.STALE) << "send a fresh" >> committed >> finished << None
    assert play.tried == [("a", OutcomeClass.TRANSPORT), ("a", OutcomeClass.OK)]


def test_what_may_have_run_is_not_sent_again() -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> broken(Broken.MAYBE_RAN) << "answer 502"
    assert (play.benched, play.cooling) == ([], [])


def test_what_may_have_run_is_sent_again_once_if_the_owner_says_so() -> None:
    play = Play("a", "b", retry_broken=True)
    play >> begin << "send a" >> broken(Broken.MAYBE_RAN) << "send a fresh"
    play >> broken(Broken.MAYBE_RAN) << "answer 502"


def test_breaks_are_counted_by_kind() -> None:
    play = Play("a", retry_broken=True, chance=0.5)
    play >> begin >> broken(Broken.STALE) << "send a fresh"
    play >> broken(Broken.CONNECT) << "wait until 0.25"
    play.at(0.25) >> resumed << "send a" >> broken(Broken.MAYBE_RAN) << "send a fresh"
    play >> broken(Broken.STALE) << "send a fresh" >> broken(Broken.CONNECT) << "answer 502"


# -- bounds


@pytest.mark.parametrize("most", [1, 2, 3])
def test_max_attempts(most: int) -> None:
    play = Play("a", "b", "c", "d", max_attempts=most)
    play >> begin << "send a"
    for label in "bcd"[: most - 1]:
        play >> refused(quota(60.0)) << f"send {label}"
    # Another account is free; the client may come again at once.
    play >> refused(quota(60.0)) << "deliver, 0 s"
    assert len(play.tried) == most


@pytest.mark.parametrize(
    ("event", "steps"),
    [
        (refused(OVERLOADED), ["deliver"]),
        (broken(Broken.STALE), ["answer 502"]),
        (broken(Broken.CONNECT), ["answer 502"]),
        (refused(BARE_429), ["deliver, 0 s"]),
        (refused(FORBIDDEN), ["deliver, 0 s"]),
    ],
)
def test_the_last_attempt_is_the_last(event: Event, steps: list[str]) -> None:
    play = Play("a", "b", max_attempts=1)
    play >> begin << "send a" >> event << steps[0]
    assert play.attempts.over


def test_a_credential_renewed_too_late_benches_nobody() -> None:
    play = Play("a", "b", max_attempts=1)
    play >> begin << "send a" >> refused(EXPIRED) << "refresh a" >> refreshed(True) << "deliver"
    assert play.benched == []


def test_no_attempt_at_all_makes_an_answer() -> None:
    Play("a", max_attempts=0) >> begin << "answer 429, 0 s"


# -- nobody can serve


def test_held_for_the_first_to_return() -> None:
    play = Play("a", "b")
    play.pool.health.mark_cooldown(key("a"), rate_limit(20.0), now=0.0)
    play.pool.health.mark_cooldown(key("b"), rate_limit(30.0), now=0.0)
    play >> begin << "wait until 20 or change"
    play.at(20.0) >> resumed << "send a"


def test_held_for_a_change_up_to_max_wait() -> None:
    play = Play(account("a", max_concurrent=1))
    other = play.pool.acquire(FACTS, now=0.0)
    play >> begin << "wait until 30 or change"
    play.at(5.0) >> resumed << "wait until 30 or change"
    play.pool.release(other, OK, now=6.0)
    play.at(6.0) >> resumed << "send a"


def test_held_no_longer_than_max_wait() -> None:
    play = Play(account("a", max_concurrent=1))
    other = play.pool.acquire(FACTS, now=0.0)
    play >> begin << "wait until 30 or change"
    play.step = play.attempts.resumed(30.0)
    play << "answer 503"
    play.pool.release(other, OK, now=30.0)


def test_all_waits_of_a_request_share_one_bound() -> None:
    play = Play("a")
    play >> begin << "send a" >> refused(rate_limit(20.0)) << "wait until 20 or change"
    play.at(20.0) >> resumed << "send a"
    play.at(21.0) >> refused(rate_limit(20.0)) << "deliver, 20 s"


@pytest.mark.parametrize(
    ("wait", "max_wait", "step"),
    [
        (30.0, 30.0, "wait until 30 or change"),
        (30.1, 30.0, "answer 429, 30.1 s, like a"),
        (5.0, 0.0, "answer 429, 5 s, like a"),
    ],
)
def test_a_return_beyond_max_wait_is_not_waited_for(
    wait: float, max_wait: float, step: str
) -> None:
    play = Play("a", max_wait_s=max_wait)
    play.pool.health.mark_cooldown(key("a"), rate_limit(wait), now=0.0)
    play >> begin << step


def test_exhausted_without_an_answer_names_whose_refusal_to_show() -> None:
    play = Play("a", "b")
    play.pool.health.mark_cooldown(key("a"), quota(9000.0), now=0.0)
    play.pool.health.mark_cooldown(key("b"), quota(8000.0), now=0.0)
    play >> begin << "answer 429, 8000 s, like b"
    assert isinstance(play.step, Synthesize)
    assert play.step.message == "openai: no usable account of 2 (2 on cooldown)"


def test_exhausted_without_an_answer_and_without_a_return() -> None:
    play = Play(account("a", enabled=False))
    play >> begin << "answer 401"
    assert isinstance(play.step, Synthesize)
    assert play.step.message == (
        "openai: no usable account of 1 (1 disabled): renew a credential, or add an account"
    )


def test_exhausted_with_an_answer_in_hand_delivers_it() -> None:
    play = Play("a", account("b", enabled=False))
    play >> begin << "send a" >> refused(quota(9000.0)) << "deliver, 9000 s"
    play = Play("a")
    play >> begin << "send a" >> refused(FORBIDDEN) << "deliver"


def test_a_refusal_in_hand_is_delivered_after_a_wait_in_vain() -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> refused(rate_limit(5.0)) << "send b"
    play >> refused(rate_limit(10.0)) << "wait until 5 or change"
    play.pool.health.mark_cooldown(key("a"), quota(500.0), now=1.0)
    play.pool.health.mark_cooldown(key("b"), quota(400.0), now=1.0)
    play.at(1.0) >> resumed << "deliver, 400 s"


def test_no_account_of_the_provider() -> None:
    Play("a", facts=RequestFacts(provider="gemini", kind="key")) >> begin << "answer 401"


# -- only the owner can cure it


def disabled(outcome: Outcome) -> Callable[[Pool], object]:
    return lambda pool: pool.health.mark_failure(key("a"), outcome, now=0.0)


@pytest.mark.parametrize(
    ("cause", "step"),
    [
        (disabled(UNAUTHORIZED), "answer 401, like a"),
        (disabled(FORBIDDEN), "answer 403, like a"),
        (lambda pool: pool.accounts.replace(account("a", enabled=False), now=0.0), "answer 401"),
        (lambda pool: pool.accounts.set_credentials(key("a"), {}, now=0.0), "answer 401"),
        (lambda pool: pool.accounts.replace(account("a", "!gpt-5"), now=0.0), "answer 404"),
        (lambda pool: pool.accounts.remove(key("a"), now=0.0), "answer 401"),
        # Paying cures it, and nobody else is limited by anything that ends by itself.
        (
            lambda pool: pool.health.mark_cooldown(key("a"), quota(money=True), now=0.0),
            "answer 402, 300 s, like a",
        ),
        # What ends by itself, or may change, is no such thing.
        (
            lambda pool: pool.health.mark_cooldown(key("a"), quota(), now=0.0),
            "answer 429, 300 s, like a",
        ),
        (
            lambda pool: pool.accounts.set_credentials(key("a"), {}, now=0.0, pending=True),
            "answer 503",
        ),
        (
            lambda pool: pool.accounts.set_credentials(key("a"), {}, now=0.0, passing=True),
            "answer 503",
        ),
    ],
)
def test_what_a_client_gets_where_only_the_owner_can_help(
    cause: Callable[[Pool], object], step: str
) -> None:
    pool = pool_of("a")
    cause(pool)
    Play(pool=pool, max_wait_s=0.0) >> begin << step


def test_one_that_returns_by_itself_is_waited_for_though_others_lack_money() -> None:
    pool = pool_of("a", "b")
    pool.health.mark_cooldown(key("a"), quota(money=True), now=0.0)
    pool.health.mark_cooldown(key("b"), quota(9000.0), now=0.0)
    play = Play(pool=pool) >> begin << "answer 429, 300 s, like a"
    assert isinstance(play.step, Synthesize)
    assert not play.step.final


def test_the_last_who_was_disabled_speaks_for_all() -> None:
    pool = pool_of("a", "b", "c")
    for now, label in enumerate("acb"):
        pool.health.mark_failure(key(label), UNAUTHORIZED, now=float(now))
    play = Play(pool=pool) >> begin << "answer 401, like b"
    assert isinstance(play.step, Synthesize)
    assert play.step.final


def test_a_limit_says_more_than_a_key_that_is_not_accepted() -> None:
    """Told of a bad credential a client would log out; others are only limited."""
    play = Play("a", "b")
    play >> begin << "send a" >> refused(quota(9000.0)) << "send b"
    play >> refused(INVALID_KEY) << "refresh b" >> refreshed(False) << "deliver, 9000 s"
    assert play.attempts.keeps_earlier
    # The one on the bench is asked all the same, and the limit is what is said.
    again = Play(pool=play.pool) >> begin << "send b" >> refused(INVALID_KEY)
    again >> refreshed(False) << "answer 429, 9000 s, like a"
    assert again.tried == [("b", OutcomeClass.AUTH_INVALID)]


def test_a_client_is_asked_to_try_again_while_accounts_are_untried() -> None:
    play = Play("a", "b", "c", max_attempts=1)
    play >> begin << "send a" >> refused(UNKNOWN_401) << "refresh a" >> refreshed(False)
    assert play.step == Deliver(0.0, again=True)
    for label in "bc":
        play = Play(pool=play.pool, max_attempts=1)
        play >> begin << f"send {label}" >> refused(UNKNOWN_401) << f"refresh {label}"
        play >> refreshed(False)
    # Nobody is left.
    assert play.step == Deliver(0.0)


# -- a body that was not kept: one attempt


@pytest.mark.parametrize(
    ("event", "step"),
    [
        (refused(quota(60.0)), "deliver, 0 s"),
        (refused(BARE_429), "deliver, 0 s"),
        (refused(FORBIDDEN), "deliver, 0 s"),
        (refused(OVERLOADED), "deliver"),
        (refused(REQUEST_ERROR), "deliver"),
        (broken(Broken.CONNECT), "answer 502"),
        (broken(Broken.STALE), "answer 502"),
        (broken(Broken.MAYBE_RAN), "answer 502"),
    ],
)
def test_not_replayable_is_sent_once(event: Event, step: str) -> None:
    play = Play("a", "b", replayable=False, retry_broken=True)
    play >> begin << "send a" >> event << step
    assert len(play.tried) == 1


def test_not_replayable_still_cools_the_account() -> None:
    play = Play("a", "b", replayable=False)
    play >> begin >> refused(quota(60.0))
    assert play.cooling == ["a"]


@pytest.mark.parametrize(
    ("changed", "step", "suspects"), [(True, "deliver", []), (False, "deliver, 0 s", ["a"])]
)
def test_not_replayable_renews_the_credential_for_the_next(
    changed: bool, step: str, suspects: list[str]
) -> None:
    play = Play("a", "b", replayable=False)
    play >> begin << "send a" >> refused(EXPIRED) << "refresh a" >> refreshed(changed) << step
    assert (play.benched, play.suspects) == ([], suspects)


# -- the client leaves


def sent() -> Play:
    return Play("a", "b") >> begin << "send a"


def refreshing() -> Play:
    return sent() >> refused(UNAUTHORIZED) << "refresh a"


def waiting_in_place() -> Play:
    return sent() >> refused(OVERLOADED) << "wait until 0.5"


def waiting() -> Play:
    return Play("a") >> begin >> refused(rate_limit(5.0)) << "wait until 5 or change"


def suspecting() -> Play:
    return refreshing() >> refreshed(False) << "send b"


def committing() -> Play:
    return sent() >> committed << None


def ended() -> Play:
    return committing() >> finished << None


STATES = {
    Phase.NEW: [lambda: Play("a", "b")],
    Phase.SENT: [sent, suspecting],
    Phase.WAITING: [waiting, waiting_in_place],
    Phase.REFRESHING: [refreshing],
    Phase.COMMITTED: [committing],
    Phase.OVER: [
        ended,
        lambda: sent() >> left,
        lambda: sent() >> refused(REQUEST_ERROR) << "deliver",
        lambda: sent() >> broken(Broken.MAYBE_RAN) << "answer 502",
    ],
}
EVENTS: dict[str, tuple[Phase, Event]] = {
    "begin": (Phase.NEW, begin),
    "refused": (Phase.SENT, refused(quota(60.0))),
    "broken": (Phase.SENT, broken(Broken.STALE)),
    "committed": (Phase.SENT, committed),
    "refreshed": (Phase.REFRESHING, refreshed(True)),
    "resumed": (Phase.WAITING, resumed),
    "finished": (Phase.COMMITTED, finished),
}
PLACES = [(phase, make) for phase, makes in STATES.items() for make in makes]


@pytest.mark.parametrize(("phase", "make"), PLACES)
def test_client_leaves(phase: Phase, make: Callable[[], Play]) -> None:
    """The lease is free at once, nobody is benched, and nobody cools for it."""
    play = make()
    cooling, served = play.cooling, play.pool.accounts.get(key("a")).served
    play >> left << None
    assert play.attempts.over
    assert play.in_flight == 0
    assert (play.benched, play.cooling) == ([], cooling)
    assert play.pool.accounts.get(key("a")).served == served
    play >> left << None


# -- illegal events


def everything(play: Play) -> str:
    return f"{play.attempts!r} {[repr(state) for state in play.pool.accounts]}"


@pytest.mark.parametrize(("phase", "make"), PLACES)
@pytest.mark.parametrize("name", EVENTS)
def test_illegal_event_raises_and_changes_nothing(
    name: str, phase: Phase, make: Callable[[], Play]
) -> None:
    legal_in, event = EVENTS[name]
    play = make()
    assert play.attempts.phase is phase
    if phase is legal_in:
        play >> event
        return
    before = everything(play)
    with pytest.raises(IllegalEvent, match=f"needs phase '{legal_in.value}'"):
        event(play.attempts, 1.0)
    assert everything(play) == before


def test_every_phase_is_visited() -> None:
    assert set(STATES) == set(Phase)
    assert {phase for phase, _ in EVENTS.values()} == set(Phase) - {Phase.OVER}


# -- requests side by side


def test_two_requests_that_trip_the_same_account_count_once() -> None:
    pool = pool_of("a", "b", strategy="fill-first")
    first, second = Play(pool=pool), Play(pool=pool)
    first.at(0.0) >> begin << "send a"
    second.at(0.1) >> begin << "send a"
    first.step = reactions.refused(first.attempts, rate_limit(), 1.0)
    first << "send b"
    second.step = reactions.refused(second.attempts, rate_limit(), 1.1)
    # Where both go, the first goes ahead.
    second << "wait until 1.25 or change"
    second.at(1.25) >> resumed << "send b"
    assert pool.accounts.get(key("a")).cooldowns[None].streak == 1
    assert summary(pool.accounts.of(PROVIDER), now=1.1)["in_flight"] == 2


CLOSED = "server closed connection"
RESET = "stream reset by server (INTERNAL_ERROR)"
REFUSED = "stream reset by server (REFUSED_STREAM)"
LATE = STALE_WITHIN_S


@pytest.mark.parametrize(
    ("message", "kept", "answered", "after_s", "how"),
    [
        (CLOSED, True, False, 0.0, Broken.STALE),
        (CLOSED, True, False, LATE - 0.01, Broken.STALE),
        (CLOSED, True, False, LATE, Broken.MAYBE_RAN),
        (CLOSED, True, True, 0.0, Broken.MAYBE_RAN),
        (CLOSED, False, False, 0.0, Broken.MAYBE_RAN),
        (CLOSED, False, True, LATE, Broken.MAYBE_RAN),
        (RESET, True, False, 0.0, Broken.MAYBE_RAN),
        (RESET, False, False, 0.0, Broken.MAYBE_RAN),
        (RESET, True, True, LATE, Broken.MAYBE_RAN),
        (REFUSED, True, False, 0.0, Broken.STALE),
        (REFUSED, False, False, LATE, Broken.STALE),
        (REFUSED, False, True, LATE, Broken.STALE),
        ("peer closed connection", True, False, 0.0, Broken.STALE),
        ("the connection has ended", True, False, 0.0, Broken.STALE),
        ("HTTP/2 connection closed: <ConnectionTerminated>", True, False, 0.0, Broken.STALE),
        # It was not the server that ended it: something had come.
        ("HTTP/2 protocol error: 1", True, False, 0.0, Broken.MAYBE_RAN),
        ("Cannot parse HTTP response: b'server closed'", True, False, 0.0, Broken.MAYBE_RAN),
        ("unexpected server response: b'it has ended'", True, False, 0.0, Broken.MAYBE_RAN),
        ("", True, False, 0.0, Broken.MAYBE_RAN),
        ("", False, False, 0.0, Broken.MAYBE_RAN),
    ],
)
def test_how_broken(message: str, kept: bool, answered: bool, after_s: float, how: Broken) -> None:
    assert how_broken(message, kept=kept, answered=answered, after_s=after_s) is how


CONNECT = "Upstream proxy 192.0.2.1:3128 refused HTTP CONNECT request: {}"


@pytest.mark.parametrize(
    ("message", "how"),
    [
        (CONNECT.format("407 Proxy Authentication Required"), Broken.UNREACHABLE),
        (CONNECT.format("401 "), Broken.UNREACHABLE),
        (CONNECT.format("403 503 is our favourite number"), Broken.UNREACHABLE),
        (CONNECT.format("302 Found"), Broken.UNREACHABLE),
        (CONNECT.format("408 Request Timeout"), Broken.CONNECT),
        (CONNECT.format("425 Too Early"), Broken.CONNECT),
        (CONNECT.format("429 Too Many Requests"), Broken.CONNECT),
        (CONNECT.format("502 Bad Gateway"), Broken.CONNECT),
        (CONNECT.format("503 407"), Broken.CONNECT),
        (CONNECT.format("999 What"), Broken.CONNECT),
        ("Certificate verify failed: certificate has expired", Broken.UNREACHABLE),
        ("Certificate verify failed: something new", Broken.UNREACHABLE),
        ("The remote server does not speak TLS.", Broken.UNREACHABLE),
        (
            "The remote server and mitmproxy cannot agree on a TLS version to use. You may need "
            "to adjust mitmproxy's tls_version_server_min option.",
            Broken.UNREACHABLE,
        ),
        ("[Errno 24] Too many open files", Broken.SHORT),
        ("Multiple exceptions: [Errno 24] Too many open files, [Errno 101] ...", Broken.SHORT),
        ("[Errno 23] Too many open files in system", Broken.SHORT),
        ("[Errno 23] File table overflow", Broken.SHORT),
        ("[Errno -2] Name or service not known", Broken.CONNECT),
        ("[Errno 111] Connect call failed ('192.0.2.1', 443)", Broken.CONNECT),
        ("connection closed", Broken.CONNECT),
        ("something new", Broken.CONNECT),
        ("", Broken.CONNECT),
    ],
)
def test_how_unconnected(message: str, how: Broken) -> None:
    assert how_unconnected(message) is how


# -- models that not every account has


def without(play: Play, model: str = "gpt-5") -> list[str]:
    """Labels of the accounts that are not asked for *model* now."""
    states = play.pool.accounts
    return [s.key.label for s in states if s.cooling_until(model, play.now) > play.now]


MISSING = Outcome(cls=OutcomeClass.REQUEST_ERROR, signal="404", missing_model=True)


def test_a_model_is_found_where_it_is() -> None:
    play = Play("a", "b", "c")
    play >> begin << "send a" >> refused(MISSING) << "send b" >> refused(MISSING) << "send c"
    play >> committed >> finished
    assert (without(play), without(play, "gpt-6")) == (["a", "b"], [])


def test_a_model_nobody_has_is_the_requests_mistake() -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> refused(MISSING) << "send b" >> refused(MISSING)
    play << "deliver"
    assert without(play) == []
    again = Play(pool=play.pool)
    again >> begin << "send a" >> refused(MISSING) << "deliver"
    later = Play(pool=play.pool).at(61)
    later >> begin << "send b" >> refused(MISSING) << "send a"


def test_the_only_account_is_not_benched_for_a_model_it_lacks() -> None:
    play = Play("a")
    play >> begin << "send a" >> refused(MISSING) << "deliver"
    assert without(play) == []


def test_a_model_is_waited_for_where_it_may_be() -> None:
    """Who cools now may have it; only when all were asked is it nobody's."""
    play = Play("a", "b")
    play.pool.health.mark_cooldown(key("b"), rate_limit(5.0), now=0.0)
    play >> begin << "send a" >> refused(MISSING) << "wait until 5 or change"
    play.at(5.0) >> resumed << "send b" >> refused(MISSING) << "deliver"
    assert play.pool.failures(PROVIDER).tried_since(FACTS, 6.0, missing_model=True) is not None


def test_an_account_that_returns_late_may_still_have_the_model() -> None:
    play = Play("a", "b")
    play.pool.health.mark_cooldown(key("b"), rate_limit(500.0), now=0.0)
    play >> begin << "send a" >> refused(MISSING) << "deliver"
    assert play.pool.failures(PROVIDER).tried_since(FACTS, 1.0, missing_model=True) is None


def test_a_request_that_names_no_model_says_nothing_about_one() -> None:
    """A look at one fine-tuned model must not take the account out for all."""
    play = Play("a", "b", facts=RequestFacts(provider=PROVIDER, kind="key"))
    play >> begin << "send a" >> refused(MISSING) << "deliver"
    assert [s.cooldowns for s in play.pool.accounts] == [{}, {}]


def test_a_forbidden_model_that_nobody_names_benches_nobody() -> None:
    play = Play("a", "b", facts=RequestFacts(provider=PROVIDER, kind="key"))
    play >> begin << "send a" >> refused(FORBIDDEN_MODEL) << "send b" >> refused(FORBIDDEN_MODEL)
    play << "deliver"
    assert [s.cooldowns for s in play.pool.accounts] == [{}, {}]


def test_another_refusal_benches_nobody_for_a_model() -> None:
    play = Play("a", "b")
    play >> begin << "send a" >> refused(MISSING) << "send b" >> refused(REQUEST_ERROR) << "deliver"
    assert without(play) == []


# -- limits told inside a WebSocket

SOCKET = RequestFacts(provider=PROVIDER, kind="key", socket=True)


def test_a_socket_moves_when_another_account_could_serve() -> None:
    play = Play("a", "b", facts=SOCKET)
    play >> begin << "send a" >> committed
    assert websocket_moves.refused_inside(play.attempts, MODEL_LIMIT, "gpt-5", play.now)
    again = Play(pool=play.pool, facts=SOCKET, strategy="fill-first")
    again >> begin << "send b" >> committed
    # Now both are limited: the frame is for the client, and no socket opens in a circle.
    assert not websocket_moves.refused_inside(again.attempts, MODEL_LIMIT, "gpt-5", again.now)
    assert without(play, "other") == []


def test_a_socket_is_not_opened_in_a_circle() -> None:
    """The frame names a model that the client did not: all accounts refuse it in turn."""
    play = Play("a", "b", facts=SOCKET)
    named = rate_limit(60.0, scope=Scope.MODEL, model="gpt-realtime")
    closed = []
    for _ in range(4):
        turn = Play(pool=play.pool, facts=SOCKET)
        turn >> begin >> committed
        closed.append(websocket_moves.refused_inside(turn.attempts, named, None, play.now))
        turn >> finished
    assert closed == [True, False, False, False]


def test_a_socket_whose_limit_others_share_stays() -> None:
    play = Play("a", "b", facts=SOCKET)
    play >> begin << "send a" >> committed
    bare = Outcome(cls=OutcomeClass.RATE_LIMIT, replayable=False, signal="429")
    assert not websocket_moves.refused_inside(play.attempts, bare, "gpt-5", play.now)


def test_an_account_forbidden_inside_a_socket_is_asked_last() -> None:
    play = Play("a", "b", facts=SOCKET)
    play >> begin << "send a" >> committed
    assert websocket_moves.refused_inside(play.attempts, FORBIDDEN, "gpt-5", play.now)
    assert (play.benched, play.suspects) == ([], ["a"])


def moved(outcome: Outcome | None, model: str | None = "gpt-5") -> Event:
    return lambda attempts, now: websocket_moves.move(attempts, outcome, model, now)


def test_a_socket_moves_before_anything_was_answered() -> None:
    play = Play("a", "b", "c", facts=SOCKET, strategy="fill-first")
    play >> begin << "send a" >> committed
    play >> moved(MODEL_LIMIT) << "send b"
    # Its handshake is refused there, and breaks at the next: each is a reason to go on.
    play >> moved(quota(600.0)) << "send c" >> moved(None) << None
    assert play.attempts.over
    assert (play.in_flight, play.cooling) == (0, ["b"])
    assert play.pool.accounts.get(key("a")).cooling_until("gpt-5", play.now) > play.now
    assert play.pool.accounts.get(key("c")).cooling_until("gpt-5", play.now) <= play.now


def test_one_model_refused_inside_a_socket_benches_that_one_alone() -> None:
    """What keeps new sockets away meanwhile is not the refusal of a second model."""
    play = Play("a", "b", facts=SOCKET, strategy="fill-first")
    play >> begin << "send a" >> committed
    play.at(5.0) >> moved(UNKNOWN_403) << "send b" >> committed
    state = play.pool.accounts.get(key("a"))
    assert state.cooling_until("gpt-5", play.now) > play.now
    assert state.cooling_until("gpt-4", play.now) <= play.now


def test_a_socket_that_moved_is_served() -> None:
    play = Play("a", "b", facts=SOCKET, strategy="fill-first")
    play >> begin << "send a" >> committed
    play >> moved(MODEL_LIMIT) << "send b" >> committed >> finished
    assert [attempt.outcome.cls for attempt in play.attempts.history if attempt.outcome] == [
        OutcomeClass.RATE_LIMIT,
        OutcomeClass.OK,
    ]
    assert play.in_flight == 0


def test_a_socket_nobody_takes_over_stays_as_it_was() -> None:
    play = Play("a", facts=SOCKET)
    play >> begin << "send a" >> committed
    play >> moved(MODEL_LIMIT) << None
    assert (play.attempts.phase, play.in_flight) == (Phase.COMMITTED, 1)
    assert play.pool.accounts.get(key("a")).cooling_until("gpt-5", play.now) <= play.now
    play >> finished


def test_a_client_that_leaves_while_its_socket_moves() -> None:
    play = Play("a", "b", facts=SOCKET, strategy="fill-first")
    play >> begin << "send a" >> committed
    play >> moved(MODEL_LIMIT) << "send b" >> left
    assert play.in_flight == 0


# -- storms


def test_where_a_herd_goes_requests_follow_one_by_one_in_order() -> None:
    pool = pool_of("a", "b", strategy="fill-first")
    herd = [Play(pool=pool) for _ in range(4)]
    for play in herd:
        play >> begin << "send a"
    first, second, third, fourth = herd
    first >> refused(rate_limit(600.0)) << "send b"
    second >> refused(rate_limit(600.0)) << "wait until 0.25 or change"
    third >> refused(rate_limit(600.0)) << "wait until 30 or change"
    fourth >> refused(rate_limit(600.0)) << "wait until 30 or change"
    # Its answer begins: two may follow, and whoever comes now is behind them.
    first.at(0.1) >> committed
    Play(pool=pool).at(0.1) >> begin << "wait until 30.1 or change"
    third.at(0.1) >> resumed << "send b"
    second.at(0.1) >> resumed << "send b"
    fourth.at(0.1) >> resumed << "wait until 0.25 or change"


def test_who_leaves_gives_back_what_it_was_given_while_it_waited() -> None:
    pool = pool_of(account("a", max_concurrent=1))
    busy, first, second = (Play(pool=pool) for _ in range(3))
    busy >> begin << "send a"
    first >> begin << "wait until 30 or change"
    second >> begin << "wait until 30 or change"
    busy >> committed >> finished
    first.at(1.0) >> left
    second.at(1.0) >> resumed << "send a"
    second >> committed >> finished
    assert pool.accounts.get(key("a")).in_flight == 0


def test_caution_costs_no_answer_when_there_is_no_time_to_wait() -> None:
    pool = pool_of("a", "b", strategy="fill-first")
    pool.health.mark_cooldown(key("a"), rate_limit(600.0), now=0.0)
    Play(pool=pool, max_wait_s=0.0) >> begin << "send b"
    Play(pool=pool, max_wait_s=0.0) >> begin << "send b"


def test_when_all_cool_one_request_a_minute_tries() -> None:
    pool = pool_of("a", "b")
    pool.health.mark_cooldown(key("a"), quota(9000.0), now=0.0)
    pool.health.mark_cooldown(key("b"), quota(8000.0), now=0.0)
    Play(pool=pool).at(59.0) >> begin << "answer 429, 7941 s, like b"
    probing = Play(pool=pool).at(60.0) >> begin << "send b"
    Play(pool=pool).at(60.0) >> begin << "answer 429, 7940 s, like b"
    probing >> refused(quota(7940.0)) << "deliver, 7940 s"
    Play(pool=pool).at(119.0) >> begin << "answer 429, 7881 s, like b"
    healed = Play(pool=pool).at(120.0) >> begin << "send b" >> committed
    assert pool.accounts.get(key("b")).cooldowns == {}
    healed >> finished


# -- how many are held


def test_no_more_are_held_than_may_wait() -> None:
    pool = pool_of(account("a", max_concurrent=1))
    pool.acquire(FACTS, now=0.0)
    waiting = [Play(pool=pool, max_waiting=2) for _ in range(3)]
    for play in waiting[:2]:
        play >> begin << "wait until 30 or change"
    waiting[2] >> begin << "answer 503, 1 s"
    waiting[0] >> left
    again = Play(pool=pool, max_waiting=2)
    again >> begin << "wait until 30 or change"
    # Who waits keeps the place, however many have come since.
    again.at(10.0) >> resumed << "wait until 30 or change"


def test_a_refusal_is_delivered_where_too_many_are_held() -> None:
    play = Play("a", max_waiting=0, max_wait_s=30.0)
    play >> begin >> refused(rate_limit(20.0)) << "deliver, 20 s"


def test_bodies_of_those_that_wait_are_bounded_together() -> None:
    pool = pool_of(account("a", max_concurrent=1))
    pool.acquire(FACTS, now=0.0)
    half = replace(FACTS, body_bytes=MAX_BODY_BYTES // 2)
    first, second, third = (Play(pool=pool, facts=half) for _ in range(3))
    first >> begin << "wait until 30 or change"
    second >> begin << "wait until 30 or change"
    third >> begin << "answer 503, 1 s"
    first >> left
    second >> left
    # Alone, a body waits whatever its size.
    alone = Play(pool=pool, facts=replace(FACTS, body_bytes=2 * MAX_BODY_BYTES))
    alone >> begin << "wait until 30 or change"


def test_a_conversation_does_not_wait_for_its_account_where_too_many_are_held() -> None:
    pool = pool_of(account("a", max_concurrent=1), "b")
    lease = pool.acquire(FACTS, now=0.0)
    assert lease.key == key("a")
    play = Play(pool=pool, max_waiting=0)
    play.attempts.session.sent_to(key("a"), 0.0)
    play >> begin << "send b"


# -- the proxy shuts down


def test_what_is_held_is_told_that_the_proxy_shuts_down() -> None:
    play = Play("a")
    play >> begin << "send a" >> refused(rate_limit(5.0)) << "wait until 5 or change"
    play.at(1.0) >> stopped << "answer 503, 1 s"
    assert isinstance(play.step, Synthesize)
    assert "shutting down" in play.step.message


def test_an_account_that_was_given_to_it_meanwhile_goes_to_another() -> None:
    pool = pool_of(account("a", max_concurrent=1))
    first, second = Play(pool=pool), Play(pool=pool)
    first >> begin << "send a"
    second >> begin << "wait until 30 or change"
    first >> committed << None >> finished << None
    assert pool.accounts.get(key("a")).in_flight == 1
    second >> stopped << "answer 503, 1 s"
    assert pool.accounts.get(key("a")).in_flight == 0


def test_only_what_is_held_can_be_told() -> None:
    play = Play("a")
    play >> begin << "send a"
    with pytest.raises(IllegalEvent):
        play >> stopped
