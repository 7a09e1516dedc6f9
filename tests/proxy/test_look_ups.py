"""Providers are asked what idle accounts have left, where that is on, and nobody else is."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

import pytest
from mitmproxy.options import Options
from msgspec.structs import replace

from account_pool.core.account import AccountKey
from account_pool.core.credential import Credential, Secret
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.credentials.http import HttpFailed, HttpResponse
from account_pool.providers import claude_code, openai
from account_pool.providers.base import HostRule
from account_pool.providers.look_ups import FIRST_S, LEAST_S, LOOK_UPS
from account_pool.proxy.look_ups import HeadroomLookUps
from account_pool.store.store import StoreError
from tests.proxy.helpers import FakeClock, account, secret, service_of

ONE, TWO = AccountKey("claude-code", "one"), AccountKey("claude-code", "two")
LIMIT = Outcome(
    cls=OutcomeClass.QUOTA, scope=Scope.ACCOUNT, cooldown_s=36_000.0, replayable=True,
    signal="429 rejected",
)  # fmt: skip


def usage(used: float) -> bytes:
    windows = {"utilization": used, "resets_at": None}
    return json.dumps({"five_hour": windows, "seven_day": windows}).encode()


class Vendor:
    """Answers look-ups: by credential, else with room."""

    def __init__(self, service: Any) -> None:
        self.asked: list[tuple[str, Mapping[str, str]]] = []
        self.answers: dict[str, HttpResponse | HttpFailed] = {}
        self.meanwhile = lambda: None
        self._service = service

    async def ask(self, method: str, url: str, *, headers: Any, timeout_s: float) -> HttpResponse:
        assert method == "GET"
        self.asked.append((url, headers))
        self._service.now.__self__.advance(1.0)
        self.meanwhile()
        label = headers["authorization"].split("-")[1]
        answer = self.answers.get(label, HttpResponse(status=200, body=usage(20)))
        if isinstance(answer, HttpFailed):
            raise answer
        return answer

    def labels(self) -> list[str]:
        return [headers["authorization"].split("-")[1] for _, headers in self.asked]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def service(clock: FakeClock) -> Any:
    return service_of("one", "two", clock=clock, providers=(claude_code.PROVIDER,), kind="oauth")


def made(service: Any) -> tuple[HeadroomLookUps, Vendor]:
    vendor = Vendor(service)
    look_ups = HeadroomLookUps(service, lambda _options: vendor)  # type: ignore[arg-type,return-value]
    look_ups.use(Options(), on=True)
    service.look_ups = look_ups
    return look_ups, vendor


async def test_off_is_the_default_and_asks_nobody(service: Any) -> None:
    vendor = Vendor(service)
    look_ups = HeadroomLookUps(service, lambda _options: vendor)  # type: ignore[arg-type,return-value]
    look_ups.start(lambda: None, lambda _provider: True)
    look_ups.use(Options(), on=False)
    assert look_ups._task is None
    look_ups.use(Options(), on=True)
    assert look_ups._task is not None
    look_ups.stop()


async def test_an_idle_account_is_asked_under_our_own_name(service: Any, clock: FakeClock) -> None:
    look_ups, vendor = made(service)
    await look_ups.look()
    assert vendor.asked == []
    clock.advance(FIRST_S)
    await look_ups.look()
    [(url, headers)] = vendor.asked
    assert url == "https://api.anthropic.com/api/oauth/usage"
    assert headers["authorization"] == f"Bearer {secret('one')}"
    assert headers["user-agent"].startswith("account-pool/")
    clock.advance(2.0)
    await look_ups.look()
    assert vendor.labels() == ["one", "two"]
    windows = service.pool.accounts.get(ONE).headroom.windows
    assert {name for name, _ in windows} == {"5h", "7d"}
    assert look_ups.views()[ONE] == {"age_s": 3.0, "problem": None, "reset_credits": None}
    await look_ups.look()
    await look_ups.refresh(service.pool.accounts)
    assert len(vendor.asked) == 2


async def test_a_limit_that_was_lifted_ends_its_cooldown(service: Any, clock: FakeClock) -> None:
    look_ups, vendor = made(service)
    service.pool.health.mark_cooldown(ONE, LIMIT, now=clock.now())
    vendor.answers["one"] = HttpResponse(status=200, body=usage(100))
    clock.advance(1.0)
    assert await look_ups.refresh(service.pool.accounts) == [ONE, TWO]
    state = service.pool.accounts.get(ONE)
    assert state.cooling_until(None, clock.now()) > clock.now()
    vendor.answers["one"] = HttpResponse(status=200, body=usage(3))
    clock.advance(LEAST_S)
    await look_ups.refresh(service.pool.accounts)
    assert state.cooling_until(None, clock.now()) <= clock.now()
    assert next((d.kind, d.by) for d in service.pool.decisions) == ("release", "a look-up")


@pytest.mark.parametrize(
    "answer",
    [
        HttpFailed("api.anthropic.com did not answer within 15 s"),
        HttpResponse(status=200, body=b"<html>"),
        HttpResponse(status=200, body=b"[1]"),
        HttpResponse(status=200, body=b'{"of tomorrow": {"used": 0}}'),
        HttpResponse(status=401, body=usage(0)),
        HttpResponse(status=500, body=usage(0)),
        HttpResponse(status=302, headers={"location": "https://evil.example"}),
    ],
)
async def test_a_silent_or_strange_answer_changes_nothing(
    service: Any, clock: FakeClock, answer: HttpResponse | HttpFailed
) -> None:
    look_ups, vendor = made(service)
    service.pool.health.mark_cooldown(ONE, LIMIT, now=clock.now())
    vendor.answers["one"] = answer
    before = [*service.pool.decisions]
    await look_ups.refresh([service.pool.accounts.get(ONE)])
    state = service.pool.accounts.get(ONE)
    assert state.headroom.windows == {}
    assert state.cooling_until(None, clock.now()) > clock.now()
    assert [*service.pool.decisions] == before
    assert len(vendor.asked) == 1
    assert look_ups.views()[ONE]["problem"]
    # The others are asked all the same.
    await look_ups.refresh(service.pool.accounts)
    assert vendor.labels() == ["one", "two"]


async def test_an_answer_that_its_reader_chokes_on_is_one_that_is_not_understood(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ups, vendor = made(service)

    def choke(*_: object) -> None:
        raise ArithmeticError

    how = replace(LOOK_UPS["claude-code"], windows=choke)  # type: ignore[arg-type]
    monkeypatch.setitem(LOOK_UPS, "claude-code", how)  # type: ignore[arg-type]
    await look_ups.refresh(service.pool.accounts)
    assert vendor.labels() == ["one", "two"]
    assert look_ups.views()[ONE]["problem"] == "the answer shows no window that is known"


async def test_a_vendor_that_refuses_our_name_is_off_and_the_log_says_so(
    service: Any, caplog: pytest.LogCaptureFixture
) -> None:
    look_ups, vendor = made(service)
    vendor.answers["one"] = vendor.answers["two"] = HttpResponse(status=403)
    await look_ups.refresh([service.pool.accounts.get(ONE)])
    await look_ups.refresh(service.pool.accounts)
    assert vendor.labels() == ["one"]
    assert [r.message for r in caplog.records if r.levelno == logging.WARNING] == [
        "account-pool: claude-code refuses look-ups: status 403; off for a day"
    ]
    # Its owner may have it tried again.
    look_ups.use(Options(), on=False)
    look_ups.use(Options(), on=True)
    await look_ups.refresh(service.pool.accounts)
    assert vendor.labels() == ["one", "one"]


async def test_what_another_credential_has_left_is_not_learnt(service: Any) -> None:
    look_ups, vendor = made(service)
    now = service.now()

    def renewed() -> None:
        other = Credential(kind="oauth", secret=Secret("sk-other-1111"))
        service.pool.accounts.set_credentials(ONE, {"oauth": other}, now=now)

    vendor.meanwhile = renewed
    await look_ups.refresh([service.pool.accounts.get(ONE)])
    assert service.pool.accounts.get(ONE).headroom.windows == {}


async def test_only_the_vendors_own_accounts_are_asked(clock: FakeClock) -> None:
    there = account("elsewhere", "claude-code", companions={"host": "llm.example.com"})
    off = account("off", "claude-code", enabled=False)
    service = service_of(there, off, clock=clock, providers=(claude_code.PROVIDER,), kind="oauth")
    look_ups, vendor = made(service)
    assert await look_ups.refresh(service.pool.accounts) == []
    gateway = replace(
        claude_code.PROVIDER, added_hosts=frozenset({HostRule.parse("llm.example.com")})
    )
    service = service_of("one", clock=clock, providers=(gateway,), kind="oauth")
    assert await made(service)[0].refresh(service.pool.accounts) == []
    # An API key's provider has no such address.
    service = service_of("one", clock=clock, providers=(openai.PROVIDER,))
    assert await made(service)[0].refresh(service.pool.accounts) == []
    service = service_of("one", clock=clock, providers=(claude_code.PROVIDER,), kind="key")
    assert await made(service)[0].refresh(service.pool.accounts) == []
    assert vendor.asked == []


async def test_of_several_proxies_one_asks(service: Any, clock: FakeClock) -> None:
    class Turns:
        def __init__(self, answer: bool | StoreError) -> None:
            self.answer = answer

        async def take_turn(self, name: str, every_s: float) -> bool:
            assert (name, every_s) == ("look-up claude-code/one", LEAST_S)
            if isinstance(self.answer, StoreError):
                raise self.answer
            return self.answer

    for answer, asked in ((False, 0), (True, 1), (StoreError("locked"), 1)):
        look_ups, vendor = made(service)
        look_ups._turns = lambda answer=answer: Turns(answer)
        await look_ups.refresh([service.pool.accounts.get(ONE)])
        assert len(vendor.asked) == asked
        clock.advance(1.0)


async def test_whoever_asks_for_fresh_figures_does_not_wait_for_ever(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ups, vendor = made(service)
    monkeypatch.setattr("account_pool.proxy.look_ups.REFRESH_S", 0.0)
    answered = asyncio.Event()

    async def ask(*_args: Any, **_how: Any) -> HttpResponse:
        await answered.wait()
        return HttpResponse(status=200, body=usage(20))

    vendor.ask = ask  # type: ignore[method-assign]
    await look_ups.refresh(service.pool.accounts)
    assert service.pool.accounts.get(ONE).headroom.windows == {}
    answered.set()
    while not service.pool.accounts.get(TWO).headroom.windows:
        await asyncio.sleep(0)
