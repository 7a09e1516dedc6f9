"""One account whose credential is refreshed, re-read from a file, or needs a project."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.credentials.fakes import (
    START,
    FakeClock,
    MemoryTokens,
    NoThreads,
    Published,
    ask_at_once,
    entry,
    settle,
    until,
)
from tests.credentials.token_server import FIRST, TokenServer
from tests.patience import PATIENCE_S

from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential, Secret
from account_pool.credentials.acquire import AcquireContext, CodeAssist
from account_pool.credentials.files import FileSource
from account_pool.credentials.http import ExchangeFailed, ExchangeRefused, Http
from account_pool.credentials.keeper import Keeper, backoff_s
from account_pool.credentials.oauth import OAuthSource, Post
from account_pool.credentials.refreshable_token import SLOW_S, Refresher
from account_pool.credentials.sources import OwnThread
from account_pool.providers.registry import BUILT_IN

ME = AccountKey("openai", "me")
WRITTEN = {
    "access_token": "at-0",
    "refresh_token": FIRST,
    "expires_at": START + 3600,
    "token_url": "https://login.example.com/token",
    "client_id": "client",
}


class NoExchange:
    def handles(self, _provider: str) -> bool:
        return False


class Projects(CodeAssist):
    """Answers from a script: a project, or an error to raise; the last is repeated."""

    def __init__(self) -> None:
        super().__init__(
            {"openai": "https://cloudcode.example.com"},
            wall_clock=lambda: START,
            http=Http(trust=ssl.create_default_context),
        )
        self.script: list[str | Exception] = ["project-1"]
        self.asked: list[str] = []

    async def project(self, _provider: str, token: Secret) -> str:
        self.asked.append(token.reveal())
        result = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(result, Exception):
            raise result
        return result


class Rig:
    """A clock, a token server, and what the keepers of one account started here publish."""

    def __init__(self, clock: FakeClock, published: Published) -> None:
        self.clock, self.published, self.server = clock, published, TokenServer()
        self.store = MemoryTokens(clock)
        self.keepers: list[Keeper] = []

    def start(
        self,
        source: Any,
        *,
        token: str = "",
        assist: CodeAssist | None = None,
        post: Post | None = None,
        slow_s: float = SLOW_S,
        threads: ThreadPoolExecutor | None = None,
        **account: Any,
    ) -> Keeper:
        provider = replace(
            BUILT_IN["openai"], token_expiry=lambda t: None, misplaced=lambda t: None
        )
        self.keepers.append(
            Keeper(
                [replace(entry("openai/me", token, source=source, **account), provider=provider)],
                self.published,
                AcquireContext(
                    exchange=NoExchange(),
                    refresher=Refresher(
                        store=self.store,
                        post=post or self.server.post,
                        wall_clock=self.clock,
                        threads=threads or NoThreads(),
                        slow_s=slow_s,
                    ),
                    assist=assist,
                ),
                wall_clock=self.clock,
                sleep=self.clock.sleep,
                chance=lambda: 0.0,
            )
        )
        self.keepers[-1].start()
        return self.keepers[-1]

    def held(self) -> Credential | None:
        return self.published.credentials["openai/me"].get("key")

    def token(self) -> str | None:
        credential = self.held() if self.published.all else None
        return None if credential is None else credential.secret.reveal()


@pytest.fixture
async def rig(
    clock: FakeClock, published: Published, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rig]:
    monkeypatch.setattr(OwnThread, "ask", ask_at_once)
    rig = Rig(clock, published)
    yield rig
    for keeper in rig.keepers:
        keeper.stop()


def login(**written: Any) -> OAuthSource:
    return OAuthSource.from_written("openai", "me", {**WRITTEN, **written}, {})


class TestLogin:
    async def test_the_written_token_is_published_and_refreshed_in_time(
        self, rig: Rig, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG):
            rig.start(login(), companions={"organization": "o"})
            await settle()
            assert rig.token() == "at-0"
            assert rig.held().expires_at == START + 3600
            assert rig.held().companions == {"organization": "o"}
            await rig.clock.advance(3299)
            assert rig.server.asked == []
            await rig.clock.advance(1)
            assert rig.token() == "at-1"
            await rig.clock.advance(3300)
            assert rig.token() == "at-2"
        lines = [r.message for r in caplog.records if r.name.startswith("account_pool")]
        assert lines[:2] == [
            "openai/me: has an access token, refreshed in 55 min "
            "(valid until 2027-01-15 09:00:00 UTC)",
            "openai/me: has an access token, refreshed in 55 min "
            "(valid until 2027-01-15 09:55:00 UTC)",
        ]
        assert "at-" not in caplog.text and "rt-" not in caplog.text

    async def test_one_refresh_serves_all_who_were_refused(self, rig: Rig) -> None:
        keeper = rig.start(login())
        await settle()
        assert rig.token() == "at-0"
        refused = rig.held()
        results = await asyncio.gather(*(keeper.refresh(ME, refused) for _ in range(50)))
        assert results == [True] * 50
        assert len(rig.server.asked) == 1 and rig.token() == "at-1"

    async def test_an_outage_leaves_the_old_token_while_it_is_good(self, rig: Rig) -> None:
        rig.server.refusals = [(503, "")] * 100
        rig.start(login())
        await settle()
        assert rig.token() == "at-0"
        await rig.clock.advance(3300)
        assert rig.published.problems["openai/me"] is not None
        ends = "it is tried again when the access token ends (2027-01-15 09:00:00 UTC)"
        lost = f"the refresh answered 503; it may have been done, so {ends}"
        assert rig.published.all[-1] == ("openai/me", {"key": "at-0"}, lost)
        for _ in range(19):
            await rig.clock.advance(15)
        assert len(rig.server.asked) == 1
        assert [problem for _, _, problem in rig.published.all].count(lost) == 1
        await rig.clock.advance(15)
        assert rig.published.all[-1] == ("openai/me", {}, "the refresh answered 503")
        rig.server.refusals = []
        await rig.clock.advance(301)
        assert rig.token() == "at-1"
        assert rig.published.problems["openai/me"] is None

    async def test_an_outage_at_the_start_too(self, rig: Rig) -> None:
        rig.server.refusals = [(503, "")]
        rig.start(login(expires_at=START + 60))
        await settle()
        assert bool(rig.published.all)
        _, tokens, problem = rig.published.all[0]
        assert tokens == {"key": "at-0"}
        assert problem is not None and problem.startswith("the refresh answered 503; ")

    async def test_nobody_waits_for_a_server_that_is_slow(
        self, rig: Rig, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Requests go elsewhere, or are held: no problem, and no token that was refused."""
        answered = threading.Event()

        def slow(*args: Any) -> Any:
            assert answered.wait(PATIENCE_S)
            return rig.server.post(*args)

        keeper = rig.start(login(), post=slow, slow_s=0.0, threads=ThreadPoolExecutor(1))
        await until(lambda: rig.token() == "at-0")
        caplog.clear()  # reading the store may have been slow as well
        refused = rig.held()
        results = await asyncio.gather(*(keeper.refresh(ME, refused) for _ in range(50)))
        assert results == [None] * 50
        assert rig.published.all[-1] == ("openai/me", {}, None)
        assert rig.published.again_in_s["openai/me"] == 0.0  # it comes: who asks waits for it
        answered.set()
        await until(lambda: rig.token() == "at-1")
        assert len(rig.server.asked) == 1
        assert await keeper.refresh(ME, refused) is True
        assert [m for m in caplog.messages if "the server is slow" in m] == [
            "openai/me: its login is being refreshed, and the server is slow: it may take 5 min"
        ]

    async def test_a_slow_server_leaves_the_old_token_while_it_is_good(self, rig: Rig) -> None:
        answered = threading.Event()

        def slow(*args: Any) -> Any:
            assert answered.wait(PATIENCE_S)
            return rig.server.post(*args)

        rig.start(
            login(expires_at=START + 60), post=slow, slow_s=0.0, threads=ThreadPoolExecutor(1)
        )
        await until(lambda: rig.token() == "at-0")
        answered.set()
        await until(lambda: rig.token() == "at-1")

    @pytest.mark.parametrize(
        ("refusal", "again_in_s"),
        [
            ((503, ""), 1.0),
            ((429, ""), 30.0),
            ((302, ""), 1.0),
            ((401, {"error": "invalid_client"}), None),
            ((400, {"error": "invalid_grant"}), None),
        ],
    )
    async def test_what_may_pass_is_waited_for(
        self, rig: Rig, refusal: Any, again_in_s: float | None
    ) -> None:
        """Only what its owner has to cure is no reason to hold a request, or to say 503."""
        rig.server.refusals = [refusal] * 2
        keeper = rig.start(login(access_token=None))
        await settle()
        assert rig.token() is None
        assert rig.published.again_in_s["openai/me"] == again_in_s
        refused = Credential(kind="key", secret=Secret("at-0"))
        assert await keeper.refresh(ME, refused) is (False if again_in_s is None else None)

    async def test_a_token_that_ends_before_the_next_is_there_is_waited_for(self, rig: Rig) -> None:
        """As after a machine has slept."""
        keeper = rig.start(login())
        await settle()
        keeper._accounts[ME].drop_expired()
        assert rig.token() == "at-0"
        rig.clock.now += 3600
        keeper._accounts[ME].drop_expired()
        assert rig.published.all[-1] == ("openai/me", {}, "its token has expired")
        assert rig.published.again_in_s["openai/me"] == 0.0

    async def test_the_end_of_a_login_is_one_line_and_a_new_one_is_found(
        self, rig: Rig, caplog: pytest.LogCaptureFixture
    ) -> None:
        rig.server.refusals = [(400, {"error": "invalid_grant"})]
        keeper = rig.start(login())
        await settle()
        assert rig.token() == "at-0"
        assert not await keeper.refresh(ME, rig.held())
        problem = (
            "its login is no longer valid: invalid_grant; write the tokens of a new login in "
            "accounts.yaml"
        )
        # Whether it was the token's fault is for the pool to say.
        assert rig.published.all[-1] == ("openai/me", {"key": "at-0"}, problem)
        await rig.clock.advance(3600)
        assert rig.published.all[-1] == ("openai/me", {}, problem)
        assert caplog.messages == [f"openai/me: {problem}"]
        assert len(rig.server.asked) == 1
        rig.server.newest = "rt-new"
        keeper.update([replace(keeper._entries[ME], source=login(refresh_token="rt-new"))])
        await settle()
        assert rig.token() == "at-1"

    async def test_a_login_that_ends_leaves_its_last_token(self, rig: Rig) -> None:
        rig.server.refusals = [(400, {"error": "invalid_grant"})]
        rig.start(login())
        await settle()
        assert rig.token() == "at-0"
        await rig.clock.advance(3300)
        assert rig.published.problems["openai/me"] is not None
        assert rig.token() == "at-0"
        await rig.clock.advance(330)
        assert rig.token() is None

    async def test_what_the_server_says_of_the_account_goes_with_the_token(self, rig: Rig) -> None:
        rig.server.refusals = [(200, {"access_token": "at-x", "account": {"uuid": "0-1"}})]
        rig.start(login(access_token=None))
        await settle()
        assert rig.token() == "at-x"
        assert rig.held().companions == {"account_id": "0-1"}


