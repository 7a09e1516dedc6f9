"""`account-pool completion`: the script of a shell, and what it offers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import closing
from socket import create_server

import pytest

from account_pool.cli import api
from account_pool.cli.arguments import keys

FILE = "accounts:\n  - {provider: openai, label: work, token: sk-fake-000}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_each_shell_has_a_script(shell):
    shown = command("completion", shell)
    assert "ACCOUNT_POOL_COMPLETE" in shown
    assert "account-pool" in shown
    if shell in ("bash", "zsh", "fish") and shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=shown, text=True, check=False)
        assert checked.returncode == 0


def command(*words: str, **environ: str) -> str:
    run = "from account_pool.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", run, *words],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_accounts_are_offered_by_their_file(places, tmp_path, monkeypatch):
    path = tmp_path / "accounts.yaml"
    path.touch(mode=0o600)
    path.write_text(FILE)
    monkeypatch.setenv("ACCOUNT_POOL_ACCOUNTS", str(path))
    monkeypatch.setattr("account_pool.cli.arguments.DEFAULT_PORT", places.port)
    assert keys("OPEN") == ["openai/work"]
    assert keys("gemini") == []
    path.write_text("no accounts")
    assert keys("") == []


def test_a_port_that_hangs_is_not_waited_for(places, tmp_path, monkeypatch):
    path = tmp_path / "accounts.yaml"
    path.touch(mode=0o600)
    path.write_text(FILE)
    monkeypatch.setenv("ACCOUNT_POOL_ACCOUNTS", str(path))
    monkeypatch.setattr("account_pool.cli.arguments.DEFAULT_PORT", places.port)
    waits = []
    connect = api.PoolConnection.__init__

    def note(connection, port, timeout_s=api.ASK_S, **how):
        waits.append(timeout_s)
        connect(connection, port, timeout_s, **how)

    monkeypatch.setattr(api.PoolConnection, "__init__", note)
    with closing(create_server(("127.0.0.1", places.port))):
        assert keys("open") == ["openai/work"]
    assert len(waits) == 1
    assert waits[0] <= 1
