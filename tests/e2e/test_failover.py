"""A refused attempt is replaced: the client sees the good answer and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.e2e.harness import (
    CLIENT,
    FIRST,
    SECOND,
    THIRD,
    TWO,
    chat,
    generate,
    in_order,
    messages,
    respond,
)
from tests.scripts import anthropic, encoded, framed, gemini, openai
from tests.upstream.exchange import Framing, Reply
from tests.upstream.replies import by_credential

WORDS = ["Good", " morning", " to", " you"]
CHAT = openai.chat_stream(WORDS)
RESPONSE = openai.response_stream(WORDS)
LIMITED = openai.rate_limited()

REFUSALS = {
    "rate limit": (chat(), LIMITED, CHAT),
    "rate limit, chunked": (chat(), framed(LIMITED, Framing.CHUNKED), CHAT),
    "rate limit, until close": (chat(), framed(LIMITED, Framing.CLOSE), CHAT),
    "rate limit, connection: close": (
        chat(),
        framed(LIMITED, Framing.LENGTH, ("connection", "close")),
        CHAT,
    ),
    "rate limit, gzip": (chat(), encoded(LIMITED, "gzip"), CHAT),
    "rate limit, br": (chat(), encoded(LIMITED, "br"), CHAT),
    "rate limit, zstd": (chat(), encoded(LIMITED, "zstd"), CHAT),
    "rate limit, gzip, chunked": (chat(), framed(encoded(LIMITED, "gzip"), Framing.CHUNKED), CHAT),
    "out of quota": (chat(), openai.insufficient_quota(), CHAT),
    "not streaming": (chat(stream=False), LIMITED, openai.chat_complete("Good morning")),
    "chat stream that begins with an error": (chat(), openai.limit_in_chat_stream(), CHAT),
    "error envelope in a 200": (
        chat(stream=False),
        openai.limit_in_json(),
        openai.chat_complete("Good morning"),
    ),
    "error envelope in a gzipped 200": (
        chat(stream=False),
        encoded(openai.limit_in_json(), "gzip"),
        openai.chat_complete("Good morning"),
    ),
    "response.failed after response.created": (respond(), openai.limit_in_stream(), RESPONSE),
    "anthropic rate limit": (
        messages(),
        anthropic.rate_limited(),
        anthropic.message_stream(WORDS),
    ),
    "anthropic out of credit, a 400": (
        messages(),
        anthropic.credit_too_low(),
        anthropic.message_stream(WORDS),
    ),
    "anthropic error after message_start and ping": (
        messages(),
        anthropic.limit_in_stream(),
        anthropic.message_stream(WORDS),
    ),
    "gemini per minute": (generate(), gemini.per_minute(), gemini.content_stream(WORDS)),
    "gemini per day": (
        generate(stream=False),
        gemini.per_day(),
        gemini.content_complete("Good morning"),
    ),
    "gemini per minute, inside an array": (
        generate(sse=False),
        gemini.limit_in_array(),
        gemini.content_array(WORDS),
    ),
    "gemini, key in the query": (
        generate(key_in_query=True),
        gemini.per_minute(),
        gemini.content_stream(WORDS),
    ),
}

PROVIDER_OF = {
    "api.openai.com": "openai",
    "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "gemini",
}


@pytest.mark.parametrize(("request_", "refusal", "good"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_the_client_sees_only_the_good_answer(provider, pool_proxy, request_, refusal, good):
    upstream = await provider(by_credential({FIRST: refusal, SECOND: good}))
    name = PROVIDER_OF[request_["url"].split("/")[2]]
    proxy = await pool_proxy(in_order("first", "second", provider=name), provider=upstream)
    async with proxy.client() as http:
        answer = await http.request(**request_)
    assert answer.status_code == 200
    assert answer.content == good.body
    assert upstream.journal.statuses == [(FIRST, refusal.status), (SECOND, 200)]


@pytest.mark.parametrize(
    ("http2", "alpn", "versions"),
    [
        (False, ["http/1.1"], {"1.1"}),
        (True, ["h2"], {"2"}),
        (True, ["http/1.1"], {"1.1"}),
    ],
    ids=["1.1 to 1.1", "2 to 2", "2 to 1.1"],
)
async def test_on_every_version_of_http(provider, pool_proxy, http2, alpn, versions):
    upstream = await provider(by_credential({FIRST: LIMITED, SECOND: CHAT}), alpn=alpn)
    # Eager, mitmproxy offers the client only what the provider speaks.
    options = {"connection_strategy": "lazy"}
    proxy = await pool_proxy(TWO, provider=upstream, options=options)
    async with proxy.client(http2=http2) as http:
        answers = [await http.request(**chat()) for _ in range(3)]
    assert [a.content for a in answers] == [CHAT.body] * 3
    assert {a.http_version for a in answers} == {"HTTP/2" if http2 else "HTTP/1.1"}
    assert {r.http_version for r in upstream.journal.requests} == versions
    # The limited account rests: it was asked once.
    assert upstream.journal.statuses == [(FIRST, 429)] + [(SECOND, 200)] * 3


async def test_the_answer_carries_the_headers_of_the_provider_and_no_others(provider, pool_proxy):
    good = framed(openai.chat_complete("Good morning"), Framing.LENGTH, ("x-request-id", "req_1"))
    upstream = await provider(by_credential({FIRST: LIMITED, SECOND: good}))
    proxy = await pool_proxy(TWO, provider=upstream)
    async with proxy.client() as http:
        answer = await http.request(**chat(stream=False))
    expected = dict(good.headers)
    assert dict(answer.headers) == {**expected, "content-length": str(len(good.body))}


async def test_every_attempt_is_the_clients_request_but_for_the_credential(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: LIMITED, SECOND: CHAT}))
    proxy = await pool_proxy(TWO, provider=upstream)
    request = chat()
    request["headers"] |= {
        "openai-organization": "org-of-the-client",
        "x-client-request-id": "c-1",
        "x-stainless-retry-count": "0",
    }
    async with proxy.client() as http:
        await http.request(**request)
    one, two = upstream.journal.requests
    assert (one.method, one.path, one.body) == (two.method, two.path, two.body)
    assert one.body_size > 0
    assert dict(one.headers) | {"authorization": ""} == dict(two.headers) | {"authorization": ""}
    assert one.header("authorization") == f"Bearer {FIRST}"
    assert two.header("authorization") == f"Bearer {SECOND}"
    assert one.header("x-client-request-id") == "c-1"
    assert one.header("x-stainless-retry-count") == "0"
    assert one.host == "api.openai.com"
    # What belongs to the client's own account goes with its credential.
    assert one.header("openai-organization") is None
    assert CLIENT not in repr(upstream.journal.requests)


async def test_gemini_credentials_leave_the_query_too(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: gemini.content_stream(WORDS)}))
    proxy = await pool_proxy(in_order("first", provider="gemini"), provider=upstream)
    async with proxy.client() as http:
        await http.request(**generate(key_in_query=True))
    (request,) = upstream.journal.requests
    assert request.path.endswith(":streamGenerateContent?alt=sse")
    assert request.header("x-goog-api-key") == FIRST


async def test_attempts_are_bounded(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: LIMITED, SECOND: LIMITED, THIRD: CHAT}))
    proxy = await pool_proxy(
        in_order("first", "second", "third"),
        provider=upstream,
        options={"pool_max_attempts": 2, "pool_max_wait": 0},
    )
    async with proxy.client() as http:
        answer = await http.request(**chat())
    assert answer.status_code == 429
    assert upstream.journal.statuses == [(FIRST, 429), (SECOND, 429)]


async def test_nobody_can_serve_gives_the_providers_own_refusal_with_an_honest_retry_after(
    provider, pool_proxy
):
    upstream = await provider(
        by_credential({FIRST: openai.rate_limited(100), SECOND: openai.rate_limited(2000)})
    )
    proxy = await pool_proxy(TWO, provider=upstream, options={"pool_max_wait": 0})
    async with proxy.client() as http:
        answers = [await http.request(**chat()) for _ in range(2)]
    for answer in answers:
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        # Until the first account returns, plus a little jitter; not the 2000 s of the last.
        assert 90 <= float(answer.headers["retry-after"]) <= 130
        assert answer.headers["x-should-retry"] == "false"
    # The second request knocked on no closed door.
    assert upstream.journal.statuses == [(FIRST, 429), (SECOND, 429)]


async def test_a_short_shortage_is_waited_out(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: [openai.rate_limited(0.2), CHAT]}))
    proxy = await pool_proxy(in_order("first"), provider=upstream)
    async with proxy.client() as http:
        answer = await http.request(**chat())
    assert (answer.status_code, answer.content) == (200, CHAT.body)
    assert upstream.journal.statuses == [(FIRST, 429), (FIRST, 200)]


async def test_a_limit_of_one_model_leaves_the_account_to_others(provider, pool_proxy):
    def script(request) -> Reply:
        limited = request.credential == FIRST and request.json()["model"] == "gpt-5-nano"
        return LIMITED if limited else CHAT

    upstream = await provider(script)
    proxy = await pool_proxy(TWO, provider=upstream)
    other = chat()
    other["json"] = {**other["json"], "model": "gpt-5"}
    async with proxy.client() as http:
        for request in (chat(), other, chat()):
            assert (await http.request(**request)).status_code == 200
    assert upstream.journal.statuses == [(FIRST, 429), (SECOND, 200), (FIRST, 200), (SECOND, 200)]


#: What a network answers before one has logged in to it.
PAGE = Reply(
    headers=(("content-type", "text/html; charset=utf-8"),),
    steps=(b"<!DOCTYPE html><title>Welcome</title>", b"<form>Log in</form>"),
)


@pytest.mark.parametrize("page", [PAGE, encoded(PAGE, "gzip")], ids=["plain", "gzip"])
async def test_a_page_in_place_of_an_answer_is_no_success(provider, pool_proxy, page):
    """Nor is it the account's fault: the same is tried again, then another."""
    upstream = await provider(by_credential({FIRST: page, SECOND: CHAT}))
    proxy = await pool_proxy(TWO, provider=upstream)
    async with proxy.client() as http:
        answer = await http.request(**chat())
        accounts = (await http.get(f"{proxy.url}/account-pool")).json()["accounts"]
    assert answer.content == CHAT.body
    assert upstream.journal.credentials == [FIRST, FIRST, SECOND]
    assert [one["state"] for one in accounts] == ["available"] * 2


