"""Proxies that share a login in an engine: no order of their steps, and no fault, loses it.

The engine is one in memory that does what `functions/tokens.lua` does, so that its clock, its
faults and what it forgets are the test's. It is held to the real ones below.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from tests.credentials import test_refreshable_token_machine as machine
from tests.credentials.fakes import FakeClock
from tests.patience import tries
from tests.store.places import KEY, SOME
from tests.store.servers import Server

from account_pool.store.fleet.engine import Engine
from account_pool.store.fleet.token_rows import Keyring, TokenRows
from account_pool.store.fleet.tokens import SETTLE_S, FleetTokens, Unsaved
from account_pool.store.pool_state import Address, parse
from account_pool.store.store import StoreError, TokenStore


@dataclass
class MemoryEngine:
    """What is in an engine."""

    clock: FakeClock
    rows: dict[str, bytes] = field(default_factory=dict)
    run: str = "run"
    address: Address = field(default_factory=lambda: parse("redis://localhost/"))
    away: bool = False
    #: the next write is done, and not answered
    silent: bool = False
    #: how long answers are on their way, seconds
    late_s: float = 0.0

    def now(self) -> float:
        return self.clock.now

    def key(self, name: str) -> str:
        return name

    def call(
        self, function: str, *args: str | bytes, keys: Sequence[str] = (), lasting: bool = False
    ) -> Any:
        assert function == "swap"
        if self.away:
            raise StoreError("the state engine cannot be reached")
        given = [arg.encode() if isinstance(arg, str) else arg for arg in args]
        found = [self.rows.get(key, b"") for key in keys]
        done = bool(given) and found == given[1 : 1 + len(keys)]
        done = done and (not given[0] or self.clock.now <= float(given[0]))
        if done:
            for at, key in enumerate(keys):
                found[at] = self.rows[key] = given[1 + len(keys) + at] or found[at]
            self.rows = {key: row for key, row in self.rows.items() if row}
            if self.silent:
                self.silent = False
                raise StoreError("the state engine does not answer in time")
        now = f"{self.clock.now:.6f}".encode()
        self.clock.now += self.late_s
        return [now, self.run.encode(), int(done), *found]


class Proxy(machine.Proxy):
    def __init__(self, engine: MemoryEngine, *how: Any) -> None:
        self.engine = engine
        super().__init__(*how)

    def open_store(self) -> TokenStore:
        return FleetTokens(
            cast(Engine, self.engine),
            Keyring.read(KEY),
            Unsaved(self.path, "pool"),
            wall_clock=self.wall,
            is_gone=self.gone.__contains__,
        )


class SharedLogin(machine.SharedLogin):
    def make_proxies(self, folder: Path, gone: set[str]) -> list[machine.Proxy]:
        self.engine = MemoryEngine(self.clock)
        made: list[machine.Proxy] = [
            Proxy(self.engine, folder / str(n), self.server, self.clock, gone, skew)
            for n, skew in enumerate(machine.SKEWS)
        ]
        made[0].store.keep()
        self.clock.now += SETTLE_S
        self.is_anew = False
        return made

    @rule()
    def a_reply_is_lost(self) -> None:
        self.engine.silent = True

    @rule(n=machine.PROXIES, steps=st.integers(2, 5))
    def several_steps(self, n: int, steps: int) -> None:
        for _ in range(steps):
            self.next_step(n)

    @rule(n=machine.PROXIES, is_killed=st.booleans())
    def a_step_while_the_engine_is_away(self, n: int, is_killed: bool) -> None:
        """Then the proxy may be killed: what it had is on its disk."""
        self.notice()
        self.engine.away = True
        self.next_step(n)
        if is_killed and self.proxies[n].state != "answered":
            self.proxies[n].kill()
        self.engine.away = False

    @rule(forgets=st.booleans())
    @precondition(lambda self: self.is_known())
    def the_engine_begins_anew(self, forgets: bool) -> None:
        """With what it had, or with nothing."""
        self.engine.run = uuid.uuid4().hex
        self.engine.silent = False
        if forgets:
            self.engine.rows.clear()
        self.is_anew = True

    def notice(self) -> None:
        """Have all proxies notice that: it takes them less than SETTLE_S."""
        if self.is_anew:
            self.engine.silent = self.is_anew = False
            for proxy in self.proxies:
                proxy.store.keep()

    @rule(n=machine.PROXIES, is_known=st.booleans())
    def killed(self, n: int, is_known: bool) -> None:
        self.notice()
        super().killed(n, is_known)

    @rule(seconds=st.sampled_from([1.0, 9.0, 61.0, 701.0]))
    @precondition(lambda self: all(p.state != "answered" for p in self.proxies))
    def time_passes(self, seconds: float) -> None:
        self.notice()
        for proxy in self.proxies:
            # What could not be saved is tried again every few seconds.
            if proxy.state == "idle":
                self.engine.silent = False
                proxy.store.keep()
        super().time_passes(seconds)

    def is_known(self) -> bool:
        """Say whether the proxies know what the engine has: else nobody can put it back."""
        rows = TokenRows(cast(Engine, self.engine), Keyring.read(KEY))
        family = machine.SOURCE.family()
        stores = [cast(FleetTokens, proxy.store) for proxy in self.proxies]
        tokens = rows.tokens_of(family, self.engine.rows.get(f"tokens:{family}", b""))
        claim = rows.claim_of(family, self.engine.rows.get(f"claim:{family}", b""))
        return any(
            store._claims.get(family) == claim
            and (tokens is None or store._tokens.get(family, (None, -1))[1] == tokens[1])
            for store in stores
        )

    def teardown(self) -> None:
        if hasattr(self, "proxies"):
            self.engine.silent = False
            for proxy in self.proxies:
                while proxy.state != "idle":
                    proxy.go_on()
                proxy.thread_ended()
                proxy.store.keep()
            self.clock.now += 1000
        super().teardown()


SharedLogin.TestCase.settings = settings(
    machine.SETTINGS, max_examples=tries(100), stateful_step_count=50
)
test_no_order_of_steps_and_no_fault_loses_the_login = SharedLogin.TestCase


def test_an_answer_that_was_long_on_its_way_moves_no_time(tmp_path: Path) -> None:
    engine = MemoryEngine(FakeClock())
    store = FleetTokens(
        cast(Engine, engine),
        Keyring.read(KEY),
        Unsaved(tmp_path, "pool"),
        wall_clock=engine.clock,
    )
    store.save("family", SOME)
    engine.late_s = 0.65
    assert store.load("family") == SOME
    assert store.load("family") == SOME


_ROW = st.sampled_from([b"", b"a", b"b", b"\xff\x00"])


@settings(max_examples=tries(30))
@given(
    swaps=st.lists(
        st.tuples(
            st.lists(_ROW, min_size=2, max_size=2),
            st.lists(_ROW, min_size=2, max_size=2),
            st.sampled_from(["", "past", "future"]),
        ),
        max_size=12,
    )
)
def test_the_engine_in_memory_is_as_the_real_ones(
    shared_servers: Any, swaps: list[tuple[list[bytes], list[bytes], str]]
) -> None:
    server: Server = shared_servers("valkey")
    clock = FakeClock(0.0)
    with contextlib.closing(server.engine()) as real:
        memory = MemoryEngine(clock)
        keys = [real.key("x"), real.key("y")]
        for before, new, late in swaps:
            limit = {"": "", "past": "1.0", "future": "99999999999.0"}[late]
            clock.now = 2.0
            ours = memory.call("swap", limit, *before, *new, keys=keys)
            theirs = real.call("swap", limit, *before, *new, keys=keys)
            assert ours[2:] == theirs[2:]
            assert memory.call("swap", keys=keys)[2:] == real.call("swap", keys=keys)[2:]
