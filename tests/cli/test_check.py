"""`account-pool check`: what `run` would use, from which file, and what was confirmed."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from rich.console import Console

from account_pool.cli.check import AccountsView
from account_pool.cli.main import run
from account_pool.config import accounts_file
from account_pool.config.accounts_file import Confirmed, own_file, trust_store
from account_pool.config.loader import load
from account_pool.config.shapes import json_schema
from tests.e2e.harness import free_port

ONE = "accounts:\n  - {provider: openai, label: one, token: sk-fake-one-000}\n"
ABLE = """\
accounts:
  - {provider: openai, label: one, token: {command: gh auth token}}
  - {provider: gw, label: two, token: sk-fake-two-000}
  - {provider: ghe, label: three, token: gho_fake}
providers:
  gw: {like: openai, hosts: [llm.example.com, "*.example.org", "localhost:9443"]}
  ghe: {like: copilot, hosts: [api.acme.ghe.com], token_url: https://api.acme.ghe.com/token}
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY",
                 "GITHUB_TOKEN", "GH_TOKEN"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(path: Path, text: str = ONE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def test_how_many_accounts_and_which_file(capsys):
    write(own_file(), ONE + "  - {provider: openai, label: two, token: sk-fake-two-000}\n")
    assert run(["check"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith(f"2 accounts, file OK: {own_file()}\n")
    assert err == ""


def test_the_accounts_of_the_environment(monkeypatch, capsys):
    assert run(["check"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "account-pool: no account: add one with" in err
    assert err.count("\n") == 1
    monkeypatch.setenv("OPENAI_API_KEY", "sk-fake-env-000")
    assert run(["check"]) == 0
    assert "1 account, from the environment; there is no file" in capsys.readouterr().out


def test_an_option_in_mitmproxys_configuration_counts(tmp_path, here, capsys):
    write(own_file())
    mine = write(here / "mine.yaml")
    write(tmp_path / ".mitmproxy" / "config.yaml", "pool_accounts: mine.yaml\n")
    assert run(["check"]) == 0
    assert f"file OK: {mine}" in capsys.readouterr().out
    write(tmp_path / ".mitmproxy" / "config.yml", f"pool_accounts: {own_file()}\n")
    assert run(["check"]) == 0
    assert f"file OK: {own_file()}" in capsys.readouterr().out


ADDED = "accounts:\n  - {provider: anthropic, label: late, token: sk-ant-fake-000}\n"


@pytest.mark.parametrize("how", ["usual", "accounts.yaml", "config.yaml"])
def test_accounts_that_were_added_while_a_proxy_ran_count(tmp_path, capsys, how):
    """They are beside the state database, where accounts.yaml could not hold them."""
    state = tmp_path / "elsewhere.sqlite"
    text = ONE + f"pool: {{state: {state}}}\n" if how == "accounts.yaml" else ONE
    write(own_file(), text)
    if how == "usual":
        state = tmp_path / ".mitmproxy" / "account-pool.sqlite"
    elif how == "config.yaml":
        write(tmp_path / ".mitmproxy" / "config.yaml", f"pool_state: {state}\n")
    added = write(state.with_name(f"{state.name}.accounts.yaml"), ADDED)
    assert run(["check"]) == 0
    out, _err = capsys.readouterr()
    assert "anthropic/late" in out
    assert out.endswith(f"2 accounts, file OK: {own_file()}, and ~/{added.relative_to(tmp_path)}\n")
    # A port of its own: on the usual one somebody's proxy may answer.
    assert run(["list", "--port", str(free_port())]) == 0
    assert "anthropic/late" in capsys.readouterr().out


def test_added_accounts_alone_are_enough_and_a_mistake_in_them_is_told(tmp_path, capsys):
    added = tmp_path / ".mitmproxy" / "account-pool.sqlite.accounts.yaml"
    write(added, ADDED)
    assert run(["check"]) == 0
    assert "1 account, from the environment" in capsys.readouterr().out
    write(added, "accounts: 5\n")
    assert run(["check"]) == 1
    assert str(added.name) in capsys.readouterr().err


def test_what_a_confirmed_file_can_do_is_its_own(tmp_path, here, capsys):
    write(tmp_path / ".mitmproxy" / "account-pool.sqlite.accounts.yaml", ADDED)
    write(here / "accounts.yaml")
    assert run(["check", "--trust"]) == 0
    assert "anthropic/late" not in capsys.readouterr().out


def test_a_file_here_is_named_and_skipped_until_it_was_confirmed(here, capsys):
    local = write(here / "accounts.yaml", ABLE)
    write(own_file())
    assert run(["check"]) == 0
    out, err = capsys.readouterr()
    assert f"file OK: {own_file()}" in out
    assert f"account-pool: {local} is skipped: it has not been confirmed" in err
    assert run(["check", "--trust"]) == 0
    out = capsys.readouterr().out
    for shown in (
        "3 accounts, file OK",
        "openai/one runs: gh auth token",
        "gw sends credentials to: llm.example.com, *.example.org, localhost:9443",
        "ghe sends credentials to: api.acme.ghe.com",
        "ghe sends GitHub tokens to: https://api.acme.ghe.com/token",
        "confirmed",
    ):
        assert shown in out
    assert "sk-fake" not in out
    assert run(["check"]) == 0
    out, err = capsys.readouterr()
    assert (f"file OK: {local}" in out, "is skipped" in err) == (True, False)


def test_a_broken_file_is_not_confirmed(here, capsys):
    local = write(here / "accounts.yaml", ONE.replace("openai", "opnai"))
    assert run(["check", "--trust"]) == 1
    assert "did you mean openai?" in capsys.readouterr().err
    assert accounts_file.confirmed(local, trust_store()) is Confirmed.NO


def test_there_must_be_something_to_confirm(here, capsys):
    assert run(["check", "--trust"]) == 1
    err = capsys.readouterr().err
    assert f"{here / 'accounts.yaml'}: the file does not exist" in err
    assert err.count("\n") == 1


def test_a_place_for_confirmations_that_cannot_be_written_is_one_line(tmp_path, here, capsys):
    write(here / "accounts.yaml")
    write(tmp_path / ".config", "a file")
    assert run(["check", "--trust"]) == 1
    err = capsys.readouterr().err
    assert str(tmp_path / ".config") in err
    assert err.count("\n") == 1


def test_as_json_for_programs(here, capsys):
    path = write(
        here / "mine.yaml", ONE + "  - {provider: gemini, label: two, token: {env: FAKE_UNSET}}\n"
    )
    assert run(["check", "--json", "--accounts-file", str(path)]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["file"] == str(path)
    assert [(one["key"], one["enabled"]) for one in value["accounts"]] == [
        ("openai/one", True),
        ("gemini/two", True),
    ]
    assert value["accounts"][0]["problem"] is None
    assert "FAKE_UNSET is not set" in value["accounts"][1]["problem"]
    assert "sk-fake" not in json.dumps(value)


def test_no_account_as_json(here, capsys, monkeypatch):
    """Whoever reads it finds JSON, as `list` has it; the exit code says what is missing."""
    for name in [name for name in os.environ if name.endswith("_API_KEY")]:
        monkeypatch.delenv(name)
    assert run(["check", "--json"]) == 1
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert (value["file"], value["accounts"], value["state"]) == (None, [], [])
    assert err.startswith("account-pool: no account: ")


def test_the_schema_for_editors_needs_no_account(here, capsys):
    assert run(["check", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == json_schema()
    assert {"provider", "label", "token"} <= schema["$defs"]["AccountShape"]["properties"].keys()


LONG = """accounts:
  - {provider: openai, label: a-label-as-long-as-somebody-may-want-it, token: sk-fake-one-000}
  - {provider: gemini, label: two, token: AIza-fake, enabled: false, priority: 3, models: [g*]}
"""


@pytest.mark.parametrize(("width", "lines"), [(1000, 3), (60, 3), (40, 4)])
def test_accounts_at_each_width(tmp_path, width, lines):
    accounts = [entry.account for entry in load(write(tmp_path / "a.yaml", LONG), {}).accounts]
    console = Console(width=width, file=io.StringIO(), highlight=False)
    console.print(AccountsView(accounts))
    said = console.file.getvalue().splitlines()
    assert max(map(len, said)) <= width
    assert len(said) == lines
    if width < 1000:
        assert [line.strip() for line in said][-2:] == [
            "gemini/two",
            "off, priority 3, models g*",
        ]


def with_state(state: str) -> str:
    return f"{ONE}pool: {{state: '{state}'}}\n"


def test_the_state_engine_is_asked_how_it_is(capsys, shared_servers):
    server = shared_servers("redis")
    write(own_file(), with_state(server.url("check")))
    assert run(["check"]) == 1, "it would lose logins"
    out, err = capsys.readouterr()
    assert "state: Redis " in out
    assert f"at 127.0.0.1:{server.port}, pool check" in out
    assert "account-pool: state: it keeps nothing on its disk" in err  # it fails for that
    assert "CONFIG SET appendonly yes" in err
    assert run(["check", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)["state"]
    assert facts[0]["level"] == "ok"
    assert run(["doctor"]) == 1
    assert "bad   state         it keeps nothing on its disk" in capsys.readouterr().out


def test_a_state_engine_that_is_away_is_said(capsys, monkeypatch):
    pytest.importorskip("redis")
    monkeypatch.setenv("FAKE_PASSWORD", "fake-password-hunter2")
    port = free_port()
    write(own_file(), with_state(f"redis://pool@localhost:{port}/?password=env:FAKE_PASSWORD"))
    for command in ("check", "doctor"):
        assert run([command]) == 1
        said = "".join(capsys.readouterr())
        assert f"the state engine localhost:{port} cannot be reached: the connection was" in said
        assert "hunter2" not in said


def test_a_password_in_the_url_is_refused_and_not_shown(capsys):
    write(own_file(), with_state("rediss://pool:fake-hunter2@db.example/"))
    assert run(["check"]) == 1
    said = "".join(capsys.readouterr())
    assert "password=env:VARIABLE" in said
    assert "hunter2" not in said


ARGUMENTS = {"add": ["openai", "work"], "remove": ["openai/work"]}


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no endless file")
@pytest.mark.parametrize("command", ["check", "list", "doctor", "add", "remove"])
def test_an_endless_file_is_one_error(capsys, monkeypatch, command):
    monkeypatch.setattr("sys.stdin", io.StringIO("sk-fake-000"))
    words = [*ARGUMENTS.get(command, ()), "--accounts-file", "/dev/zero"]
    assert run([command, *words]) == 1
    said = "".join(capsys.readouterr())
    assert said.count("is a device, not a file") == said.count("/dev/zero") == 1