class TestFile:
    def write(self, path: Path, text: str, *, at: int) -> None:
        path.write_text(text)
        path.chmod(0o600)
        os.utime(path, ns=(at, at))

    async def test_it_is_read_again_when_it_was_written(self, rig: Rig, tmp_path: Path) -> None:
        path = tmp_path / "token"
        self.write(path, "sk-1", at=1)
        rig.start(FileSource(path))
        assert rig.token() == "sk-1"
        self.write(path, "sk-2", at=2)
        await rig.clock.advance(5)
        assert rig.token() == "sk-2"
        assert len(rig.published.all) == 2

    async def test_it_is_not_read_when_nothing_changed(self, rig: Rig, tmp_path: Path) -> None:
        path = tmp_path / "token"
        self.write(path, "sk-1", at=1)
        rig.start(FileSource(path))
        self.write(path, "sk-2", at=1)
        await rig.clock.advance(5)
        assert rig.token() == "sk-1"

    async def test_a_refusal_reads_it_in_any_case(self, rig: Rig, tmp_path: Path) -> None:
        path = tmp_path / "token"
        self.write(path, "sk-1", at=1)
        keeper = rig.start(FileSource(path))
        self.write(path, "sk-2", at=1)
        assert await keeper.refresh(ME, rig.held())
        assert rig.token() == "sk-2"

    async def test_a_file_caught_while_it_is_written_is_read_again(
        self, rig: Rig, tmp_path: Path
    ) -> None:
        path = tmp_path / "token"
        self.write(path, '{"a": "sk-1"}', at=1)
        rig.start(FileSource(path, "/a"))
        self.write(path, '{"a": "s', at=2)
        await rig.clock.advance(5)
        assert rig.published.problems["openai/me"] is not None
        assert rig.token() == "sk-1"
        self.write(path, '{"a": "sk-2"}', at=2)
        await rig.clock.advance(20)
        assert rig.token() == "sk-2"
        assert rig.published.problems["openai/me"] is None

    async def test_a_token_that_ends_is_withdrawn_and_its_tool_renews_it(
        self, rig: Rig, tmp_path: Path
    ) -> None:
        path = tmp_path / "creds"

        def login(access: str, expires_at: float, at: int) -> None:
            content = {"accessToken": access, "expiresAt": int(expires_at * 1000)}
            self.write(path, json.dumps({"claudeAiOauth": content}), at=at)

        login("sk-1", START + 8, 1)
        rig.start(FileSource(path, written="~/creds"))
        assert rig.held().expires_at == START + 8
        await rig.clock.advance(10)
        assert rig.published.all[-1] == (
            "openai/me",
            {},
            "file ~/creds: the token in it has expired; its tool renews it when it is used, or "
            "give this account a login of its own",
        )
        login("sk-2", START + 3600, 2)
        await rig.clock.advance(5)
        assert rig.token() == "sk-2"

    @pytest.mark.parametrize(
        ("ends", "said"),
        [
            (0, "ends on 1970-01-01 00:00 UTC already"),
            (START - 3600, "ends on 2027-01-15 07:00 UTC already"),
            (9999999999.999, "ends in the far future"),
        ],
    )
    async def test_an_end_that_cannot_be_true_is_no_end(
        self, rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture, ends: float, said: str
    ) -> None:
        path = tmp_path / "creds"
        content = {"accessToken": "sk-1", "expiresAt": int(ends * 1000)}
        self.write(path, json.dumps({"claudeAiOauth": content}), at=1)
        rig.start(FileSource(path, written="~/creds"))
        await rig.clock.advance(20)
        (credential,) = rig.published.credentials["openai/me"].values()
        assert (credential.expires_at, credential.doubtful) == (None, True)
        problem = (
            f"file ~/creds: its token {said}, according to its expiry date; that may be wrong, so "
            "it is used when no other account can serve"
        )
        assert rig.published.all == [("openai/me", {"key": "sk-1"}, problem)]
        assert caplog.messages == [f"openai/me: {problem}"]
        self.write(
            path,
            json.dumps({"claudeAiOauth": {**content, "expiresAt": int((START + 3600) * 1000)}}),
            at=2,
        )
        await rig.clock.advance(5)
        (credential,) = rig.published.credentials["openai/me"].values()
        assert (credential.expires_at, credential.doubtful) == (START + 3600, False)
        assert rig.published.problems["openai/me"] is None


