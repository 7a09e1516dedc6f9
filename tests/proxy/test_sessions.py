"""What a service knows of conversations, and of what its accounts made."""

from __future__ import annotations

import gzip
import json

import pytest
from mitmproxy import http

from account_pool.core.steps import Send
from account_pool.providers import copilot, openai
from account_pool.providers.base import Route
from account_pool.proxy import credential_swap
from account_pool.proxy import pooled_request as call_of
from account_pool.proxy.pooled_request import Destination
from account_pool.proxy.response_reader import ResponseReader
from tests.proxy.helpers import begun, client_connection, service_of
from tests.proxy.test_service import opened, request

PLAN = Destination("api.individual.githubcopilot.com", 443, True)
STORED = json.dumps({"id": "resp_1", "object": "response"}).encode()


def lease_of(service, call, made):
    attempts = begun(service, call.facts(made), client_connection())
    step = attempts.begin(service.now())
    assert isinstance(step, Send)
    return step.lease


def answer(service, call, body=STORED, **headers) -> ResponseReader:
    response = http.Response.make(200, b"", {"content-type": "application/json", **headers})
    reader = ResponseReader(response, call.provider)
    reader.held.append(body)
    return reader


@pytest.mark.parametrize(
    ("body", "headers"),
    [(STORED, {}), (gzip.compress(STORED, mtime=0), {"content-encoding": "gzip"})],
)
def test_what_continues_an_answer_goes_to_the_account_that_made_it(body, headers):
    service = service_of("one", "two")
    first = request("/v1/responses")
    call = opened(service, first)
    lease = lease_of(service, call, first)
    service.observer.body(call, lease_on_second(service), answer(service, call, body, **headers))
    follow = request("/v1/responses")
    follow.content = json.dumps({"previous_response_id": "resp_1", "input": "Hi"}).encode()
    assert lease.key.label == "one"
    assert lease_of(service, opened(service, follow), follow).key.label == "two"


def lease_on_second(service):
    """Return a lease on the second account."""
    facts = opened(service).facts(request())
    key = [state.key for state in service.pool.accounts][1]
    return service.pool.acquire(facts, now=service.now(), only=key)


def test_a_client_that_sends_its_key_as_the_id_of_a_conversation_does_not_have_it_shown():
    """Sessions are kept in the store and listed by the admin API."""
    service = service_of("one", "two")
    for name, value in (("x-session-id", "fake-no-prefix-1"), ("session_id", "u:fake-no-prefix-1")):
        made = request(authorization="Bearer fake-no-prefix-1", **{name: value})
        lease_of(service, opened(service, made), made)
    assert len(service.sessions) == 2
    assert all("fake-no-prefix-1" not in key for key in service.sessions)


def test_a_name_of_a_model_is_kept_short():
    service = service_of("one")
    made = request()
    made.content = json.dumps({"model": "m" * 100_000, "messages": []}).encode()
    assert len(opened(service, made).facts(made).model) == call_of.MAX_MODEL_CHARS


def test_garbage_in_an_answer_is_nobodys():
    service = service_of("one")
    made = request("/v1/responses")
    call = opened(service, made)
    lease = lease_of(service, call, made)
    for body in (b"", b"{", b"\x1f\x8b nonsense"):
        service.observer.body(call, lease, answer(service, call, body))
    broken = answer(service, call, b"nonsense", **{"content-encoding": "gzip"})
    service.observer.body(call, lease, broken)
    assert len(service.pins) == 0


def test_a_token_goes_back_to_the_account_that_issued_it_or_not_at_all():
    service = service_of("one", "two")
    made = request(**{"x-codex-turn-state": "state"})
    call = opened(service, made)
    two = lease_on_second(service)
    issued = http.Response.make(200, b"", {"x-codex-turn-state": "state"})
    service.observer.head(openai.PROVIDER, two, issued)
    facts = call.facts(made)
    key_one = next(iter(service.pool.accounts)).key
    one = service.pool.acquire(facts, now=service.now(), only=key_one)
    sent = {}
    for lease in (one, two):
        swap = service.swaps.of(call.provider, lease)
        copy = credential_swap.outgoing(
            made, swap, call.masked, service.swaps.returned(call.provider, call.head, lease)
        )
        sent[lease.key.label] = copy.headers.get("x-codex-turn-state")
    assert sent == {"one": None, "two": "state"}
    assert made.headers["x-codex-turn-state"] == "pool:openai"


@pytest.mark.parametrize("name", ["copilot-session-token", "copilot-edits-session"])
def test_a_session_of_copilot_is_ours_where_one_of_ours_opened_it(name):
    service = service_of("one", "two", providers=[copilot.PROVIDER], kind="copilot")
    made = request("/chat/completions", **{name: "token"})
    assert opened(service, made, PLAN).route is Route.PASS
    key_two = [state.key for state in service.pool.accounts][1]
    service.pins.remember(key_two, "token", service.wall_now())
    made = request("/chat/completions", **{name: "token"})
    call = opened(service, made, PLAN)
    assert call.route is Route.POOL
    lease = lease_of(service, call, made)
    assert lease.key == key_two
    assert service.swaps.returned(call.provider, call.head, lease) == {name.encode(): b"token"}


def test_what_an_account_made_is_forgotten_with_it():
    service = service_of("one")
    key = next(iter(service.pool.accounts)).key
    service.pins.remember(key, "resp_1", service.wall_now())
    service.forget(key)
    assert len(service.pins) == 0
