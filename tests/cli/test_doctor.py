"""What `account-pool doctor` finds: one fault at a time, and the remedy it names."""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import closing
from socket import AF_INET6, create_server

import pytest

from account_pool.cli import certificates, doctor
from account_pool.cli.main import run
from account_pool.cli.processes import Launch, Listener, listeners
from account_pool.cli.shared import SharedProxy

GOOD = "accounts:\n  - {provider: openai, label: work, token: sk-fake-1}\n"


@pytest.fixture
def findings(places, tmp_path, capsys, monkeypatch):
    """Run the command; return its exit code and what is not well."""
    monkeypatch.chdir(tmp_path)
    # The certificate of the tests is good for a few days.
    monkeypatch.setattr(doctor, "_SOON_S", 0)
    for name in ("ACCOUNT_POOL_ACCOUNTS", "OPENAI_API_KEY", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    def look(text: str | None = GOOD, *words: str) -> tuple[int, list[str]]:
        if text is not None:
            file = tmp_path / "mine.yaml"
            file.write_text(text)
            file.chmod(0o600)
            words = (*words, "--accounts-file", str(file))
        code = run(["doctor", "-p", str(places.port), "--json", *words])
        found = json.loads(capsys.readouterr().out)["findings"]
        assert "sk-fake" not in str(found)
        return code, [" ".join(map(str, f.values())) for f in found if f["level"] != "ok"]

    return look


def test_nothing_is_wrong(findings):
    assert findings() == (0, [])


def test_a_line_a_finding(places, capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text(GOOD)
    run(["doctor", "-p", str(places.port), "--accounts-file", str(tmp_path / "mine.yaml")])
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} <= {"ok", "note", "bad"}
    assert any("mitmproxy" in line for line in lines)


def test_a_terminal_gets_what_fits(capsys):
    text = "NO_PROXY leads past the pool to hosts of your accounts"
    finding = doctor.Finding("note", "environment", text, "`account-pool run` helps")
    assert doctor.as_text(finding, None) == f"note  environment   {text}; `account-pool run` helps"
    assert doctor.as_text(finding, 60).splitlines() == [
        "note  environment   NO_PROXY leads past the pool to hosts",
        "                    of your accounts",
        "                    -> `account-pool run` helps",
    ]
    assert doctor.as_text(finding, 40).splitlines() == [
        "note  environment",
        "      NO_PROXY leads past the pool to",
        "      hosts of your accounts",
        "      -> `account-pool run` helps",
    ]


def test_the_last_line_is_the_sum(findings, capsys, places, tmp_path):
    findings()
    run(["doctor", "-p", str(places.port), "--accounts-file", str(tmp_path / "mine.yaml")])
    assert capsys.readouterr().err == "account-pool: nothing is wrong\n"
    run(["doctor", "-p", str(places.port), "--accounts-file", str(tmp_path / "gone.yaml")])
    assert capsys.readouterr().err == "account-pool: 1 thing is wrong\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("openai", "opnai"), "accounts[0].provider"),
        ("accounts:\n  - {provider: openai, label: a, token: '${NOT_SET_1}'}\n", "NOT_SET_1"),
        ("accounts:\n  - {provider: openai, label: a, token: {file: gone}}\n", "does not exist"),
        ("accounts: [", "yaml"),
    ],
)
def test_accounts(findings, text, said):
    code, found = findings(text)
    assert code == 1
    assert any(said in line for line in found), found


def test_an_empty_pool_is_told_how_to_begin(findings):
    code, found = findings(None)
    assert code == 1
    assert "account-pool add" in found[0]


def test_a_proxy_that_serves_accounts_is_enough(findings, monkeypatch):
    """What was found here is no fault of its: commands use that proxy as it is."""
    monkeypatch.setattr(doctor.api, "probe", lambda _port: doctor.api.Health("x", True, 0, 1, None))
    _, found = findings(None)
    assert [line for line in found if "accounts" in line] == []


def test_a_proxy_that_is_busy_for_a_moment_is_not_to_be_ended(findings, monkeypatch):
    seen = iter([doctor.api.Missing.SILENT, doctor.api.Health("x", True, 0, 1, None)])
    monkeypatch.setattr(doctor.api, "probe", lambda _port: next(seen))
    _, found = findings()
    assert [line for line in found if "end it" in line] == []


