"""`account-pool demo`, as a newcomer runs it: it works, it ends, it leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

import account_pool

COMMAND = [sys.executable, "-c", "from account_pool.cli import main; main()", "demo"]


async def start(temp: Path, *, addon: Path | None = None) -> asyncio.subprocess.Process:
    temp.mkdir(exist_ok=True)
    package = addon or Path(account_pool.__file__).parents[1]
    return await asyncio.create_subprocess_exec(
        *COMMAND,
        env={
            **os.environ,
            "PYTHONPATH": str(package),
            "TMPDIR": str(temp),
            "HOME": str(temp.parent),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def processes_in(folder: Path) -> list[str]:
    """Return the command lines of processes that were told about *folder*."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command:
            found.append(command.decode(errors="replace"))
    return found


async def test_it_shows_a_failover_and_cleans_up(tmp_path):
    process = await start(tmp_path / "temp")
    out, err = (text.decode() for text in await process.communicate())
    assert (process.returncode, err) == (0, "")
    for shown in (
        "openai/work   429 rate_limit_exceeded",
        "openai/old    429 insufficient_quota",
        "openai/spare  200",
        "You only see this answer.",
        "on cooldown for",
        "on cooldown until",
        "account-pool login --from claude",
    ):
        assert shown in out
    # No colours and no cursor movements where nobody can see them; no secret anywhere.
    assert "\x1b" not in out
    assert "sk-fake" not in out
    assert list((tmp_path / "temp").iterdir()) == []
    assert processes_in(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted_it_cleans_up_too(tmp_path, number):
    process = await start(tmp_path / "temp")
    async for line in process.stdout:
        if b"1. POST" in line:
            process.send_signal(number)
            break
    _, err = await process.communicate()
    assert process.returncode == 128 + number
    assert err.decode().count("\n") == 1
    assert list((tmp_path / "temp").iterdir()) == []
    assert processes_in(tmp_path) == []


async def test_what_does_not_work_is_one_line(tmp_path):
    """A mitmdump whose addon does not load: here a copy of the package without it."""
    addon = tmp_path / "addon"
    addon.mkdir()
    (addon / "account_pool").symlink_to(Path(account_pool.__file__).parent)
    (addon / "pool.py").write_text("raise RuntimeError('the addon is broken')\n")
    process = await start(tmp_path / "temp", addon=addon)
    _, err = await process.communicate()
    assert process.returncode == 1
    assert err.decode().count("\n") == 1
    assert "RuntimeError: the addon is broken; its log is ~/.mitmproxy/" in err.decode()
    log = tmp_path / ".mitmproxy" / "account-pool-demo.log"
    assert "Traceback" in log.read_text()
    assert list((tmp_path / "temp").iterdir()) == []
