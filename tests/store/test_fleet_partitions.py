"""Several proxies on one engine, whose writes are lost, or come late, in any order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.patience import tries
from tests.store.backends import WALL, EngineBackend
from tests.store.samples import CAUSE, COOLS, HOME, UNKNOWN, WORK
from tests.store.servers import KINDS

from account_pool.core.account import AccountKey
from account_pool.core.cooldown import Endings
from account_pool.core.shares import Ask
from account_pool.core.snapshot import AccountSnapshot, DisablingSnapshot
from account_pool.store.store import GRACE_S, Numbered, Row, StateStore, StoreError, TableChanges

PROXIES = 3
LIMIT = 4
Fault = Literal["", "unsent", "lost", "late"]


class Lossy:
    """An engine as one proxy reaches it: what it writes may not arrive, or not be answered."""

    def __init__(self, engine: Any) -> None:
        self.address = engine.address
        self.close, self.now = engine.close, engine.now
        self.fault: Fault = ""
        self.late: list[Callable[[], object]] = []
        self._engine = engine

    def call(self, name: str, *args: Any) -> Any:
        fault = self.fault
        if not fault or (name == "reap" and args[1]):
            return self._engine.call(name, *args)
        if fault == "lost":
            self._engine.call(name, *args)
        elif fault == "late":
            self.late.append(lambda: self._engine.call(name, *args))
        raise StoreError("no answer")


@dataclass
class Proxy:
    """What `Persistence` makes of a store, without threads."""

    state: StateStore
    engine: Lossy
    name: str
    accounts: dict[AccountKey, AccountSnapshot] = field(
        default_factory=lambda: {key: replace(UNKNOWN, key=key) for key in (WORK, HOME)}
    )
    #: as it is here, and as the store has it
    lines: dict[str, Row] = field(default_factory=dict)
    written: dict[str, Row] = field(default_factory=dict)
    counted: int = 0
    #: the batch that may be in the store, and what is in it
    batch: int = 0
    taken: int = 0
    slots: int = 0
    beat_at: float = WALL

    def write(self, now: float) -> None:
        if not self.taken and self.counted:
            self.batch, self.taken, self.counted = self.batch + 1, self.counted, 0
        rows = [row for key, row in self.lines.items() if self.written.get(key) != row]
        gone = {key: row[2] for key, row in self.written.items() if key not in self.lines}
        saved = self.state.exchange(
            self.accounts.values(),
            wall_now=now,
            lines={"sessions": TableChanges(rows, gone)},
            counts={"usage": {("a",): {"requests": self.taken}}} if self.taken else None,
            batch=Numbered(self.name, self.batch) if self.taken else None,
        )
        self.accounts = {account.key: account for account in saved.accounts}
        self.written = dict(self.lines)
        self.taken = 0

    def look(self, now: float) -> None:
        found = self.state.changed(wall_now=now)
        for row in found.lines.get("sessions", ()):
            self.written[row[0]] = row
            if row[0] not in self.lines or self.lines[row[0]][2] <= row[2]:
                self.lines[row[0]] = row
        for key, used_at in found.gone.get("sessions", {}).items():
            self.written.pop(key, None)
            if key in self.lines and self.lines[key][2] <= used_at:
                del self.lines[key]

    def beat(self, now: float) -> None:
        if not self.state.beat({}, wall_now=now):
            self.slots = 0
        self.beat_at = now

    def ask(self, wants: int, now: float) -> None:
        # What is given up is not used any more, whatever becomes of the question.
        self.slots = min(self.slots, wants)
        ask = Ask(LIMIT, self.slots, wants)
        self.slots = self.state.share({WORK: ask}, wall_now=now)[WORK].slots


PROXY = st.integers(0, PROXIES - 1)
KEY = st.sampled_from([WORK, HOME])
LINE = st.sampled_from(["a", "b"])
FAULT: st.SearchStrategy[Fault] = st.sampled_from(["", "unsent", "lost", "late"])
STEP = st.one_of(
    st.tuples(st.just("serve"), PROXY, KEY),
    st.tuples(st.sampled_from(["cool", "release", "disable", "clear"]), PROXY, KEY),
    st.tuples(st.sampled_from(["bind", "end"]), PROXY, LINE),
    st.tuples(st.just("write"), PROXY, FAULT),
    st.tuples(st.just("write"), PROXY, FAULT),
    st.tuples(st.just("look"), PROXY, FAULT),
    st.tuples(st.just("ask"), PROXY, st.tuples(st.integers(0, LIMIT), FAULT)),
    st.tuples(st.just("beat"), PROXY, FAULT),
    st.tuples(st.just("arrive"), PROXY, st.none()),
    st.tuples(st.just("wait"), PROXY, st.sampled_from([1.0, 6.0, GRACE_S])),
)


class Fleet:
    def __init__(self, backend: EngineBackend) -> None:
        self.now = WALL
        self.served = 0
        #: when each account was disabled, and cleared, last, anywhere
        self.disabled_at: dict[AccountKey, float] = {}
        self.cleared_at: dict[AccountKey, float] = {}
        self.states: list[Any] = [backend.open() for _ in range(PROXIES)]
        self.proxies = []
        for n, state in enumerate(self.states):
            link = state._part._link
            link.engine = Lossy(link.engine)
            self.proxies.append(Proxy(state, link.engine, f"proxy-{n}"))
        for proxy in self.proxies:
            proxy.beat(self.now)
            proxy.look(self.now)  # what is there before is read as a whole

    def step(self, what: str, proxy: Proxy, how: Any) -> None:
        self.now += 0.125
        fault: Fault = ""
        match what:
            case "serve":
                served = proxy.accounts[how]
                proxy.accounts[how] = replace(served, served=served.served + 1)
                proxy.counted += 1
                self.served += 1
            case "cool":
                cooldown = replace(COOLS, since=self.now, until=self.now + 60)
                proxy.accounts[how] = replace(proxy.accounts[how], cooldowns={None: cooldown})
            case "release":
                proxy.accounts[how] = replace(proxy.accounts[how], cooldowns={})
            case "disable":
                disabled = DisablingSnapshot(cause=CAUSE, since=self.now)
                proxy.accounts[how] = replace(proxy.accounts[how], disabled=disabled)
                self.disabled_at[how] = self.now
            case "clear":
                endings = Endings(self.now, self.now, self.now)
                proxy.accounts[how] = replace(
                    proxy.accounts[how], cooldowns={}, disabled=None, endings=endings
                )
                self.cleared_at[how] = self.now
            case "bind":
                proxy.lines[how] = how, f"openai/{proxy.name}", self.now
            case "end":
                proxy.lines.pop(how, None)
            case "write":
                self.ask(proxy, how, lambda: proxy.write(self.now))
            case "look":
                self.ask(proxy, how, lambda: proxy.look(self.now))
            case "beat":
                self.ask(proxy, how, lambda: proxy.beat(self.now))
            case "ask":
                wants, fault = how
                if self.is_running(proxy):
                    self.ask(proxy, fault, lambda: proxy.ask(wants, self.now))
            case "arrive":
                self.arrive(proxy)
            case "wait":
                self.now += how

    def ask(self, proxy: Proxy, fault: Fault, do: Callable[[], None]) -> None:
        proxy.engine.fault = fault
        try:
            do()
        except StoreError:
            assert fault
        finally:
            proxy.engine.fault = ""

    def arrive(self, proxy: Proxy) -> None:
        late, proxy.engine.late[:] = list(proxy.engine.late), []
        for call in late:
            call()

    def is_running(self, proxy: Proxy) -> bool:
        return self.now - proxy.beat_at < GRACE_S

    def is_within_limits(self) -> bool:
        return sum(p.slots for p in self.proxies if self.is_running(p)) <= LIMIT

    def settle(self) -> None:
        for _ in range(3):
            for proxy in self.proxies:
                self.now += 0.125
                proxy.beat(self.now)
                proxy.look(self.now)
                proxy.write(self.now)


@pytest.mark.parametrize("backend", KINDS, indirect=True)
@settings(
    max_examples=tries(40),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=st.lists(STEP, min_size=40, max_size=80))
def test_they_agree_and_count_each_request_once(
    backend: EngineBackend, steps: list[tuple[str, int, Any]]
) -> None:
    own = EngineBackend(backend.server, backend.folder)
    fleet = Fleet(own)
    try:
        for what, n, how in steps:
            fleet.step(what, fleet.proxies[n], how)
            assert fleet.is_within_limits()
        for late in (False, True):
            if late:
                # What comes now has been overtaken.
                for proxy in fleet.proxies:
                    fleet.arrive(proxy)
            fleet.settle()
            first = fleet.proxies[0]
            assert sum(account.served for account in first.accounts.values()) == fleet.served
            counted = first.state.read_counts("usage").get(("a",), {"requests": 0})
            assert counted == {"requests": fleet.served}
            kept = {row[0]: row for row in first.state.read_table("sessions")}
            for proxy in fleet.proxies:
                assert proxy.accounts == first.accounts
                assert proxy.lines.items() <= kept.items()
            for key, account in first.accounts.items():
                cleared_at = fleet.cleared_at.get(key, WALL)
                was_disabled = fleet.disabled_at.get(key, WALL) > cleared_at
                assert (account.disabled is not None) == was_disabled
                assert all(c.since > cleared_at for c in account.cooldowns.values())
    finally:
        for state in fleet.states:
            state.close()
        own.client.close()
