"""The command line: names, exit codes, and one line where something is wrong."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from account_pool import demo
from account_pool.cli import main as entry
from account_pool.cli.add import INTERRUPTED
from account_pool.cli.commands import _LINES, app
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


def test_the_name_alone_shows_the_help(capsys):
    assert run([]) == 2
    assert capsys.readouterr().err.startswith("Usage: account-pool")


def test_a_file_that_cannot_be_read_is_one_line(capsys, tmp_path):
    assert run(["classify", "--jsonl", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err == (
        f"account-pool: {tmp_path / 'nothing'}: No such file or directory\n"
    )


@pytest.mark.parametrize("lines", [2, 2000])
def test_a_pipe_may_be_closed_before_all_is_read(tmp_path, lines):
    """Few of them are written at the end, from Python's buffer."""
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"provider": "openai", "status": 200, "body": "{}"}\n' * lines)
    command = "from account_pool.cli import main; main()"
    environ = {"PYTHONPATH": str(Path(demo.__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", command, "classify", "--jsonl", str(answers)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ,
    ) as process:  # fmt: skip
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("words", ["add openai work", "check"])
def test_a_standard_stream_may_be_closed(tmp_path, closed, words):
    """As cron, and some that start services, leave them."""
    command = f'exec "$0" -c "from account_pool.cli import main; main()" {words} {closed}'
    environ = {
        "PYTHONPATH": str(Path(demo.__file__).parents[2]), "HOME": str(tmp_path), "FAKE_KEY": "x",
        "ACCOUNT_POOL_ACCOUNTS": str(tmp_path / "accounts.yaml"),
    }  # fmt: skip
    (tmp_path / "accounts.yaml").touch(mode=0o600)
    (tmp_path / "accounts.yaml").write_text(ACCOUNTS)
    ended = subprocess.run(
        ["sh", "-c", command, sys.executable], check=False, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, cwd=tmp_path, env=environ,
    )  # fmt: skip
    assert "Traceback" not in ended.stderr
    if words == "add openai work" and "2>&-" not in closed:
        assert (ended.returncode, ended.stderr[:13]) == (1, "account-pool:")


def test_a_name_that_the_pipe_has_no_characters_for_is_shown_all_the_same(tmp_path):
    """A pipe of Windows is one in cp1252."""
    (tmp_path / "accounts.yaml").touch(mode=0o600)
    (tmp_path / "accounts.yaml").write_text(ACCOUNTS.replace("label: spare", "label: ключ"))
    ended = subprocess.run(
        [sys.executable, "-c", "from account_pool.cli import main; main()", "check",
         "--accounts-file", str(tmp_path / "accounts.yaml")],
        check=False, capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": str(Path(demo.__file__).parents[2]), "PYTHONIOENCODING": "cp1252"},
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert r"anthropic/\u043a\u043b\u044e\u0447" in ended.stdout


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


def test_check_warns_of_a_credential_that_cannot_be_read_now(capsys, accounts_file):
    """The proxy starts without it, so the file is right and the exit code 0."""
    text = "{provider: gemini, label: late, token: {env: FAKE_UNSET}}"
    accounts_file.write_text(ACCOUNTS.replace("accounts:\n", f"accounts:\n  - {text}\n"))
    assert run(["check", "--accounts-file", str(accounts_file)]) == 0
    out, err = capsys.readouterr()
    assert "gemini/late" in out
    assert err.startswith(f"warning: {accounts_file}:2: gemini/late: env FAKE_UNSET: ")
    assert "is not set" in err


def test_check_of_a_file_that_does_not_exist(capsys, tmp_path):
    assert run(["check", "--accounts-file", str(tmp_path / "missing.yaml")]) == 1
    assert "missing.yaml" in capsys.readouterr().err


def test_the_demos_exit_code_is_ours(monkeypatch):
    monkeypatch.setattr("account_pool.demo.failover.run_demo", lambda: 7)
    assert run(["demo"]) == 7


@pytest.mark.parametrize("told", [KeyboardInterrupt, typer.Abort])
def test_ctrl_c_is_exit_code_130_and_no_traceback(monkeypatch, capsys, told):
    def interrupted() -> int:
        raise told

    monkeypatch.setattr("account_pool.demo.failover.run_demo", interrupted)
    assert run(["demo"]) == INTERRUPTED == 130
    assert capsys.readouterr().err in ("", "account-pool: interrupted\n")


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


def test_the_shell_can_complete_commands_and_options(capfd, monkeypatch):
    """Asked as bash does it: typer answers before anything is run."""
    monkeypatch.setenv("_ACCOUNT_POOL_COMPLETE", "complete_bash")
    for words, expected in [("account-pool st", "status"), ("account-pool env --sh", "--shell")]:
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        with contextlib.suppress(SystemExit):
            run([])
        assert capfd.readouterr().out.split() == [expected]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_printed(capfd, monkeypatch, shell):
    # Else typer takes the shell that runs the tests, if one does.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    with pytest.raises(SystemExit) as ended:
        run(["--show-completion", shell])
    assert ended.value.code == 0
    assert "_ACCOUNT_POOL_COMPLETE" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["enable"], "Missing argument 'ACCOUNT'; see account-pool enable --help"),
        (["usage", "--nope"], "; see account-pool usage --help"),
        (["enabel", "openai/work"], "'enable'?"),
    ],
)
def test_a_wrong_command_line_names_the_help(capsys, words, said):
    assert run(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.rstrip().endswith(said)


# -- exit codes, as docs/cli.md has them


@pytest.mark.parametrize(
    "words",
    [
        ["status"], ["status", "--json"], ["usage"], ["requests"], ["decisions"], ["pin"],
        ["pin", "a", "openai/b"], ["dashboard"], ["enable", "openai/a"], ["clear", "openai/a"],
        ["disable", "openai/a"], ["next", "openai"], ["service", "status"], ["service", "remove"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_without_a_proxy_it_is_a_failure_and_no_output(words, places, capsys):
    assert run([*words, "-p", str(places.port)]) == 1
    out, err = capsys.readouterr()
    assert out == "" or words[0] == "service"
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "words",
    [
        ["enable"], ["enable", "openai/a", "--nonsense"], ["service", "nonsense"], ["pin", "a"],
        ["pin", "a", "openai/b", "--off"], ["usage", "--json", "--csv"], ["completion", "csh"],
        ["run", "--account", "nonsense", "--", "true"], ["add", "a", "b", "c"],
        ["run", "--account", "openai/a", "--account", "openai/b", "--", "true"],
        ["list", "--port", "0"], ["nonsense"], ["usage", "--refresh", "--model", "gpt-5"],
        ["usage", "--refresh", "--by", "day"], ["usage", "--refresh", "--from", "24h"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage(words, places, capsys):
    assert run(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1


def test_the_help_has_a_line_for_each_command_and_cuts_none(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["--help"]) == 0
    _, _, listed = capsys.readouterr().out.partition("Commands:\n")
    names = [line.split()[0] for line in listed.splitlines()]
    assert names == list(_LINES)
    assert set(names) == set(typer.main.get_command(app).commands)
    assert "..." not in listed
