"""Whose fault is a refusal? The promises of docs/why.md, whatever accounts answer.

Each account has a fate: it serves, or refuses everything in one way. Clients send request
after request, and everything between is carried out as the shell does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from account_pool.core import reactions
from account_pool.core.account import Account
from account_pool.core.attempts import Attempts
from account_pool.core.cooldown import MAX_VERDICTS, VERDICT_S
from account_pool.core.decisions import By, Kind
from account_pool.core.lease import Conversation, RequestFacts
from account_pool.core.members import MAX_ASKED, MAX_REMEMBERED, RecentFailures
from account_pool.core.outcome import Outcome
from account_pool.core.pool import Pool
from account_pool.core.selection import POLICIES
from account_pool.core.sessions import Pins, Sessions, session_lease_of
from account_pool.core.steps import Deliver, Limits, Phase, Refresh, Send, Step, Synthesize, Wait
from tests.core.helpers import (
    EXPIRED,
    FACTS,
    FORBIDDEN,
    FORBIDDEN_MODEL,
    INVALID_KEY,
    OK,
    PROVIDER,
    REQUEST_ERROR,
    UNAUTHORIZED,
    UNKNOWN_401,
    UNKNOWN_402,
    UNKNOWN_403,
    account,
    key,
    keys_of,
    pool_of,
    quota,
)

#: Every way in which an answer blames an account or its credential.
BLAMES = [
    UNAUTHORIZED,
    EXPIRED,
    INVALID_KEY,
    UNKNOWN_401,
    UNKNOWN_402,
    UNKNOWN_403,
    FORBIDDEN,
    FORBIDDEN_MODEL,
]
GOOD = OK


@dataclass
class World:
    """A pool whose accounts have fates, and the clock."""

    pool: Pool
    fates: dict[str, Outcome]
    limits: Limits = field(default_factory=Limits)
    sessions: Sessions = field(default_factory=Sessions)
    now: float = 0.0

    @classmethod
    def of(cls, fates: Mapping[str, Outcome], strategy: str = "round-robin") -> World:
        return cls(pool_of(*fates, strategy=strategy), dict(fates))

    def request(self, facts: RequestFacts = FACTS) -> Request:
        """Send one request and see what becomes of it."""
        attempts = Attempts(
            pool=self.pool,
            facts=facts,
            limits=self.limits,
            chance=lambda: 0.5,
            session=session_lease_of(facts, self.sessions, Pins(), self.now),
        )
        step: Step | None = attempts.begin(self.now)
        while step is not None and attempts.phase is not Phase.OVER:
            step = self.carried_out(attempts, step)
        asked = [attempt.key.label for attempt in attempts.history]
        served = attempts.history[-1].outcome == OK if attempts.history else False
        return Request(served, asked, step)

    def carried_out(self, attempts: Attempts, step: Step) -> Step | None:
        match step:
            case Send(lease):
                fate = self.fates[lease.key.label]
                if fate is not GOOD:
                    return reactions.refused(attempts, fate, self.now)
                attempts.committed(self.now)
                attempts.finished(self.now)
                return None
            case Wait(until):
                self.now = max(self.now, until)
                return attempts.resumed(self.now)
            case Refresh():
                return reactions.refreshed(attempts, False, self.now)
            case Deliver() | Synthesize():
                return step

    def labels(self, *, disabled: bool = False, benched: bool = False) -> set[str]:
        return {
            state.key.label
            for state in self.pool.accounts
            if (disabled and state.disabled is not None)
            or (benched and any(c.active(self.now) for c in state.cooldowns.values()))
        }


@dataclass
class Request:
    """What became of one: whether it was served, whom it was sent to, its last step."""

    served: bool
    asked: list[str]
    step: Step | None


conversations = st.sampled_from([Conversation(), Conversation(session="s")])
blamed = st.sampled_from(BLAMES)


# -- a good account is asked


@pytest.mark.parametrize("blame", BLAMES, ids=lambda b: f"{b.signal}, unknown={b.unknown}")
@pytest.mark.parametrize("strategy", POLICIES)
def test_two_dead_accounts_before_a_good_one(strategy: str, blame: Outcome) -> None:
    world = World.of({"a": blame, "b": blame, "c": GOOD}, strategy)
    first = world.request()
    assert first.served
    # What stands in a conversation's way once does not stand there again.
    for _ in range(5):
        assert world.request().asked == ["c"]


@pytest.mark.parametrize("blame", BLAMES, ids=lambda b: f"{b.signal}, unknown={b.unknown}")
def test_a_witness_decides_as_the_evidence_allows(blame: Outcome) -> None:
    world = World.of({"a": blame, "b": GOOD}, "fill-first")
    assert world.request().asked == ["a", "b"]
    state = world.pool.accounts.get(key("a"))
    assert state.verdicts == {}
    known = not blame.unknown and blame is not FORBIDDEN_MODEL
    assert (state.disabled is not None) is known
    if not known:
        (cooldown,) = state.cooldowns.values()
        assert cooldown.model == FACTS.model
        assert cooldown.cause.unknown is blame.unknown
    (made,) = [d for d in world.pool.decisions if d.by is By.WITNESS]
    assert made.cause is not None
    assert made.cause.signal == blame.signal


#: Accounts, one of which is good: (fate, priority) of each.
one_good = st.builds(
    lambda fates, at, tiers: list(zip([*fates[:at], GOOD, *fates[at:]], tiers, strict=False)),
    st.lists(blamed, max_size=24),
    st.integers(0, 24),
    st.lists(st.integers(0, 2), min_size=25, max_size=25),
)


@given(one_good, st.sampled_from(list(POLICIES)), conversations, st.integers(2, 10))
def test_with_one_good_account_no_refusal_about_an_account_is_final(
    members: list[tuple[Outcome, int]], strategy: str, conversation: Conversation, attempts: int
) -> None:
    """On the first request where attempts suffice, else after so many retries as it takes."""
    named = {f"a{n:02}": fate for n, (fate, _) in enumerate(members)}
    accounts = [account(f"a{n:02}", priority=tier) for n, (_, tier) in enumerate(members)]
    world = World(pool_of(*accounts, strategy=strategy), named, Limits(max_attempts=attempts))
    facts = replace(FACTS, conversation=conversation)
    for _ in range(3):
        asked: list[str] = []
        for _ in range(ceil(len(members) / attempts)):
            request = world.request(facts)
            asked += request.asked
            if request.served:
                break
        assert request.served
        # The memory: nobody is asked twice before all were.
        assert len(set(asked)) == len(asked)


@given(
    st.lists(blamed, min_size=1, max_size=9),
    st.lists(st.sampled_from([0.0, 1.0, 59.0, 301.0, 601.0, 4000.0]), max_size=12),
    conversations,
)
def test_dead_accounts_never_stand_in_the_way(
    fates: list[Outcome], pauses: list[float], conversation: Conversation
) -> None:
    world = World.of({f"a{n}": fate for n, fate in enumerate(fates)} | {"good": GOOD})
    facts = replace(FACTS, conversation=conversation)
    for pause in pauses:
        assert world.request(facts).served
        world.now += pause


# -- what all refuse


@given(
    fates=st.lists(blamed, min_size=1, max_size=9),
    strategy=st.sampled_from(list(POLICIES)),
    conversation=conversations,
)
def test_what_all_refuse_disables_nobody(
    fates: list[Outcome], strategy: str, conversation: Conversation
) -> None:
    named = {f"a{n}": fate for n, fate in enumerate(fates)}
    world, facts = World.of(named, strategy), replace(FACTS, conversation=conversation)
    request = world.request(facts)
    assert sorted(request.asked) == sorted(named)
    assert isinstance(request.step, Deliver)
    assert world.labels(disabled=True) == set()
    assert world.labels(benched=True) == {x for x, fate in named.items() if fate is INVALID_KEY}
    # It was the request's fault: nobody is asked later for it.
    assert not any(state.verdicts for state in world.pool.accounts)


@given(
    fates=st.lists(blamed, min_size=1, max_size=6),
    pauses=st.lists(st.sampled_from([0.0, 1.0, 30.0, 299.0, 301.0, 90000.0]), max_size=12),
    strategy=st.sampled_from(list(POLICIES)),
    conversation=conversations,
)
def test_no_sequence_turns_the_last_refusal_into_a_local_one(
    fates: list[Outcome], pauses: list[float], strategy: str, conversation: Conversation
) -> None:
    """While nobody serves, every request goes upstream, and its own refusal comes back."""
    world = World.of({f"a{n}": fate for n, fate in enumerate(fates)}, strategy)
    facts = replace(FACTS, conversation=conversation)
    for pause in [*pauses, 0.0]:
        request = world.request(facts)
        assert request.asked
        assert isinstance(request.step, Deliver)
        world.now += pause


@given(
    fates=st.lists(blamed, min_size=1, max_size=8),
    healed=st.integers(0, 7),
    conversation=conversations,
)
def test_who_serves_again_is_found_within_the_clients_retries(
    fates: list[Outcome], healed: int, conversation: Conversation
) -> None:
    """All refused, some are benched, and then one of them is in order: it is asked in turn."""
    named = {f"a{n}": fate for n, fate in enumerate(fates)}
    world, facts = World.of(named), replace(FACTS, conversation=conversation)
    world.request(facts)
    world.fates[f"a{healed % len(fates)}"] = GOOD
    assert any(world.request(facts).served for _ in named)
    assert world.request(facts).served


@pytest.mark.parametrize("blame", BLAMES, ids=lambda b: f"{b.signal}, unknown={b.unknown}")
def test_what_all_refused_costs_one_attempt_for_a_minute(blame: Outcome) -> None:
    world = World.of(dict.fromkeys("abc", blame))
    mine = replace(FACTS, conversation=Conversation(session="mine"))
    other = replace(FACTS, conversation=Conversation(session="other"))
    assert len(world.request(mine).asked) == 3
    assert [len(world.request(mine).asked) for _ in range(3)] == [1, 1, 1]
    assert not any(state.verdicts for state in world.pool.accounts)
    # Another conversation is another request.
    assert len(world.request(other).asked) == 3
    world.now += 60.0
    assert len(world.request(mine).asked) == 3


def test_where_there_is_no_conversation_model_and_path_tell_it() -> None:
    world = World.of(dict.fromkeys("ab", UNKNOWN_403))
    chat = replace(FACTS, path="/v1/chat/completions")
    assert len(world.request(chat).asked) == 2
    assert len(world.request(chat).asked) == 1
    assert len(world.request(replace(chat, path="/v1/responses")).asked) == 2
    assert len(world.request(replace(chat, model="gpt-6")).asked) == 2


def test_retries_of_what_all_refused_ask_another_each_time() -> None:
    world = World.of(dict.fromkeys("abc", UNKNOWN_401), "fill-first")
    world.request()
    assert [world.request().asked for _ in range(3)] == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize(
    "change",
    [
        lambda pool: pool.accounts.add(account("new"), keys_of("new"), now=1.0),
        lambda pool: pool.accounts.renewed(key("a"), now=1.0),
        lambda pool: pool.accounts.clear_cooldown(key("a"), now=1.0),
        lambda pool: pool.accounts.enable(key("a"), now=1.0),
        lambda pool: pool.accounts.replace(account("a", priority=1), now=1.0),
        lambda pool: pool.accounts.set_credentials(key("a"), keys_of("new"), now=1.0),
    ],
)
def test_what_may_help_ends_that_memory(change) -> None:  # type: ignore[no-untyped-def]
    world = World.of(dict.fromkeys("ab", UNAUTHORIZED))
    world.request()
    change(world.pool)
    assert world.pool.failures(PROVIDER).tried_since(FACTS, 1.0) is None


# -- "all" means each that could be asked now


@pytest.mark.parametrize(
    "keep_out",
    [
        lambda w: w.pool.health.mark_cooldown(key("b"), quota(4000.0), now=0.0),
        lambda w: w.pool.acquire(FACTS, now=0.0, only=key("b")),
        lambda w: w.pool.accounts.set_credentials(key("b"), {}, now=0.0, pending=True),
    ],
    ids=["on cooldown", "full", "without a credential yet"],
)
@pytest.mark.parametrize("blame", BLAMES, ids=lambda b: f"{b.signal}, unknown={b.unknown}")
def test_who_cannot_be_asked_now_leaves_the_verdict_open(blame: Outcome, keep_out) -> None:  # type: ignore[no-untyped-def]
    world = World(
        pool_of("a", account("b", max_concurrent=1)),
        {"a": blame, "b": GOOD},
        Limits(max_wait_s=0.0),
    )
    keep_out(world)
    request = world.request()
    assert request.asked == ["a"]
    assert world.labels(disabled=True) == set()
    assert world.pool.accounts.get(key("a")).is_suspect(FACTS.model)
    assert world.pool.failures(PROVIDER).tried_since(FACTS, 0.0) is None
    assert world.pool.failures(PROVIDER).tried_since(FACTS, 0.0, missing_model=True) is None


@pytest.mark.parametrize(
    "who", [account("b", enabled=False), account("b", "!gpt-5")], ids=["disabled", "other models"]
)
def test_who_is_not_there_for_it_is_not_missed(who: Account) -> None:
    world = World(pool_of("a", who), {"a": UNKNOWN_403, "b": GOOD})
    world.request()
    assert world.pool.failures(PROVIDER).tried_since(FACTS, 0.0) is not None
    assert not world.pool.accounts.get(key("a")).is_suspect(FACTS.model)


def test_attempts_that_run_out_leave_verdicts_open() -> None:
    world = World.of(dict.fromkeys("abcd", UNKNOWN_403))
    world.limits = Limits(max_attempts=2)
    assert world.request().asked == ["a", "b"]
    assert world.pool.accounts.get(key("a")).is_suspect(FACTS.model)
    assert world.request().asked == ["c", "d"]


def test_a_verdict_closes_after_ten_minutes_or_when_the_account_serves() -> None:
    world = World.of({"a": UNKNOWN_403, "b": REQUEST_ERROR}, "fill-first")
    assert world.request().asked == ["a", "b"]
    assert world.request().asked == ["b"]
    world.now = VERDICT_S
    assert world.request().asked == ["a", "b"]
    world.fates |= {"a": GOOD, "b": quota(9000.0)}
    assert world.request().asked == ["b", "a"]
    assert not world.pool.accounts.get(key("a")).verdicts


def test_an_older_verdict_outlives_a_request_that_all_refuse() -> None:
    world = World.of({"a": UNKNOWN_403, "b": REQUEST_ERROR})
    world.request()
    world.fates["b"] = UNKNOWN_403
    assert sorted(world.request().asked) == ["a", "b"]
    assert [s.is_suspect(FACTS.model) for s in world.pool.accounts] == [True, False]


def test_requests_side_by_side_that_all_refuse_leave_no_verdict_behind() -> None:
    world = World.of(dict.fromkeys("ab", UNKNOWN_403))
    twins = [Attempts(pool=world.pool, facts=FACTS, limits=Limits(), chance=float) for _ in "12"]
    for attempts in twins:
        attempts.begin(0.0)
    # Each is told by one account, then by the other.
    for _ in range(2):
        for attempts in twins:
            reactions.refused(attempts, UNKNOWN_403, 0.0)
    assert all(attempts.over for attempts in twins)
    assert not any(state.verdicts for state in world.pool.accounts)


def test_a_model_that_nobody_names_opens_no_verdict() -> None:
    world = World.of({"a": FORBIDDEN_MODEL, "b": REQUEST_ERROR})
    world.request(replace(FACTS, model=None))
    assert not world.pool.accounts.get(key("a")).verdicts


# -- how far it reaches


def test_what_was_not_understood_covers_the_model_then_the_account() -> None:
    world = World.of({"a": UNKNOWN_403, "b": GOOD}, "fill-first")
    other = replace(FACTS, model="gpt-6")
    world.request()
    assert set(world.pool.accounts.get(key("a")).cooldowns) == {"gpt-5"}
    assert world.request(other).asked == ["a", "b"]
    assert set(world.pool.accounts.get(key("a")).cooldowns) == {"gpt-5", None}
    assert world.request(replace(FACTS, model="gpt-7")).asked == ["b"]


def test_an_account_that_serves_something_is_not_benched_as_a_whole() -> None:
    world = World.of({"a": UNKNOWN_403, "b": GOOD}, "fill-first")
    world.request()
    world.now = 1.0
    world.fates["a"] = GOOD
    assert world.request(replace(FACTS, model="gpt-6")).asked == ["a"]
    world.fates["a"] = UNKNOWN_403
    world.request(replace(FACTS, model="gpt-7"))
    assert set(world.pool.accounts.get(key("a")).cooldowns) == {"gpt-5", "gpt-7"}


def test_benches_double_while_the_account_does_not_serve() -> None:
    world = World.of({"a": UNKNOWN_403, "b": GOOD}, "fill-first")
    waits = []
    for _ in range(10):
        world.request()
        until = world.pool.accounts.get(key("a")).cooling_until(FACTS.model, world.now)
        waits.append((until - world.now) / 60)
        world.now = until
    assert waits == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 1440]


# -- no witness


def test_a_request_for_what_is_stored_on_one_account_is_no_witness() -> None:
    """Whoever did not make it refuses it, and is in order."""
    facts = replace(FACTS, conversation=Conversation(named=("file-1",)))
    for blame in BLAMES:
        world = World.of({"a": blame, "b": GOOD}, "fill-first")
        assert world.request(facts).asked == ["a", "b"]
        assert world.labels(disabled=True) == set()
        assert world.labels(benched=True) == ({"a"} if blame is INVALID_KEY else set())
        if blame is not INVALID_KEY:
            assert world.request().asked == ["a", "b"]


@pytest.mark.parametrize("outcome", [REQUEST_ERROR, replace(REQUEST_ERROR, unknown=True)])
def test_a_400_benches_nobody_and_costs_one_attempt(outcome: Outcome) -> None:
    world = World.of({"a": outcome, "b": GOOD}, "fill-first")
    assert world.request().asked == ["a"]
    assert world.labels(disabled=True, benched=True) == set()
    assert not world.pool.accounts.get(key("a")).verdicts


# -- a changed credential


@pytest.mark.parametrize("blame", [UNAUTHORIZED, EXPIRED, INVALID_KEY, UNKNOWN_401])
@pytest.mark.parametrize("witness", [GOOD, REQUEST_ERROR, UNKNOWN_403])
def test_a_changed_credential_ends_what_a_401_led_to(blame: Outcome, witness: Outcome) -> None:
    world = World.of({"a": blame, "b": witness}, "fill-first")
    world.request()
    state = world.pool.accounts.get(key("a"))
    was = state.disabled, dict(state.cooldowns), dict(state.verdicts)
    world.pool.accounts.set_credentials(key("a"), keys_of("a"), now=1.0)  # the same again
    assert (state.disabled, state.cooldowns, state.verdicts) == was
    world.pool.accounts.set_credentials(key("a"), keys_of("new"), now=2.0)
    assert state.enabled
    assert not state.verdicts
    assert state.cooling_until(FACTS.model, world.now) <= world.now
    world.fates["a"] = GOOD
    assert world.request().asked == ["a"]


def test_a_credential_that_served_or_was_renewed_a_moment_ago_is_not_renewed() -> None:
    world = World.of({"a": GOOD})
    world.request()
    refused(world.pool, UNAUTHORIZED, 59.0, Deliver)
    renewed = refused(world.pool, UNAUTHORIZED, 60.0, Refresh)
    world.pool.accounts.set_credentials(key("a"), keys_of("new"), now=60.0)
    assert isinstance(reactions.refreshed(renewed, True, 60.0), Send)
    renewed.left(61.0)
    refused(world.pool, UNAUTHORIZED, 119.0, Deliver)
    refused(world.pool, UNAUTHORIZED, 120.0, Refresh)


def test_a_token_that_says_it_has_expired_is_renewed_though_it_served() -> None:
    world = World.of({"a": GOOD})
    world.request()
    refused(world.pool, EXPIRED, 1.0, Refresh)


def refused(pool: Pool, outcome: Outcome, now: float, then: type[Step]) -> Attempts:
    """Send a request at *now* and refuse it; see what its next step is."""
    attempts = Attempts(pool=pool, facts=FACTS, limits=Limits(), chance=lambda: 0.5)
    attempts.begin(now)
    assert isinstance(reactions.refused(attempts, outcome, now), then)
    return attempts


# -- told, and bounded


def test_every_verdict_has_a_record_with_its_cause_and_its_end() -> None:
    world = World.of({"a": UNKNOWN_403, "b": GOOD}, "fill-first")
    world.request()
    records = {d.kind: d for d in world.pool.decisions}
    suspect, bench = records[Kind.SUSPECT], records[Kind.COOLDOWN]
    assert suspect.cause is not None
    assert (suspect.cause.unknown, suspect.covers, suspect.until) == (True, "gpt-5", VERDICT_S)
    assert suspect.released_by is By.WITNESS
    assert (bench.by, bench.covers) == (By.WITNESS, "gpt-5")


def test_verdicts_are_bounded_per_account() -> None:
    world = World.of({"a": UNKNOWN_403, "b": REQUEST_ERROR})
    for n in range(3 * MAX_VERDICTS):
        world.now += 1.0
        world.request(replace(FACTS, model=f"gpt-{n}"))
        assert len(world.pool.accounts.get(key("a")).verdicts) <= MAX_VERDICTS
    newest = sorted(v.since for v in world.pool.accounts.get(key("a")).verdicts.values())
    assert newest[0] > world.now - 3 * MAX_VERDICTS


def test_what_all_refused_is_bounded() -> None:
    failures = RecentFailures()
    requests = [replace(FACTS, path=f"/{n}") for n in range(2 * MAX_REMEMBERED)]
    for n, facts in enumerate(requests):
        failures.refused_by_all(facts, float(n))
    kept = [facts for facts in requests if failures.tried_since(facts, 0.0) is not None]
    assert kept == requests[MAX_REMEMBERED:]
    asked = failures.tried_since(kept[-1], 0.0)
    assert asked is not None
    asked.extend(key(str(n)) for n in range(2 * MAX_ASKED))
    assert len(asked) == MAX_ASKED