@pytest.mark.parametrize(
    ("changed", "body"),
    [
        ({"headers": {"accept": "text/html"}}, PAGE.body),
        ({"json": {"input": "Hello?"}}, PAGE.body),  # it may want anything
        ({}, b'data: {"choices": []}\n\n'),  # a relay's, with a wrong type
        ({}, b"<p>What the model has written</p>"),
    ],
)
async def test_other_html_is_handed_over(provider, pool_proxy, changed, body):
    upstream = await provider(lambda _request: replace(PAGE, steps=(body,)))
    proxy = await pool_proxy(TWO, provider=upstream)
    async with proxy.client() as http:
        answer = await http.request(**{**chat(), **changed})
    assert answer.content == body
    assert upstream.journal.credentials == [FIRST]


DELIVERED = {
    "a page": ("openai", chat(), PAGE, [FIRST, FIRST, SECOND]),
    "openai bad request": ("openai", chat(), openai.bad_request(), [FIRST]),
    # One try in place, one other account; that refuses too, so it is the server's.
    "openai overloaded": ("openai", chat(), openai.overloaded(), [FIRST, FIRST, SECOND]),
    "anthropic overloaded": (
        "anthropic",
        messages(),
        anthropic.overloaded(),
        [FIRST, FIRST, SECOND],
    ),
}


