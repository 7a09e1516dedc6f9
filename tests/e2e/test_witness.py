"""Whose fault is a refusal: real SDKs, a real proxy, and accounts that refuse what others serve."""

from __future__ import annotations

import json
import re

import pytest

from account_pool.core.selection import POLICIES
from tests.e2e import die_after_cooldown
from tests.e2e.harness import (
    CLIENT,
    FIRST,
    SECOND,
    THIRD,
    account,
    chat,
    generate,
    in_order,
    messages,
    point_clients_at,
    secret,
)
from tests.e2e.test_admin import admin, direct
from tests.scripts import anthropic, gemini, openai
from tests.upstream.replies import by_credential, json_reply

GOOD = openai.chat_complete("Good morning")
DEAD = openai.invalid_key()
UNKNOWN_401 = json_reply({"error": {"message": "computer says no"}}, 401)
UNKNOWN_403 = json_reply({"error": {"message": "computer says no"}}, 403)
SUSPENDED = json_reply({"error": {"message": "Suspended.", "code": "account_suspended"}}, 403)
BARE_429 = json_reply({"error": {"message": "Too many requests"}}, 429)
PROMPT = [{"role": "user", "content": "Hello?"}]


async def ask(text: str = "Hello?", **settings):
    """Ask as a user's script does, with the vendor's SDK; it raises what its user would see."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(api_key=CLIENT, **({"max_retries": 0} | settings)) as client:
        answer = await client.chat.completions.create(
            model="gpt-5-nano", messages=[{"role": "user", "content": text}]
        )
        return answer.choices[0].message.content


@pytest.fixture
def pool_of(provider, pool_proxy, monkeypatch):
    """Start a provider and a proxy whose accounts get these replies, in order of preference."""

    async def start(replies, *, options=None, accounts=None):
        upstream = await provider(by_credential(replies))
        labels = [key.removeprefix("sk-fake-").removesuffix("-000") for key in replies]
        proxy = await pool_proxy(
            in_order(*labels) if accounts is None else accounts, provider=upstream, options=options
        )
        point_clients_at(proxy, monkeypatch)
        return proxy, upstream.journal

    return start


async def states(proxy) -> dict[str, str]:
    """Label and state of each account, as the admin API tells them."""
    async with direct(proxy) as own:
        told = (await own.get("/account-pool")).json()["accounts"]
    return {account["label"]: account["state"] for account in told}


# -- good accounts are asked


@pytest.mark.parametrize("refusal", [DEAD, UNKNOWN_401, UNKNOWN_403, SUSPENDED],
                         ids=["dead key", "unknown 401", "unknown 403", "suspended"])  # fmt: skip
@pytest.mark.parametrize("strategy", POLICIES)
async def test_a_good_account_behind_two_that_refuse(pool_of, strategy, refusal):
    accounts = [account("first"), account("second"), account("third", priority=1)]
    _, journal = await pool_of(
        {FIRST: refusal, SECOND: refusal, THIRD: GOOD},
        options={"pool_strategy": strategy},
        accounts=accounts,
    )
    assert await ask() == "Good morning"
    assert {c for c, status in journal.statuses if status != 200} == {FIRST, SECOND}
    # What they refused is not asked of them again.
    before = len(journal.requests)
    assert [await ask(f"Question {n}") for n in range(3)] == ["Good morning"] * 3
    assert journal.credentials[before:] == [THIRD] * 3


async def test_a_client_that_tries_again_begins_with_accounts_that_were_not_tried(pool_of):
    """The SDK's own retry, which a 401 has only because it is told that it is worth it."""
    labels = ["one", "two", "three", "four", "five"]
    replies = {secret(x): UNKNOWN_401 for x in labels[:-1]} | {secret("five"): GOOD}
    _, journal = await pool_of(replies, options={"pool_max_attempts": 3})
    assert await ask(max_retries=1) == "Good morning"
    assert journal.credentials == [secret(x) for x in labels]


# -- what all refuse


