"""`account-pool env`, `logs` and `status` as commands: what they print, and how they end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading

import pytest

from account_pool.cli import api, history, proxy_process
from account_pool.cli.environment import ALL_VARIABLES
from account_pool.cli.main import run
from account_pool.cli.processes import Launch
from account_pool.cli.shared import SharedProxy


@pytest.fixture
def proxy(stub, places):
    """A stand-in that runs."""
    shared = SharedProxy(places, os.environ)
    shared.attach(Launch(str(stub)))
    yield shared
    shared.detach()


@pytest.mark.skipif(shutil.which("bash") is None, reason="has no bash")
def test_env_prepares_a_shell_and_unset_undoes_it(proxy, places, capsys):
    assert run(["env", "--port", str(places.port), "--shell", "bash"]) == 0
    lines, err = capsys.readouterr()
    assert err == ""
    assert run(["env", "--port", str(places.port), "--shell", "bash", "--unset"]) == 0
    undo = capsys.readouterr().out
    script = (
        f"{lines}\nprintenv HTTPS_PROXY SSL_CERT_FILE\n{undo}\nprintenv HTTPS_PROXY https_proxy"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [places.url, str(places.bundle)]
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_env_names_every_variable_in_every_shell(places, capsys, shell):
    assert run(["env", "--port", str(places.port), "--shell", shell]) == 0
    out, err = capsys.readouterr()
    # NO_PROXY is changed only where it is set.
    for name in set(ALL_VARIABLES) - {"NO_PROXY", "no_proxy"}:
        assert name in out
    assert err.startswith(f"account-pool: no proxy answers at 127.0.0.1:{places.port}")
    assert err.count("\n") == 1


def test_env_of_a_home_that_cannot_be_written_is_one_line(places, capsys):
    places.bundle.mkdir()
    assert run(["env", "--port", str(places.port), "--shell", "bash"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1


def test_status_is_the_proxys_own_answer_with_json(proxy, places, stub, capsys):
    assert run(["status", "--port", str(places.port), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((stub / "accounts.json").read_text())


def test_status_into_a_pipe_ends_and_tells_no_token(proxy, places, capsys):
    (places.confdir / "account-pool-admin-token").write_text("fake-token\n")
    assert run(["status", "--port", str(places.port)]) == 0
    out = capsys.readouterr().out
    assert "no account" in out
    assert "fake-token" not in out


@pytest.mark.parametrize("options", [[], ["--json"], ["--once"]])
def test_status_without_a_proxy_is_one_line(places, capsys, options):
    assert run(["status", "--port", str(places.port), *options]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="terminals of POSIX")
def test_status_printed_on_a_terminal_shows_the_token(proxy, places):
    from tests.cli.test_run import environment, on_terminal

    (places.confdir / "account-pool-admin-token").write_text("fake-token\n")
    words = ["status", "--once", "-p", str(places.port)]
    code = f"from account_pool.cli.main import run; exit(run({words}))"
    shown = on_terminal(
        [
            sys.executable,
            "-c",
            "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);" + code,
        ],
        {**environment(places), "TERM": "xterm"},
    )
    assert "fake-token" in shown
    assert shown.endswith("exit 0")


def test_logs_shows_the_last_lines(places, capsys):
    places.log.write_text("".join(f"line {n}\n" for n in range(100)))
    assert run(["logs", "--port", str(places.port), "-n", "2"]) == 0
    assert capsys.readouterr().out == "line 98\nline 99\n"
    assert run(["logs", "--port", str(places.port), "-n", "0"]) == 0
    assert run(["logs", "--port", str(places.port), "--path"]) == 0
    assert capsys.readouterr().out == f"{places.log}\n"


def test_connections_are_no_news(places, capsys):
    failover = "[16:14:34.130] openai/work: 429 rate_limit, on cooldown for 38 s -> openai/spare\n"
    connections = [
        "[16:14:34.123][127.0.0.1:39888] client connect\n",
        "[16:14:34.129][[::1]:39888] server connect chatgpt.com:443 (127.0.0.1:45801)\n",
        "[16:14:34.130][127.0.0.1:39888] client disconnect\n",
    ]
    places.log.write_text("".join([failover, *connections]))
    assert run(["logs", "--port", str(places.port), "-n", "1"]) == 0
    assert capsys.readouterr().out == failover
    assert run(["logs", "--port", str(places.port), "-n", "2", "--all"]) == 0
    assert capsys.readouterr().out == "".join(connections[1:])


def test_logs_without_one_says_where_it_would_be(places, capsys):
    assert run(["logs", "--port", str(places.port)]) == 1
    err = capsys.readouterr().err
    assert str(places.log) in err
    assert err.count("\n") == 1


def test_logs_follow_what_is_written_also_into_a_new_file(places, capsys, monkeypatch):
    places.log.write_text("first\n")
    todo = [
        lambda: proxy_process.note(places, "second"),
        lambda: (
            places.log.rename(places.log.with_suffix(".old")),
            places.log.write_text("third\n"),
        ),
    ]

    def sleep(_seconds: float) -> None:
        if not todo:
            raise KeyboardInterrupt
        todo.pop(0)()

    monkeypatch.setattr(history.time, "sleep", sleep)
    assert run(["logs", "--port", str(places.port), "-f"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "first"
    assert out[1].endswith("account-pool run: second")
    assert out[2] == "third"


def test_a_proxy_that_answers_otherwise_is_no_pool(places):
    """Whatever /health says: a pool names its instance."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status": "ok"}')

        def log_message(self, *_arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", places.port), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert api.probe(places.port) is api.Missing.OTHER
        with pytest.raises(api.NoAnswer, match="not the pool"):
            api.accounts(places.port)
        server.shutdown()


def test_a_guarded_pool_is_told_from_a_stranger(places, monkeypatch):
    monkeypatch.setattr(api, "_exchange", lambda *_request: (401, {"error": {}}))
    with pytest.raises(api.NoAnswer, match="proxyauth"):
        api.accounts(places.port)
