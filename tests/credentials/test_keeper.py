"""The keeper against a scripted exchange: who is told what, and when. Nothing sleeps."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.credentials.fakes import (
    START,
    FakeClock,
    FakeGitHub,
    Published,
    answer,
    ask_at_once,
    entry,
    settle,
    until,
)
from tests.patience import PATIENCE_S

from account_pool.core.account import Account, AccountKey
from account_pool.core.credential import Credential, Secret
from account_pool.credentials.acquire import AcquireContext
from account_pool.credentials.command import CommandSource
from account_pool.credentials.copilot import (
    CopilotExchange,
    Exchanged,
    ExchangeSettings,
    read_token,
)
from account_pool.credentials.files import FileSource
from account_pool.credentials.http import ExchangeFailed, ExchangeRefused, Http
from account_pool.credentials.keeper import Keeper
from account_pool.credentials.sources import AccountEntry, EnvSource, OwnThread, Reading
from account_pool.supervision import tasks

ME = AccountKey("copilot", "me")
KEY = AccountKey("openai", "a")


class ScriptedExchange:
    """Answers from a script: a token, or an error to raise; the last is repeated."""

    def __init__(self, clock: FakeClock) -> None:
        self.script: list[str | Exception] = ["one"]
        self.asked: list[tuple[str, str, float]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._clock = clock
        self._credentials = CopilotExchange.credentials

    def handles(self, provider: str) -> bool:
        return provider == "copilot"

    async def exchange(self, account: Account, github: Secret) -> Exchanged:
        self.asked.append((account.label, github.reveal(), self._clock() - START))
        await self.gate.wait()
        result = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(result, Exception):
            raise result
        return read_token(
            answer(token=f"tid={result};chat=1:x", expires_at=None), self._clock(), ()
        )

    def credentials(
        self, account: Account, github: Secret, exchanged: Exchanged | None
    ) -> dict[str, Credential]:
        if exchanged is None:
            return {"github": Credential(kind="github", secret=github)}
        return {
            "copilot": Credential(
                kind="copilot",
                secret=exchanged.token,
                companions={"host": exchanged.host or ""},
                expires_at=exchanged.expires_at,
            ),
            "github": Credential(kind="github", secret=github),
        }


class Rig:
    """A clock, a scripted exchange, and what the keepers started here publish."""

    def __init__(self, clock: FakeClock, published: Published) -> None:
        self.clock, self.published = clock, published
        self.exchange = ScriptedExchange(clock)
        self.keepers: list[Keeper] = []

    def start(self, *entries: AccountEntry, sleep: Callable[..., Any] | None = None) -> Keeper:
        self.keepers.append(
            Keeper(
                entries,
                self.published,
                AcquireContext(exchange=self.exchange),
                wall_clock=self.clock,
                sleep=sleep or self.clock.sleep,
                chance=lambda: 0.0,
            )
        )
        self.keepers[-1].start()
        return self.keepers[-1]

    def tokens(self, key: AccountKey = ME) -> dict[str, str]:
        return {kind: c.secret.reveal() for kind, c in self.published.credentials[str(key)].items()}


@pytest.fixture
async def rig(clock: FakeClock, published: Published) -> AsyncIterator[Rig]:
    rig = Rig(clock, published)
    yield rig
    for keeper in rig.keepers:
        keeper.stop()


class TestStart:
    async def test_what_can_be_read_is_published_before_start_returns(
        self, rig: Rig, tmp_path: Path
    ) -> None:
        (tmp_path / "key").write_text("sk-file")
        (tmp_path / "key").chmod(0o600)
        rig.start(
            entry("openai/a", "sk-value", companions={"organization": "o"}),
            entry("openai/b", source=EnvSource("KEY", {"KEY": "sk-env"})),
            entry("gemini/c", source=FileSource(tmp_path / "key")),
            entry("anthropic/d", "sk-ant-oat-subscription"),
        )
        assert rig.published.all == [
            ("openai/a", {"key": "sk-value"}, None),
            ("openai/b", {"key": "sk-env"}, None),
            ("gemini/c", {"key": "sk-file"}, None),
            (
                "anthropic/d",
                {},
                "accounts.yaml: this token is not one for anthropic; it is one of a Claude "
                "subscription: write provider: claude-code",
            ),
        ]
        assert rig.published.credentials["openai/a"]["key"].companions == {"organization": "o"}

    def test_it_needs_no_loop_when_there_is_nothing_to_wait_for(
        self, clock: FakeClock, published: Published
    ) -> None:
        Rig(clock, published).start(entry("openai/a", "sk-value")).stop()
        assert published.problems == {"openai/a": None}

    async def test_disabled_accounts_are_not_read(self, rig: Rig) -> None:
        keeper = rig.start(entry(enabled=False), entry("openai/a", "x", enabled=False))
        await settle()
        assert rig.published.all == [] and rig.exchange.asked == []
        assert not await keeper.refresh(KEY, Credential(kind="key", secret=Secret("x")))

    async def test_exchanges_run_in_parallel(self, rig: Rig) -> None:
        rig.exchange.gate.clear()
        keeper = rig.start(*(entry(f"copilot/{n}", f"ghu_{n}") for n in range(5)))
        await settle()
        assert [label for label, _, _ in rig.exchange.asked] == list("01234")
        assert rig.published.all == []
        rig.exchange.gate.set()
        await asyncio.wait_for(keeper.first_try("copilot"), PATIENCE_S)
        assert len(rig.published.all) == 5

    async def test_a_command_is_read_in_its_own_time(self, rig: Rig) -> None:
        source = CommandSource("echo sk-command", dict(os.environ))
        keeper = rig.start(entry("openai/a", source=source), sleep=asyncio.sleep)
        assert rig.published.all == []
        await asyncio.wait_for(keeper.first_try("openai"), PATIENCE_S)
        assert rig.published.all == [("openai/a", {"key": "sk-command"}, None)]

    async def test_the_token_is_announced_once_without_the_token(
        self, rig: Rig, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG):
            keeper = rig.start(entry())
            await rig.clock.advance(1500)
        keeper.stop()
        assert [(r.levelname, r.message) for r in caplog.records if "Copilot" in r.message] == [
            (
                "INFO",
                "copilot/me: has a Copilot token, refreshed in 24 min (valid until 08:26:00 UTC, "
                "host api.individual.githubcopilot.com)",
            ),
            (
                "DEBUG",
                "copilot/me: has a Copilot token, refreshed in 24 min (valid until 08:50:00 UTC, "
                "host api.individual.githubcopilot.com)",
            ),
        ]
        assert "tid=" not in caplog.text and "ghu_" not in caplog.text


class TestRenewal:
    async def test_each_account_is_renewed_before_its_token_ends(self, rig: Rig) -> None:
        rig.exchange.script = ["one", "two", "three"]
        rig.start(entry())
        await rig.clock.advance(1439)
        assert rig.tokens()["copilot"] == "tid=one;chat=1:x"
        await rig.clock.advance(1)
        assert rig.tokens() == {
            "copilot": "tid=two;chat=1:x",
            "github": "ghu_secret-of-me",
        }
        await rig.clock.advance(1440)
        assert [at for _, _, at in rig.exchange.asked] == [0, 1440, 2880]

    async def test_a_failing_renewal_keeps_the_token_until_it_ends(
        self, rig: Rig, caplog: pytest.LogCaptureFixture
    ) -> None:
        rig.exchange.script = ["one", ExchangeFailed("503")]
        rig.start(entry())
        await rig.clock.advance(1440 + 119)
        assert rig.tokens()["copilot"] == "tid=one;chat=1:x"
        assert rig.published.problems["copilot/me"] == "503"
        # 1, 2, 4 ... seconds apart
        assert [at - 1440 for _, _, at in rig.exchange.asked[1:]] == [0, 1, 3, 7, 15, 31, 63]
        await rig.clock.advance(61)
        assert rig.tokens() == {}
        assert rig.published.problems["copilot/me"] == "503"
        assert caplog.messages.count("copilot/me: 503") == 1
        rig.exchange.script = ["two"]
        await rig.clock.advance(300)
        assert rig.tokens()["copilot"] == "tid=two;chat=1:x"
        assert rig.published.problems["copilot/me"] is None

    async def test_the_wait_github_asks_for_is_kept(self, rig: Rig) -> None:
        rig.exchange.script = [ExchangeFailed("429", 200.0), "one"]
        rig.start(entry())
        await rig.clock.advance(199)
        assert len(rig.exchange.asked) == 1
        await rig.clock.advance(1)
        assert len(rig.exchange.asked) == 2

    async def test_a_refusal_withdraws_the_account_and_is_tried_every_ten_minutes(
        self, rig: Rig, caplog: pytest.LogCaptureFixture
    ) -> None:
        rig.exchange.script = ["one", ExchangeRefused("403: no Copilot access", 403)]
        rig.start(entry())
        await rig.clock.advance(1440)
        assert rig.published.all[-1] == ("copilot/me", {}, "403: no Copilot access")
        await rig.clock.advance(1800)
        assert [at for _, _, at in rig.exchange.asked] == [0, 1440, 2040, 2640, 3240]
        assert len(rig.published.all) == 2
        assert caplog.messages == ["copilot/me: 403: no Copilot access"]

    async def test_a_token_that_cannot_be_exchanged_serves_as_it_is(
        self, rig: Rig, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What `gh auth token` prints: the Copilot CLI sends such a one itself."""
        caplog.set_level(logging.INFO)
        rig.exchange.script = [ExchangeRefused("404", 404), ExchangeRefused("404", 404), "one"]
        rig.start(entry())
        await rig.clock.advance(0)
        assert rig.tokens() == {"github": "ghu_secret-of-me"}
        await rig.clock.advance(600)
        assert len([m for m in caplog.messages if "cannot be exchanged" in m]) == 1
        await rig.clock.advance(600)
        assert set(rig.tokens()) == {"copilot", "github"}

    async def test_a_computer_that_slept_renews_soon_after_waking_up(self, rig: Rig) -> None:
        rig.start(entry())
        await rig.clock.advance(100)
        rig.clock.now += 8 * 3600  # the wall clock goes on while all sleeps stand still
        await rig.clock.advance(60)
        assert len(rig.exchange.asked) == 2

    async def test_a_mistake_of_ours_does_not_end_the_loop(self, rig: Rig) -> None:
        rig.exchange.script = [KeyError("ghu_secret-of-me"), "one"]
        rig.start(entry())
        await rig.clock.advance(5)
        assert rig.published.all[0] == ("copilot/me", {}, "unexpected KeyError")
        assert rig.tokens()["copilot"] == "tid=one;chat=1:x"

    async def test_a_mistake_of_ours_at_once_keeps_nobody_else_from_starting(
        self, rig: Rig, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken(EnvSource):
            def read_now(self) -> Reading:
                if not self.environ:
                    raise UnicodeDecodeError("utf-8", b"sk-fake", 0, 1, "sk-fake")
                return super().read_now()

        environ: dict[str, str] = {}
        broken = entry("openai/a", source=Broken("KEY", environ))
        rig.start(broken, entry("openai/b", "sk-b"))
        assert rig.published.problems == {
            "openai/a": "unexpected UnicodeDecodeError", "openai/b": None,
        }  # fmt: skip
        said = "account-pool: keeping the credential of openai/a failed: UnicodeDecodeError at "
        assert [m for m in caplog.messages if m.startswith(said) and m.endswith("; again in 1 s")]
        assert "sk-fake" not in caplog.text
        failed = tasks.failed.pop("keeping the credential of openai/a")
        assert (failed.failures, failed.error, failed.running) == (1, "UnicodeDecodeError", True)
        environ["KEY"] = "sk-a"
        await rig.clock.advance(5)
        assert rig.tokens(KEY) == {"key": "sk-a"}

    async def test_a_missing_source_is_tried_again(self, rig: Rig) -> None:
        environ: dict[str, str] = {}
        rig.start(entry("openai/a", source=EnvSource("KEY", environ)))
        assert rig.published.problems["openai/a"] == (
            "env KEY: the environment variable KEY is not set; set it where the proxy is "
            "started, or name another source"
        )
        environ["KEY"] = "sk-late"
        await rig.clock.advance(60)
        assert rig.published.all[-1] == ("openai/a", {"key": "sk-late"}, None)

    async def test_what_can_be_read_again_is_one_line(
        self,
        rig: Rig,
        caplog: pytest.LogCaptureFixture,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(OwnThread, "ask", ask_at_once)
        caplog.set_level(logging.INFO, "account_pool")
        path = tmp_path / "key"
        rig.start(entry("openai/a", source=FileSource(path)))
        await rig.clock.advance(12)
        path.touch(mode=0o600)
        path.write_text("sk-late")
        await rig.clock.advance(5)
        assert rig.published.all[-1] == ("openai/a", {"key": "sk-late"}, None)
        assert [message.split(";")[0] for message in caplog.messages] == [
            f"openai/a: file {path}: the file {path} does not exist",
            "openai/a: its credential can be read again",
        ]


class TestSeek:
    """Nobody can serve: what could not be read is looked for at once."""

    async def test_a_file_is_read_at_once(self, rig: Rig, tmp_path: Path) -> None:
        path = tmp_path / "key"
        keeper = rig.start(entry("openai/a", source=FileSource(path)), entry("openai/b", "sk-b"))
        path.touch(mode=0o600)
        path.write_text("sk-late")
        assert not keeper.seek("gemini")
        assert keeper.seek("openai")
        assert rig.tokens(AccountKey("openai", "a")) == {"key": "sk-late"}
        assert not keeper.seek("openai")

    async def test_not_more_often_than_it_may_whatever_the_clock_does(self, rig: Rig) -> None:
        environ: dict[str, str] = {}
        keeper = rig.start(entry("openai/a", source=EnvSource("KEY", environ)))
        assert not keeper.seek("openai")
        environ["KEY"] = "sk-late"
        rig.clock.now += 1.9
        assert not keeper.seek("openai")
        rig.clock.now -= 3600
        assert keeper.seek("openai")

    async def test_a_command_is_run_again_after_a_minute_at_most(
        self, rig: Rig, tmp_path: Path
    ) -> None:
        path = tmp_path / "key"
        source = CommandSource(f"cat {path}", dict(os.environ))
        keeper = rig.start(entry("openai/a", source=source))
        await until(lambda: bool(rig.published.all))
        path.write_text("sk-late")
        rig.clock.now += 59
        assert not keeper.seek("openai")
        rig.clock.now += 2
        assert not keeper.seek("openai")
        await until(lambda: bool(rig.published.credentials["openai/a"]))

    async def test_what_a_server_refuses_is_not_asked_again_for_it(self, rig: Rig) -> None:
        rig.exchange.script = [ExchangeRefused("403: no Copilot access", 403)]
        keeper = rig.start(entry())
        await settle()
        rig.clock.now += 120
        assert not keeper.seek("copilot")
        await settle()
        assert len(rig.exchange.asked) == 1


class TestRefresh:
    async def test_a_changed_source_is_found(self, rig: Rig) -> None:
        environ = {"KEY": "sk-old"}
        keeper = rig.start(entry("openai/a", source=EnvSource("KEY", environ)))
        refused = rig.published.credentials["openai/a"]["key"]
        assert not await keeper.refresh(KEY, refused)
        environ["KEY"] = "sk-new"
        assert await keeper.refresh(KEY, refused)
        assert rig.published.all == [
            ("openai/a", {"key": "sk-old"}, None),
            ("openai/a", {"key": "sk-new"}, None),
        ]

    async def test_a_command_is_run_again(self, rig: Rig, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("sk-old")
        source = CommandSource(f"cat '{tmp_path}/token'", dict(os.environ))
        keeper = rig.start(entry("openai/a", source=source), sleep=asyncio.sleep)
        await asyncio.wait_for(keeper.first_try("openai"), PATIENCE_S)
        (tmp_path / "token").write_text("sk-new")
        assert await keeper.refresh(KEY, rig.published.credentials["openai/a"]["key"])
        assert rig.tokens(KEY) == {"key": "sk-new"}

    async def test_one_exchange_serves_all_who_were_refused(self, rig: Rig) -> None:
        rig.exchange.script = ["one", "two"]
        keeper = rig.start(entry())
        await settle()
        refused = rig.published.credentials["copilot/me"]["copilot"]
        rig.exchange.gate.clear()
        waiting = [asyncio.create_task(keeper.refresh(ME, refused)) for _ in range(20)]
        await settle()
        rig.exchange.gate.set()
        assert await asyncio.gather(*waiting) == [True] * 20
        assert len(rig.exchange.asked) == 2
        # and the loop counts from the new token
        await rig.clock.advance(1439)
        assert len(rig.exchange.asked) == 2
        await rig.clock.advance(1)
        assert len(rig.exchange.asked) == 3

    async def test_the_same_token_again_is_no_refresh(self, rig: Rig) -> None:
        keeper = rig.start(entry())
        await settle()
        for kind in ("copilot", "github"):
            assert not await keeper.refresh(ME, rig.published.credentials["copilot/me"][kind])
        rig.exchange.script = [ExchangeFailed("503")]
        assert not await keeper.refresh(ME, rig.published.credentials["copilot/me"]["copilot"])

    async def test_a_new_login_is_found_when_github_refuses_the_old_token(self, rig: Rig) -> None:
        environ = {"KEY": "ghu_old"}
        rig.exchange.script = ["one", ExchangeRefused("401", 401), "two"]
        keeper = rig.start(entry(source=EnvSource("KEY", environ)))
        await settle()
        rig.exchange.gate.clear()
        refresh = asyncio.create_task(
            keeper.refresh(ME, rig.published.credentials["copilot/me"]["copilot"])
        )
        await settle()
        environ["KEY"] = "ghu_new"
        rig.exchange.gate.set()
        assert await refresh
        assert rig.tokens() == {"copilot": "tid=two;chat=1:x", "github": "ghu_new"}

    async def test_a_caller_who_leaves_frees_the_lock(self, rig: Rig) -> None:
        rig.exchange.script = ["one", "two"]
        keeper = rig.start(entry())
        await settle()
        refused = rig.published.credentials["copilot/me"]["copilot"]
        rig.exchange.gate.clear()
        first = asyncio.create_task(keeper.refresh(ME, refused))
        second = asyncio.create_task(keeper.refresh(ME, refused))
        await settle()
        first.cancel()
        rig.exchange.gate.set()
        assert await second

    async def test_nothing_is_published_after_stop(self, rig: Rig) -> None:
        rig.exchange.script = ["one", "two"]
        keeper = rig.start(entry())
        await settle()
        rig.exchange.gate.clear()
        refused = rig.published.credentials["copilot/me"]["copilot"]
        refresh = asyncio.create_task(keeper.refresh(ME, refused))
        await settle()
        keeper.stop()
        rig.exchange.gate.set()
        assert not await refresh
        assert len(rig.published.all) == 1
        assert not [t for t in asyncio.all_tasks() if "credential of" in t.get_name()]


class TestUpdate:
    async def test_unchanged_accounts_keep_their_tokens(self, rig: Rig) -> None:
        keeper = rig.start(entry(), entry("copilot/gone"), entry("openai/a", "sk-old"))
        await settle()
        keeper.update([entry(priority=3), entry("openai/a", "sk-new"), entry("copilot/more")])
        await settle()
        assert [label for label, _, _ in rig.exchange.asked] == ["me", "gone", "more"]
        assert rig.tokens(KEY) == {"key": "sk-new"}
        await rig.clock.advance(1440)
        assert [label for label, _, _ in rig.exchange.asked[3:]] == ["me", "more"]

    async def test_a_thousand_that_are_new_are_not_compared_with_each_other(self, rig: Rig) -> None:
        class Once(list[AccountKey]):
            def __contains__(self, _key: object) -> bool:
                raise AssertionError

        keeper = rig.start(entry(), entry("openai/a", "sk-old"))
        await settle()
        keeper.update([entry(), entry("openai/a", "sk-old")], anew=Once([ME]))
        await settle()
        assert [label for label, _, _ in rig.exchange.asked] == ["me", "me"]

    async def test_a_refresh_goes_on_with_what_replaced_its_account(self, rig: Rig) -> None:
        rig.exchange.script = ["one", "gone", "two"]
        keeper = rig.start(entry(), entry("copilot/gone"))
        await settle()
        rig.exchange.gate.clear()
        refreshes = [
            asyncio.create_task(keeper.refresh(key, rig.published.credentials[str(key)]["copilot"]))
            for key in (ME, ME, AccountKey("copilot", "gone"))
        ]
        await settle()
        keeper.update([entry(token="ghu_new")])
        rig.exchange.gate.set()
        assert await asyncio.gather(*refreshes) == [True, True, False]
        assert rig.tokens() == {"copilot": "tid=two;chat=1:x", "github": "ghu_new"}


class TestExchangeAnswer:
    async def test_it_is_of_the_first_account_with_a_token(self, rig: Rig) -> None:
        rig.exchange.gate.clear()
        rig.exchange.script = [ExchangeRefused("403", 403), "one"]
        keeper = rig.start(entry("openai/a", "x"), entry("copilot/none"), entry("copilot/me"))
        early = keeper.exchange_response(rig.clock())
        assert early.status == 503
        assert json.loads(early.body)["message"].startswith("account-pool: no account of copilot")
        rig.exchange.gate.set()
        await asyncio.wait_for(keeper.first_try("copilot"), PATIENCE_S)
        body = json.loads(keeper.exchange_response(rig.clock()).body)
        assert body["token"] == f"tid=pool;exp={int(START) + 1800};chat=1:pool"
        assert body["chat_enabled"] is True

    async def test_an_ended_token_answers_no_more(self, rig: Rig) -> None:
        rig.exchange.script = ["one", ExchangeFailed("503")]
        keeper = rig.start(entry())
        await rig.clock.advance(1559)
        assert keeper.exchange_response(rig.clock()).status == 200
        await rig.clock.advance(1)
        assert keeper.exchange_response(rig.clock()).status == 503


async def test_everything_together_over_real_http(
    github: FakeGitHub, clock: FakeClock, published: Published
) -> None:
    """A real exchange, its renewal and a refusal, from keeper to socket."""
    import ssl

    no_seat = {"error_details": {"message": "No seat.", "notification_id": "no_copilot_access"}}
    github.script = [(200, {}, answer()), (200, {}, answer("tid=b:x")), (403, {}, no_seat)]
    exchange = CopilotExchange(
        {"copilot": ExchangeSettings(token_url=github.url)},
        wall_clock=clock,
        http=Http(trust=ssl.create_default_context),
    )
    context = AcquireContext(exchange=exchange)
    keeper = Keeper([entry()], published, context, wall_clock=clock, sleep=clock.sleep)
    keeper.start()
    await until(lambda: len(published.all) == 1)
    assert await keeper.refresh(ME, published.credentials["copilot/me"]["copilot"])
    await clock.advance(1440)
    await until(lambda: len(published.all) == 3)
    assert published.all[2] == (
        "copilot/me",
        {},
        "403: no Copilot access: No seat. (no_copilot_access)",
    )