async def test_what_all_refuse_disables_nobody_and_costs_one_attempt_for_a_minute(pool_of):
    from openai import PermissionDeniedError

    proxy, journal = await pool_of(dict.fromkeys((FIRST, SECOND, THIRD), UNKNOWN_403))
    counts = []
    for text in ("Mine", "Mine", "Mine", "Another"):
        with pytest.raises(PermissionDeniedError, match="computer says no"):
            await ask(text)
        counts.append(len(journal.requests))
    assert counts == [3, 4, 5, 8]
    assert set((await states(proxy)).values()) == {"available"}


async def test_dead_keys_alone_are_benched_and_every_request_goes_upstream(pool_of):
    from openai import AuthenticationError

    proxy, journal = await pool_of({FIRST: DEAD, SECOND: DEAD})
    for n in range(3):
        with pytest.raises(AuthenticationError, match="Incorrect API key"):
            await ask(f"Question {n}")
        assert len(journal.requests) > n
    assert set((await states(proxy)).values()) == {"cooling"}


@pytest.mark.parametrize("refusal", [UNKNOWN_403, SUSPENDED, UNKNOWN_401, DEAD],
                         ids=["unknown 403", "suspended", "unknown 401", "dead key"])  # fmt: skip
async def test_the_only_account_refuses_every_request_itself(pool_of, refusal):
    from openai import APIStatusError

    _, journal = await pool_of({FIRST: refusal})
    for n in range(4):
        with pytest.raises(APIStatusError) as error:
            await ask()
        assert error.value.status_code == refusal.status
        assert error.value.response.content == refusal.body
        assert len(journal.requests) == n + 1


# -- no witness


async def test_what_is_stored_on_one_account_is_no_witness(pool_of):
    from openai import AsyncOpenAI

    stored = openai.response_stream(["Good"])
    proxy, journal = await pool_of({FIRST: UNKNOWN_403, SECOND: stored})
    async with AsyncOpenAI(api_key=CLIENT, max_retries=0) as client:
        stream = await client.responses.create(
            model="gpt-5-nano", input="Go on", previous_response_id="resp_of_before", stream=True
        )
        assert [event.type async for event in stream][-1] == "response.completed"
    assert journal.credentials == [FIRST, SECOND]
    assert await states(proxy) == {"first": "available", "second": "available"}
    async with direct(proxy) as own:
        made = (await own.get("/decisions")).json()["decisions"]
    assert {decision["kind"] for decision in made} == {"move"}


# -- it is kept, told, and ends


async def test_benches_and_disablings_outlive_the_proxy_and_are_cleared_by_hand(
    provider, pool_proxy, tmp_path, monkeypatch
):
    replies = {FIRST: DEAD, SECOND: UNKNOWN_403, THIRD: GOOD}
    upstream = await provider(by_credential(replies))
    kept = {
        "provider": upstream,
        "options": {"pool_state": tmp_path / "pool.sqlite"},
        "extra_args": ["-s", die_after_cooldown.__file__],
    }
    accounts = in_order("first", "second", "third")
    first = await pool_proxy(accounts, **kept)
    point_clients_at(first, monkeypatch)
    assert await ask() == "Good morning"
    await first.stop()
    second = await pool_proxy(accounts, **kept)
    point_clients_at(second, monkeypatch)
    assert await ask() == "Good morning"
    assert upstream.journal.credentials == [FIRST, SECOND, THIRD, THIRD]
    async with direct(second) as own:
        told = {a["label"]: a for a in (await own.get("/account-pool")).json()["accounts"]}
        assert told["first"]["state"] == "disabled"
        assert "invalid_api_key" in told["first"]["disabled"]["signal"]
        (bench,) = told["second"]["cooldowns"]
        assert (bench["model"], bench["class"]) == ("gpt-5-nano", "forbidden_account")
        for label in ("first", "second"):
            body = {"provider": "openai", "label": label}
            await own.post("/account-pool/clear-cooldown", json=body, headers=admin(second))
    assert await ask("Another question") == "Good morning"
    assert upstream.journal.credentials[4:] == [FIRST, SECOND, THIRD]