class TestProject:
    async def test_it_is_learnt_once(self, rig: Rig) -> None:
        projects = Projects()
        rig.start(login(), assist=projects)
        await settle()
        assert rig.token() == "at-0"
        assert rig.held().companions == {"project": "project-1"}
        await rig.clock.advance(3300)
        assert rig.token() == "at-1"
        assert rig.held().companions == {"project": "project-1"}
        assert projects.asked == ["at-0"]

    async def test_its_owner_knows_better(self, rig: Rig) -> None:
        projects = Projects()
        rig.start(login(), assist=projects, companions={"project": "mine"})
        await settle()
        assert rig.token() == "at-0"
        assert rig.held().companions == {"project": "mine"}
        assert projects.asked == []

    async def test_without_it_there_is_no_credential(self, rig: Rig) -> None:
        projects = Projects()
        projects.script = [ExchangeFailed("503"), ExchangeRefused("none"), "project-1"]
        rig.start(login(), assist=projects)
        await settle()
        assert bool(rig.published.all)
        assert rig.published.all == [("openai/me", {}, "503")]
        await rig.clock.advance(1)
        assert len(rig.published.all) == 2
        assert rig.published.all[-1] == ("openai/me", {}, "none")
        await rig.clock.advance(600)
        assert rig.token() == "at-0"

    async def test_a_written_token_waits_for_it_too(self, rig: Rig) -> None:
        projects = Projects()
        rig.start(None, token="ya29.me", assist=projects)
        assert rig.published.all == []
        await settle()
        assert rig.token() == "ya29.me"
        assert rig.held().companions == {"project": "project-1"}


def test_it_doubles_up_to_five_minutes() -> None:
    waits = [backoff_s(failures, 0.0) for failures in range(1, 12)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_it_stays_in_its_bounds(failures: int, chance: float) -> None:
    wait_s = backoff_s(failures, chance)
    assert 1 <= wait_s <= 300
    assert wait_s >= backoff_s(failures, 0.0) / 2
