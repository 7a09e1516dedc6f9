"""The unit of systemd and the agent of launchd in docs/examples start what `run` starts."""

from __future__ import annotations

import configparser
import plistlib
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from mitmproxy.options import Options
from mitmproxy.tools import cmdline
from mitmproxy.tools.dump import DumpMaster

from account_pool.cli.processes import DEFAULT_PORT, HOST

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
UNIT = EXAMPLES / "account-pool.service"
AGENT = EXAMPLES / "account-pool.plist"


def unit() -> configparser.ConfigParser:
    # Options of systemd are told apart by case, % stands for its own specifiers.
    parser = configparser.ConfigParser(interpolation=None, comment_prefixes=("#", ";"))
    parser.optionxform = str
    parser.read_string(UNIT.read_text())
    return parser


def agent() -> dict:
    return plistlib.loads(AGENT.read_bytes())


@pytest.mark.parametrize(
    "command", [shlex.split(unit()["Service"]["ExecStart"]), agent()["ProgramArguments"]],
    ids=["systemd", "launchd"],
)  # fmt: skip
async def test_the_command_is_one_mitmdump_takes(command):
    program, serve, *arguments = command
    assert Path(program).is_absolute() or program.startswith("%h/")
    assert (Path(program).name, serve) == ("account-pool", "serve")
    options = Options()
    DumpMaster(options)  # knows all of them
    given = cmdline.mitmdump(options).parse_args(arguments)
    assert (given.listen_host, given.listen_port) == (HOST, DEFAULT_PORT)
    assert [setting.partition("=")[0] for setting in given.setoptions] == ["flow_detail"]


def test_both_start_it_again_but_not_in_a_storm():
    sections = unit()
    assert sections["Service"]["Restart"] == "always"
    assert int(sections["Unit"]["StartLimitBurst"]) <= 10
    assert sections["Install"]["WantedBy"] == "default.target"
    assert agent()["KeepAlive"] is True
    assert agent()["RunAtLoad"] is True
    assert agent()["ThrottleInterval"] >= 10


def test_what_they_write_is_the_owners_alone():
    assert unit()["Service"]["UMask"] == "0077"
    assert agent()["Umask"] == 0o077


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="has no systemd")
def test_systemd_takes_the_unit():
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", UNIT], capture_output=True, text=True, check=False
    )
    # The program is not installed there; nothing else may be wrong.
    wrong = [line for line in done.stderr.splitlines() if "is not executable" not in line]
    assert not [line for line in wrong if UNIT.name in line]
