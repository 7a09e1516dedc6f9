"""The command line: names, exit codes, and one line where something is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from account_pool import demo
from account_pool.cli import main as entry
from account_pool.cli.main import run
from account_pool.version import __version__

ACCOUNTS = """\
accounts:
  - provider: openai
    label: Work Account
    token: sk-fake-work-000
    priority: 1
    models: ["gpt-*", "!gpt-5-pro*"]
    max_concurrent: 8
  - provider: anthropic
    label: spare
    token: sk-fake-spare-000
    enabled: false
    min_interval: 0.5
"""


@pytest.fixture
def accounts_file(tmp_path: Path) -> Path:
    path = tmp_path / "accounts.yaml"
    path.touch(mode=0o600)
    path.write_text(ACCOUNTS)
    return path


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"account-pool {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["--nonsense"], ["classify"], ["check", "too", "much"]]
)
def test_wrong_usage_is_one_line_and_exit_code_2(capsys, arguments):
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("account-pool: ")
    assert err.count("\n") == 1


def test_check_shows_accounts_and_no_secrets(capsys, accounts_file):
    assert run(["check", "--accounts-file", str(accounts_file)]) == 0
    out, err = capsys.readouterr()
    for shown in ("openai/work-account", "gpt-*, !gpt-5-pro*", "8 at once", "anthropic/spare"):
        assert shown in out
    assert "0.5 s apart" in out
    assert "sk-fake" not in out + err


def test_check_names_every_problem(capsys, accounts_file):
    accounts_file.write_text(ACCOUNTS.replace("openai", "opnai").replace("priority: 1", "prio: 1"))
    assert run(["check", "--accounts-file", str(accounts_file)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "opnai" in err
    assert "prio" in err
    assert "sk-fake" not in err


def test_check_of_a_file_that_does_not_exist(capsys, tmp_path):
    assert run(["check", "--accounts-file", str(tmp_path / "missing.yaml")]) == 1
    assert "missing.yaml" in capsys.readouterr().err


def test_the_demos_exit_code_is_ours(monkeypatch):
    monkeypatch.setattr(demo, "run", lambda: 7)
    assert run(["demo"]) == 7


def test_the_console_script_ends_the_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["account-pool", "nonsense"])
    with pytest.raises(SystemExit) as ended:
        entry()
    assert ended.value.code == 2


def test_showing_the_version_does_not_wait_for_what_it_does_not_need():
    code = (
        "import sys; from account_pool.cli.main import run; run(['--version'])\n"
        "for name in ('mitmproxy', 'httpx', 'pydantic', 'rich.console', 'cryptography'):\n"
        "    assert name not in sys.modules, name\n"
    )
    addon = Path(demo.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(addon)})
