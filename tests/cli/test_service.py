"""`account-pool service`: what is written for each system, and what is run to start it."""

from __future__ import annotations

import errno
import json
import os
import plistlib
import shutil
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from account_pool.cli import api, serve
from account_pool.cli.main import run
from account_pool.cli.serve import Plan

#: What every system has to be told differently.
ODD = '/home/a b/100%/$HOME/"quoted"/back\\slash/ü\''
ARGUMENTS = ("serve", "--port", "8081", "--accounts-file", f"{ODD}/accounts.yaml", "%h", "${X}")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(port=8081, command=("/opt/a b/account-pool", *ARGUMENTS), path=ODD, home=tmp_path)


# -- what is written


def unquoted(line: str) -> list[str]:
    """Return the words of a line of a unit, as systemd.syntax(7) reads quotes and escapes."""
    words, word, rest = [], None, line
    while rest:
        char, rest = rest[0], rest[1:]
        if word is None:
            assert char in {'"', " "}
            word = "" if char == '"' else None
        elif char == '"':
            words.append(word)
            word = None
        elif char == "\\":
            word += {"n": "\n", "t": "\t"}.get(rest[0], rest[0])
            rest = rest[1:]
        elif char == "%":
            assert rest[0] == "%"
            word, rest = word + "%", rest[1:]
        else:
            word += char
    return words


def test_a_unit_of_systemd(plan):
    text = serve.unit(plan)
    lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    program, *arguments = unquoted(lines["ExecStart"])
    assert program == "/opt/a b/account-pool"
    assert [one.replace("$$", "$") for one in arguments] == list(ARGUMENTS)
    assert not any("$" in one.replace("$$", "") for one in arguments)
    assert unquoted(lines["Environment"]) == [f"PATH={ODD}"]
    assert lines["Restart"] == "always"
    assert lines["WantedBy"] == "default.target"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")
