"""One campaign from its beginning to its figures."""

from __future__ import annotations

import platform
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from benchmarks.chaos.campaign import Campaign, Result, Settings
from benchmarks.chaos.kills import Kills
from benchmarks.chaos.oracle import Verdict
from benchmarks.chaos.rig import Folder, ScriptedProvider

__all__ = ["Result", "Settings", "run", "summary"]

#: Ports whose connections fail, each used by one request at a time.
LANES = 2


async def run(settings: Settings, kills: int, path: Path) -> Result:
    """Run a campaign in the folder *path*, with so many ends of a proxy."""
    result = Result(seed=settings.seed)
    folder = Folder.make(path)
    began = time.monotonic()
    provider = ScriptedProvider(
        folder.certificate,
        seed=settings.seed,
        lanes=LANES,
        crowd=settings.crowd,
        sabotage=settings.sabotage,
    )
    async with provider:
        if settings.requests:
            await Campaign(settings, folder, result).run(provider)
        if kills:
            await Kills(settings, kills, folder, result).run(provider)
        report = await provider.ask("report")
    result.leaks = folder.leaks + report["leaks"]
    result.failures += result.leaks + folder.mishaps + report["crowds"]
    rules = report["broken rules"]
    result.failures += [f"a rule of HTTP/2 was broken, {n} times: {r}" for r, n in rules.items()]
    lost = report["lost"]
    if lost.get("ours"):
        result.failures += report["causes"]
    result.figures |= {
        "attempts": report["attempts"],
        "rules of HTTP/2 the proxy broke": rules,
        "refreshes": report["refreshes"],
        "logins lost outside gaps": lost.get("ours", 0),
        "logins lost in gaps": {name: n for name, n in lost.items() if name != "ours"},
        "seconds": round(time.monotonic() - began),
    }
    return result


def summary(result: Result) -> dict[str, object]:
    """Return the figures of a campaign."""
    total = sum(result.verdicts.values())
    good = sum(n for (row, _), n in result.verdicts.items() if row.startswith("good"))
    verdicts = Counter(
        {f"{protocol}: {found.value}": n for (protocol, found), n in result.by_protocol.items()}
    )
    return {
        "seed": result.seed,
        "python": platform.python_version(),
        "mitmproxy": version("mitmproxy"),
        "requests": total,
        "faulted": total - good,
        "hangs": result.count(Verdict.HANG),
        "bad answers": result.count(Verdict.BAD),
        "crossed": result.count(Verdict.CROSSED),
        "leaks": result.count(Verdict.LEAK) + len(result.leaks),
        "failures": len(result.failures),
        **result.figures,
        "verdicts": dict(sorted(verdicts.items())),
    }
