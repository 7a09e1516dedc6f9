"""The token server: single-use refresh tokens, and everything that goes wrong with it.

Whose fault a lost login is: the provider's own gap, where it had rotated the token and
its answer never left it; the gap of a kill, where the answer had left it and the proxy was
killed before it can have been written; or ours.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from urllib.parse import parse_qsl

from benchmarks.chaos.breaking import reset
from benchmarks.chaos.plan import SECRET

#: Seconds an access token is good for; a proxy renews it in the last fifth of them.
LIFE_S = 5
#: An access token that has ended is taken for so long: clocks, and requests on their way.
GRACE_S = 3.0
#: An answer that left so long before a kill should have been written, in seconds.
WRITTEN_S = 1.0
#: What goes wrong with a refresh, and how often of a hundred; else it is answered well.
FAULTS = (
    ("slow", 12),
    ("500", 5),
    ("503", 4),
    ("429", 1),
    ("reset", 5),
    ("slow-after", 1),
    ("lose", 1),
)
#: A slow answer takes up to so long, and one that is very late so long; seconds.
SLOW_S, VERY_LATE_S = 1.5, 18.0


@dataclass(slots=True)
class Rotation:
    """A refresh token that was exchanged."""

    label: str
    gap: bool = False
    #: when its answer was written to the proxy; None: not yet
    answered_at: float | None = None


@dataclass(slots=True)
class Logins:
    """All logins of a campaign.

    Attributes:
        allowed: credentials that are accounts', to which access tokens are added.
        newest: the one refresh token that is worth something, by label.
        lost: logins lost by whose fault: `gap`, `kill`, `ours`.
        dead: labels that need a new login.
        kills: when proxies were killed.
    """

    chance: Random
    allowed: set[str]
    sabotage: str = ""
    #: how many answers may be lost after rotating, and be very late
    may_lose: int = 2
    may_be_late: int = 1
    newest: dict[str, str] = field(default_factory=dict)
    access: dict[str, float] = field(default_factory=dict)
    lost: Counter[str] = field(default_factory=Counter)
    causes: list[str] = field(default_factory=list)
    dead: set[str] = field(default_factory=set)
    refreshes: Counter[str] = field(default_factory=Counter)
    kills: list[float] = field(default_factory=list)
    _spent: dict[str, Rotation] = field(default_factory=dict)
    _count: int = 0

    def log_in(self, label: str) -> tuple[str, str]:
        """Return (access token, refresh token) of a new login."""
        self._count += 1
        self.dead.discard(label)
        self.newest[label] = f"{SECRET}-refresh-{label}-{self._count}"
        return self._new_access(label), self.newest[label]

    def _new_access(self, label: str) -> str:
        self._count += 1
        token = f"{SECRET}-access-{label}-{self._count}"
        self.allowed.add(token)
        self.access[token] = time.monotonic() + LIFE_S + GRACE_S
        return token

    def has_ended(self, credential: str) -> bool:
        """Say whether *credential* is an access token that is good no more."""
        return time.monotonic() >= self.access.get(credential, float("inf"))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one refresh."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length:")[2].split("\r\n")[0])
            form = dict(parse_qsl((await reader.readexactly(length)).decode()))
            await self._answer(form["refresh_token"], writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, token: str, writer: asyncio.StreamWriter) -> None:
        fault = self._fault()
        if fault == "slow":
            await asyncio.sleep(self.chance.uniform(0, SLOW_S))
        if fault in ("500", "503", "429"):
            self.refreshes[fault] += 1
            return await _say(writer, int(fault), {"error": "temporarily_unavailable"})
        if fault == "reset":
            self.refreshes[fault] += 1
            return reset(writer)
        label = next((name for name, newest in self.newest.items() if newest == token), None)
        if label is None:
            self._refuse(token)
            return await _say(writer, 400, {"error": "invalid_grant"})
        rotation = self._spent[token] = Rotation(label, gap=fault == "lose")
        self.newest[label] = f"{token.rpartition('-')[0]}-{self._count + 1}"
        access = self._new_access(label)
        self.refreshes[fault] += 1
        if fault == "lose":
            return reset(writer)
        if fault == "slow-after":
            await asyncio.sleep(VERY_LATE_S)
        answer = {"access_token": access, "expires_in": LIFE_S, "token_type": "bearer"}
        # What a server that forgets it would leave the proxy with: a spent token.
        kept = token if self.sabotage == "forgets" else self.newest[label]
        rotation.answered_at = time.monotonic()
        return await _say(writer, 200, {**answer, "refresh_token": kept})

    def _fault(self) -> str:
        fault = self.chance.choices(
            [*(name for name, _ in FAULTS), "good"],
            [*(share for _, share in FAULTS), 100 - sum(share for _, share in FAULTS)],
        )[0]
        if fault == "lose":
            self.may_lose -= 1
            return fault if self.may_lose >= 0 else "good"
        if fault == "slow-after":
            self.may_be_late -= 1
            return fault if self.may_be_late >= 0 else "good"
        return fault

    def _refuse(self, token: str) -> None:
        """A spent token has come: the login is lost. Say whose fault that is."""
        rotation = self._spent.get(token)
        if rotation is None:
            self.causes.append("a refresh token that nobody gave out")
            self.lost["ours"] += 1
            return
        if rotation.label in self.dead:
            return
        self.dead.add(rotation.label)
        whose = "gap" if rotation.gap else self._by_kill(rotation)
        self.lost[whose] += 1
        if whose == "ours":
            at = rotation.answered_at
            ago = "never" if at is None else f"{time.monotonic() - at:.1f} s ago"
            self.causes.append(f"{rotation.label}: a spent token; its exchange was answered {ago}")

    def _by_kill(self, rotation: Rotation) -> str:
        at = rotation.answered_at
        if any(at is None or -SLOW_S < kill - at < WRITTEN_S for kill in self.kills):
            return "kill"
        return "ours"


async def _say(writer: asyncio.StreamWriter, status: int, value: object) -> None:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\nconnection: close\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
