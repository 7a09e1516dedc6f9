"""Recorded traffic that is played back, as answers (`server_replay`) and as requests.

A recorded answer costs no account and counts for none; a recorded request gets a lease.
"""

from __future__ import annotations

import json

import pytest
from mitmproxy.io import FlowReader

from account_pool.demo.mitmdump import POOL_READY
from tests.e2e.harness import CLIENT, FIRST, SECOND, TWO, chat, generate, in_order
from tests.e2e.test_options import GOOD, LIMITED, ask, assert_nothing_was_served
from tests.scripts import gemini, openai
from tests.upstream.replies import by_credential

LEFT_OUT = "server_replay: 1 of .* not played back: refused attempts"
#: mitmdump 11 ends when all was played back.
KEEP = {"keepserving": "true"}
ANY_CLIENT = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])


async def recorded(pool_proxy, upstream, request, accounts=TWO, **options):
    """Return a dump of *request* and what the client got."""
    proxy = await pool_proxy(
        accounts, provider=upstream, options=options, extra_args=["-w", "dump"]
    )
    async with proxy.client() as http:
        answer = await http.request(**request)
    await proxy.stop()
    upstream.journal.exchanges.clear()
    return proxy.folder / "dump", answer


def read(path):
    with path.open("rb") as file:
        return list(FlowReader(file).stream())


@ANY_CLIENT
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_client_gets_the_recorded_answer_and_not_a_refused_attempt(
    provider, pool_proxy, http2, stream
):
    good = openai.chat_stream(["Good", " morning"]) if stream else GOOD
    upstream = await provider(by_credential({FIRST: LIMITED, SECOND: good}))
    dump, first = await recorded(pool_proxy, upstream, chat(stream=stream))
    assert len(read(dump)) == 2
    options = {**KEEP, "server_replay": dump}
    proxy = await pool_proxy(TWO, provider=upstream, options=options, extra_args=["-w", "again"])
    async with proxy.client(http2=http2) as http:
        answer = await http.request(**chat(stream=stream))
        assert (answer.status_code, answer.content) == (200, first.content)
        assert upstream.journal.requests == []
        await assert_nothing_was_served(proxy)
        assert await proxy.until_printed(LEFT_OUT)
        # Whatever was not recorded is served by the pool.
        assert (await http.request(**chat("Another?", stream=stream))).status_code == 200
    assert upstream.journal.statuses == [(FIRST, 429), (SECOND, 200)]
    assert not any(key.encode() in dump.read_bytes() for key in (FIRST, SECOND, CLIENT))
    assert b"pool.played_back" not in (proxy.folder / "again").read_bytes()


async def test_what_was_not_recorded_costs_no_account_if_the_user_says_so(provider, pool_proxy):
    long = openai.chat_stream(["Good" * 1000] * 300)
    upstream = await provider(by_credential({FIRST: long}))
    dump, _ = await recorded(pool_proxy, upstream, chat())
    options = {**KEEP, "server_replay": dump, "server_replay_extra": "404"}
    proxy = await pool_proxy(TWO, provider=upstream, options=options)
    async with proxy.client() as http:
        for text in ("Another?", "Hello?"):
            assert (await http.request(**chat(text))).status_code == 404
    assert upstream.journal.requests == []
    await assert_nothing_was_served(proxy)


async def test_a_recorded_request_is_found_whatever_key_it_was_sent_with(provider, pool_proxy):
    """Gemini's clients may send it in the address, by which mitmproxy finds the answer."""
    upstream = await provider(by_credential({FIRST: gemini.content_complete("Good morning")}))
    asked, accounts = (
        generate(stream=False, key_in_query=True),
        in_order("first", provider="gemini"),
    )
    dump, first = await recorded(pool_proxy, upstream, asked, accounts)
    proxy = await pool_proxy(accounts, provider=upstream, options={**KEEP, "server_replay": dump})
    async with proxy.client() as http:
        assert (await http.request(**asked)).content == first.content
    assert upstream.journal.requests == []


async def test_the_beginning_of_a_long_answer_is_not_played_back_as_all_of_it(provider, pool_proxy):
    long = openai.chat_stream(["Good" * 1000] * 300)
    upstream = await provider(by_credential({FIRST: long}))
    dump, _ = await recorded(pool_proxy, upstream, chat())
    proxy = await pool_proxy(TWO, provider=upstream, options={**KEEP, "server_replay": dump})
    async with proxy.client() as http:
        assert (await http.request(**chat())).content == long.body
    assert upstream.journal.statuses == [(FIRST, 200)]
    assert await proxy.until_printed("not kept whole")


async def test_a_long_answer_that_was_kept_whole_is_played_back(provider, pool_proxy):
    long = openai.chat_stream(["Good" * 1000] * 300)
    upstream = await provider(by_credential({FIRST: long}))
    dump, _ = await recorded(pool_proxy, upstream, chat(), store_streamed_bodies="true")
    (flow,) = read(dump)
    if "pool.truncated" in flow.metadata:
        pytest.skip("this mitmproxy does not know store_streamed_bodies")
    proxy = await pool_proxy(TWO, provider=upstream, options={**KEEP, "server_replay": dump})
    async with proxy.client() as http:
        assert (await http.request(**chat())).content == long.body
    assert upstream.journal.requests == []


#: What becomes of a recorded request on its way: options, whom it costs, and the status.
REPLAYED = {
    "nothing": ([], [FIRST, SECOND], 200),
    "changed": (["--modify-body", "/~q/Hello/Goodbye"], [FIRST, SECOND], 200),
    "a local file": (["--map-local", "|https://api.openai.com|local.json"], [], 200),
    "blocked": (["--set", "block_list=/~d api.openai.com/403"], [], 403),
    "a recorded answer": (["--server-replay", "dump"], [], 200),
    "elsewhere": (["--map-remote", "|https://api.openai.com|https://www.example.com"], [], 421),
}


@pytest.mark.parametrize("which", REPLAYED)
async def test_a_recorded_request_takes_a_lease_unless_another_addon_answers_it(
    provider, pool_proxy, setting, which
):
    args, asked, status = REPLAYED[which]
    upstream = await provider(by_credential({FIRST: LIMITED, SECOND: GOOD, CLIENT: GOOD}))
    # The dump of a mitmproxy without the pool holds what the client sent.
    plain = await pool_proxy(None, provider=upstream, addon=False, extra_args=["-w", "dump"])
    assert (await ask(plain)).status_code == 200
    await plain.stop()
    upstream.journal.exchanges.clear()
    again = setting.prepare(
        TWO,
        provider=upstream,
        extra_args=["-nC", "dump", "-w", "again", *args],
        ready=POOL_READY,
    )
    (again.folder / "dump").write_bytes((plain.folder / "dump").read_bytes())
    (again.folder / "local.json").write_text("{}")
    assert await again.run_to_end() == 0
    assert upstream.journal.credentials == asked
    *_, flow = [f for f in read(again.folder / "again") if not f.marked]
    assert flow.response.status_code == status
    for request in upstream.journal.requests:
        content = json.loads(request.body)["messages"][0]["content"]
        assert content == ("Goodbye?" if which == "changed" else "Hello?")
    saved = (again.folder / "again").read_bytes()
    assert not any(key.encode() in saved for key in (FIRST, SECOND))
    assert "Traceback" not in again.output
