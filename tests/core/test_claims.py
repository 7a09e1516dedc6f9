"""Who may refresh a login: N proxies, kills at each step, and time that passes.

The proxies follow the protocol and nothing else; the server takes each token once. What a
proxy does with it is tested with the real code, in
tests/credentials/test_refreshable_token_machine.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from account_pool.core.claims import (
    CLAIM_S,
    SENT_S,
    Claim,
    Taken,
    answered,
    ask,
    may_save,
    release,
    send,
)

#: How long an access token lasts here, seconds.
LIFE_S = 1000.0
FREE = Claim()
MINE = Claim(fence=3, owner="me", until=100.0 + CLAIM_S)


def asked(found: Claim, **changes: object) -> Claim | Taken:
    usual = {
        "stored_fence": 0, "token": "rt-1", "now": 100.0, "is_gone": False, "is_over": False
    }  # fmt: skip
    return ask(found, "other", **{**usual, **changes})  # type: ignore[arg-type]


SENT = Claim(fence=3, owner="me", until=100.0 + SENT_S, sent="rt-1")
LEFT = Claim(fence=3, sent="rt-1")


@pytest.mark.parametrize(
    ("found", "changes", "gets"),
    [
        (FREE, {}, 1),
        # The row was lost, the tokens were not.
        (FREE, {"stored_fence": 7}, 8),
        (LEFT, {"stored_fence": 2, "is_over": True}, 4),
        (MINE, {}, Taken(CLAIM_S, False)),
        (MINE, {"now": 100.0 + CLAIM_S}, 4),
        (MINE, {"is_gone": True}, 4),
        # Of before the clock was set back.
        (MINE, {"now": -1000.0}, 4),
        (SENT, {"now": 100.0 + CLAIM_S, "is_over": True}, Taken(SENT_S - CLAIM_S, True)),
        (SENT, {"is_gone": True}, Taken(0.0, True)),
        (SENT, {"is_gone": True, "is_over": True}, 4),
        (SENT, {"is_gone": True, "token": "rt-2"}, 4),
        (SENT, {"now": 100.0 + SENT_S}, Taken(0.0, True)),
        (LEFT, {}, Taken(0.0, True)),
        (LEFT, {"is_over": True}, 4),
        (LEFT, {"token": "rt-2"}, 4),
    ],
)
def test_who_gets_a_claim(found: Claim, changes: dict[str, object], gets: int | Taken) -> None:
    got = asked(found, **changes)
    assert (got.fence if isinstance(got, Claim) else got) == gets


def test_only_the_current_claim_may_send() -> None:
    assert send(MINE, 3, token="rt-1", now=100.0) == SENT
    assert send(MINE, 2, token="rt-1", now=100.0) is None
    assert send(MINE, 3, token="rt-1", now=100.0 + CLAIM_S) is None
    assert send(LEFT, 3, token="rt-1", now=100.0) is None


def test_what_a_claim_leaves() -> None:
    assert release(SENT, 3, unknown=True) == LEFT
    assert release(SENT, 3, unknown=False) == Claim(fence=3)
    assert release(SENT, 2, unknown=False) == SENT
    assert answered(SENT, 3).sent == "" and answered(SENT, 2) == SENT


@dataclass
class Proxy:
    name: str
    claim: int = 0
    token: int = 0
    answer: int | None = None
    state: str = "idle"
    until: float = 0.0
    boots: int = 0

    @property
    def owner(self) -> str:
        return f"{self.name}-{self.boots}"


@dataclass
class World:
    """The store, the server, and the time."""

    now: float = 0.0
    claim: Claim = FREE
    stored: int = 0
    stored_by: int = 0
    ends_at: float = LIFE_S
    newest: int = 0
    #: owners that are dead, where others can know it
    gone: set[str] = field(default_factory=set)


class Shared(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.proxies = [Proxy(name) for name in "abc"]
        #: tokens whose answer was lost with a proxy: nobody has the next one
        self.lost: set[int] = set()
        self.paused = False

    @rule(n=st.integers(0, 2))
    def step(self, n: int) -> None:
        proxy, world = self.proxies[n], self.world
        if proxy.state == "idle":
            got = ask(
                world.claim,
                proxy.owner,
                stored_fence=world.stored_by,
                token=str(world.stored),
                now=world.now,
                is_gone=world.claim.owner in world.gone,
                is_over=world.now >= world.ends_at,
            )
            if isinstance(got, Claim):
                world.claim, proxy.claim, proxy.token = got, got.fence, world.stored
                proxy.state = "claimed"
        elif proxy.state == "claimed":
            sent = send(world.claim, proxy.claim, token=str(proxy.token), now=world.now)
            proxy.state = "idle" if sent is None else "sent"
            if sent is not None:
                world.claim, proxy.until = sent, sent.until
        elif proxy.state == "sent":
            late = world.now >= proxy.until
            self.paused |= late
            self.arrives(proxy, late)
        else:
            self.saves(proxy)

    def arrives(self, proxy: Proxy, late: bool) -> None:
        """The token reaches the server: never a spent one, while somebody has the next."""
        world = self.world
        if proxy.token == world.newest:
            world.newest += 1
            proxy.answer, proxy.state = world.newest, "answered"
            return
        over = world.now >= world.ends_at
        assert self.paused or (proxy.token in self.lost and over)
        world.claim = release(world.claim, proxy.claim, unknown=False)
        proxy.state = "idle"

    def saves(self, proxy: Proxy) -> None:
        world = self.world
        same = world.stored == proxy.token
        if may_save(world.stored_by, proxy.claim, is_same_token=same):
            assert proxy.answer is not None
            world.stored, world.stored_by = proxy.answer, proxy.claim
            world.ends_at = world.now + LIFE_S
            world.claim = answered(world.claim, proxy.claim)
        world.claim = release(world.claim, proxy.claim, unknown=False)
        proxy.state = "idle"

    @rule(n=st.integers(0, 2), is_known=st.booleans())
    def killed(self, n: int, is_known: bool) -> None:
        proxy = self.proxies[n]
        if proxy.state == "answered":
            self.lost.add(proxy.token)
        if is_known:
            self.world.gone.add(proxy.owner)
        proxy.boots += 1
        proxy.state = "idle"

    @rule(n=st.integers(0, 2))
    def gives_up(self, n: int) -> None:
        """No answer came: it was lost on its way, or the server never got the question."""
        proxy, world = self.proxies[n], self.world
        if proxy.state in ("sent", "answered"):
            if proxy.state == "answered":
                self.lost.add(proxy.token)
            world.claim = release(world.claim, proxy.claim, unknown=True)
            proxy.state = "idle"

    @rule()
    def the_row_is_lost(self) -> None:
        """The file was taken away, and whoever made the claims has ended; tokens are known."""
        if self.world.claim.sent == "" and all(proxy.state == "idle" for proxy in self.proxies):
            self.world.claim = FREE

    @rule(seconds=st.sampled_from([1.0, 24.0, 60.0, 400.0, 1100.0]))
    def passes(self, seconds: float) -> None:
        self.world.now += seconds

    @invariant()
    def one_at_a_time(self) -> None:
        live = [p for p in self.proxies if p.state == "sent" and self.world.now < p.until]
        assert len(live) <= 1

    @invariant()
    def nothing_is_lost_but_what_nobody_got(self) -> None:
        holders = {p.answer for p in self.proxies if p.state == "answered"} | {self.world.stored}
        assert self.world.newest in holders or self.lost or self.paused


test_no_order_of_steps_sends_a_token_twice = Shared.TestCase
