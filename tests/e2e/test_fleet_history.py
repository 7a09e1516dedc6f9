"""What happened at all proxies on one state engine, as any of them tells it."""

from __future__ import annotations

import re
from typing import Any

from tests.e2e.harness import FIRST
from tests.e2e.test_fleet import LOSS, Member, join, limited, redis

__all__ = ["join", "redis"]


def usage(member: Member) -> Any:
    return member.ask("/usage?group=account")


async def test_each_proxy_tells_the_whole_story(redis, provider, join):
    upstream = await provider(limited(FIRST))
    one, other = [await join(redis.port, upstream) for _ in range(2)]
    assert (await one.send()).status_code == 200
    await other.until_cooling("first")
    assert (await other.send()).status_code == 200
    # A row of each is written a moment later, and priced after that.
    for member in (one, other):
        said = await member.until("/requests", lambda said: len(said["requests"]) == 2)
        assert [row["account"] for row in said["requests"]] == ["openai/second"] * 2
        assert [row["attempts"] for row in said["requests"]] == [1, 2]
    counted = [group["requests"] for group in (await usage(one))["groups"]]
    assert (counted, (await usage(one))["groups"]) == ([2], (await usage(other))["groups"])
    series = [await member.ask("/requests/series?step=3600") for member in (one, other)]
    assert [sum(b["ok"] for b in said["buckets"]) for said in series] == [2, 2]

    story = await one.ask("/decisions")
    assert story == await other.ask("/decisions")
    kinds = [(row["kind"], row["account"]) for row in story["decisions"]]
    # The other has taken the cooldown over, which is no decision of its own.
    assert kinds == [("move", "openai/first"), ("cooldown", "openai/first")]
    assert not story["alone"]
    name = f":{re.escape(one.proxy.url.rpartition(':')[2])}$"
    assert all(re.search(name, row["proxy"]) for row in story["decisions"])


async def test_a_proxy_that_is_alone_tells_what_it_knows(redis, provider, join):
    upstream = await provider(limited(FIRST))
    one, other = [await join(redis.port, upstream) for _ in range(2)]
    assert (await one.send()).status_code == 200
    story = await other.until("/decisions", lambda said: len(said["decisions"]) == 2)
    redis.kill()
    await other.proxy.until_printed(LOSS)
    assert await other.ask("/decisions") == {**story, "alone": True}
    # The one that has served it knows of it, and both say that there may be more.
    for member in (one, other):
        assert all([(await member.ask(path))["problem"] for path in ("/requests", "/usage")])
    assert len((await one.ask("/requests"))["requests"]) == 1
    redis.start()
    # All in the engine is lost; what proxies know of their own is there again once it is asked for.
    back = await one.until("/decisions", lambda said: not said["alone"])
    assert [(row["id"], row["number"]) for row in back["decisions"]] == [
        (row["id"], row["number"]) for row in story["decisions"]
    ]
    assert await other.until("/decisions", lambda said: not said["alone"]) == back
