"""The rounds of a campaign: what happens at which step, and what must be true after it."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import queue
import signal
import threading
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any

from tests.credentials.token_server import TokenServer, serve
from tests.patience import PATIENCE_S
from tests.store.kills.refresher import STEPS, Setting, run, source
from tests.store.servers import Server, new_pool

from account_pool.core.claims import SENT_S
from account_pool.credentials.http import HttpResponse

#: Settings of an engine that keeps logins.
DURABLE = ("appendonly yes", "appendfsync always")
KEY = "0123456789abcdef" * 4
PROXIES = 3
#: Steps of the token server: the request is there; the old token is spent, nothing has left.
RECEIVED, ROTATED = "received", "rotated"
ALL_STEPS = (*STEPS[:4], RECEIVED, ROTATED, *STEPS[4:])
#: Where nobody but the killed proxy has the new refresh token.
GAP = (ROTATED, "answered")
#: Where the token has left, or is spent, and nobody but its proxy can have the one that follows.
LEFT = ("marked", RECEIVED, *GAP, "kept")
#: By whose fault a login is lost.
IN_GAP, OURS = "the provider's gap", "ours"
#: Long enough for any claim to end, and for all to have written what they know.
LONG_S = 2 * SENT_S


class LoginServer(TokenServer):
    """A token server that stops where it is told to."""

    def __init__(self) -> None:
        super().__init__(life_s=1e6)
        self.stop_at = ""
        self.stopped: queue.Queue[str] = queue.Queue()
        self.go_on: queue.Queue[bool] = queue.Queue()

    def step(self, name: str) -> bool:
        """Return whether to go on."""
        if name != self.stop_at:
            return True
        self.stop_at = ""
        self.stopped.put(name)
        return self.go_on.get(timeout=PATIENCE_S)

    def answer(self, fields: dict[str, str]) -> HttpResponse:
        if not self.step(RECEIVED):
            raise ConnectionError
        answer = super().answer(fields)
        if not self.step(ROTATED):
            raise ConnectionError
        return answer


@dataclass(eq=False)
class Proxy:
    """One of the processes."""

    setting: Setting
    process: Any = None
    pipe: Connection | None = None

    def start(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([run.__module__])
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=run, args=(theirs, self.setting, KEY), daemon=True)
        self.process.start()
        theirs.close()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None
            if self.pipe is not None:
                self.pipe.close()

    def send(self, *what: str) -> None:
        assert self.pipe is not None
        self.pipe.send(what)

    def hear(self) -> tuple[str, str]:
        assert self.pipe is not None
        assert wait([self.pipe], PATIENCE_S), "a proxy hangs"
        kind, text = self.pipe.recv()
        return str(kind), str(text)

    def ask(self, command: str) -> str:
        """Return what it says once it has done that, without a stop."""
        self.send(command, "")
        kind, text = self.hear()
        assert kind == "done"
        return text


@dataclass
class Result:
    """What was done, and what became of it."""

    kills: Counter[str] = field(default_factory=Counter)
    rounds: Counter[str] = field(default_factory=Counter)
    #: logins that nobody can refresh any more, by whose fault it is
    lost: Counter[str] = field(default_factory=Counter)
    #: rounds in which a spent token was sent, since a proxy was stopped for longer than its claim
    #: after its own had left: servers may end a login for that, and no store can prevent it
    resent: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Campaign:
    """The rounds."""

    def __init__(self, engine: Server, folder: Path, seed: int) -> None:
        self.engine, self.folder, self.chance = engine, folder, Random(seed)
        self.result = Result()
        self.logins = 0
        #: the proxy that was killed alone had the new refresh token
        self.in_gap = False
        #: a proxy was stopped past its claim, at a step of LEFT
        self.is_overtaken = False

    def run(self, kills: int) -> Result:
        """Kill as many processes, evenly over steps and victims."""
        plan: list[tuple[str, str]] = []
        with contextlib.ExitStack() as stack:
            self.stack = stack
            self._log_in()
            while self.result.kills.total() < kills:
                if not plan:
                    plan = [(step, what) for step in ALL_STEPS for what in DEEDS]
                    self.chance.shuffle(plan)
                self._round(*plan.pop())
        return self.result

    # -- a login, and the processes that share it

    def _log_in(self) -> None:
        self.stack.close()
        self.logins += 1
        self.server = LoginServer()
        self.server.newest = f"rt-login{self.logins}"
        url = self.stack.enter_context(serve(self.server))
        pool = new_pool()
        self.key = f"{{ap:{pool}}}"
        self.proxies = [
            Proxy(
                Setting(
                    state=self.engine.url(pool),
                    folder=str(self.folder / f"{self.logins}-{number}"),
                    token_url=url,
                    refresh=self.server.newest,
                    wall_ahead_s=ahead_s,
                )
            )
            for number, ahead_s in zip(range(PROXIES), (0.0, 60.0, -60.0), strict=True)
        ]
        self.family = source(url, self.server.newest).family()
        for proxy in self.proxies:
            proxy.start()
            self.stack.callback(proxy.kill)
        self._settle()
        self._check("at the start")

    # -- a round

    def _round(self, step: str, what: str) -> None:
        name = f"{what} at {step}"
        self.result.rounds[name] += 1
        proxy = self.chance.choice(self.proxies)
        self.server.reused.clear()
        if step in (RECEIVED, ROTATED):
            self.server.stop_at = step
            proxy.send("refresh", "")
            self.server.stopped.get(timeout=PATIENCE_S)
        else:
            proxy.send("refresh", step)
            heard = proxy.hear()
            if heard != ("at", step):
                self.result.failures.append(f"{name}: {heard}")
                return
        DEEDS[what](self, proxy, step)
        self._settle()
        in_gap, self.in_gap = self.in_gap, False
        is_overtaken, self.is_overtaken = self.is_overtaken, False
        if is_overtaken and self.server.reused:
            self.result.resent[name] += 1
            self.server.reused.clear()
        if not self._check(name, may_be_lost=in_gap):
            self.result.lost[IN_GAP if in_gap else OURS] += 1
            self._log_in()

    def kill(self, proxy: Proxy, step: str = "") -> None:
        """Kill a proxy, at *step* of its refresh."""
        self.result.kills["proxies"] += 1
        proxy.kill()
        self.in_gap |= step in GAP
        if step in (RECEIVED, ROTATED):
            # A server that notices does nothing, or has done it all.
            self.server.go_on.put(False)

    def kill_engine(self) -> None:
        self.result.kills["engines"] += 1
        self.engine.kill()

    def go_on(self, proxy: Proxy, step: str) -> str:
        """Let a refresh go on to its end, and return what became of it."""
        if step in (RECEIVED, ROTATED):
            self.server.go_on.put(True)
        else:
            proxy.send("go on")
        kind, text = proxy.hear()
        assert kind == "done"
        return text

    def passes(self, seconds: float) -> None:
        """Let time pass in the engine."""
        with contextlib.closing(self.engine.client()) as client:
            for name, what in ((f"{self.key}:era", "since"), (self._claim_key(), "until")):
                raw = client.get(name)
                if raw is not None:
                    row = json.loads(raw)
                    client.set(name, json.dumps({**row, what: row[what] - seconds}))

    def _claim_key(self) -> str:
        return f"{self.key}:claim:{self.family}"

    def _settle(self) -> None:
        """Have all run, know each other's tokens, and be free to refresh."""
        if self.engine.has_ended():
            self.engine.start()
        for proxy in self.proxies:
            if proxy.process is None:
                proxy.start()
        for proxy in self.proxies:
            said = ""
            for _ in range(1000):
                said = proxy.ask("keep")
                if said == "kept":
                    break
            else:
                self.result.failures.append(f"the engine is not used again: {said}")
        self.passes(LONG_S)

    def _check(self, name: str, *, may_be_lost: bool = False) -> bool:
        """Have each proxy refresh; say whether the login is still there."""
        for proxy in self.chance.sample(self.proxies, PROXIES):
            said = proxy.ask("refresh")
            if said != f"at-{self.server.count}":
                if not may_be_lost:
                    self.result.failures.append(f"{name}: then {said}")
                return False
        if self.server.reused and not may_be_lost:
            self.result.failures.append(f"{name}: a spent token was sent: {self.server.reused}")
        return True