@pytest.mark.skipif(os.name != "posix", reason="has no modes of files")
def test_files_that_others_can_read(findings, places):
    key, state = places.confdir / "mitmproxy-ca.pem", places.confdir / "account-pool.sqlite"
    key.write_text("not a key")
    state.write_bytes(b"")
    for path in (key, state):
        path.chmod(0o644)
    code, found = findings()
    assert code == 1
    assert sum("chmod 600" in line for line in found) == 2


def test_a_damaged_state_database(findings, places):
    state = places.confdir / "account-pool.sqlite"
    state.write_bytes(b"no database" * 1000)
    state.chmod(0o600)
    assert "damaged" in findings()[1][0]
    assert state.read_bytes() == b"no database" * 1000


def test_a_certificate_that_has_ended(findings, monkeypatch):
    monkeypatch.setattr(doctor.time, "time", lambda: 4e9)
    assert any("ended on" in line for line in findings()[1])


def test_a_clock_that_was_never_set(findings, places, monkeypatch):
    assert not any(line.startswith("bad clock") for line in findings()[1])
    monkeypatch.setattr(doctor.time, "time", lambda: 1e9)
    code, found = findings()
    assert code == 1
    (line,) = (line for line in found if line.startswith("bad clock"))
    assert "2001-09-09 01:46 UTC, but " in line


def test_what_trusts_the_certificate(places, tmp_path, monkeypatch, capsys):
    """Which of the system's store and SSL_CERT_FILE holds it, and not more than that."""
    own = places.authority.read_text()
    system, named = tmp_path / "system.pem", tmp_path / "named.pem"
    monkeypatch.setattr(certificates, "system_store", lambda: system)
    monkeypatch.setenv("SSL_CERT_FILE", str(named))

    def said(in_system: str, in_named: str) -> str:
        system.write_text(in_system)
        named.write_text(in_named)
        run(["doctor", "-p", str(places.port)])
        lines = capsys.readouterr().out.splitlines()
        return next(line for line in lines if " trust" in line)

    assert "no program trusts it by itself" in said("", "")
    system_text = f"programs that use {certificates.SYSTEM} trust it"
    named_text = "programs that use SSL_CERT_FILE of this shell trust it"
    both = f"programs that use {certificates.SYSTEM} or SSL_CERT_FILE of this shell trust it"
    assert said(own, "").endswith(system_text)
    assert said("", own).endswith(named_text)
    assert said(own, own).endswith(both)


