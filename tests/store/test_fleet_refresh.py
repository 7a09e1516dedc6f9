"""A login and an engine that is away: closed for tokens, and no answer is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.credentials.fakes import FakeClock
from tests.credentials.token_server import FIRST, TokenServer
from tests.store.places import KEY, FleetPlace, noticing
from tests.store.servers import StartServer

from account_pool.credentials.http import ExchangeFailed, HttpResponse
from account_pool.credentials.oauth import OAuthSource
from account_pool.credentials.refreshable_token import STORE_LOOK_S, RefreshableToken, Refresher
from account_pool.store.fleet.engine import Engine
from account_pool.store.fleet.token_rows import Keyring
from account_pool.store.fleet.tokens import SETTLE_S, FleetTokens, Unsaved
from account_pool.store.pool_state import parse


class Bench:
    """A pool in an engine that is killed, and proxies that share a login in it."""

    def __init__(self, place: FleetPlace) -> None:
        self.place = place
        self.server = TokenServer()
        self.clock = FakeClock()
        written = {"refresh_token": FIRST, "access_token": "at-0"}
        ends = {"expires_at": self.clock.now + 3600}
        self.source = OAuthSource.from_written("codex", "me", {**written, **ends}, {})
        self.hook = lambda _step: None

    def proxy(self, disk: str = "one") -> tuple[RefreshableToken, Refresher]:
        # An engine that is back is noticed at once.
        engine = Engine(
            parse(self.place.server.url(self.place.pool)),
            now=lambda: self.clock.now,
            chance=lambda: 0.0,
        )
        self.place.engines.append(engine)
        unsaved = Unsaved(self.place.folder / disk, self.place.pool)
        store = noticing(
            FleetTokens(engine, Keyring.read(KEY), unsaved, wall_clock=lambda: self.clock.now)
        )
        refresher = Refresher(store=store, post=self.post, wall_clock=self.clock)
        login = RefreshableToken(self.source, refresher, expiry=lambda _: None, chance=0.0)
        return login, refresher

    def post(self, url, headers, content, sending) -> HttpResponse:
        self.hook("connected")
        response = self.server.post(url, headers, content, sending)
        self.hook("answered")
        return response

    def away(self) -> None:
        self.place.server.kill()

    def back(self) -> None:
        self.place.server.start()
        self.clock.now += 60
        self.proxy("any")[1].store.keep()
        self.place.passes(SETTLE_S)

    def at(self, step: str) -> None:
        """Have the engine killed then."""

        def hook(now: str) -> None:
            if now == step:
                self.away()

        self.hook = hook


@pytest.fixture
def bench(start_server: StartServer, tmp_path: Path) -> Iterator[Bench]:
    server = start_server("valkey", "appendonly yes", "appendfsync always")
    place = FleetPlace(server, tmp_path)
    yield Bench(place)
    place.close()


def refused(login: RefreshableToken) -> ExchangeFailed:
    with pytest.raises(ExchangeFailed) as caught:
        login.tokens_now()
    return caught.value


def shown(login: RefreshableToken) -> str:
    access = login.tokens_now().access
    return "" if access is None else access.reveal()


def test_the_access_token_serves_until_it_ends_and_nothing_is_refreshed(bench: Bench) -> None:
    login, _ = bench.proxy()
    assert shown(login) == "at-0"
    bench.away()
    bench.clock.now += 3600 - 60
    error = refused(login)
    assert "cannot be reached" in str(error)
    # It is tried again soon, and an account that fails for long does not wait longer.
    assert error.is_wait and error.retry_after_s == STORE_LOOK_S and error.passes
    assert login.still_good() is not None
    bench.clock.now += 60
    refused(login)
    assert login.still_good() is None
    assert bench.server.asked == []
    bench.back()
    assert shown(login) == "at-1"


def test_a_claim_that_cannot_be_marked_sends_nothing(bench: Bench) -> None:
    login, _ = bench.proxy()
    bench.clock.now += 3600
    bench.at("connected")
    assert "cannot be reached" in str(refused(login))
    assert bench.server.asked == []
    bench.back()
    bench.hook = lambda _step: None
    assert shown(login) == "at-1"


def test_an_answer_that_cannot_be_saved_serves_here_and_later_everywhere(bench: Bench) -> None:
    login, _ = bench.proxy()
    other, _ = bench.proxy("two")
    assert shown(other) == "at-0"
    bench.clock.now += 3600
    bench.at("answered")
    assert "until then, new tokens are kept in" in str(refused(login))
    assert (tokens := login.still_good()) is not None and tokens.access is not None
    assert tokens.access.reveal() == "at-1"
    refused(other)
    bench.back()
    assert shown(login) == shown(other) == "at-1"
    assert len(bench.server.asked) == 1


def test_it_survives_a_restart_of_the_proxy(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    login, refresher = bench.proxy()
    bench.clock.now += 3600
    bench.at("answered")
    refused(login)
    refresher.stop(0.0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "tokens of logins cannot be stored now" in caplog.text
    again, _ = bench.proxy()
    refused(again)
    bench.back()
    assert shown(again) == "at-1"
    assert len(bench.server.asked) == 1
    assert shown(bench.proxy("elsewhere")[0]) == "at-1"


def test_a_proxy_that_starts_meanwhile_sends_nothing_that_may_be_spent(bench: Bench) -> None:
    login, _ = bench.proxy()
    bench.clock.now += 3600 - 60
    assert shown(login) == "at-1"
    bench.away()
    fresh, refresher = bench.proxy("new")
    # What is written down serves to its end. What it was refreshed to is in the engine only.
    refused(fresh)
    tokens = fresh.still_good()
    assert tokens is not None and tokens.access is not None
    assert tokens.access.reveal() == "at-0"
    bench.clock.now += 60
    for _ in range(2):
        refused(fresh)
        assert fresh.still_good() is None
    # Nor does it when it is refused, or stopped.
    fresh.refuse(tokens.access)
    refused(fresh)
    refresher.stop(0.0)
    assert len(bench.server.asked) == 1
    bench.back()
    assert shown(bench.proxy("newer")[0]) == shown(login) == "at-1"
    assert len(bench.server.asked) == 1


def test_a_proxy_with_another_key_refreshes_nothing(bench: Bench) -> None:
    login, refresher = bench.proxy()
    bench.clock.now += 3600
    refresher.store._keyring = Keyring.read(type(KEY)("ab" * 32))
    assert "are sealed with the key 3e73f932" in str(refused(login))
    assert bench.server.asked == []
