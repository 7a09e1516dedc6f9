"""What the requests of one proxy share."""

from __future__ import annotations

import asyncio

import pytest
from mitmproxy import http
from mitmproxy.test import tutils
from msgspec.structs import replace

from account_pool.core.accounts import summary
from account_pool.core.credential import Credential, Secret
from account_pool.core.lease import Ticket
from account_pool.core.steps import Limits, Refresh, Send, Wait
from account_pool.providers import copilot, gemini, openai
from account_pool.providers.base import CannotSwap, HostRule, LocalResponse, Route
from account_pool.providers.definition import add_hosts, like
from account_pool.proxy import service as module
from account_pool.proxy.events import Pause
from account_pool.proxy.pooled_request import Destination
from account_pool.proxy.response_reader import CHECK_CLOCK_S, ResponseReader
from tests.proxy.helpers import (
    CHAT,
    CLIENT_KEY,
    FakeClock,
    account,
    begun,
    client_connection,
    service_of,
)

TLS = Destination("api.openai.com", 443, True)


def request(path="/v1/chat/completions", method="POST", **headers) -> http.Request:
    fields = {"authorization": f"Bearer {CLIENT_KEY}", **headers}
    return tutils.treq(
        method=method.encode(),
        path=path.encode(),
        content=CHAT,
        headers=http.Headers([(k.encode(), v.encode()) for k, v in fields.items()]),
    )


def opened(service, made=None, destination=TLS, peer="127.0.0.1"):
    recognizer = service.recognizer
    return recognizer.recognize(
        made or request(), destination, client_connection(peer), service.settings
    )


# -- is it ours?


def test_a_recognized_request_is_masked_and_remembered():
    made = request()
    call = opened(service_of("one"), made)
    assert call.provider is openai.PROVIDER
    assert (call.route, call.denied) == (Route.POOL, None)
    assert made.headers["authorization"] == "Bearer pool:openai"
    assert call.head.headers["authorization"] == f"Bearer {CLIENT_KEY}"


def test_repr_of_a_recognized_request_shows_no_credential():
    service = service_of(account("one", "gemini"), providers=[gemini.PROVIDER])
    made = request(f"/v1beta/models/m:generateContent?key={CLIENT_KEY}")
    call = opened(service, made, Destination("generativelanguage.googleapis.com", 443, True))
    assert call.head.query == f"key={CLIENT_KEY}"
    assert CLIENT_KEY not in repr(call)


def test_hosts_of_others_are_not_touched():
    made = request()
    assert opened(service_of("one"), made, Destination("example.com", 443, True)) is None
    assert made.headers["authorization"] == f"Bearer {CLIENT_KEY}"


def test_providers_without_an_account_have_no_hosts():
    service = service_of("one", providers=[openai.PROVIDER, copilot.PROVIDER])
    assert service.recognizer.claims("api.openai.com", 443)
    assert not service.recognizer.claims("api.githubcopilot.com", 443)


def test_of_several_providers_at_a_host_the_first_that_wants_it_has_it():
    uninterested = replace(
        openai.PROVIDER, name="other", route=lambda _head: Route.PASS, posts=frozenset()
    )
    mine = like(openai.PROVIDER, "mine", [HostRule("api.openai.com")])
    service = service_of(
        account("one", "other"), account("one", "mine"), providers=[uninterested, mine]
    )
    assert opened(service).provider.name == "mine"


def test_the_credentials_of_all_providers_at_a_host_are_masked():
    other = replace(
        like(openai.PROVIDER, "other", [HostRule("api.openai.com")]),
        credential_headers=frozenset({b"x-foo"}),
        credential_query=("foo",),
    )
    both = [openai.PROVIDER, other]
    service = service_of(account("one"), account("one", "other"), providers=both)
    for path in ("/v1/chat/completions", "/v1/assistants"):
        made = request(f"{path}?foo={CLIENT_KEY}", **{"x-foo": CLIENT_KEY})
        opened(service, made)
        assert CLIENT_KEY not in f"{made.headers.fields} {made.path}"
    # Without an account it is nobody's credential.
    service = service_of("one", providers=both)
    made = request(**{"x-foo": "1"})
    opened(service, made)
    assert made.headers["x-foo"] == "1"