@pytest.mark.parametrize(
    ("name", "request_", "reply", "expected"), DELIVERED.values(), ids=DELIVERED.keys()
)
async def test_what_is_not_the_accounts_fault_is_delivered_and_cools_nobody(
    *, provider, pool_proxy, name, request_, reply, expected
):
    upstream = await provider(by_credential({FIRST: reply, SECOND: reply}))
    proxy = await pool_proxy(in_order("first", "second", provider=name), provider=upstream)
    async with proxy.client() as http:
        answer = await http.request(**request_)
        asked = list(upstream.journal.credentials)
        await http.request(**request_)
    assert (answer.status_code, answer.content) == (reply.status, reply.body)
    assert asked == expected
    # Still the preferred one.
    assert upstream.journal.credentials[len(asked)] == FIRST


async def test_a_refused_credential_is_replaced_and_its_account_left_alone(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: openai.invalid_key(), SECOND: CHAT}))
    proxy = await pool_proxy(TWO, provider=upstream)
    async with proxy.client() as http:
        answers = [await http.request(**chat()) for _ in range(2)]
        asked_first = upstream.journal.credentials.count(FIRST)
        answers.append(await http.request(**chat()))
    assert [a.status_code for a in answers] == [200] * 3
    assert upstream.journal.credentials.count(FIRST) == asked_first


async def test_paths_that_are_not_the_pools_business_pass_as_the_client_sent_them(
    provider, pool_proxy
):
    upstream = await provider(by_credential({CLIENT: openai.chat_complete("passed")}))
    proxy = await pool_proxy(TWO, provider=upstream)
    async with proxy.client() as http:
        answer = await http.get(
            "https://api.openai.com/v1/organization/usage/completions",
            headers={"authorization": f"Bearer {CLIENT}"},
        )
    assert answer.status_code == 200
    assert upstream.journal.statuses == [(CLIENT, 200)]
