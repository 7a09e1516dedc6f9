"""`account-pool serve`: the command line that takes its place."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from mitmproxy.tools.web.web_columns import AVAILABLE_WEB_COLUMNS

from account_pool.cli import serve
from account_pool.cli.main import run
from account_pool.demo.mitmdump import addon_script

SCRIPT = ["-s", str(addon_script())]
LOOPBACK = ["--listen-host", "127.0.0.1"]
COLUMNS = [word for name in serve.COLUMNS for word in ("--set", f"web_columns={name}")]


@pytest.fixture
def became(tmp_path, monkeypatch):
    """What the process would have become: program, arguments, environment."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    seen = []

    def become(command, environ):
        seen.append((command, environ))
        raise SystemExit(7)

    monkeypatch.setattr(serve, "_become", become)

    def call(*arguments: str):
        with pytest.raises(SystemExit):
            run(["serve", *arguments])
        command, environ = seen.pop()
        trusted = next(w for w in command if w.startswith("ssl_verify_upstream_trusted_ca="))
        at = command.index(trusted)
        del command[at - 1 : at + 1]
        assert Path(trusted.partition("=")[2]).is_file()
        at = command.index("-s")
        return Path(command[at - 1]).name, command[at:], environ

    return call


@pytest.mark.parametrize(
    ("arguments", "program", "expected"),
    [
        ([], "mitmdump", LOOPBACK),
        (["--web"], "mitmweb", [*LOOPBACK, *COLUMNS]),
        (["--console"], "mitmproxy", LOOPBACK),
        (["-p", "8081"], "mitmdump", [*LOOPBACK, "--listen-port", "8081"]),
        (["--port", "0", "-v"], "mitmdump", [*LOOPBACK, "--listen-port", "0", "-v"]),
        (["-nC", "dump", "~u x"], "mitmdump", [*LOOPBACK, "-nC", "dump", "~u x"]),
        (
            ["--set", "a=1", "-w", "f", "--web"],
            "mitmweb",
            [*LOOPBACK, *COLUMNS, "--set", "a=1", "-w", "f"],
        ),
        (["--listen-host", "0.0.0.0"], "mitmdump", ["--listen-host", "0.0.0.0"]),
        (["--listen-host=::"], "mitmdump", ["--listen-host=::"]),
        (["--set", "listen_host=::1"], "mitmdump", ["--set", "listen_host=::1"]),
        (["--mode", "regular@::1:8081"], "mitmdump", [*LOOPBACK, "--mode", "regular@::1:8081"]),
        (["--version"], "mitmdump", [*LOOPBACK, "--version"]),
    ],
)
def test_every_option_of_mitmproxy_passes(became, arguments, program, expected):
    assert became(*arguments)[:2] == (program, [*SCRIPT, *expected])


def test_the_accounts_file_is_named_by_its_whole_path(became, tmp_path):
    _, arguments, _ = became("--accounts-file", "mine.yaml", "-q")
    expected = ["--set", f"pool_accounts={tmp_path / 'mine.yaml'}", "-q"]
    assert arguments == [*SCRIPT, *LOOPBACK, *expected]


def test_an_address_in_mitmproxys_own_configuration_counts(became, tmp_path):
    for confdir, how in ((".mitmproxy", []), ("other", ["--set", "confdir=other"])):
        (tmp_path / confdir).mkdir()
        (tmp_path / confdir / "config.yaml").write_text("listen_host: 0.0.0.0\n")
        assert became(*how)[1] == [*SCRIPT, *how]
        (tmp_path / confdir / "config.yaml").unlink()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys, became):
    """Of mitmproxy it is a traceback."""
    (tmp_path / "file").touch()
    for confdir in ("file", "file/in-it"):
        assert run(["serve", "--set", f"confdir={confdir}"]) == 1
        err = capsys.readouterr().err
        assert (err.count("\n"), "directory" in err.lower()) == (1, True)


def test_who_has_chosen_columns_of_mitmweb_keeps_them(became, tmp_path):
    chosen = ["--set", "web_columns=path"]
    assert became("--web", *chosen)[1] == [*SCRIPT, *LOOPBACK, *chosen]
    (tmp_path / ".mitmproxy").mkdir(exist_ok=True)
    (tmp_path / ".mitmproxy" / "config.yaml").write_text("web_columns: [path]\n")
    assert became("--web")[1] == [*SCRIPT, *LOOPBACK]


def test_a_mitmweb_without_such_columns_shows_its_own(became, monkeypatch):
    assert "comment" in AVAILABLE_WEB_COLUMNS
    monkeypatch.setattr(serve, "COLUMNS", (*serve.COLUMNS, "not-there"))
    assert became("--web")[1] == [*SCRIPT, *LOOPBACK]


