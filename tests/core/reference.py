"""A naive picker, written from the words of the issue: it looks at every account."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from account_pool.core.account import Account
from account_pool.core.cooldown import covers
from account_pool.core.headroom import Window
from account_pool.core.lease import RequestFacts
from account_pool.core.pool import Pool
from account_pool.core.selection import MOST_AT_ONCE
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
    asked_at: float = -inf
    forgot_at: float = -inf
    windows: dict[tuple[str, str | None], Window] = field(default_factory=dict)

    def covering(self, model: str | None, now: float) -> list[Window]:
        """The windows that a request for *model* falls under now."""
        return [
            window
            for window in self.windows.values()
            if now < window.expires_at and covers(window.model, model)
        ]

    def observe(self, window: Window, now: float) -> None:
        self.forgot_at = self.forgot(now)
        self.windows[window.name, window.model] = window

    def forget(self, now: float) -> None:
        self.windows.clear()
        self.forgot_at = now

    def forgot(self, now: float) -> float:
        """When a long window was forgotten last."""
        over = [w.reset_at for w in self.windows.values() if w.long and w.reset_at <= now]
        return max([self.forgot_at, *over])

    def spent(self, model: str | None, now: float) -> bool:
        return any(w.share < 0.02 and w.long for w in self.covering(model, now))


def suspect(pool: Pool, member: Member, model: str | None, now: float) -> bool:
    """Say whether a verdict on *member* is open for *model*."""
    verdicts = pool.accounts.get(member.account.key).verdicts
    return any(v.active(now) and covers(model_of, model) for model_of, v in verdicts.items())


class Reference:
    """A pool as the issue words it, looking at every account each time."""

    def __init__(self, strategy: str) -> None:
        self.strategy = strategy
        self.members: dict[str, Member] = {}
        self.clock = 0
        self.added = 0
        #: ring -> (added number of the account served last, turns it has had)
        self.cursor: dict[tuple[bool, bool, int], tuple[int, int]] = {}

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def ready(self, pool: Pool, now: float) -> list[Member]:
        """Those who may be given a request, whatever it is about."""
        found = []
        for member in self.members.values():
            limit = member.account.max_concurrent
            state = pool.accounts.get(member.account.key)
            if (
                state.enabled
                and state.credentials
                and not cooling(state, None, now)
                and (limit is None or member.in_flight < limit)
                and member.next_start_at <= now
            ):
                found.append(member)
        return found

    def pick(self, pool: Pool, facts: RequestFacts, now: float) -> Member | None:
        return self.best(
            pool,
            [
                member
                for member in self.ready(pool, now)
                if facts.kind in pool.accounts.get(member.account.key).credentials
                and member.account.models.allows(facts.model)
                and not cooling(pool.accounts.get(member.account.key), facts.model, now)
                and pool.accounts.get(member.account.key).ramps_admit(facts.model, now)
            ],
            facts.model,
            now,
        )

    def best(
        self, pool: Pool, candidates: list[Member], model: str | None, now: float
    ) -> Member | None:
        if not candidates:
            return None
        # Who may be at fault for a refusal comes after all others, and within each who has
        # used up nearly all of a long window.
        trusted = [member for member in candidates if not suspect(pool, member, model, now)]
        candidates = trusted or candidates
        rested = [member for member in candidates if not member.spent(model, now)]
        candidates = rested or candidates
        if self.strategy == "round-robin":
            rings = {id(member): self.ring(pool, member, now) for member in candidates}
            ring = min(rings.values())
            return self.after_the_cursor([m for m in candidates if rings[id(m)] == ring], ring)
        tier = min(member.account.priority for member in candidates)
        candidates = [member for member in candidates if member.account.priority == tier]
        return min(
            candidates, key=lambda member: (member.passed_over, *self.rank(member, model, now))
        )

    def rank(self, member: Member, model: str | None, now: float) -> tuple[float | str, ...]:
        match self.strategy:
            case "least-busy":
                return (member.in_flight / member.account.weight, member.last_used, member.added)
            case "least-recent":
                return (member.last_used, member.added)
            case "fill-first":
                return (member.in_flight // MOST_AT_ONCE, member.account.label)
            case "soonest-reset":
                long = [
                    (w.length_s or w.reset_at - w.told_at, w.reset_at)
                    for w in self.members_windows(member, model, now)
                ]
                # Whom nothing is known of is asked once, before all others.
                asked = bool(long) or member.forgot(now) <= member.asked_at > -inf
                return (asked, max(long)[1] if long else inf, member.last_used, member.added)
            case "most-headroom":
                told = [(w.share, -w.reset_at) for w in member.covering(model, now)]
                share, reset_at = min([(1.0, -inf), *told])
                return (-share, -reset_at, member.last_used, member.added)
        raise AssertionError(self.strategy)

    @staticmethod
    def members_windows(member: Member, model: str | None, now: float) -> list[Window]:
        """The long windows with a known reset that a request for *model* falls under."""
        return [w for w in member.covering(model, now) if w.long and w.reset_at < inf]

    def ring(self, pool: Pool, member: Member, now: float) -> tuple[bool, bool, int]:
        """Whose turns count together: a tier, or the suspect or nearly spent accounts of one."""
        return (
            suspect(pool, member, None, now),
            member.spent(None, now),
            member.account.priority,
        )

    def after_the_cursor(self, candidates: list[Member], ring: tuple[bool, bool, int]) -> Member:
        cursor, turns = self.cursor.get(ring, (-1, 0))
        for member in candidates:
            if member.added == cursor and turns < member.account.weight:
                return member
        candidates = sorted(candidates, key=lambda member: member.added)
        return next((m for m in candidates if m.added > cursor), candidates[0])

    def use(self, pool: Pool, member: Member, now: float) -> None:
        ring = self.ring(pool, member, now)
        cursor, turns = self.cursor.get(ring, (-1, 0))
        again = cursor == member.added and turns < member.account.weight
        self.cursor[ring] = (member.added, turns + 1 if again else 1)
        member.in_flight += 1
        member.last_used, member.asked_at = self.tick(), now
        member.passed_over = 0
        self.start(member, now)

    def start(self, member: Member, now: float) -> None:
        if member.account.min_interval_s:
            member.next_start_at = now + member.account.min_interval_s
