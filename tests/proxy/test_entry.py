"""`mitmdump -s addon/pool.py` loads the addon as mitmproxy loads it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mitmproxy.addons import script
from mitmproxy.addons.next_layer import NextLayer
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.proxy.commands import StartHook
from mitmproxy.test import taddons

from account_pool.config.options import POOL_OPTIONS
from account_pool.proxy.addon import SWITCH_S, AccountPool
from account_pool.proxy.events import Pause, PoolPauseHook
from account_pool.proxy.fast.known import is_our_script

ROOT = Path(__file__).parents[2]
ENTRY = ROOT / "addon" / "pool.py"


@pytest.fixture
async def tctx(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY",
                 "GITHUB_TOKEN", "GH_TOKEN", "pool_github_token"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    with taddons.context(Proxyserver(), NextLayer()) as tctx:
        tctx.options.update(confdir=str(tmp_path))
        yield tctx


async def test_the_entry_loads(tctx):
    (addon,) = tctx.script(str(ENTRY)).addons
    assert isinstance(addon, AccountPool)
    for option in POOL_OPTIONS:
        assert option.option in tctx.options
    assert "pool.status" in tctx.master.commands.commands


async def test_it_loads_again(tctx):
    """As a reload does: no hook and no option is declared twice."""
    entry = script.Script(str(ENTRY), False)
    assert is_our_script(entry.ns), "else each request asks it for each hook"
    (first,) = entry.ns.addons
    entry.loadscript()
    (second,) = entry.ns.addons
    assert first is second, "with all it knows"
    assert [h for h in StartHook.__subclasses__() if h.__name__ == "PoolPauseHook"] == [
        PoolPauseHook
    ]


def test_what_it_imports_is_not_looked_through_for_garbage():
    """Nor what of mitmproxy is there by then, now or in later collections."""
    code = (
        "import gc, runpy; runpy.run_path({!r}); print(gc.get_freeze_count() > 0, gc.isenabled())"
    )
    command = [sys.executable, "-c", code.format(str(ENTRY))]
    env = {**os.environ, "PYTHONPATH": str(ENTRY.parent)}
    done = subprocess.run(command, check=True, env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"]


def test_the_entry_is_nothing_but_a_list():
    text = ENTRY.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 10
    assert "addons = [" in text


def test_the_hook_has_the_name_the_addon_answers_to():
    assert PoolPauseHook(Pause("openai")).name == "pool_pause"
    assert hasattr(AccountPool, "pool_pause")
    assert PoolPauseHook(Pause("openai")).blocking


async def test_a_thread_that_computes_lets_the_loop_go_on(tctx):
    before = sys.getswitchinterval()
    tctx.script(str(ENTRY))
    assert sys.getswitchinterval() <= SWITCH_S
    sys.setswitchinterval(before)