@pytest.mark.parametrize(
    ("destination", "peer", "settings", "status"),
    [
        (TLS, "127.0.0.1", {}, None),
        (TLS, "::1", {}, None),
        (TLS, "::ffff:127.0.0.1", {}, None),
        (TLS, "192.0.2.7", {}, 403),
        (TLS, "192.0.2.7", {"remote": True}, None),
        (Destination("api.openai.com", 80, False), "127.0.0.1", {}, 400),
        (Destination("api.openai.com", 80, False), "192.0.2.7", {"remote": True}, 400),
        (Destination("api.openai.com", 443, True, via=True), "127.0.0.1", {}, None),
        (TLS, "127.0.0.1", {"insecure": True}, 400),
    ],
)
def test_who_is_denied(destination, peer, settings, status):
    call = opened(service_of("one", **settings), None, destination, peer)
    assert (call.denied.status if call.denied else None) == status


@pytest.mark.parametrize(("port", "tls"), [(80, True), (8443, True), (8080, False)])
def test_behind_another_port_is_not_the_pools_business(port, tls):
    assert opened(service_of("one"), None, Destination("api.openai.com", port, tls)) is None


def test_insecure_and_plain_are_good_enough_for_this_machine():
    local = like(openai.PROVIDER, "mine", [HostRule("localhost", 9000)])
    service = service_of(account("one", "mine"), providers=[local], insecure=True)
    assert opened(service, None, Destination("localhost", 9000, False)).denied is None


@pytest.mark.parametrize(("tls", "insecure"), [(False, False), (True, True)])
def test_this_machine_is_another_one_behind_another_proxy(tls, insecure):
    local = like(openai.PROVIDER, "mine", [HostRule("localhost", 9000)])
    service = service_of(account("one", "mine"), providers=[local], insecure=insecure)
    assert opened(service, None, Destination("localhost", 9000, tls)).denied is None
    assert opened(service, None, Destination("localhost", 9000, tls, via=True)).denied.status == 400


@pytest.mark.parametrize(
    ("insecure", "host", "refused"),
    [(False, "a.example", False), (True, "a.example", True), (True, "localhost", False)],
)
def test_origins_that_no_certificate_proves(insecure, host, refused):
    service = service_of(account("one", companions={"host": host}))
    made = request()
    call = opened(service, made)
    lease = service.pool.acquire(call.facts(made), now=0)

    def send():
        sent = (made, call.masked, call.head, call.provider, lease)
        return service.swaps.outgoing(*sent, insecure=insecure)

    if refused:
        with pytest.raises(CannotSwap, match="ssl_insecure"):
            send()
    else:
        assert send().address == (host, 443)


@pytest.mark.parametrize("settings", [{}, {"insecure": True}])
def test_nobody_is_denied_what_passes(settings):
    call = opened(service_of("one", **settings), request("/v1/assistants"), TLS, "192.0.2.7")
    assert (call.route, call.denied) == (Route.PASS, None)


def test_headers_are_shown_to_who_learns_from_them():
    service = service_of("one")
    seen = []
    service.recognizer.seen["openai"] = lambda headers: seen.append(headers["user-agent"])
    opened(service, request(**{"User-Agent": "x/1"}))
    assert seen == ["x/1"]


@pytest.mark.parametrize("model", [None, lambda head: head.json and head.json.model])
def test_a_head_that_was_asked_too_early_has_its_body_once_it_is_there(model):
    service = service_of("one", providers=[replace(openai.PROVIDER, model=model)])
    call = opened(service)
    assert call.head.json is None
    made = request()
    made.content = b'{"model": "gpt-5"}'
    assert call.facts(made).model == call.head.json.model == "gpt-5"
    made.content = b"--form"
    assert (call.facts(made).model, call.head.json, call.head.body) == (None, None, b"--form")


