"""A clock that jumps, a scripted exchange, and GitHub's answers as they come."""

from __future__ import annotations

import asyncio
import heapq
import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from math import inf
from typing import Any

from msgspec.structs import replace
from tests.patience import PATIENCE_S

from account_pool.core.account import Account, AccountKey
from account_pool.core.claims import Claim, Taken
from account_pool.core.credential import Credential, Secret
from account_pool.credentials.sources import AccountEntry, OwnThread, Source, ValueSource
from account_pool.providers.registry import BUILT_IN
from account_pool.store import agreed
from account_pool.store.agreed import Decision, Held, Login, Result
from account_pool.store.store import Tokens

START = 1_800_000_000.0

REAL_TOKEN = (
    "tid=0123abc;exp=1800001800;sku=plus_monthly;proxy-ep=proxy.example;st=dotcom;chat=1;"
    "ip=203.0.113.7;asn=AS64500;mcp=1;8kp=1;ol=0123456789abcdef:5f2d0c"
)


def answer(token: str = REAL_TOKEN, **changes: Any) -> dict[str, Any]:
    """Return what GitHub answers to an exchange at START."""
    usual = {
        "token": token,
        "expires_at": int(START) + 1800,
        "refresh_in": 1500,
        "sku": "plus_monthly",
        "individual": True,
        "chat_enabled": True,
        "public_suggestions": "enabled",
        "telemetry": "disabled",
        "tracking_id": "0123456789abcdef",
        "organization_list": ["0123456789abcdef0123456789abcdef"],
        "limited_user_quotas": {"chat": 0, "completions": 12},
        "limited_user_reset_date": 1803000000,
        "endpoints": {
            "api": "https://api.individual.githubcopilot.com",
            "proxy": "https://proxy.individual.githubcopilot.com",
            "telemetry": "https://telemetry.individual.githubcopilot.com",
            "origin-tracker": "https://origin-tracker.individual.githubcopilot.com",
            "other": "https://x.example",
        },
    }
    return {name: value for name, value in {**usual, **changes}.items() if value is not None}


def entry(
    key: str = "copilot/me",
    token: str = "ghu_secret-of-me",
    source: Source | None = None,
    **account: Any,
) -> AccountEntry:
    """Return an account whose token is written down, unless *source* says otherwise."""
    provider, label = AccountKey.parse(key)
    return AccountEntry(
        Account(provider=provider, label=label, **account),
        source or ValueSource(Secret(token), {}),
        BUILT_IN.get(provider) or replace(BUILT_IN["copilot"], name=provider),
    )


class MemoryTokens:
    """A `TokenStore` that takes no time and forgets."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: dict[str, Held] = {}
        self._claims: dict[str, Claim] = {}

    def load(self, family: str) -> Tokens | None:
        with self._lock:
            found = self._tokens.get(family)
            return None if found is None else found[0]

    def save(
        self, family: str, tokens: Tokens, *, replaces: Secret | None = None, fence: int = 0
    ) -> bool:
        return self._decide(
            family,
            lambda login: agreed.save_tokens(login, tokens, replaces=replaces, fence=fence),
        )

    def claim(self, family: str, owner: str, *, token: Secret, is_over: bool) -> Claim | Taken:
        def decide(login: Login) -> Decision[Claim | Taken]:
            return agreed.claim_login(
                login,
                owner,
                token=token,
                is_over=is_over,
                is_gone=lambda _: False,  # with its process the store is gone, too
                begun_at=-inf,
                settle_s=0.0,
            )

        return self._decide(family, decide)

    def sending(self, family: str, fence: int, token: Secret) -> bool:
        return self._decide(family, lambda login: agreed.send_token(login, fence, token))

    def release(self, family: str, fence: int, *, unknown: bool = False) -> None:
        self._decide(family, lambda login: agreed.release_claim(login, fence, unknown=unknown))

    def keep(self) -> None:
        """It is."""

    def close(self) -> None:
        """Nothing is open."""

    def _decide(self, family: str, decide: Callable[[Login], Decision[Result]]) -> Result:
        with self._lock:
            tokens, claim = self._tokens.get(family), self._claims.get(family, Claim())
            then = decide(Login(now=self._clock(), tokens=tokens, claim=claim))
            if then.tokens is not None:
                self._tokens[family] = then.tokens
            self._claims[family] = then.claim or claim
            return then.result


class FakeClock:
    """A wall clock that moves when everybody sleeps and somebody says so."""

    def __init__(self, now: float = START) -> None:
        self.now = now
        self.slept: list[float] = []
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        woken = asyncio.Event()
        heapq.heappush(self._sleepers, (self.now + seconds, len(self.slept), woken))
        await woken.wait()

    async def advance(self, seconds: float) -> None:
        """Let *seconds* pass; who wakes up on the way finishes what it can."""
        await settle()
        until = self.now + seconds
        while self._sleepers and self._sleepers[0][0] <= until:
            at, _, woken = heapq.heappop(self._sleepers)
            self.now = max(self.now, at)
            woken.set()
            await settle()
        self.now = until


class NoThreads(ThreadPoolExecutor):
    """Does the work of threads at once, so that `FakeClock.advance` waits for it."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


async def ask_at_once(_thread: OwnThread, question: Callable[[], Any], _timeout_s: float) -> Any:
    """Stand for `OwnThread.ask`, likewise."""
    return question()


async def settle() -> None:
    """Let all tasks run until they wait for something of the outside."""
    for _ in range(50):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something of the outside."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


class Published:
    """What a keeper published, in order, and the last by account."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict[str, str], str | None]] = []
        self.credentials: dict[str, Mapping[str, Credential]] = {}
        self.problems: dict[str, str | None] = {}
        self.again_in_s: dict[str, float | None] = {}

    def __call__(
        self,
        key: AccountKey,
        credentials: Mapping[str, Credential],
        problem: str | None,
        again_in_s: float | None,
    ) -> None:
        revealed = {kind: c.secret.reveal() for kind, c in credentials.items()}
        self.all.append((str(key), revealed, problem))
        self.credentials[str(key)] = credentials
        self.problems[str(key)] = problem
        self.again_in_s[str(key)] = again_in_s


class FakeGitHub:
    """A server on loopback that answers exchanges as scripted; real HTTP, no TLS.

    `script` holds (status, headers, body) in order, the last is repeated; a body that
    is not text is sent as JSON. `gate` holds back all answers while it is clear.
    """

    def __init__(self) -> None:
        self.script: list[tuple[int, dict[str, str], Any]] = [(200, {}, answer())]
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0
        self.url = ""
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> FakeGitHub:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/copilot_internal/v2/token"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        self.requests.append((head[0], headers))
        self.waiting += 1
        await self.gate.wait()
        status, extra, body = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        lines = [f"HTTP/1.1 {status} Any", f"content-length: {len(content)}", "connection: close"]
        lines += [f"{name}: {value}" for name, value in extra.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        await writer.drain()
        writer.close()