# -- what happens at a step


def kill_proxy(campaign: Campaign, proxy: Proxy, step: str) -> None:
    campaign.kill(proxy, step)


def kill_engine(campaign: Campaign, proxy: Proxy, step: str) -> None:
    """It is there again at once."""
    campaign.kill_engine()
    campaign.engine.start()
    campaign.go_on(proxy, step)


def kill_engine_for_long(campaign: Campaign, proxy: Proxy, step: str) -> None:
    """The refresh ends, as it can, without it; then its proxy is killed, too."""
    campaign.kill_engine()
    campaign.go_on(proxy, step)
    campaign.kill(proxy)


def kill_both(campaign: Campaign, proxy: Proxy, step: str) -> None:
    campaign.kill_engine()
    campaign.kill(proxy, step)


def kill_engine_somewhere(campaign: Campaign, proxy: Proxy, step: str) -> None:
    """In the middle of whatever comes next."""
    later = threading.Timer(campaign.chance.random() * 0.002, campaign.kill_engine)
    later.start()
    campaign.go_on(proxy, step)
    later.join()


def stop(campaign: Campaign, proxy: Proxy, step: str) -> None:
    """SIGSTOP past its claim, while another refreshes; then SIGCONT: it is fenced."""
    campaign.is_overtaken = step in LEFT
    os.kill(proxy.process.pid, signal.SIGSTOP)
    campaign.passes(LONG_S)
    other = next(p for p in campaign.proxies if p is not proxy)
    for _ in range(2):
        other.ask("refresh")
    os.kill(proxy.process.pid, signal.SIGCONT)
    campaign.go_on(proxy, step)


def lose_data(campaign: Campaign, proxy: Proxy, step: str) -> None:
    """FLUSHALL: proxies that know the tokens put them back."""
    campaign.engine.ask("FLUSHALL")
    campaign.go_on(proxy, step)


def lose_functions(campaign: Campaign, proxy: Proxy, step: str) -> None:
    campaign.engine.ask("FUNCTION", "FLUSH")
    campaign.go_on(proxy, step)


def fill_memory(campaign: Campaign, proxy: Proxy, step: str) -> None:
    """Logins are written all the same."""
    campaign.engine.ask("CONFIG", "SET", "maxmemory", "1")
    said = campaign.go_on(proxy, step)
    campaign.engine.ask("CONFIG", "SET", "maxmemory", "0")
    if not said.startswith("at-"):
        campaign.result.failures.append(f"out of memory at {step}: {said}")


DEEDS = {
    deed.__name__.replace("_", " "): deed
    for deed in (
        kill_proxy,
        kill_engine,
        kill_engine_for_long,
        kill_both,
        kill_engine_somewhere,
        stop,
        lose_data,
        lose_functions,
        fill_memory,
    )
}
