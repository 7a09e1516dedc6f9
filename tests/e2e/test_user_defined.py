"""A provider that its user described: its own place for the credential, its own limits."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.e2e.harness import CLIENT, FIRST, SECOND, account, chat, in_order
from tests.scripts import openai
from tests.upstream.exchange import find_header
from tests.upstream.replies import by_credential, json_reply

GOOD = openai.chat_complete("Good morning")
#: Not an error by its status, nor one that OpenAI's API knows.
BUSY = json_reply({"code": 1302, "back": 90}, 200)
USED_UP = json_reply({"code": "day"}, 409, (("x-back", "3600000"),))
LIMITS = [
    {
        "status": [200],
        "pointer": "/code",
        "equals": 1302,
        "class": "rate_limit",
        "scope": "account",
        "reset": {"pointer": "/back", "as": "seconds"},
    },
    {
        "status": [409],
        "pointer": "/code",
        "equals": "day",
        "class": "quota",
        "reset": {"header": "x-back", "as": "milliseconds"},
    },
]
PLACES = {
    "header": ({"header": "x-api-key"}, {"x-api-key": CLIENT}, ""),
    "query": ({"query": "key"}, {}, f"?key={CLIENT}&trace=1"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("refusal", "rest"), [(BUSY, r"9\d s"), (USED_UP, r"6\d min")])
async def test_its_limit_moves_the_request_and_its_credential_stands_where_it_says(
    provider, pool_proxy, place, refusal, rest
):
    credential, headers, query = PLACES[place]
    upstream = await provider(by_credential({FIRST: refusal, SECOND: GOOD}))
    gateway = {
        "hosts": ["www.example.com"],
        "paths": ["/v9/chat"],
        "credential": credential,
        "drop": ["x-team"],
        "companions": {"workspace": "x-workspace"},
        "limits": LIMITS,
    }
    accounts = in_order("first", "second", provider="gw", workspace="w-1")
    proxy = await pool_proxy(accounts, provider=upstream, providers={"gw": gateway})
    async with proxy.client() as http:
        answer = await http.post(
            f"https://www.example.com/v9/chat{query}",
            headers={**headers, "x-team": "clients-own", "x-workspace": "clients-own"},
            json={"model": "m-1"},
        )
    assert answer.content == GOOD.body
    assert upstream.journal.credentials == [FIRST, SECOND]
    for request in upstream.journal.requests:
        assert find_header(request.headers, "x-team") is None
        assert find_header(request.headers, "x-workspace") == "w-1"
        assert CLIENT not in str(request.headers) + request.path
        assert ("trace=1" in request.path) == (place == "query")
    # Why, in the owner's own words: the line of the rule.
    assert re.search(
        rf"gw/first: .*on cooldown for {rest} -> gw/second .*: accounts.yaml:\d+", proxy.output
    )


async def test_the_keys_of_a_gateway_are_limited_one_by_one(provider, pool_proxy):
    """It passes on the vendor's organisation, which is that of all of its keys."""
    acme = ("openai-organization", "acme")
    good = replace(GOOD, headers=(*GOOD.headers, acme))
    error = {"message": "Budget of this key spent", "code": "rate_limit_exceeded"}
    spent = json_reply({"error": error}, 429, (("retry-after", "600"), acme))
    upstream = await provider(by_credential({FIRST: [good, spent], SECOND: good}))
    hosts = {"openai": {"hosts": ["www.example.com"]}}
    accounts = [account("first"), account("second")]
    proxy = await pool_proxy(accounts, provider=upstream, providers=hosts)
    async with proxy.client() as client:
        for _ in range(4):
            answer = await client.request(**chat(stream=False, base="https://www.example.com"))
            assert answer.status_code == 200
    assert upstream.journal.credentials == [FIRST, SECOND, FIRST, SECOND, SECOND]
