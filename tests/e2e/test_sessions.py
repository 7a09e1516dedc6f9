"""Conversations keep their account, and what an account made goes back to it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from tests.e2e.harness import (
    CLIENT,
    FIRST,
    GEMINI,
    OPENAI,
    SECOND,
    THIRD,
    account,
    chat,
    in_order,
    respond,
    secret,
)
from tests.scripts import framed, gemini, openai
from tests.upstream.exchange import Framing, Reply, Request
from tests.upstream.replies import by_credential, json_reply, stream_reply

GOOD = openai.chat_complete("Good morning")
THREE = [account(label) for label in ("first", "second", "third")]
BY_SECRET = {secret(label): label for label in ("first", "second", "third")}


def turn(session: str, number: int = 0) -> dict[str, Any]:
    """One request of a conversation whose client names it."""
    request = chat(f"turn {number}", stream=False)
    request["headers"]["x-session-id"] = session
    return request


def grown(text: str, turns: int) -> dict[str, Any]:
    """One request of a conversation whose client names nothing."""
    request = chat(text, stream=False)
    for n in range(turns):
        request["json"]["messages"] += [
            {"role": "assistant", "content": f"answer {n}"},
            {"role": "user", "content": f"question {n}"},
        ]
    return request


def labels(credentials: Iterable[str]) -> list[str]:
    return [BY_SECRET[credential] for credential in credentials]


async def test_conversations_stay_while_new_ones_spread(provider, pool_proxy):
    upstream = await provider(by_credential(dict.fromkeys((FIRST, SECOND, THIRD), GOOD)))
    proxy = await pool_proxy(THREE, provider=upstream)
    named: list[str] = []
    others: list[str] = []
    unnamed: list[str] = []
    async with proxy.client() as http:
        for n in range(20):
            for request, seen in (
                (turn("mine", n), named),
                (turn(f"other-{n}"), others),
                (grown("What is this?", n), unnamed),
            ):
                before = len(upstream.journal.credentials)
                assert (await http.request(**request)).status_code == 200
                seen.extend(labels(upstream.journal.credentials[before:]))
    assert len(named) == len(unnamed) == 20
    assert len(set(named)) == len(set(unnamed)) == 1
    assert {others.count(label) for label in set(others)} <= {6, 7}


async def test_a_conversation_moves_when_its_account_is_limited_and_stays_there(
    provider, pool_proxy
):
    limited = openai.rate_limited(seconds=0.5)
    upstream = await provider(by_credential({FIRST: [GOOD, limited, GOOD], SECOND: GOOD}))
    options = {"pool_strategy": "fill-first", "pool_patience": 0}
    proxy = await pool_proxy(in_order("first", "second"), provider=upstream, options=options)
    async with proxy.client() as http:

        async def serve(session: str) -> str:
            assert (await http.request(**turn(session))).status_code == 200
            return BY_SECRET[upstream.journal.credentials[-1]]

        assert [await serve("mine") for _ in range(2)] == ["first", "second"]
        recovered = 0
        while await serve(f"new-{recovered}") != "first":
            recovered += 1
        assert [await serve("mine") for _ in range(3)] == ["second"] * 3
        assert await serve("newest") == "first"


async def test_a_short_limit_is_waited_out_in_place(provider, pool_proxy):
    upstream = await provider(
        by_credential({FIRST: [GOOD, openai.rate_limited(seconds=0.3), GOOD], SECOND: GOOD})
    )
    proxy = await pool_proxy(THREE[:2], provider=upstream)
    async with proxy.client() as http:
        for n in range(3):
            assert (await http.request(**turn("mine", n))).status_code == 200
    assert labels(upstream.journal.credentials) == ["first"] * 4


def answers_by_owner(request: Request) -> Reply:
    """Each account knows its own answers alone, as the Responses API does."""
    label = BY_SECRET[request.credential]
    asked = json.loads(request.body)
    before = asked.get("previous_response_id")
    if before is not None and not before.startswith(f"resp_{label}_"):
        error = {"code": "previous_response_not_found", "message": "not found"}
        return json_reply({"error": error}, 400)
    made = f"resp_{label}_{request.turn}"
    if asked.get("stream"):
        events = openai.response_events(["Good", " morning"])
        return stream_reply(e.replace(b"resp_fake", made.encode()) for e in events)
    return json_reply({"id": made, "object": "response", "status": "completed", "output": []})


async def test_what_continues_an_answer_goes_to_its_owner(provider, pool_proxy):
    upstream = await provider(answers_by_owner)
    proxy = await pool_proxy(THREE, provider=upstream)
    async with proxy.client() as http:
        for stream in (False, True):
            first = respond(stream=stream)
            first["json"]["input"] = f"stream: {stream}"
            answer = await http.request(**first)
            owner = labels(upstream.journal.credentials)[-1]
            for n in range(5):
                follow = respond(stream=False)
                follow["json"] |= {
                    "input": f"question {n}",
                    "previous_response_id": _response_id(answer.text),
                }
                answer = await http.request(**follow)
                assert answer.status_code == 200, answer.text
                assert labels(upstream.journal.credentials)[-1] == owner
                # Others spread meanwhile.
                await http.request(**turn(f"other-{stream}-{n}") | {"json": {"model": "m"}})


def _response_id(text: str) -> str:
    start = text.index("resp_")
    return text[start : text.index('"', start)]


def interactions_by_owner(request: Request) -> Reply:
    """Each account knows its own interactions alone."""
    label = BY_SECRET[request.credential]
    asked = json.loads(request.body or b"{}")
    before = asked.get("previous_interaction_id") or request.path.partition("/interactions/")[2]
    if before and not before.startswith(f"v1_{label}_"):
        return json_reply({"error": {"code": "not_found", "message": "not found"}}, 404)
    made = f"v1_{label}_{request.turn}"
    if asked.get("stream"):
        return stream_reply(gemini.interaction_events(["Good", " morning"], made))
    return json_reply({"id": made, "object": "interaction", "status": "completed", "steps": []})


async def test_what_continues_an_interaction_goes_to_its_owner(provider, pool_proxy):
    upstream = await provider(interactions_by_owner)
    labels_of = ("first", "second", "third")
    proxy = await pool_proxy([account(x, "gemini") for x in labels_of], provider=upstream)
    headers = {"x-goog-api-key": CLIENT}
    async with proxy.client(base_url=GEMINI, headers=headers) as http:

        async def ask(**body: Any) -> str:
            asked = {"model": "gemini-3.5-flash", "input": "Hello?", **body}
            answer = await http.post("/v1beta/interactions", json=asked)
            assert answer.status_code == 200, answer.text
            found = re.search(r"v1_\w+", answer.text)
            assert found is not None
            return found[0]

        for stream in (False, True):
            made = await ask(stream=stream)
            owner = labels(upstream.journal.credentials)[-1]
            for n in range(5):
                made = await ask(input=f"question {n}", previous_interaction_id=made)
                assert labels(upstream.journal.credentials)[-1] == owner
                assert (await http.get(f"/v1beta/interactions/{made}")).status_code == 200
                assert labels(upstream.journal.credentials)[-1] == owner
                # Others spread meanwhile.
                await ask(input=f"other {stream} {n}")
    assert set(labels(upstream.journal.credentials)) == set(labels_of)


async def test_an_owner_that_cannot_serve_refuses_itself(provider, pool_proxy):
    limited = openai.rate_limited(seconds=600)
    made = json_reply({"id": "resp_1", "object": "response", "output": []})
    upstream = await provider(by_credential({FIRST: [made, limited], SECOND: GOOD, THIRD: GOOD}))
    proxy = await pool_proxy(THREE, provider=upstream, options={"pool_max_wait": 0})
    async with proxy.client() as http:
        await http.request(**respond(stream=False))
        follow = respond(stream=False)
        follow["json"]["previous_response_id"] = "resp_1"
        answers = [await http.request(**follow) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [429, 429]
    assert answers[0].json()["error"]["code"] == "rate_limit_exceeded"
    assert set(labels(upstream.journal.credentials)) == {"first"}


async def test_the_state_of_a_turn_goes_back_to_the_account_that_issued_it(provider, pool_proxy):
    stateful = framed(GOOD, Framing.LENGTH, ("x-codex-turn-state", "state-of-first"))
    limited = openai.rate_limited(seconds=60)
    upstream = await provider(by_credential({FIRST: [stateful, stateful, limited], SECOND: GOOD}))
    proxy = await pool_proxy(THREE[:2], provider=upstream)
    async with proxy.client() as http:
        first = await http.request(**turn("mine"))
        again = turn("mine")
        again["headers"]["x-codex-turn-state"] = first.headers["x-codex-turn-state"]
        for _ in range(2):
            assert (await http.request(**again)).status_code == 200
    states = [r.header("x-codex-turn-state") for r in upstream.journal.requests]
    assert labels(upstream.journal.credentials) == ["first"] * 3 + ["second"]
    assert states == [None, "state-of-first", "state-of-first", None]


def knows_its_own_things(request: Request) -> Reply:
    """Each account has files and batches of its own, as the Files and Batch APIs do."""
    label = BY_SECRET[request.credential]
    path, _, _query = request.path.partition("?")
    named = re.findall(rb"(?:file|batch)-[a-z]+-\d+", path.encode() + request.body)
    if any(thing.split(b"-")[1] != label.encode() for thing in named):
        return json_reply({"error": {"message": "No such File object"}}, 404)
    if (request.method, path) == ("GET", "/v1/files"):
        return json_reply({"data": [{"id": f"file-{label}-1"}, {"id": f"file-{label}-2"}]})
    kind = path.split("/")[2].removesuffix("s").removesuffix("e")
    return json_reply({"id": f"{kind}-{label}-{request.turn}", "object": kind})


async def test_files_and_batches_belong_to_the_account_that_made_them(provider, pool_proxy):
    upstream = await provider(knows_its_own_things)
    proxy = await pool_proxy(THREE, provider=upstream)
    headers = {"authorization": f"Bearer {CLIENT}"}
    async with proxy.client(base_url=OPENAI, headers=headers) as http:

        async def upload() -> str:
            form = {"files": {"file": ("a.jsonl", b"{}")}, "data": {"purpose": "batch"}}
            answer = await http.post("/v1/files", **form)
            # Others spread meanwhile.
            await http.post("/v1/chat/completions", json={"model": "m", "messages": []})
            return answer.json()["id"]

        # One request may name several: they are made together.
        one, two = await upload(), await upload()
        ask = {"model": "m", "input": [{"type": "input_file", "file_id": f} for f in (one, two)]}
        batch = await http.post("/v1/batches", json={"input_file_id": one})
        answers = [
            batch,
            await http.get(f"/v1/batches/{batch.json()['id']}"),
            await http.post("/v1/responses", json=ask),
            await http.get("/v1/files", params={"after": two}),
            await http.get(f"/v1/files/{two}/content"),
            await http.delete(f"/v1/files/{one}"),
        ]
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    assert CLIENT not in upstream.journal.credentials


async def test_what_a_list_shows_belongs_to_the_account_it_is_of(provider, pool_proxy):
    upstream = await provider(knows_its_own_things)
    proxy = await pool_proxy(THREE, provider=upstream)
    async with proxy.client(base_url=OPENAI) as http:
        for _ in range(4):
            listed = (await http.get("/v1/files")).json()["data"]
            deleted = [await http.delete(f"/v1/files/{file['id']}") for file in listed]
            assert [answer.status_code for answer in deleted] == [200, 200]
