"""`account-pool env`, `logs` and `status` as commands: what they print, and how they end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading

import pytest

from account_pool.cli import api, history, shared
from account_pool.cli.environment import ALL_VARIABLES
from account_pool.cli.main import run
from account_pool.cli.processes import Launch
from account_pool.cli.shared import SharedProxy
from tests.cli import pools

ACCOUNT = pools.account("a/b")


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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_log_or_a_certificate_that_is_a_pipe_is_not_waited_for(places, capsys):
    places.authority.unlink(missing_ok=True)
    for path, command in ((places.log, "logs"), (places.authority, "ca")):
        os.mkfifo(path)
        assert run([command, "-p", str(places.port)]) == 1
        assert "it is a pipe, not a file" in capsys.readouterr().err
        path.unlink()


def test_a_directory_of_ours_that_is_a_file_is_one_line(places, capsys):
    shutil.rmtree(places.confdir)
    places.confdir.touch()
    assert run(["run", "-p", str(places.port), "--", "true"]) == 1
    assert capsys.readouterr().err.endswith(
        f"{places.confdir}: it is not a directory; move it away\n"
    )


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
        lambda: shared.note(places, "second"),
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


@pytest.mark.parametrize("words", [["dashboard"], ["disable", "openai/a"], ["next", "openai"]])
def test_who_has_no_token_changes_nothing_and_reads_why(proxy, places, stub, capsys, words):
    """Of another user, or with a home of its own: no proxyauth is set there."""
    (stub / "token").write_text("fake-token")
    assert run([*words, "-p", str(places.port)]) == 1
    said = capsys.readouterr().err
    assert f"you have none in {places.confdir / 'account-pool-admin-token'}" in said
    assert "proxyauth" not in said


@pytest.mark.parametrize(
    "words", [["usage"], ["requests"], ["decisions"], ["list"], ["pin"], ["status"]], ids=" ".join
)
def test_where_reading_requires_the_token_it_is_sent(proxy, places, stub, capsys, words):
    (stub / "token").write_text("fake-token")
    answer = {"accounts": [ACCOUNT], "summary": {}}
    (stub / "accounts.json").write_text(json.dumps({**answer, "sessions": []}))
    assert run([*words, "-p", str(places.port)]) == 1
    assert "requires its admin token because proxyauth is set" in capsys.readouterr().err
    (places.confdir / "account-pool-admin-token").write_text("fake-token\n")
    assert run([*words, "-p", str(places.port)]) == 0
    # Whoever may read is not yet somebody whose tool may choose its account.
    assert run(["env", "-p", str(places.port), "--shell", "bash", "--account", "a/b"]) == 1
    assert "its proxyauth is set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "answer", "lacks"),
    [
        (["requests"], {"requests": [{"at": "2026-08-01T12:00:00Z"}]}, "tokens"),
        (["decisions"], {"decisions": [{"at": "2026-08-01T12:00:00Z"}]}, "text"),
        (["usage"], {"groups": [{"requests": 1}]}, "account"),
        (["pin"], {}, "sessions"),
        (["list"], {"accounts": [{"key": "a/b"}], "summary": {}}, "state"),
    ],
    ids=["requests", "decisions", "usage", "pin", "list"],
)
def test_what_an_answer_lacks_is_one_line(proxy, capsys, words, answer, lacks):
    """As that of a version which is not known here."""
    places = proxy.places
    stub = places.confdir.parent
    (stub / "accounts.json").write_text(json.dumps(answer))
    (stub / "decisions.json").write_text(json.dumps(answer))
    assert run([*words, "-p", str(places.port)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"account-pool: the answer of the proxy has no '{lacks}': it may be of")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "page"),
    [
        (["usage"], "/usage"),
        (["requests"], "/requests"),
        (["decisions"], "/decisions"),
        (["pin"], "/sessions"),
        (["enable", "openai/a"], "/account-pool/enable"),
    ],
)
def test_a_page_that_an_older_proxy_has_not_is_one_line(
    *, proxy, places, capsys, monkeypatch, words, page
):
    said = {"error": {"code": "not_found", "message": "no such endpoint"}}
    ask = api._exchange

    def exchange(connection, method, path, *sent):
        known = path == "/health"
        return ask(connection, method, path, *sent) if known else (404, api.Answer(said))

    monkeypatch.setattr(api, "_exchange", exchange)
    assert run([*words, "-p", str(places.port)]) == 1
    err = capsys.readouterr().err
    assert f"the proxy has no {page}: it may be of another version" in err
    assert err.count("\n") == 1
