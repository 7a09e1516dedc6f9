"""A login against a token endpoint that takes each refresh token once. Nothing sleeps."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from msgspec.structs import replace
from tests.credentials.fakes import START, FakeClock, MemoryTokens
from tests.credentials.token_server import FIRST, TokenServer, said, serve
from tests.patience import PATIENCE_S

from account_pool.core.claims import CLAIM_S, Claim
from account_pool.core.credential import Secret
from account_pool.credentials import refreshable_token
from account_pool.credentials.http import ExchangeFailed, Http, HttpFailed, HttpResponse
from account_pool.credentials.oauth import LoginEnded, OAuthSource, Stop, post_with
from account_pool.credentials.refreshable_token import (
    CLAIM_LOOK_S,
    RefreshableToken,
    Refresher,
    RefreshPending,
)
from account_pool.credentials.sources import CredentialError
from account_pool.store.store import DamagedError, StoreError, Tokens

WRITTEN = {"access_token": "at-0", "refresh_token": FIRST, "expires_at": START + 3600}


def source(provider: str = "codex", environ: dict[str, str] | None = None, **written: Any) -> Any:
    return OAuthSource.from_written(provider, "me", {**WRITTEN, **written}, environ or {})


class Bench:
    """One store and one endpoint, and logins of as many proxies as a test wants."""

    def __init__(self) -> None:
        self.server = TokenServer()
        self.clock = FakeClock()
        self.store = MemoryTokens(self.clock)
        self.threads = ThreadPoolExecutor(8)

    def login(self, written: OAuthSource | None = None, **changes: Any) -> RefreshableToken:
        refresher = Refresher(
            store=self.store,
            post=self.server.post,
            wall_clock=self.clock,
            threads=self.threads,
        )
        return RefreshableToken(
            written or source(), replace(refresher, **changes), expiry=lambda _: None, chance=0.0
        )

    def claim(self) -> int:
        """Let another proxy refresh the login; return the number of its claim."""
        asked = self.store.claim(source().family(), "other", token=Secret(FIRST), is_over=True)
        assert isinstance(asked, Claim)
        return asked.fence

    def stored(self) -> Tokens | None:
        return self.store.load(source().family())


@pytest.fixture
def bench() -> Bench:
    return Bench()


def shown(tokens: Tokens | None) -> tuple[str | None, str] | None:
    if tokens is None:
        return None
    return tokens.access.reveal() if tokens.access else None, tokens.refresh.reveal()


class FullDisk(MemoryTokens):
    full = True

    def save(self, family: str, tokens: Tokens, **how: Any) -> bool:
        if self.full:
            raise StoreError("the state database x cannot be written; free some space")
        return super().save(family, tokens, **how)


class TestWhenItIsRefreshed:
    def test_a_written_token_is_used_until_five_minutes_before_it_ends(self, bench: Bench) -> None:
        login = bench.login()
        assert shown(login.tokens_now()) == ("at-0", FIRST)
        bench.clock.now += 3600 - 301
        assert shown(login.tokens_now()) == ("at-0", FIRST)
        bench.clock.now += 1
        assert shown(login.tokens_now()) == shown(bench.stored()) == ("at-1", "rt-1")
        assert bench.server.asked == [
            {
                "grant_type": "refresh_token",
                "refresh_token": FIRST,
                "client_id": "app_EMoamEEZ73f0CkXaXp7hrann",
            }
        ]

    def test_chance_brings_it_forward_by_up_to_a_minute(self, bench: Bench) -> None:
        tokens = source().tokens()
        login = RefreshableToken(
            source(),
            Refresher(store=bench.store, post=bench.server.post, wall_clock=bench.clock),
            expiry=lambda _: None,
            chance=1.0,
        )
        assert login.renew_at(tokens) == START + 3600 - 360

    def test_a_short_life_is_used_for_most_of_it(self, bench: Bench) -> None:
        bench.server.life_s = 100
        login = bench.login()
        bench.clock.now += 3500
        tokens = login.tokens_now()
        assert login.renew_at(tokens) == bench.clock.now + 80
        assert shown(login.tokens_now()) == ("at-1", "rt-1")

    def test_codex_is_refreshed_after_eight_days_whatever_it_says(self, bench: Bench) -> None:
        bench.server.life_s = 30 * 86400
        login = bench.login(source(expires_at=START))
        tokens = login.tokens_now()
        assert login.renew_at(tokens) == START + 8 * 86400

    def test_a_refresh_token_alone_is_enough(self, bench: Bench) -> None:
        login = bench.login(source(access_token=None, expires_at=None))
        assert shown(login.tokens_now()) == ("at-1", "rt-1")

    def test_an_end_nobody_names_is_read_from_the_token(self, bench: Bench) -> None:
        login = bench.login(source(expires_at=None))
        login._expiry = {"at-0": START + 300.0, "at-1": None}.get
        bench.server.life_s = None
        tokens = login.tokens_now()
        assert shown(tokens) == ("at-1", "rt-1")
        assert login.renew_at(tokens) == START + 8 * 86400
        claude = bench.login(source("claude-code", expires_at=None))
        assert claude.renew_at(claude.tokens_now()) is None

    def test_a_refused_token_is_refreshed(self, bench: Bench) -> None:
        login = bench.login()
        login.refuse(Secret("at-0"))
        assert shown(login.tokens_now()) == ("at-1", "rt-1")
        login.refuse(Secret("at-0"))
        assert shown(login.tokens_now()) == ("at-1", "rt-1")

    def test_a_token_is_not_blamed_just_after_it_was_got(self, bench: Bench) -> None:
        login = bench.login()
        login.refuse(Secret("at-0"))
        for _ in range(3):
            assert shown(login.tokens_now()) == ("at-1", "rt-1")
            login.refuse(Secret("at-1"))
        bench.clock.now += 60
        login.refuse(Secret("at-1"))
        assert shown(login.tokens_now()) == ("at-2", "rt-2")


class TestWhatIsKept:
    def test_the_stored_tokens_come_before_those_that_were_written(self, bench: Bench) -> None:
        first = bench.login()
        first.refuse(Secret("at-0"))
        first.tokens_now()
        assert shown(bench.login().tokens_now()) == ("at-1", "rt-1")

    def test_a_renamed_account_keeps_its_login_and_a_new_login_comes_first(self) -> None:
        renamed = OAuthSource.from_written("codex", "other", WRITTEN, {})
        assert renamed.family() == source().family()
        assert source(refresh_token="rt-new").family() != source().family()
        assert FIRST not in source().family()

    def test_a_server_that_does_not_rotate_keeps_the_refresh_token(self, bench: Bench) -> None:
        bench.server.rotates = False
        login = bench.login()
        for n in (1, 2):
            access = login.tokens_now().access
            bench.clock.now += 60
            login.refuse(access)
            assert shown(login.tokens_now()) == (f"at-{n}", FIRST)

    def test_what_could_not_be_written_serves_until_it_is(self, bench: Bench) -> None:
        bench.store = FullDisk(bench.clock)
        login = bench.login()
        login.refuse(Secret("at-0"))
        for _ in range(2):
            with pytest.raises(ExchangeFailed, match="cannot be written; free some space"):
                login.tokens_now()
        assert bench.stored() is None
        assert shown(login.still_good()) == ("at-1", "rt-1")
        # Also for who begins anew, as after a reload.
        again = RefreshableToken(source(), login._refresher, expiry=lambda _: None, chance=0.0)
        with pytest.raises(ExchangeFailed, match="free some space"):
            again.tokens_now()
        assert shown(again.still_good()) == ("at-1", "rt-1")
        bench.store.full = False
        assert shown(login.tokens_now()) == shown(bench.stored()) == ("at-1", "rt-1")
        assert len(bench.server.asked) == 1

    def test_what_could_not_be_written_for_long_does_not_replace_what_is_newer(
        self, bench: Bench
    ) -> None:
        bench.store = FullDisk(bench.clock)
        login = bench.login()
        login.refuse(Secret("at-0"))
        with pytest.raises(ExchangeFailed, match="free some space"):
            login.tokens_now()
        bench.store.full = False
        newer = Tokens(access=Secret("at-9"), refresh=Secret("rt-9"), expires_at=START + 7200)
        bench.store.save(login._source.family(), newer)
        assert shown(login.tokens_now()) == ("at-9", "rt-9")

    def test_a_store_that_cannot_be_written_is_noticed_before_the_token_is_spent(
        self, bench: Bench
    ) -> None:
        class ReadOnly(MemoryTokens):
            def claim(self, family: str, owner: str, **how: Any) -> float | None:
                raise StoreError("the state database x cannot be written")

        bench.store = ReadOnly(bench.clock)
        login = bench.login()
        bench.clock.now += 3590
        with pytest.raises(ExchangeFailed):
            login.tokens_now()
        assert bench.server.asked == []
        assert shown(login.still_good()) == ("at-0", FIRST)

    def test_what_is_written_serves_while_the_store_cannot_be_read(self, bench: Bench) -> None:
        class Locked(MemoryTokens):
            locked = True

            def load(self, family: str) -> Tokens | None:
                if self.locked:
                    raise StoreError("the state database x is locked by another program")
                return super().load(family)

        bench.store = Locked(bench.clock)
        login = bench.login()
        bench.clock.now += 3590
        with pytest.raises(ExchangeFailed, match="is locked"):
            login.tokens_now()
        assert bench.server.asked == []
        assert shown(login.still_good()) == ("at-0", FIRST)
        bench.store.locked = False
        assert shown(login.tokens_now()) == ("at-1", "rt-1")

    @pytest.mark.parametrize("access", [None, 7, "", "a b", "a\nb", "\ud800"])
    def test_a_refresh_token_without_an_access_token_is_kept(
        self, bench: Bench, access: Any
    ) -> None:
        bench.server.refusals = [(200, {"refresh_token": "rt-x", "access_token": access})]
        bench.server.newest = "rt-x"
        login = bench.login()
        login.refuse(Secret("at-0"))
        with pytest.raises(ExchangeFailed, match="without an access token"):
            login.tokens_now()
        assert shown(bench.stored()) == (None, "rt-x")
        assert shown(login.tokens_now()) == ("at-1", "rt-1")

    @pytest.mark.parametrize("status", [200, 201, 203, 299])
    @pytest.mark.parametrize("refresh", ["rt with spaces", " rt-x", "rt-\u00e9\n"])
    def test_the_next_refresh_token_is_kept_as_it_is(
        self, bench: Bench, status: int, refresh: str
    ) -> None:
        bench.server.refusals = [(status, {"access_token": "at-x", "refresh_token": refresh})]
        bench.server.newest = refresh
        login = bench.login()
        login.refuse(Secret("at-0"))
        assert shown(login.tokens_now()) == shown(bench.stored()) == ("at-x", refresh)
        bench.clock.now += 60
        login.refuse(Secret("at-x"))
        assert shown(login.tokens_now()) == ("at-1", "rt-1")

    @pytest.mark.parametrize("refresh", ["", " ", 7, "\ud800"])
    def test_an_access_token_serves_though_its_refresh_token_cannot_be_kept(
        self, bench: Bench, refresh: Any
    ) -> None:
        bench.server.refusals = [(200, {"access_token": "at-x", "refresh_token": refresh})]
        login = bench.login()
        login.refuse(Secret("at-0"))
        assert shown(login.tokens_now()) == ("at-x", FIRST)


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "body", "text"),
        [
            (400, {"error": {"code": "refresh_token_expired"}}, "refresh_token_expired"),
            (401, {"error": {"code": "refresh_token_reused", "message": "x"}}, "_reused (x)"),
            (401, {"error": "refresh_token_invalidated"}, "refresh_token_invalidated"),
            (
                400,
                {"error": "invalid_grant", "error_description": f"{FIRST} is\nbad"},
                "invalid_grant ([secret] is bad)",
            ),
            (400, {"error": {"type": "invalid_grant", "message": "no"}}, "invalid_grant (no)"),
            (400, {"code": "token_revoked"}, "token_revoked"),
            (200, {"error": "bad_refresh_token"}, "bad_refresh_token"),
        ],
    )
    def test_the_end_of_a_login_is_said_once_and_nothing_is_sent_again(
        self, bench: Bench, status: int, body: Any, text: str
    ) -> None:
        bench.server.refusals = [(status, body)]
        login = bench.login()
        login.refuse(Secret("at-0"))
        for _ in range(3):
            with pytest.raises(LoginEnded) as caught:
                login.tokens_now()
            assert str(caught.value).startswith("its login is no longer valid: ")
            assert text in str(caught.value)
            assert str(caught.value).endswith(
                "; log in again: account-pool login codex --label me --renew"
            )
        assert len(bench.server.asked) == 1

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            ({"error": "server_is_busy", "message": "wait"}, "server_is_busy (wait)"),
            ({"error": "oauth2_error.x-y"}, "oauth2_error.x-y"),
            ({"error": FIRST}, ""),
            (
                {"error": {"code": "sk-fake-new", "message": "sk-fake-new is not"}},
                "([not shown] is not)",
            ),
            ({"error": "a8f3c2", "message": FIRST.upper()}, "([secret])"),
            (
                {"error": "no", "error_description": "client s3 and AT-0"},
                "no (client [secret] and [secret])",
            ),
        ],
    )
    def test_no_secret_is_repeated(self, bench: Bench, body: Any, text: str) -> None:
        bench.server.refusals = [(400, body)]
        login = bench.login(source(client_secret="s3"))
        login.refuse(Secret("at-0"))
        with pytest.raises(ExchangeFailed) as caught:
            login.tokens_now()
        assert str(caught.value) == "the refresh answered 400" + (f": {text}" if text else "")

    @pytest.mark.parametrize(
        ("answer", "error", "text", "wait_s"),
        [
            (said(429, "", **{"retry-after": "7"}), ExchangeFailed, "answered 429", 7),
            (said(429, ""), ExchangeFailed, "answered 429", 30),
            (said(403, "<html>"), ExchangeFailed, "answered 403", None),
            (said(400, {"error": "temporarily"}), ExchangeFailed, "400: temporarily", None),
            (said(500, "<html>"), ExchangeFailed, "answered 500; it may", 10),
            (said(503, "", **{"retry-after": "70"}), ExchangeFailed, "answered 503; it may", 70),
            (said(200, "[]"), ExchangeFailed, "200 without a usable access token; it", 10),
            (said(200, {"access_token": "a b"}), ExchangeFailed, "a usable access token; it", 10),
            (HttpFailed("no answer"), ExchangeFailed, "refreshing its login: no answer", None),
            (said(401, {"error": "invalid_client"}), ExchangeFailed, "correct client_id", 600),
        ],
    )
    def test_what_may_pass_ends_nothing(
        self,
        bench: Bench,
        answer: HttpResponse | Exception,
        error: type[Exception],
        text: str,
        wait_s: float | None,
    ) -> None:
        def post(_url: str, _headers: Any, _content: bytes, sending: Any) -> HttpResponse:
            sending()
            if isinstance(answer, Exception):
                raise answer
            return answer

        bench.clock.now += 3590
        login = bench.login(post=post)
        with pytest.raises(error, match=text) as caught:
            login.tokens_now()
        assert getattr(caught.value, "retry_after_s", None) == wait_s
        # The old token is good for ten seconds more.
        assert shown(login.still_good()) == ("at-0", FIRST)
        bench.clock.now += 10
        assert login.still_good() is None
        assert bench.stored() is None
        assert shown(bench.login().tokens_now()) == ("at-1", "rt-1")

    def test_a_variable_that_is_not_set_is_named(self, bench: Bench) -> None:
        login = bench.login(source(refresh_token="${TOKEN}"))
        with pytest.raises(CredentialError, match="TOKEN is not set"):
            login.tokens_now()


class TestSeveralProxies:
    def test_tokens_that_somebody_else_got_are_taken(self, bench: Bench) -> None:
        one, other = bench.login(), bench.login()
        for login in (one, other):
            login.refuse(Secret("at-0"))
            assert shown(login.tokens_now()) == ("at-1", "rt-1")
        assert len(bench.server.asked) == 1

    def test_a_claim_of_another_is_looked_at_again_and_its_tokens_are_taken(
        self, bench: Bench
    ) -> None:
        other = bench.claim()
        login = bench.login()
        login.refuse(Secret("at-0"))
        for _ in range(2):
            with pytest.raises(RefreshPending, match="by another proxy") as told:
                login.tokens_now()
            assert (told.value.again_in_s, told.value.is_refused) == (CLAIM_LOOK_S, True)
        newer = Tokens(access=Secret("at-1"), refresh=Secret("rt-1"), expires_at=START + 7200)
        bench.store.save(source().family(), newer, replaces=Secret(FIRST), fence=other)
        assert shown(login.tokens_now()) == ("at-1", "rt-1")
        assert bench.server.asked == []

    def test_a_claim_ends_by_itself(self, bench: Bench) -> None:
        bench.claim()
        login = bench.login()
        login.refuse(Secret("at-0"))
        bench.clock.now += CLAIM_S - 1
        with pytest.raises(RefreshPending):
            login.tokens_now()
        bench.clock.now += 1
        assert shown(login.tokens_now()) == ("at-1", "rt-1")

    def test_a_proxy_that_ends_begins_nothing(self, bench: Bench) -> None:
        login = bench.login(stopping=Stop(by=time.monotonic() + PATIENCE_S))
        login.refuse(Secret("at-0"))
        with pytest.raises(ExchangeFailed, match="shutting down"):
            login.tokens_now()
        assert bench.server.asked == []

    def test_a_proxy_that_ends_does_not_wait_for_others_to_say_that_no_answer_came(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its claim ends with its process; another may be writing for long."""
        stopping = Stop()

        def post(_url: str, _headers: Any, _body: bytes, sending: Any) -> HttpResponse:
            sending()
            stopping.by = time.monotonic()
            raise HttpFailed("the proxy is shutting down", sent=True)

        released: list[str] = []
        monkeypatch.setattr(bench.store, "release", lambda name, *_, **__: released.append(name))
        login = bench.login(post=post, stopping=stopping)
        login.refuse(Secret("at-0"))
        with pytest.raises(ExchangeFailed, match="shutting down"):
            login.tokens_now()
        assert released == []

    def test_a_lost_race_ends_nothing(self, bench: Bench) -> None:
        """The winner wrote its tokens while our question was under way."""
        login = bench.login()

        def post(*args: Any) -> HttpResponse:
            if not bench.server.asked:
                bench.server.post(*args)
                bench.store.save(
                    source().family(),
                    Tokens(access=Secret("at-1"), refresh=Secret("rt-1"), expires_at=START + 7200),
                )
            return bench.server.post(*args)

        login = bench.login(post=post)
        login.refuse(Secret("at-0"))
        assert shown(login.tokens_now()) == ("at-1", "rt-1")
        assert bench.server.reused == [FIRST]

    def test_a_login_that_seemed_over_goes_on_with_what_the_winner_wrote_later(
        self, bench: Bench
    ) -> None:
        bench.server.newest, bench.server.count = "rt-1", 1
        login = bench.login()
        login.refuse(Secret("at-0"))
        with pytest.raises(LoginEnded):
            login.tokens_now()
        bench.store.save(
            source().family(),
            Tokens(access=Secret("at-1"), refresh=Secret("rt-1"), expires_at=START + 7200),
        )
        assert shown(login.tokens_now()) == ("at-1", "rt-1")

    def test_a_computer_that_was_paused_does_not_send_what_it_once_claimed(
        self, bench: Bench
    ) -> None:
        def paused(*args: Any) -> HttpResponse:
            bench.clock.now += CLAIM_S
            return bench.server.post(*args)

        login = bench.login(post=paused)
        login.refuse(Secret("at-0"))
        with pytest.raises(ExchangeFailed, match="was paused"):
            login.tokens_now()
        assert bench.server.asked == []