def test_it_does_not_go_through_itself(became, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:8081")
    assert "HTTPS_PROXY" not in became("-p", "8081")[2]
    assert became("-p", "8082")[2]["HTTPS_PROXY"] == "http://127.0.0.1:8081"


def test_its_log_is_written_line_by_line(became, monkeypatch):
    assert became()[2]["PYTHONUNBUFFERED"] == "1"
    monkeypatch.setenv("PYTHONUNBUFFERED", "")
    assert became()[2]["PYTHONUNBUFFERED"] == ""


def test_both_front_ends_at_once_are_wrong_usage(capsys):
    assert run(["serve", "--web", "--console"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_several_workers_are_started_with_the_same_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(serve.sys, "platform", "linux")
    seen = []
    monkeypatch.setattr("account_pool.workers.launcher.launch", lambda *how: seen.append(how) or 7)
    with pytest.raises(SystemExit, match="7"):
        run(["serve", "--workers", "3", "--port", "0", "--set", "a=1"])
    command, workers, environ, _ = seen.pop()
    assert command[: len(serve.WORKER)] == list(serve.WORKER)
    assert workers == 3
    assert environ["PYTHONUNBUFFERED"] == "1"
    # Any port, and the same for all.
    assert command[-2] == "--listen-port"
    assert int(command[-1]) > 0
    with pytest.raises(SystemExit, match="7"):
        run(["serve", "--workers", "2", "-p", "8081"])
    assert seen.pop()[0].count("--listen-port") == 1


@pytest.mark.parametrize("front_end", ["--web", "--console"])
def test_a_front_end_has_one_worker(front_end, capsys):
    assert run(["serve", front_end, "--workers", "2"]) == 2
    assert "--workers is for mitmdump" in capsys.readouterr().err


def test_elsewhere_than_on_linux_there_is_one_worker(became, monkeypatch, capsys):
    monkeypatch.setattr(serve.sys, "platform", "darwin")
    assert became("--workers", "2")[0] == "mitmdump"
    assert capsys.readouterr().err == "account-pool: --workers is for Linux; one worker serves\n"


def test_a_configuration_that_mitmproxy_cannot_read_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".mitmproxy").mkdir()
    (tmp_path / ".mitmproxy" / "config.yaml").write_text("pool_github_token: [sk-fake-secret-000")
    for command in (["serve"], ["check"], ["run", "--", "true"]):
        assert run(command) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "config.yaml: mitmproxy cannot read this file" in err
        assert err.count("\n") == 1
        assert "sk-fake" not in err


def test_script_prints_a_path_and_nothing_else(capsys):
    assert run(["script"]) == 0
    out = capsys.readouterr().out
    assert Path(out.strip()).is_absolute()
    assert Path(out.strip()).is_file()
    assert out.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["-p", "PORT"], ["--listen-port", "PORT"], ["--set", "listen_port=PORT"],
        ["--listen-port=PORT", "--listen-host", "0.0.0.0"], ["-p", "PORT", "--workers", "2"],
    ],
)  # fmt: skip
def test_a_port_that_is_used_is_said_in_our_words(became, capsys, monkeypatch, words):
    monkeypatch.setattr(
        "account_pool.workers.launcher.launch", lambda *_how: pytest.fail("it was started")
    )
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert exit_code(["serve", *(word.replace("PORT", port) for word in words)]) == 1
    said = f"something listens at 127.0.0.1:{port}: end it first, or name another --port"
    assert capsys.readouterr().err == f"account-pool: {said}\n"


@pytest.mark.parametrize(
    "words",
    [["--mode", "socks5@0"], ["--mod=socks5@0"], ["-n"], ["--version"], ["--set", "mode=x"]],
)
def test_where_it_listens_elsewhere_the_port_may_be_used(became, words):
    with socket.create_server(("127.0.0.1", 0)) as other:
        became("-p", str(other.getsockname()[1]), *words)


def exit_code(words: list[str]) -> object:
    with pytest.raises(SystemExit) as ended:
        run(words)
    return ended.value.code


def test_port_0_of_several_workers_is_one_that_no_connection_takes_meanwhile(monkeypatch):
    option, port = serve._one_port(0, [])
    assert option == "--listen-port" and int(port) in serve._NOT_GIVEN
    # Where none of those may be had, it is one for all of them nevertheless.
    monkeypatch.setattr(serve, "_NOT_GIVEN", range(0))
    assert int(serve._one_port(None, ["--listen-port", "0"])[1]) > 0
