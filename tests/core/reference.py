"""A naive picker, written from the words of the issue: it looks at every account."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from account_pool.core.account import Account
from account_pool.core.lease import Facts
from account_pool.core.pool import Pool
from tests.core.generated import cooling


@dataclass
class Member:
    """What a naive observer of the pool writes down about one account."""

    account: Account
    added: int
    in_flight: int = 0
    last_used: int = 0
    passed_over: int = 0
    next_start_at: float = -inf
    headroom: float = 1.0
    headroom_reset_at: float = inf


class Reference:
    """A pool as the issue words it, looking at every account each time."""

    def __init__(self, strategy: str) -> None:
        self.strategy = strategy
        self.members: dict[str, Member] = {}
        self.clock = 0
        self.added = 0
        #: priority -> (added number of the account served last, turns it has had)
        self.cursor: dict[int, tuple[int, int]] = {}

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def ready(self, pool: Pool, now: float) -> list[Member]:
        """Those who may be given a request, whatever it is about."""
        found = []
        for member in self.members.values():
            limit = member.account.max_concurrent
            state = pool.get(member.account.key)
            if (
                state.enabled
                and state.credentials
                and not cooling(state, None, now)
                and (limit is None or member.in_flight < limit)
                and member.next_start_at <= now
            ):
                found.append(member)
        return found

    def pick(self, pool: Pool, facts: Facts, now: float) -> Member | None:
        return self.best(
            [
                member
                for member in self.ready(pool, now)
                if facts.kind in pool.get(member.account.key).credentials
                and member.account.models.allows(facts.model)
                and not cooling(pool.get(member.account.key), facts.model, now)
                and pool.get(member.account.key).ramps_admit(facts.model, now)
            ],
            now,
        )

    def best(self, candidates: list[Member], now: float) -> Member | None:
        if not candidates:
            return None
        tier = min(member.account.priority for member in candidates)
        candidates = [member for member in candidates if member.account.priority == tier]
        if self.strategy == "round-robin":
            return self.after_the_cursor(candidates, tier)
        return min(candidates, key=lambda member: (member.passed_over, *self.rank(member, now)))

    def rank(self, member: Member, now: float) -> tuple[float | str, ...]:
        match self.strategy:
            case "least-busy":
                return (member.in_flight / member.account.weight, member.last_used, member.added)
            case "least-recent":
                return (member.last_used, member.added)
            case "fill-first":
                return (member.account.label,)
            case "most-headroom":
                known = now < member.headroom_reset_at
                share = member.headroom if known else 1.0
                reset_at = member.headroom_reset_at if known else inf
                return (-share, reset_at, member.last_used, member.added)
        raise AssertionError(self.strategy)

    def after_the_cursor(self, candidates: list[Member], tier: int) -> Member:
        cursor, turns = self.cursor.get(tier, (-1, 0))
        for member in candidates:
            if member.added == cursor and turns < member.account.weight:
                return member
        candidates = sorted(candidates, key=lambda member: member.added)
        return next((m for m in candidates if m.added > cursor), candidates[0])

    def use(self, member: Member, now: float) -> None:
        tier = member.account.priority
        cursor, turns = self.cursor.get(tier, (-1, 0))
        again = cursor == member.added and turns < member.account.weight
        self.cursor[tier] = (member.added, turns + 1 if again else 1)
        member.in_flight += 1
        member.last_used = self.tick()
        member.passed_over = 0
        self.start(member, now)

    def start(self, member: Member, now: float) -> None:
        if member.account.min_interval_s:
            member.next_start_at = now + member.account.min_interval_s