# -- serving


@pytest.mark.parametrize(
    ("host", "owner"),
    [(None, "acme"), ("llm.example.com", None), ("api.openai.com", "acme")],
)
def test_only_the_vendor_says_whose_limits_an_account_has(host, owner):
    wide = add_hosts(openai.PROVIDER, [HostRule("llm.example.com")])
    of_host = account("one", companions={} if host is None else {"host": host})
    service = service_of(of_host, providers=[wide])
    call = opened(service)
    lease = service.pool.acquire(call.facts(request()), now=0)
    answer = http.Response.make(200, headers={"openai-organization": "acme"})
    service.observer.head(call.provider, lease, answer)
    assert service.pool.accounts.owners.get(lease.key) == owner


def test_what_was_asked_with_an_earlier_credential_names_nobody():
    """A limit of that owner would let this account cool as well."""
    service = service_of("one")
    call = opened(service)
    lease = service.pool.acquire(call.facts(request()), now=0)
    service.pool.accounts.renewed(lease.key, now=0)
    answer = http.Response.make(200, headers={"openai-organization": "acme"})
    service.observer.head(call.provider, lease, answer)
    assert service.pool.accounts.owners.get(lease.key) is None


def test_swap_is_made_once_per_credential():
    service = service_of("one")
    call = opened(service)
    facts = call.facts(request())
    lease = service.pool.acquire(facts, now=0)
    swap = service.swaps.of(call.provider, lease)
    assert service.swaps.of(call.provider, lease) is swap
    key = lease.key
    service.pool.accounts.set_credentials(
        key, {"key": Credential(kind="key", secret=Secret("sk-new"))}, now=0
    )
    other = service.pool.acquire(facts, now=0)
    assert b"sk-new" in service.swaps.of(call.provider, other).headers[0][1]


def attempts_of(service, client):
    made = request()
    return begun(service, opened(service, made).facts(made), client)


def end(service, client, attempts) -> None:
    service.running.end(client.id, attempts, service.now(), service.wall_now())


def test_attempts_under_way_end_with_their_client():
    service = service_of("one")
    client = client_connection()
    attempts = attempts_of(service, client)
    assert isinstance(attempts.begin(0.0), Send)
    service.client_gone(client)
    assert attempts.over
    assert summary(service.pool.accounts, now=0.0)["in_flight"] == 0
    end(service, client, attempts)
    service.client_gone(client)
    assert not service.running


def test_an_error_about_one_of_them_keeps_no_other(caplog):
    service = service_of("one")
    client = client_connection()
    failing, other = attempts_of(service, client), attempts_of(service, client)
    for attempts in (failing, other):
        assert isinstance(attempts.begin(0.0), Send)
    failing.session = None
    service.client_gone(client)
    assert other.over
    assert other.lease is None
    assert "AttributeError" in caplog.text


def test_ends_leave_nothing():
    service = service_of("one")
    client = client_connection()
    several = [attempts_of(service, client) for _ in range(3)]
    for attempts in several:
        end(service, client, attempts)
        end(service, client, attempts)
    assert not service.running


# -- pauses


def pause_of(step) -> Pause:
    return Pause(step)


async def test_a_wait_whose_time_has_come():
    service = service_of("one")
    await service.carry_out(pause_of(Wait(service.now() - 5)))


def in_line(service) -> Ticket:
    """A request that waits for an account."""
    ticket = Ticket(facts=opened(service).facts(request()))
    service.pool.admission.wait(ticket, None)
    return ticket


async def test_a_wait_ends_when_it_is_called():
    service = service_of("one", limits=Limits(max_wait_s=60))
    ticket = in_line(service)
    waiting = asyncio.create_task(service.carry_out(pause_of(Wait(service.now() + 3600, ticket))))
    await asyncio.sleep(0)
    service.pool.accounts.add(account("two"), {}, now=0)
    await waiting
    assert service.pool.admission.stop_waiting(ticket) is not None


