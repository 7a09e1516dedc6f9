"""`account-pool run` around a tool, with a stand-in for the proxy: codes, signals, terminals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import ClassVar

import pytest

import account_pool
from account_pool.cli import api, child, processes
from account_pool.cli import run as module
from account_pool.cli.main import run
from account_pool.cli.run import MAX_RESTARTS, usable, wait_s
from account_pool.providers.token_forms import jwt_claims
from tests.cli import stub_proxy

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

LIMITED = "import sys; print('Error: insufficient_quota', file=sys.stderr); sys.exit(3)"


def accounts(stub: Path, *states: str, provider: str = "openai") -> None:
    listed = [{"key": f"{provider}/{n}", "provider": provider, "state": s}
              for n, s in enumerate(states)]  # fmt: skip
    (stub / "accounts.json").write_text(json.dumps({"accounts": listed, "summary": {}}))


def run_python(places, code: str, *options: str) -> int:
    tool = [sys.executable, "-c", textwrap.dedent(code)]
    return run(["run", "--port", str(places.port), *options, "--", *tool])


def in_process(places, stub: Path, *command: str, options=()) -> list[str]:
    """Return the command line of an `account-pool run` of its own, with the stand-in."""
    code = f"""
        import fcntl, sys, termios
        if sys.stdin.isatty():
            # Of a session of its own: what is typed there reaches it as signals.
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        from account_pool.cli import main, shared
        shared.command = lambda places, launch: [
            sys.executable, {stub_proxy.__file__!r}, str(places.port), {str(stub)!r}
        ]
        sys.argv = ["account-pool", "run", "-p", "{places.port}", *{list(options)!r}, "--",
                    *{list(command)!r}]
        main()
    """
    return [sys.executable, "-c", textwrap.dedent(code)]


def environment(places) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "PYTHONPATH": str(Path(account_pool.__file__).parents[1]),
    }


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_code_is_the_tools(stub, places, code):
    assert run_python(places, f"raise SystemExit({code})") == code
    assert api.probe(places.port) is api.Missing.NOBODY


def test_a_tool_that_a_signal_ended_gives_128_and_its_number(stub, places):
    assert run_python(places, "import os; os.kill(os.getpid(), 9)") == 137


def test_the_tool_alone_gets_the_variables(stub, places, tmp_path):
    before = dict(os.environ)
    accounts(stub, "available", provider="openai")
    seen = tmp_path / "seen.json"
    code = f"import json, os; json.dump(dict(os.environ), open({str(seen)!r}, 'w'))"
    assert run_python(places, code) == 0
    variables = json.loads(seen.read_text())
    assert variables["HTTPS_PROXY"] == variables["https_proxy"] == places.url
    assert variables["SSL_CERT_FILE"] == variables["REQUESTS_CA_BUNDLE"] == str(places.bundle)
    assert variables["NODE_EXTRA_CA_CERTS"] == str(places.authority)
    assert variables["OPENAI_API_KEY"] == "sk-account-pool-placeholder"
    assert "ANTHROPIC_API_KEY" not in variables
    assert dict(os.environ) == before


def test_a_tool_that_needs_a_key_to_start_gets_one(stub, places, tmp_path, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    accounts(stub, "available", provider="anthropic")
    tool = tmp_path / "claude"
    tool.write_text('#!/bin/sh\n[ "$ANTHROPIC_API_KEY" = sk-ant-api03-account-pool-placeholder ]\n')
    tool.chmod(0o755)
    assert run(["run", "-p", str(places.port), str(tool)]) == 0
    assert run(["run", "-p", str(places.port), "--", str(tool), "--port", "x"]) == 0


def test_a_tool_that_no_account_serves_is_told_and_started(stub, places, tmp_path, capsys):
    accounts(stub, "available", provider="mistral")
    tool = tmp_path / "codex"
    tool.write_text("#!/bin/sh\nexit 5\n")
    tool.chmod(0o755)
    assert run(["run", "-p", str(places.port), str(tool)]) == 5
    assert capsys.readouterr().err == (
        "account-pool: 1 account of the environment\n"
        "account-pool: the pool has no account for codex: it is served by codex and openai\n"
    )


def test_what_looks_wrong_with_the_pool_is_told_and_stops_nothing(stub, places, capsys):
    accounts(stub, "available", "no_credential", "no_credential")
    path = stub / "accounts.json"
    pool = json.loads(path.read_text())
    pool["warnings"] = ["openai/0: its token looks like a key of Groq; write provider: groq"]
    pool["state_problem"] = "the state engine 127.0.0.1:1 cannot be reached"
    pool["accounts"][1]["problem"] = "env KEY: the environment variable KEY is not set; set it"
    pool["accounts"][2]["problem"] = None  # still being fetched
    path.write_text(json.dumps(pool))
    assert run_python(places, "") == 0
    assert capsys.readouterr().err.splitlines()[1:] == [
        "account-pool: warning: the state engine 127.0.0.1:1 cannot be reached",
        "account-pool: warning: openai/0: its token looks like a key of Groq; write provider: groq",
        "account-pool: warning: openai/1: env KEY: the environment variable KEY is not set; set it",
    ]


def test_a_proxy_to_the_internet_has_to_be_named_to_mitmproxy(stub, places, monkeypatch, capsys):
    accounts(stub, "available")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:sk-fake-password@proxy.example.com:3128")
    assert run_python(places, "") == 0
    err = capsys.readouterr().err
    assert "upstream:" in err
    assert "sk-fake" not in err
    for name in ("config.yaml", "config.yml"):
        config = places.confdir / name
        config.write_text("mode: ['upstream:http://proxy.example.com:3128']")
        assert run_python(places, "") == 0
        assert capsys.readouterr().err == "account-pool: 1 account of the environment\n"
        config.unlink()
    # It is about something else.
    config.write_text("intercept: '~u upstream:'")
    assert run_python(places, "") == 0
    assert "HTTPS_PROXY names a proxy" in capsys.readouterr().err


def test_a_home_that_takes_no_files_is_one_line(places, tmp_path, monkeypatch, capsys):
    (tmp_path / "plain").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "plain"))
    assert run_python(places, "print('never')") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"account-pool: {tmp_path}/plain/.mitmproxy: Not a directory\n"


@pytest.mark.parametrize(("name", "code"), [("nonsense-of-ours", 127), ("./plain", 126)])
def test_a_program_that_cannot_be_run_starts_no_proxy(places, capsys, monkeypatch, name, code):
    monkeypatch.chdir(places.confdir)
    Path("plain").touch(mode=0o600)
    assert run(["run", "-p", str(places.port), "--", name]) == code
    err = capsys.readouterr().err
    assert err.startswith("account-pool: ")
    assert err.count("\n") == 1
    assert not places.log.exists()


def test_a_proxy_that_does_not_start_is_one_line(stub, places, capsys):
    (stub / "dies").touch()
    assert run_python(places, "print('never')") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "opnai is no provider" in err


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "--strategy", "best", "--", "true"], ["run", "--nonsense", "x"]]
)
def test_wrong_usage_is_one_line_and_exit_code_2(capsys, arguments):
    assert run(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_options_of_the_proxy_reach_it_by_whole_paths(stub, places, tmp_path, monkeypatch):
    from account_pool.cli.processes import read_record

    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").touch(mode=0o600)
    code = f"open({str(tmp_path / 'record')!r}, 'w').write(open({str(places.record)!r}).read())"
    options = ("--accounts-file", "mine.yaml", "--strategy", "fill-first")
    assert run_python(places, code, *options) == 0
    assert read_record(places) is None
    launch = json.loads((tmp_path / "record").read_text())["launch"]
    assert launch["folder"] == str(tmp_path)
    assert launch["arguments"] == [
        *("--set", f"pool_accounts={tmp_path / 'mine.yaml'}"),
        *("--set", "pool_strategy=fill-first"),
    ]


# -- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_and_the_tool_decides(stub, places, number):
    tool = f"""
        import signal, sys
        signal.signal({int(number)}, lambda *_: sys.exit(40))
        print("here", flush=True)
        signal.pause()
    """
    command = in_process(places, stub, sys.executable, "-c", textwrap.dedent(tool))
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env=environment(places), start_new_session=True
    ) as process:
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait() == 40
    assert api.probe(places.port) is api.Missing.NOBODY


@pytest.mark.parametrize("first", ["", "os.setsid()"])
def test_ctrl_c_reaches_the_tool_once(stub, places, first):
    """Typed on a terminal, the kernel sends it to both of us, if the tool has not left us."""
    tool = f"""
        import os, signal
        {first}
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        print("here", flush=True)
        signal.sigwait([signal.SIGINT])
        again = signal.sigtimedwait([signal.SIGINT], 0.3)
        print("twice" if again else "once", flush=True)
    """
    command = in_process(places, stub, sys.executable, "-c", textwrap.dedent(tool))
    out = on_terminal(command, environment(places), type_when="here", keys=b"\x03")
    assert "once" in out


@pytest.mark.parametrize(
    ("number", "in_front", "sent"),
    [(signal.SIGINT, True, []), (signal.SIGQUIT, True, []), (signal.SIGINT, False, [signal.SIGINT]),
     (signal.SIGTERM, True, [signal.SIGTERM])],
)  # fmt: skip
def test_what_a_keyboard_sends_is_not_sent_again(monkeypatch, number, in_front, sent):
    class Tool:
        pid = 1
        signals: ClassVar[list[int]] = []
        send_signal = signals.append

    monkeypatch.setattr(child, "_in_front", lambda _tool: in_front)
    signals = child.Signals()
    signals._pass_on(Tool, number)
    assert sent == Tool.signals
    assert signals.passed
    Tool.signals.clear()


def on_terminal(command: list[str], env, *, type_when: str = "", keys: bytes = b"") -> str:
    """Run *command* with a terminal of its own; return what that shows."""
    terminal, theirs = os.openpty()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # so a terminal ends
        while chunk := os.read(terminal, 65536):
            shown += chunk
            if type_when and type_when.encode() in shown:
                os.write(terminal, keys)
                type_when = ""
    os.close(terminal)
    return f"{shown.decode()}\nexit {process.wait()}"


# -- starting a tool again


def test_a_limit_starts_the_tool_again_until_it_works(stub, places, tmp_path, capfd):
    accounts(stub, "cooling", "available")
    seen = tmp_path / "seen"
    code = f"""
        import sys
        with open({str(seen)!r}, "a+") as file:
            file.write("x")
            file.seek(0)
            if len(file.read()) < 4:
                sys.exit("Error code: 429 - insufficient_quota")
    """
    assert run_python(places, code, "--restart") == 0
    assert seen.read_text() == "xxxx"
    err = capfd.readouterr().err
    # What the tool writes is there, and what we say of it.
    assert err.count("Error code: 429 - insufficient_quota\n") == 3
    assert "starting it again, 3 of 10" in err


def test_it_is_started_again_ten_times_in_a_row_at_most(stub, places, capfd, monkeypatch):
    monkeypatch.setattr("account_pool.cli.run.wait_s", lambda _restarts: 0)
    accounts(stub, "available")
    assert run_python(places, LIMITED, "--restart") == 3
    err = capfd.readouterr().err
    assert err.count("Error: insufficient_quota\n") == 1 + MAX_RESTARTS
    assert "giving up" in err


ANOTHER = "import sys; sys.exit('no such file')"
WORKED = "import sys; print('Error: insufficient_quota', file=sys.stderr)"
ENDED = f"import os; {WORKED}; sys.stderr.flush(); os.kill(os.getpid(), 15)"


@pytest.mark.parametrize(
    ("code", "state", "exit_code"),
    [(LIMITED, "cooling", 3), (ANOTHER, "available", 1), (WORKED, "available", 0),
     (ENDED, "available", 143)],
    ids=["nobody can serve", "another error", "it worked", "somebody ended it"],
)  # fmt: skip
def test_other_ends_are_final(stub, places, code, state, exit_code):
    accounts(stub, state)
    counted = f"open({str(stub / 'runs')!r}, 'a').write('x'); {code}"
    assert run_python(places, counted, "--restart") == exit_code
    assert (stub / "runs").read_text() == "x"


def test_nobody_starts_it_again_unasked(stub, places, capfd):
    accounts(stub, "available")
    assert run_python(places, LIMITED) == 3
    assert capfd.readouterr().err.splitlines()[1:] == ["Error: insufficient_quota"]


def test_a_terminal_stays_one_and_is_read_along(stub, places):
    accounts(stub, "cooling")
    tool = """
        import os, sys
        size = os.get_terminal_size(2)
        print([os.isatty(n) for n in range(3)], size.columns > 0 or size, file=sys.stderr)
        sys.exit("Error: insufficient_quota")
    """
    command = in_process(
        places, stub, sys.executable, "-c", textwrap.dedent(tool), options=["--restart"]
    )
    out = on_terminal(command, environment(places))
    assert "[True, True, True]" in out
    assert "no account of the pool can serve now" in out
    assert out.endswith("exit 1")
    # Line ends are made once.
    assert not re.search(r"\r\r", out)


def test_a_process_the_tool_leaves_behind_does_not_hold_us(stub, places, tmp_path):
    seen = tmp_path / "seen"
    code = f"""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        open({str(seen)!r}, "w").write(str(child.pid))
    """
    assert run_python(places, code, "--restart") == 0
    left_behind = int(seen.read_text())
    assert processes.identity(left_behind) is not None
    os.kill(left_behind, signal.SIGKILL)


@pytest.mark.parametrize(
    ("states", "providers", "expected"),
    [
        ([("openai", "available")], (), True),
        ([("openai", "full")], (), True),
        ([("openai", "cooling"), ("openai", "disabled"), ("openai", "off")], (), False),
        ([("openai", "no_credential")], (), False),
        ([("openai", "available")], ("anthropic",), False),
        ([("openai", "cooling"), ("anthropic", "available")], ("anthropic",), True),
        ([], (), False),
    ],
)
def test_who_can_serve_the_tool(states, providers, expected):
    listed = [{"provider": provider, "state": state} for provider, state in states]
    assert usable(listed, providers) is expected


def test_the_first_restart_is_at_once_and_later_ones_wait():
    waits = [wait_s(n) for n in range(MAX_RESTARTS)]
    assert waits[0] == 0
    assert waits == sorted(waits)
    assert waits[-1] == 2


# -- whose accounts


def served_by(stub: Path, places, name: str) -> subprocess.Popen:
    """Start a proxy by hand that serves from the file *name*; "" for the environment."""
    if name:
        (stub / "accounts_file").write_text(str(stub / name))
    process = subprocess.Popen(
        [sys.executable, stub_proxy.__file__, str(places.port), str(stub)], stdout=subprocess.PIPE
    )
    while not isinstance(api.probe(places.port), api.Health):
        assert process.poll() is None
    return process


@pytest.fixture
def files(stub, monkeypatch):
    """Two accounts files; nothing is found without a name."""
    monkeypatch.chdir(stub)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(stub / ".config"))
    accounts(stub, "available")
    for name in ("mine.yaml", "other.yaml"):
        (stub / name).touch(mode=0o600)
    return stub


@pytest.mark.parametrize(
    ("serves", "options", "code"),
    [
        ("mine.yaml", ["--accounts-file", "mine.yaml"], 0),
        ("mine.yaml", ["--accounts-file", "./other/../mine.yaml"], 0),
        ("other.yaml", ["--accounts-file", "mine.yaml"], 1),
        ("other.yaml", ["--accounts-file", "mine.yaml", "--join"], 0),
        ("", ["--accounts-file", "mine.yaml"], 1),
        # Who has no accounts of his own has nothing against those there are.
        ("other.yaml", [], 0),
        ("", [], 0),
        ("mine.yaml", ["--accounts-file", "mine.yaml", "--strategy", "fill-first"], 1),
        ("mine.yaml", ["--strategy", "fill-first", "--join"], 0),
    ],
)
def test_a_proxy_of_another_file_is_not_used_unasked(
    files, places, capsys, *, serves, options, code
):
    (files / "other").mkdir()
    with served_by(files, places, serves) as process:
        try:
            assert run_python(places, "", *options) == code
        finally:
            process.terminate()
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    who = f"~/{serves}" if serves else "the environment"
    assert f"1 account of {who}" in err
    if code:
        assert "--join uses it as it is, --port N starts another one" in err
        assert f"127.0.0.1:{places.port}" in err


def test_a_proxy_of_another_file_that_nobody_uses_gives_way(files, places, capsys):
    """Its `run` was killed: it is ended, as for other options."""
    (files / "accounts_file").write_text(str(files / "other.yaml"))
    command = in_process(places, files, sys.executable, "-c", "print('up', flush=True); input()")
    environ = environment(places)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, cwd=files
    ) as first:
        assert first.stdout.readline() == b"up\n"
        first.kill()
    before = api.probe(places.port)
    assert isinstance(before, api.Health)
    (files / "accounts_file").write_text(str(files / "mine.yaml"))
    copy = f"import shutil; shutil.copy({str(places.record)!r}, 'record')"
    assert run_python(places, copy, "--accounts-file", "mine.yaml") == 0
    assert json.loads((files / "record").read_text())["instance"] != before.instance
    assert "1 account of ~/mine.yaml" in capsys.readouterr().err
    assert api.probe(places.port) is api.Missing.NOBODY


def test_an_empty_pool_is_refused_with_the_remedy(stub, places, capsys):
    (stub / "empty").touch()
    assert run_python(places, "print('never')") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    for remedy in ("add PROVIDER LABEL", "login --from claude", "--allow-empty"):
        assert remedy in err
    assert api.probe(places.port) is api.Missing.NOBODY
    assert run_python(places, "raise SystemExit(5)", "--allow-empty") == 5


def test_a_file_that_was_named_must_be_there(stub, places, capsys):
    assert run_python(places, "print('never')", "--accounts-file", "missing.yaml") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "missing.yaml: the file does not exist; --accounts-file names it" in err
    assert err.count("\n") == 1
    assert not places.log.exists()


# -- codex without a login


@pytest.fixture
def codex(stub, places, tmp_path, monkeypatch):
    """A pool of ChatGPT accounts, and a codex that notes what it finds in its home."""
    for name in ("CODEX_HOME", "CODEX_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    accounts(stub, "available", provider="codex")
    tool = tmp_path / "codex"
    tool.write_text(
        f"#!{sys.executable}\n"
        "import json, os, pathlib, sys\n"
        "home = os.environ.get('CODEX_HOME')\n"
        "files = {p.name: p.read_text() for p in pathlib.Path(home).iterdir() if p.is_file()}"
        " if home else None\n"
        f"pathlib.Path({str(tmp_path / 'seen.json')!r}).write_text(json.dumps([home, files]))\n"
        "if home and 'write' in sys.argv:\n"
        "    pathlib.Path(home, 'config.toml').write_text('model = 1')\n"
        "    pathlib.Path(home, 'new.json').write_text('new')\n"
    )
    tool.chmod(0o755)
    return tool


def home_seen(tmp_path: Path):
    return json.loads((tmp_path / "seen.json").read_text())


def test_codex_without_a_login_gets_a_placeholder_and_its_own_settings(
    codex, places, tmp_path, capsys
):
    own = tmp_path / ".codex"
    (own / "sessions").mkdir(parents=True)
    (own / "config.toml").write_text('model = "x"')
    assert run(["run", "-p", str(places.port), "--", str(codex), "write"]) == 0
    home, files = home_seen(tmp_path)
    assert Path(home) != own
    assert files["config.toml"] == 'model = "x"'
    login = json.loads(files["auth.json"])
    assert login["tokens"]["refresh_token"] == "account-pool-placeholder"
    assert jwt_claims(login["tokens"]["access_token"])["exp"] == 4102444800
    assert (Path(home) / "sessions").resolve() == own / "sessions"
    assert (Path(home) / "auth.json").stat().st_mode & 0o777 == 0o600
    # What it writes goes where it always went; a login never does.
    assert (own / "config.toml").read_text() == "model = 1"
    assert sorted(path.name for path in own.iterdir()) == ["config.toml", "sessions"]
    assert "codex has no login: it gets a placeholder" in capsys.readouterr().err
    (own / "config.toml").unlink()
    assert run(["run", "-p", str(places.port), "--", str(codex)]) == 0
    assert home_seen(tmp_path)[1].keys() == {"auth.json", "new.json"}


@pytest.mark.parametrize("has", ["login", "key", "keychain", "command"])
def test_codex_that_may_have_a_login_keeps_its_home(codex, places, tmp_path, monkeypatch, has):
    own = tmp_path / ".codex"
    own.mkdir()
    if has == "login":
        (own / "auth.json").write_text('{"tokens": {"access_token": "fake"}}')
    if has == "key":
        monkeypatch.setenv("CODEX_API_KEY", "sk-fake")
    if has == "keychain":
        (own / "config.toml").write_text('cli_auth_credentials_store = "keyring"')
    more = ["login"] if has == "command" else []
    assert run(["run", "-p", str(places.port), "--", str(codex), *more]) == 0
    assert home_seen(tmp_path)[0] is None


def test_a_login_that_was_made_in_the_placeholder_home_stays(codex, places, tmp_path):
    assert run(["run", "-p", str(places.port), "--", str(codex)]) == 0
    login = Path(home_seen(tmp_path)[0]) / "auth.json"
    login.write_text('{"tokens": {"access_token": "fake-mine"}}')
    assert run(["run", "-p", str(places.port), "--", str(codex)]) == 0
    assert "fake-mine" in login.read_text()


def test_claude_on_macos_may_be_logged_in_by_the_keychain(
    stub, places, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("CLAUDE_CONFIG_DIR", raising=False)
    accounts(stub, "available", provider="claude-code")
    (tmp_path / ".claude.json").write_text('{"oauthAccount": {}}')
    monkeypatch.setattr(sys, "platform", "darwin")
    assert module._has_login("claude", dict(os.environ))
    monkeypatch.setattr(sys, "platform", "linux")
    assert not module._has_login("claude", dict(os.environ))


def test_opencode_gets_no_placeholder_where_it_has_a_credential(
    stub, places, tmp_path, monkeypatch
):
    for name in ("ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    listed = [
        {"key": f"{p}/a", "provider": p, "state": "available"} for p in ("anthropic", "gemini")
    ]
    (stub / "accounts.json").write_text(json.dumps({"accounts": listed, "summary": {}}))
    own = tmp_path / ".local/share/opencode/auth.json"
    own.parent.mkdir(parents=True)
    own.write_text('{"google": {"type": "api", "key": "AIza-fake"}}')
    tool = tmp_path / "opencode"
    tool.write_text('#!/bin/sh\n[ -n "$ANTHROPIC_API_KEY" ] && [ -z "$GEMINI_API_KEY" ]\n')
    tool.chmod(0o755)
    assert run(["run", "-p", str(places.port), str(tool)]) == 0
    own.write_text("[")
    assert run(["run", "-p", str(places.port), str(tool)]) == 1