def test_systemd_takes_the_unit(tmp_path):
    """With a program that exists, in a folder that has a name."""
    folder = tmp_path / "a b%c"
    folder.mkdir()
    program = folder / "account-pool"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    plan = Plan(port=8081, command=(str(program), *ARGUMENTS), path=ODD, home=tmp_path)
    file = tmp_path / "account-pool-8081.service"
    file.write_text(serve.unit(plan))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", str(file)],
        env={"XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in checked.stderr.splitlines() if "account-pool" in line]
    assert said == []


def test_an_agent_of_launchd(plan):
    value = plistlib.loads(serve.agent(plan))
    assert value["ProgramArguments"] == list(plan.command)
    assert value["Label"] == "account-pool-8081"
    assert value["EnvironmentVariables"] == {"PATH": ODD}
    assert value["KeepAlive"] is value["RunAtLoad"] is True
    assert value["ThrottleInterval"] >= 10
    assert value["Umask"] == 0o077
    made = serve.launchd(plan, 501)
    assert made.file == plan.home / "Library/LaunchAgents/account-pool-8081.plist"
    assert made.install[-1][:3] == ("launchctl", "bootstrap", "gui/501")


def test_a_task_of_windows(plan):
    windows = Plan(
        port=8080,
        command=(
            r"C:\\Program Files\\a & b\\account-pool.exe",
            "serve",
            "<x>",
            'a "b"',
            "tail\\\\",
        ),
        path="",
        home=plan.home,
    )
    made = serve.windows(windows, plan.home)
    text = serve.as_text(made)
    assert made.definition[:2] == b"\xff\xfe"
    root = ElementTree.fromstring(text.partition("?>")[2])
    of = {"t": "http://schemas.microsoft.com/windows/2004/02/mit/task"}
    command = root.findtext(".//t:Command", namespaces=of)
    arguments = root.findtext(".//t:Arguments", namespaces=of)
    assert command == r"%SystemRoot%\System32\conhost.exe"
    assert arguments == subprocess.list2cmdline(["--headless", *windows.command])
    assert root.findtext(".//t:ExecutionTimeLimit", namespaces=of) == "PT0S"
    assert made.install[1][:3] == ("schtasks", "/Create", "/TN")


# -- what is done


@pytest.fixture
def systemctl(places, tmp_path, monkeypatch) -> Path:
    """Return what a stand-in for systemctl writes down; it does nothing else."""
    calls, folder = tmp_path / "calls", tmp_path / "bin"
    folder.mkdir()
    program = folder / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n[ ! -e {tmp_path}/fails ] || exit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    file = tmp_path / "mine.yaml"
    file.touch(mode=0o600)
    file.write_text("accounts: [{provider: openai, label: a, token: '${FAKE_UNSET_KEY}'}]\n")
    monkeypatch.setenv("ACCOUNT_POOL_ACCOUNTS", str(file))
    monkeypatch.setattr(time, "sleep", lambda _s: None)
    return calls


needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")


def health(monkeypatch, *found: object) -> None:
    """Have a proxy found as it is, time after time; the last from then on."""
    rest = list(found)
    monkeypatch.setattr(api, "probe", lambda _port: rest.pop(0) if len(rest) > 1 else rest[0])


HERE = api.Health("instance", True, 0, 1, None)


@needs_linux
def test_it_is_installed_and_removed(systemctl, places, tmp_path, monkeypatch, capsys):
    health(monkeypatch, api.Missing.NOBODY, api.Missing.NOBODY, HERE)
    port = str(places.port)
    assert run(["service", "install", "-p", port, "--", "--set", "pool_drain=5"]) == 0
    out, err = capsys.readouterr()
    name = f"account-pool-{port}.service"
    file = tmp_path / ".config/systemd/user" / name
    text = file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert f'"--port" "{port}"' in text
    assert '"--set" "pool_drain=5"' in text
    assert f'"--accounts-file" "{tmp_path}/mine.yaml"' in text
    assert "FAKE_UNSET_KEY" not in text
    assert "openai/a needs FAKE_UNSET_KEY, which the service lacks" in err
    assert f"running at {places.url} with 1 account" in out
    assert systemctl.read_text().splitlines() == [
        "--user daemon-reload",
        f"--user enable {name}",
        f"--user restart {name}",
    ]
    assert run(["service", "status", "-p", port, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value.keys() == {"kind", "file", "installed", "active", "serves", "url", "log"}
    assert value["installed"] is value["active"] is value["serves"] is True
    assert run(["service", "remove", "-p", port]) == 0
    assert not file.exists()
    assert f"--user disable --now {name}" in systemctl.read_text()
    assert run(["service", "remove", "-p", port]) == 1
    assert run(["service", "status", "-p", port]) == 1
    assert "not installed" in capsys.readouterr().out


@needs_linux
def test_a_full_disk_leaves_the_service_that_was_there(
    systemctl, places, tmp_path, monkeypatch, capsys
):
    health(monkeypatch, api.Missing.NOBODY, api.Missing.NOBODY, HERE)
    port = str(places.port)
    file = tmp_path / f".config/systemd/user/account-pool-{port}.service"
    kept = tmp_path / "kept.service"
    file.parent.mkdir(parents=True)
    file.symlink_to(kept)
    assert run(["service", "install", "-p", port]) == 0
    before = kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert run(["service", "install", "-p", port, "--", "--set", "pool_drain=5"]) == 1
    assert f"{kept}: No space left on device" in capsys.readouterr().err
    assert kept.read_text() == file.read_text() == before
    assert run(["service", "install", "-p", port, "--", "--set", "pool_drain=5"]) == 0
    assert "pool_drain=5" in kept.read_text() and file.is_symlink()


@needs_linux
@pytest.mark.parametrize("found", [HERE, api.Missing.OTHER])
@pytest.mark.usefixtures("places")
def test_a_port_in_use_is_left_alone(found, systemctl, tmp_path, monkeypatch, capsys):
    health(monkeypatch, found)
    assert run(["service", "install", "-p", "8099"]) == 1
    assert "name another --port" in capsys.readouterr().err
    assert not (tmp_path / ".config").exists()
    assert not systemctl.exists()


@needs_linux
def test_where_systemd_does_not_run(systemctl, places, tmp_path, monkeypatch, capsys):
    health(monkeypatch, api.Missing.NOBODY)
    (tmp_path / "fails").touch()
    assert run(["service", "install", "-p", str(places.port)]) == 1
    err = capsys.readouterr().err
    assert (
        "it was installed, but could not be started: systemctl --user daemon-reload: exit code 1"
        in err
    )


@needs_linux
def test_one_that_does_not_serve_names_its_log(systemctl, places, monkeypatch, capsys):
    health(monkeypatch, api.Missing.NOBODY)
    monkeypatch.setattr(serve, "_READY_S", 0.0)
    assert run(["service", "install", "-p", str(places.port)]) == 1
    assert f"journalctl --user -u account-pool-{places.port}" in capsys.readouterr().err


def test_it_can_be_looked_at_before(places, capsys):
    assert run(["service", "install", "--print", "-p", str(places.port)]) == 0
    assert str(places.port) in capsys.readouterr().out


def test_options_belong_to_install(places, capsys):
    assert run(["service", "status", "-p", str(places.port), "--workers", "2"]) == 2
    assert "only install takes options of serve" in capsys.readouterr().err