async def test_every_verdict_is_a_decision_with_its_cause(pool_of):
    proxy, _ = await pool_of({FIRST: UNKNOWN_403, SECOND: GOOD})
    await ask()
    async with direct(proxy) as own:
        made = {d["kind"]: d for d in (await own.get("/decisions")).json()["decisions"]}
    assert made.keys() == {"suspect", "move", "cooldown"}
    for decision in made.values():
        assert (decision["account"], decision["class"]) == ("openai/first", "forbidden_account")
        assert decision["unknown"] is True
    assert made["suspect"]["released_by"] == made["cooldown"]["by"]
    assert re.search(
        r"403 forbidden_account, asked last for 10 min.* -> openai/second", proxy.output
    )


# -- a 429 without evidence


async def test_a_bare_429_asks_four_accounts_and_is_then_taken_for_the_addresss(pool_of):
    from openai import RateLimitError

    labels = ["one", "two", "three", "four", "five", "six"]
    _, journal = await pool_of({secret(x): BARE_429 for x in labels})
    for asked in (labels[:4], labels[4:5], labels[5:]):
        before = len(journal.requests)
        with pytest.raises(RateLimitError):
            await ask()
        assert journal.credentials[before:] == [secret(x) for x in asked]


async def test_a_wait_of_0_on_all_accounts_asks_each_before_any_twice(pool_of):
    from openai import RateLimitError

    body = {"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}
    at_once = json_reply(body, 429, (("retry-after", "0"),))
    replies = dict.fromkeys((FIRST, SECOND, THIRD), at_once)
    _, journal = await pool_of(replies, options={"pool_max_wait": 0})
    with pytest.raises(RateLimitError):
        await ask()
    assert journal.credentials == [FIRST, SECOND, THIRD]


# -- the last account's words


async def test_all_disabled_is_told_in_the_providers_own_words_and_not_retried(pool_of):
    from openai import AuthenticationError

    proxy, journal = await pool_of({FIRST: DEAD, SECOND: GOOD})
    assert await ask() == "Good morning"
    async with direct(proxy) as own:
        body = {"provider": "openai", "label": "second"}
        await own.post("/account-pool/disable", json=body, headers=admin(proxy))
    with pytest.raises(AuthenticationError) as error:
        await ask(max_retries=5)
    assert error.value.response.content == DEAD.body
    assert error.value.response.headers["x-should-retry"] == "false"
    assert len(journal.requests) == 2


NO_CREDENTIAL = {
    "openai": (chat(stream=False), lambda body: body["error"]["code"] == "invalid_api_key"),
    "anthropic": (
        messages(stream=False),
        lambda body: body["error"]["type"] == "authentication_error",
    ),
    "gemini": (
        generate(stream=False),
        lambda body: body["error"]["status"] == "UNAUTHENTICATED",
    ),
}


@pytest.mark.parametrize("name", NO_CREDENTIAL)
async def test_no_credential_is_an_authentication_error_of_the_provider(provider, pool_proxy, name):
    good = {"openai": GOOD, "anthropic": anthropic.message_complete("x"),
            "gemini": gemini.content_complete("x")}[name]  # fmt: skip
    upstream = await provider(by_credential({FIRST: good}))
    empty = {"provider": name, "label": "first", "token": {"file": "nowhere.txt"}}
    proxy = await pool_proxy([empty], provider=upstream)
    request, is_told = NO_CREDENTIAL[name]
    async with proxy.client() as http:
        answer = await http.request(**request)
    assert answer.status_code == 401
    assert is_told(json.loads(answer.content))
    assert "server_is_overloaded" not in answer.text
    assert upstream.journal.requests == []


async def test_money_is_told_in_the_providers_own_words(pool_of):
    from openai import RateLimitError

    # A pause so short would be an invitation, if it were not money.
    options = {"pool_cooldown": 20, "pool_max_wait": 0}
    _, journal = await pool_of({FIRST: openai.insufficient_quota()}, options=options)
    with pytest.raises(RateLimitError):
        await ask()
    with pytest.raises(RateLimitError) as error:
        await ask(max_retries=2)
    assert error.value.code == "insufficient_quota"
    assert error.value.response.headers["x-should-retry"] == "false"
    assert len(journal.requests) == 1