async def test_a_call_before_the_wait_began_is_not_missed():
    service = service_of("one")
    ticket = in_line(service)
    ticket.call()
    await service.carry_out(pause_of(Wait(service.now() + 3600, ticket)))


async def test_a_wait_that_is_abandoned_ends_at_once():
    service = service_of("one")
    pause = pause_of(Wait(service.now() + 3600))
    waiting = asyncio.create_task(service.carry_out(pause))
    await asyncio.sleep(0)
    pause.woken.set()
    await waiting


def lease_of(service):
    return service.pool.acquire(opened(service).facts(request()), now=service.now())


async def test_refresh_says_whether_it_changed():
    service = service_of("one")
    lease = lease_of(service)
    pause = pause_of(Refresh(lease))
    await service.carry_out(pause)
    assert pause.refreshed is False
    asked = []

    async def refresh(key, credential):
        asked.append((key, credential))
        return True

    service.refresh = refresh
    await service.carry_out(pause)
    assert pause.refreshed is True
    assert asked == [(lease.key, lease.credential)]


async def test_a_refresh_that_takes_too_long_goes_on_for_the_others(monkeypatch, caplog):
    monkeypatch.setattr(module, "REFRESH_TIMEOUT_S", 0.0)
    service = service_of("one")
    done = asyncio.Event()
    finished = asyncio.Event()

    async def refresh(_key, _credential):
        await done.wait()
        finished.set()
        return True

    service.refresh = refresh
    pause = pause_of(Refresh(lease_of(service)))
    await service.carry_out(pause)
    assert pause.refreshed is None
    assert "takes too long" in caplog.text
    done.set()
    await finished.wait()


async def test_local_answers():
    service = service_of("one")

    async def answer():
        return LocalResponse(200, (), b"x")

    service.local["openai"] = answer
    pause = pause_of("openai")
    await service.carry_out(pause)
    assert pause.response.body == b"x"


# -- what is remembered


def test_refusals_are_remembered_by_account():
    service = service_of("one")
    key = next(iter(service.pool.accounts)).key
    assert service.refusals.find(key) is None
    assert service.refusals.find(None) is None
    reader = ResponseReader(http.Response.make(429, b"", {"x": "sk-fake"}), openai.PROVIDER)
    reader.feed(b"the key sk-fake is limited")
    reader.end()
    service.refusals.remember(key, reader, frozenset({b"sk-fake"}))
    stored = service.refusals.find(key)
    assert (stored.status, stored.body) == (429, b"the key ******* is limited")
    assert (b"x", b"*******") in stored.headers
    service.forget(key)
    assert service.refusals.find(key) is None


def test_a_clock_that_is_wrong_is_reported_once(caplog):
    clock = FakeClock()
    service = service_of("one", clock=clock)
    service.wall_now = lambda: 1_700_000_000.0
    lease = lease_of(service)

    def answer(date: str) -> None:
        headers = http.Headers([(b"date", date.encode())])
        service.observer.head(openai.PROVIDER, lease, http.Response.make(200, b"", headers))
        clock.advance(CHECK_CLOCK_S)

    answer("Tue, 14 Nov 2023 22:13:20 GMT")
    answer("nonsense")
    answer("Tue, 14 Nov 2023 22:12:00 GMT")
    assert caplog.messages == []
    answer("Tue, 14 Nov 2023 22:03:20 GMT")
    answer("Tue, 14 Nov 2023 22:03:20 GMT")
    (line,) = caplog.messages
    assert line.startswith("this machine's clock is 10 min ahead of that of openai")
    assert service.observer.wrong_clock == line
    answer("Tue, 14 Nov 2023 22:13:20 GMT")
    assert service.observer.wrong_clock == ""