class TestAnAnswerThatNeverCame:
    """The server may have done it: its token is sent again when nothing is lost by that."""

    @pytest.mark.parametrize(
        "answer",
        [
            HttpFailed("no answer", sent=True),
            said(500, "<html>"),
            said(504, ""),
            said(200, "half an ans"),
            said(200, "<html>"),
            said(200, {"error": "not_now"}),
            said(204, ""),
            said(302, "", location="http://127.0.0.1/login"),
            said(307, ""),
            said(999, ""),
        ],
    )
    def test_the_token_is_sent_again_once_the_access_token_has_ended(
        self, bench: Bench, answer: HttpResponse | HttpFailed
    ) -> None:
        asked = 0

        def post(_url: str, _headers: Any, _content: bytes, sending: Any) -> HttpResponse:
            nonlocal asked
            sending()
            asked += 1
            if isinstance(answer, HttpResponse):
                return answer
            raise answer

        bench.clock.now += 3310
        login, other = bench.login(post=post), bench.login()
        with pytest.raises(ExchangeFailed, match="when the access token ends"):
            login.tokens_now()
        for _ in range(3):
            bench.clock.now += 90
            for each in (login, other):
                with pytest.raises(ExchangeFailed, match="; it may have been done"):
                    each.tokens_now()
                assert shown(each.still_good()) == ("at-0", FIRST)
        assert (asked, bench.server.asked) == (1, [])
        bench.clock.now += 20
        assert shown(other.tokens_now()) == shown(login.tokens_now()) == ("at-1", "rt-1")

    def test_an_access_token_that_is_refused_is_not_waited_for(self, bench: Bench) -> None:
        bench.server.refusals = [(502, "")]
        login = bench.login()
        login.refuse(Secret("at-0"))
        with pytest.raises(ExchangeFailed, match=r"^the refresh answered 502$"):
            login.tokens_now()
        assert shown(login.tokens_now()) == ("at-1", "rt-1")

    def test_what_was_never_sent_is_tried_at_once(self, bench: Bench) -> None:
        def post(*_: Any) -> HttpResponse:
            raise HttpFailed("cannot reach it")

        bench.clock.now += 3310
        with pytest.raises(ExchangeFailed, match=r"^refreshing its login: cannot reach it$"):
            bench.login(post=post).tokens_now()
        assert shown(bench.login().tokens_now()) == ("at-1", "rt-1")

    def test_an_answer_that_is_not_written_yet_is_written_at_the_end(self, bench: Bench) -> None:
        bench.store = full = FullDisk(bench.clock)
        before = bench.login()
        before.refuse(Secret("at-0"))
        with pytest.raises(ExchangeFailed, match="free some space"):
            before.tokens_now()
        full.full = False
        before._refresher.stop(0.0)
        assert shown(bench.stored()) == ("at-1", "rt-1")
        assert len(bench.server.asked) == 1

    def test_one_login_that_cannot_be_written_keeps_no_other_from_it_at_the_end(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Damaged(FullDisk):
            """The row of one login is, in the end."""

            def save(self, family: str, tokens: Tokens, **how: Any) -> bool:
                if family == source().family():
                    raise DamagedError("the state database x is damaged", "delete it")
                return super().save(family, tokens, **how)

        bench.store = store = Damaged(bench.clock)
        login, other = bench.login(), source(refresh_token="rt-other")
        second = RefreshableToken(other, login._refresher, expiry=lambda _: None, chance=0.0)
        for each, token in ((login, FIRST), (second, "rt-other")):
            bench.server.newest = token
            each.refuse(Secret("at-0"))
            with pytest.raises(ExchangeFailed):
                each.tokens_now()
        store.full = False
        login._refresher.stop(0.0)
        assert shown(store.load(other.family())) == ("at-2", "rt-2")
        assert [record.levelname for record in caplog.records] == ["ERROR"]

    def test_a_disk_that_hangs_does_not_keep_the_proxy_from_its_end(
        self, bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        goes_on, kept = threading.Event(), threading.Event()

        class Hanging(FullDisk):
            def keep(self) -> None:
                goes_on.wait(PATIENCE_S)
                kept.set()

        monkeypatch.setattr(refreshable_token, "KEEP_S", 0.01)
        bench.store = Hanging(bench.clock)
        bench.login()._refresher.stop(0.0)
        assert not kept.is_set()
        assert "may be lost: the disk does not answer" in caplog.text
        goes_on.set()
        assert kept.wait(PATIENCE_S)

    def test_nobody_sends_what_is_spent_while_its_answer_is_not_written(self, bench: Bench) -> None:
        bench.store = full = FullDisk(bench.clock)
        login, other = bench.login(), bench.login()
        login.refuse(Secret("at-0"))
        with pytest.raises(ExchangeFailed, match="free some space"):
            login.tokens_now()
        full.full = False
        other.refuse(Secret("at-0"))
        with pytest.raises(RefreshPending, match="by another proxy"):
            other.tokens_now()
        assert shown(login.tokens_now()) == shown(other.tokens_now()) == ("at-1", "rt-1")
        assert bench.server.reused == []
        # The claim is over then.
        other.refuse(Secret("at-1"))
        bench.clock.now += 3600
        assert shown(other.tokens_now()) == ("at-2", "rt-2")

    def test_what_could_not_be_marked_as_sent_is_tried_at_once(self, bench: Bench) -> None:
        class Silent(MemoryTokens):
            """It marks the token, and its reply is lost."""

            def sending(self, family: str, fence: int, token: Secret) -> bool:
                super().sending(family, fence, token)
                raise StoreError("the state engine x does not answer in time")

        bench.store = silent = Silent(bench.clock)
        bench.clock.now += 3310
        login = bench.login()
        with pytest.raises(ExchangeFailed, match="does not answer in time"):
            login.tokens_now()
        assert bench.server.asked == []
        silent.sending = lambda *how: MemoryTokens.sending(silent, *how)
        assert shown(login.tokens_now()) == ("at-1", "rt-1")

    def test_another_object_for_the_login_has_what_was_not_written(self, bench: Bench) -> None:
        bench.store = full = FullDisk(bench.clock)
        before = bench.login()
        before.refuse(Secret("at-0"))
        with pytest.raises(ExchangeFailed, match="free some space"):
            before.tokens_now()
        full.full = False
        after = RefreshableToken(source(), before._refresher, expiry=lambda _: None, chance=0.0)
        assert shown(after.tokens_now()) == ("at-1", "rt-1")
        assert len(bench.server.asked) == 1


async def test_nobody_waits_for_a_slow_server_and_its_answer_is_taken(bench: Bench) -> None:
    asked, answered = threading.Event(), threading.Event()

    def post(*args: Any) -> HttpResponse:
        asked.set()
        assert answered.wait(PATIENCE_S)
        return bench.server.post(*args)

    login = bench.login(post=post, slow_s=0.0)
    login.refuse(Secret("at-0"))
    for _ in range(3):
        with pytest.raises(RefreshPending, match="the server is slow") as told:
            await login.tokens()
        assert told.value.is_refused and told.value.aloud
    await asyncio.to_thread(asked.wait, PATIENCE_S)
    answered.set()
    login._refresher = replace(login._refresher, slow_s=PATIENCE_S)
    assert shown(await login.tokens()) == shown(bench.stored()) == ("at-1", "rt-1")
    assert len(bench.server.asked) == 1


async def test_a_slow_server_holds_no_login_of_another_up(bench: Bench) -> None:
    asked, answered = threading.Semaphore(0), threading.Event()

    def post(url: str, *how: Any) -> HttpResponse:
        if url.startswith("https://slow."):
            asked.release()
            answered.wait()
        return bench.server.post(url, *how)

    refresher = Refresher(store=bench.store, post=post, wall_clock=bench.clock, slow_s=0.0)
    written = {"token_url": "https://slow.example/", "expires_at": START}
    try:
        for n in range(50):
            slow = source(refresh_token=f"rt-{n}-slow", **written)
            with pytest.raises(RefreshPending):
                await RefreshableToken(slow, refresher, expiry=lambda _: None, chance=0.0).tokens()
            assert await asyncio.to_thread(asked.acquire, timeout=PATIENCE_S)
        quick = bench.login(source(expires_at=START), threads=refresher.threads, post=post)
        quick._refresher = replace(quick._refresher, slow_s=PATIENCE_S)
        assert shown(await quick.tokens()) == ("at-1", "rt-1")
    finally:
        answered.set()
        refresher.threads.shutdown()


async def test_a_caller_that_leaves_stops_nothing(bench: Bench) -> None:
    asked, answered = threading.Event(), threading.Event()

    def post(*args: Any) -> HttpResponse:
        asked.set()
        assert answered.wait(PATIENCE_S)
        return bench.server.post(*args)

    login = bench.login(post=post)
    login.refuse(Secret("at-0"))
    first = asyncio.create_task(login.tokens())
    await asyncio.to_thread(asked.wait, 10)
    first.cancel()
    second = asyncio.create_task(login.tokens())
    answered.set()
    assert shown(await second) == shown(bench.stored()) == ("at-1", "rt-1")
    assert len(bench.server.asked) == 1


@pytest.mark.parametrize(
    ("provider", "written"),
    [
        ("codex", {}),
        ("mine", {"client_id": "me", "client_secret": "s3", "scope": "a b", "style": "form"}),
    ],
)
async def test_over_real_http(bench: Bench, provider: str, written: dict[str, str]) -> None:
    with serve(bench.server) as url:
        http = Http(trust=ssl.create_default_context)
        post = post_with(http, Stop())
        login = bench.login(source(provider, token_url=url, **written), post=post)
        login.refuse(Secret("at-0"))
        assert shown(await login.tokens()) == ("at-1", "rt-1")
    (asked,) = bench.server.asked
    if provider == "mine":
        assert (asked["client_id"], asked["client_secret"], asked["scope"]) == ("me", "s3", "a b")


@pytest.fixture(autouse=True)
def no_secret_is_shown(bench: Bench, caplog: pytest.LogCaptureFixture) -> Any:
    yield
    assert "rt-" not in caplog.text and "at-" not in caplog.text
    bench.threads.shutdown()
