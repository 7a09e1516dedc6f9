"""A small campaign of `benchmarks/chaos`, so that it cannot rot; and its oracles can fail."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

import pytest
from benchmarks.chaos.clients import End, Seen
from benchmarks.chaos.faults import ROWS, Must
from benchmarks.chaos.oracle import Verdict, credential, expected, judge
from benchmarks.chaos.plan import plan, rows_named
from benchmarks.chaos.rig import Folder, ScriptedProvider
from benchmarks.chaos.run import Settings, run, summary

from tests.patience import PATIENCE_S, tries

BOTH = ("h1", "h2")
#: Long enough that it ends nothing but what hangs on purpose.
SOON_S = 5.0

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is of POSIX")


def settings(*names: str, **more) -> Settings:
    return Settings(**{"rows": rows_named(names), "ceiling_s": PATIENCE_S, **more})


async def test_a_small_campaign(tmp_path):
    result = await run(settings(requests=tries(200), seed=5, rows=ROWS), 0, tmp_path)
    assert result.failures == []
    figures = summary(result)
    assert figures["requests"] >= tries(200)
    assert figures["leases left"] == 0
    assert {protocol for protocol, _ in result.by_protocol} == {"h1", "h2"}


async def test_proxies_that_are_killed_lose_no_login(tmp_path):
    result = await run(settings(requests=0, seed=2), 2, tmp_path)
    assert result.failures == []
    assert result.figures["kills: SIGKILL"] >= 1
    assert result.figures["logins lost outside gaps"] == 0


@pytest.mark.parametrize(
    ("sabotage", "names", "verdict"),
    [
        ("crossed", ["good"], Verdict.CROSSED),
        ("stubborn", ["429-retry-after"], Verdict.BAD),
    ],
)
async def test_a_provider_that_cheats_is_found(tmp_path, sabotage, names, verdict):
    asked = settings(*names, requests=60, sabotage=sabotage)
    result = await run(asked, 0, tmp_path)
    assert result.count(verdict) > 0
    assert any(f"--seed 1 --faults {names[0]}" in failure for failure in result.failures)


async def test_what_hangs_is_found(tmp_path):
    asked = settings("good", requests=40, sabotage="silent", ceiling_s=SOON_S)
    result = await run(asked, 0, tmp_path)
    assert result.count(Verdict.HANG) > 0


async def test_a_login_that_is_lost_is_found(tmp_path):
    """The token server hands out a refresh token that is spent."""
    result = await run(settings(requests=0, sabotage="forgets"), 1, tmp_path)
    assert result.figures["logins lost outside gaps"] > 0
    assert any("a spent token" in failure for failure in result.failures)


# -- the verdict


def ask(name: str, protocol: str = "h1"):
    """Return a request of the row *name* whose client stays."""
    asks = (plan(1, number, protocol, rows_named([name])) for number in range(1000))
    return next(a for a in asks if a.leave is None and a.row.name == name and a.shape != "gzip")


def seen(status: int = 200, body: bytes = b"", end: End = End.WHOLE, *company: str) -> Seen:
    return Seen(status, [], bytearray(body), end, company=set(company))


async def test_an_answer_that_nobody_waits_for_any_more_is_not_the_next_ones(tmp_path):
    certificate = Folder.make(tmp_path).certificate
    async with ScriptedProvider(certificate, seed=1, lanes=1, crowd=0, sabotage="") as provider:
        asking = asyncio.create_task(provider.ask("dead"))
        while not provider._asking.locked():
            await asyncio.sleep(0)
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        assert "leaks" in await provider.ask("report")


def test_the_whole_good_answer_is_served():
    one = ask("reset-before-head")
    assert judge(one, seen(200, expected(one)[0])) is Verdict.SERVED


TOLD = b'{"error": {"message": "openai: the connection broke"}}'


@pytest.mark.parametrize(
    ("name", "what", "verdict"),
    [
        ("good", seen(502, TOLD), Verdict.BAD),
        ("good", seen(502, TOLD, End.WHOLE, "429-bare"), Verdict.BAD),
        ("good", seen(502, TOLD, End.WHOLE, "reset-before-head"), Verdict.COLLATERAL),
        ("reset-before-head", seen(502, TOLD), Verdict.BROKEN),
        ("reset-before-head", seen(502, b"<html>"), Verdict.BAD),
        ("reset-before-head", seen(200, b""), Verdict.BAD),
        ("429-bare", seen(429, b""), Verdict.BAD),
        ("good", Seen(end=End.HANG), Verdict.HANG),
        ("good", seen(200, credential("openai", 3).encode()), Verdict.LEAK),
        ("good", seen(200, b"n1x99999h1"), Verdict.CROSSED),
        ("good", seen(200, b'{"smuggled":'), Verdict.CROSSED),
    ],
)
def test_verdicts(name, what, verdict):
    assert judge(ask(name), what) is verdict


def test_a_cut_answer_is_its_beginning_and_looks_cut():
    one = ask("cut-stream-reset")
    whole = expected(one)[0]
    assert judge(one, seen(200, whole[:200], End.CUT)) is Verdict.CUT
    assert judge(one, seen(200, whole[:200], End.WHOLE)) is Verdict.BAD
    assert judge(one, seen(200, b"x" + whole[:200], End.CUT)) is Verdict.BAD
    assert judge(ask("good"), seen(200, whole[:200], End.CUT)) is not Verdict.CUT


@pytest.mark.parametrize("protocol", BOTH)
def test_a_plan_is_a_function_of_its_seed(protocol):
    asks = [plan(7, number, protocol, ROWS) for number in range(300)]
    assert asks == [plan(7, number, protocol, ROWS) for number in range(300)]
    assert asks != [plan(8, number, protocol, ROWS) for number in range(300)]
    assert len({one.nonce for one in asks}) == 300


def test_every_row_is_told_apart():
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert {row.must for row in ROWS} == set(Must)
    with pytest.raises(ValueError, match="no fault is called 'nothing'"):
        rows_named(["nothing"])
