"""What `account-pool doctor` finds: one fault at a time, and the remedy it names."""

from __future__ import annotations

import json
import os
from contextlib import closing
from socket import create_server

import pytest

from account_pool.cli import doctor
from account_pool.cli.main import run
from account_pool.cli.record import Launch
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


def test_a_proxy_that_runs(findings, stub, places):
    shared = SharedProxy(places, os.environ)
    shared.attach(Launch(str(stub)))
    try:
        code, found = findings()
    finally:
        shared.detach()
    # The stand-in says no version: it is not of this one.
    assert code == 0
    assert "start it again" in found[0]


def test_what_cannot_be_looked_at_hides_nothing_else(findings, monkeypatch):
    def failing(_patient):
        raise RuntimeError("sk-fake-secret")
        yield

    monkeypatch.setattr(doctor, "CHECKS", (failing, *doctor.CHECKS))
    code, found = findings()
    assert code == 0
    assert found == ["note failing could not be looked at (RuntimeError) "]