def test_a_variable_that_names_no_file(findings, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    code, found = findings()
    assert code == 0
    assert "REQUESTS_CA_BUNDLE names /nowhere/ca.pem, which is not a file" in found[0]


def test_a_state_database_that_is_a_folder(findings, places):
    (places.confdir / "account-pool.sqlite").mkdir()
    code, found = findings()
    assert code == 1
    assert "is not a file" in found[0]


@pytest.mark.parametrize("how", ["file", "nowhere"])
def test_a_directory_that_is_none_or_cannot_be_made(findings, places, monkeypatch, how):
    shutil.rmtree(places.confdir)
    if how == "file":
        places.confdir.touch()
        said = "is not a directory, and no proxy can start"
    else:
        real, above = os.access, places.confdir.parent
        monkeypatch.setattr(os, "access", lambda path, mode: path != above and real(path, mode))
        said = "does not exist, and cannot be made in"
    code, found = findings()
    assert code == 1
    assert any(said in one for one in found)


def test_ways_past_the_pool(findings, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "openai.com")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:3128")
    code, found = findings()
    assert code == 0
    assert len(found) == 2


def test_somebody_else_has_the_port(findings, places):
    with closing(create_server(("127.0.0.1", places.port))):
        code, found = findings()
    assert code == 1
    assert "does not answer" in found[0]
    if sys.platform == "linux":
        assert f"(pid {os.getpid()})" in found[0]


def test_where_nobody_knows_who_listens_the_command_is_named(findings, places, monkeypatch):
    monkeypatch.setattr(doctor, "listeners", lambda _port: [])
    with closing(create_server(("127.0.0.1", places.port))):
        _, found = findings()
    assert str(places.port) in doctor._who_listens(places.port) in found[0]


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux's /proc")
def test_who_listens():
    with closing(create_server(("127.0.0.1", 0))) as one:
        (found,) = listeners(one.getsockname()[1])
    assert (found.address, found.pid) == ("127.0.0.1", os.getpid())
    assert str(found.name) in str(found)
    with closing(create_server(("::1", 0), family=AF_INET6)) as one:
        (found,) = listeners(port := one.getsockname()[1])
    assert found.address == "::1"
    assert listeners(port) == []


def test_one_that_other_machines_can_reach(findings, running, monkeypatch):
    running()
    monkeypatch.setattr(doctor, "listeners", lambda _port: [Listener("0.0.0.0", 1, "mitmdump")])
    code, found = findings()
    assert code == 0
    assert any("listens at 0.0.0.0: other machines can reach it" in line for line in found)


def test_another_proxy_on_the_way(findings, places):
    config = places.confdir / "config.yaml"
    with closing(create_server(("127.0.0.1", 0))) as upstream:
        port = upstream.getsockname()[1]
        config.write_text(f'mode: ["upstream:http://127.0.0.1:{port}"]\n')
        assert findings() == (0, [])
    code, found = findings()
    assert code == 1
    assert f"requests leave by 127.0.0.1:{port}, which cannot be reached" in found[0]


def test_each_credential_is_named_and_none_shown(findings, tmp_path, places, capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-fake-env-000")
    text = GOOD + "  - {provider: gemini, label: two, token: {env: MY_KEY}}\n"
    text += "  - {provider: xai, label: spare, token: sk-fake-off-000, enabled: false}\n"
    (tmp_path / "mine.yaml").write_text(text)
    run(["doctor", "-p", str(places.port), "--accounts-file", str(tmp_path / "mine.yaml")])
    out = capsys.readouterr().out
    assert "gemini/two: env MY_KEY" in out
    assert f"openai/work: {tmp_path / 'mine.yaml'}\n".replace(str(tmp_path), "~") in out
    assert "xai/spare: ~/mine.yaml, off (enabled: false)" in out
    assert "sk-fake" not in out


@pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")
def test_a_service_that_does_not_run(findings, places, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    file = tmp_path / ".config/systemd/user" / f"account-pool-{places.port}.service"
    file.parent.mkdir(parents=True)
    file.touch()
    code, found = findings()
    assert code == 1
    assert "no proxy answers" in found[0]
    assert "account-pool service install" in found[0]


def test_a_proxy_that_runs(findings, stub, places):
    shared = SharedProxy(places, os.environ)
    shared.attach(Launch(str(stub)))
    try:
        code, found = findings()
    finally:
        shared.detach()
    # The stand-in says no version: it is not of this one.
    assert code == 0
    assert "serves accounts of the environment, version None" in found[0]
    assert "start it again" in found[0]


@pytest.fixture
def running(stub, places):
    """Start the stand-in with what it reads now."""
    started = []

    def start() -> None:
        started.append(SharedProxy(places, os.environ))
        started[0].attach(Launch(str(stub)))

    yield start
    for one in started:
        one.detach()


def test_a_proxy_with_another_file(findings, running, stub, tmp_path):
    (tmp_path / "other.yaml").write_text(GOOD)
    (stub / "accounts_file").write_text(str(tmp_path / "other.yaml"))
    running()
    code, found = findings()
    assert code == 0
    assert "does not serve those of " in found[1]
    assert "mine.yaml" in found[1]


@pytest.mark.parametrize(
    ("account", "said"),
    [
        (("disabled", "by hand"), "note account openai/work was disabled by hand"),
        (("disabled", "401 code=invalid_api_key"), "bad account openai/work is disabled: 401"),
        (("no_credential", "file gone"), "bad account openai/work has no credential: file"),
        (("available", ""), ""),
    ],
)
def test_accounts_that_do_not_serve(findings, running, stub, account, said):
    state, reason = account
    account = {"key": "openai/work", "state": state, "reason": reason}
    (stub / "accounts.json").write_text(json.dumps({"accounts": [account], "summary": {}}))
    running()
    code, found = findings()
    assert code == int(said.startswith("bad"))
    assert any(line.startswith(said) for line in found)
    assert ("enable openai/work" in str(found)) == (state == "disabled")


def test_what_lacks_a_credential_is_told_once(findings, running, stub):
    why = "env FAKE_UNSET: the environment variable FAKE_UNSET is not set"
    account = {"key": "openai/work", "state": "no_credential", "reason": why}
    (stub / "accounts.json").write_text(json.dumps({"accounts": [account], "summary": {}}))
    running()
    code, found = findings(GOOD.replace("sk-fake-1", "{env: FAKE_UNSET}"))
    assert code == 1
    assert sum("openai/work" in line for line in found) == 1


def test_a_variable_that_only_the_proxy_has(findings, running, stub, tmp_path):
    (stub / "accounts_file").write_text(str(tmp_path / "mine.yaml"))
    account = {"key": "openai/work", "state": "available", "reason": ""}
    (stub / "accounts.json").write_text(json.dumps({"accounts": [account], "summary": {}}))
    text = GOOD.replace("sk-fake-1", "{env: FAKE_UNSET}")
    assert findings(text)[0] == 1
    running()
    code, found = findings(text)
    assert code == 0
    assert not any("openai/work" in line for line in found)


def test_what_cannot_be_looked_at_hides_nothing_else(findings, monkeypatch):
    def failing(_patient):
        raise RuntimeError("sk-fake-secret")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (failing, *doctor.CHECKS))
    code, found = findings()
    assert code == 0
    assert found == ["note failing could not be checked (RuntimeError) "]


def test_where_notifications_go_and_what_they_lack(findings, monkeypatch):
    monkeypatch.delenv("HOOK", raising=False)
    targets = "[https://hooks.example.com/SECRET, {env: HOOK}, /nowhere/tell SECRET]"
    code, found = findings(f"{GOOD}pool: {{notify: {targets}}}\n")
    assert code == 0
    assert found == [
        "note notify HOOK is not set set it where the proxy is started",
        "note notify tell: the program is not on the PATH install it, or write its full path",
    ]
    monkeypatch.setenv("HOOK", "ntfy:SECRET")
    _, found = findings(f"{GOOD}pool: {{notify: {targets}}}\n")
    assert len(found) == 1
    assert "SECRET" not in str(found)


def test_a_notification_that_did_not_arrive(findings, monkeypatch):
    ask = doctor.api.ask
    failed = {"target": "https://hooks.example.com", "problem": "it answered with status 404"}
    monkeypatch.setattr(doctor.api, "probe", lambda _port: doctor.api.Health("x", True, 0, 1, None))
    monkeypatch.setattr(
        doctor.api,
        "ask",
        lambda port, path: {"notify": [failed]} if path == "/health" else ask(port, path),
    )
    code, found = findings()
    assert code == 1
    text = "the last notification did not arrive: it answered with status 404"
    assert f"bad notify https://hooks.example.com: {text} the next one tries again" in found


def test_accounts_that_were_added_are_in_a_file_of_their_own(places, tmp_path, capsys):
    added = places.confdir / "account-pool.sqlite.accounts.yaml"
    (tmp_path / "mine.yaml").write_text(GOOD)
    added.write_text(GOOD.replace("work", "added"))
    run(["doctor", "-p", str(places.port), "--accounts-file", str(tmp_path / "mine.yaml")])
    out = capsys.readouterr().out
    assert "openai/work: ~/mine.yaml\n" in out
    assert f"openai/added: ~/.mitmproxy/{added.name}\n" in out


@pytest.mark.parametrize(
    ("store", "found"),
    [
        (
            {"kind": "engine", "server": "db.example:6379", "problem": None},
            ["note state the proxy that runs keeps it in an engine at db.example:6379; here"],
        ),
        (
            {"kind": "engine", "server": None, "problem": "it does not answer"},
            ["bad state the proxy that runs: it does not", "note state the proxy that runs keeps"],
        ),
        ({"kind": "memory", "server": None}, ["note state the proxy that runs keeps it in memory"]),
        ({"kind": "a new one"}, ["note state the proxy that runs keeps it in a new one; here a"]),
        ({"kind": "file", "server": None, "problem": None}, ["bad state others can read"]),
        (None, ["bad state others can read"]),
    ],
)
def test_a_proxy_keeps_its_state_elsewhere(findings, running, places, store, found):
    """Of a file that is not used nothing is said."""
    stub = places.confdir.parent
    state = places.confdir / "account-pool.sqlite"
    state.write_bytes(b"")
    state.chmod(0o644)
    (stub / "proxies.json").write_text(json.dumps({"proxies": [], "store": store}))
    running()
    said = [line for line in findings()[1] if " state " in line]
    assert [line.startswith(text) for line, text in zip(said, found, strict=True)] == [
        True for _ in found
    ]
