"""Hosts that are not the pool's are tunnelled: nobody looks inside, nobody is swapped."""

from __future__ import annotations

import pytest

from tests.e2e.harness import CLIENT, FIRST, TWO, chat, client
from tests.scripts import openai
from tests.upstream.replies import by_credential

OTHER = "https://www.example.com/v1/chat/completions"
GOOD = openai.chat_complete("Good morning")
AUTHORIZATION = {"authorization": f"Bearer {CLIENT}"}


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
async def test_the_client_sees_the_origins_own_certificate(provider, pool_proxy, setting, http2):
    upstream = await provider(by_credential({CLIENT: GOOD}))
    proxy = await pool_proxy(TWO, provider=upstream)
    # Trusts the origin's authority and not the proxy's: a decrypting proxy would fail here.
    async with client(setting.certificate.authority, proxy.url, http2=http2) as http:
        answer = await http.post(OTHER, headers=AUTHORIZATION)
    assert answer.content == GOOD.body
    assert upstream.journal.credentials == [CLIENT]


async def test_intercepting_everything_is_possible_and_swaps_nothing(provider, pool_proxy):
    upstream = await provider(by_credential({CLIENT: GOOD}))
    proxy = await pool_proxy(TWO, provider=upstream, options={"pool_intercept": "all"})
    async with proxy.client() as http:
        answer = await http.post(OTHER, headers=AUTHORIZATION)
    assert answer.content == GOOD.body
    assert upstream.journal.credentials == [CLIENT]


async def test_a_host_that_only_looks_like_the_providers(provider, pool_proxy):
    """The Host header is the client's to choose; where the connection goes is not."""
    upstream = await provider(by_credential({CLIENT: GOOD}))
    proxy = await pool_proxy(TWO, provider=upstream, options={"pool_intercept": "all"})
    async with proxy.client() as http:
        await http.post(OTHER, headers={**AUTHORIZATION, "host": "api.openai.com"})
    assert upstream.journal.credentials == [CLIENT]


async def test_an_untrusted_provider_gets_no_credential(provider, pool_proxy, setting):
    """The certificate of the upstream is verified before anything is sent."""
    upstream = await provider(by_credential({FIRST: GOOD}))
    someone_else = setting.trusted
    options = {"ssl_verify_upstream_trusted_ca": someone_else}
    proxy = await pool_proxy(TWO, provider=upstream, options=options)
    async with proxy.client() as http:
        answer = await http.request(**chat())
    assert answer.status_code == 502
    assert upstream.journal.requests == []


async def test_plain_http_gets_no_credential(provider, pool_proxy):
    upstream = await provider(by_credential({FIRST: GOOD, CLIENT: GOOD}), certificate=None)
    proxy = await pool_proxy(TWO, provider=upstream)
    async with proxy.client() as http:
        await http.post("http://api.openai.com/v1/chat/completions", headers=AUTHORIZATION)
    assert FIRST not in upstream.journal.credentials
