"""`account-pool ca`: where the certificate is, which stores have it, how that is changed."""

from __future__ import annotations

import json
import shlex
import sqlite3
import ssl
import sys
from contextlib import closing
from pathlib import Path

import pytest

from account_pool.cli import ca
from account_pool.cli.main import run
from account_pool.cli.places import Places


@pytest.fixture
def at_home(places: Places, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the home of a user whose certificate is there already."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return places.confdir.parent


def command(*words: str) -> int:
    return run(["ca", *words])


def test_its_path_alone(at_home, capsys):
    assert command("--path") == 0
    assert capsys.readouterr().out == f"{at_home}/.mitmproxy/mitmproxy-ca-cert.pem\n"


def test_it_is_made_where_there_is_none(at_home, places, capsys):
    places.authority.unlink()
    assert command("--path") == 0
    assert places.authority.is_file()


def test_as_json(at_home, places, capsys):
    assert command("--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["path"] == str(places.authority)
    assert len(value["sha256"]) == 64
    (system,) = value["stores"]
    assert system.keys() == {"name", "trust", "remove", "holds"}
    assert system["holds"] is False


def test_on_a_pipe_no_line_is_cut(at_home, capsys):
    assert command() == 0
    out, err = capsys.readouterr()
    assert "does not trust it" in out
    assert "mitmproxy-ca.pem can read what these programs send" in err


def nss(folder: Path, *certificates: bytes) -> None:
    """Make a database as NSS does, as far as it is read."""
    folder.mkdir(parents=True)
    with closing(sqlite3.connect(folder / "cert9.db")) as database:
        database.execute("CREATE TABLE nssPublic (id, a11)")
        database.executemany("INSERT INTO nssPublic VALUES (1, ?)", [(c,) for c in certificates])
        database.commit()


def test_browsers_have_stores_of_their_own(at_home, places):
    ours = ssl.PEM_cert_to_DER_cert(places.authority.read_text())
    nss(at_home / ".pki/nssdb", ours)
    nss(at_home / ".mozilla/firefox/a b.default", b"another")
    broken = at_home / ".mozilla/firefox/broken"
    broken.mkdir()
    (broken / "cert9.db").write_text("no database")
    found = {store.name: store for store in ca.stores(places.authority, {})}
    assert found["Chromium"].holds is True
    assert found["Firefox (a b.default)"].holds is False
    assert found["Firefox (broken)"].holds is None
    assert "Chromium" in ca.trusting(places.authority, {})
    words = shlex.split(found["Firefox (a b.default)"].trust)
    assert words[2] == f"sql:{at_home}/.mozilla/firefox/a b.default"


def test_java_has_one_of_its_own(at_home, places, tmp_path):
    environ = {"JAVA_HOME": str(tmp_path / "java")}
    cacerts = tmp_path / "java/lib/security/cacerts"
    assert "Java of JAVA_HOME" not in [s.name for s in ca.stores(places.authority, environ)]
    cacerts.parent.mkdir(parents=True)
    cacerts.write_bytes(b"before, and behind")
    assert "Java of JAVA_HOME" not in ca.trusting(places.authority, environ)
    ours = ssl.PEM_cert_to_DER_cert(places.authority.read_text())
    cacerts.write_bytes(b"before" + ours + b"behind")
    assert "Java of JAVA_HOME" in ca.trusting(places.authority, environ)


@pytest.mark.skipif(sys.platform == "win32", reason="programs are scripts here")
@pytest.mark.parametrize(("code", "holds"), [(0, True), (1, False), (None, None)])
def test_the_keychain_is_asked(code, holds, places, tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    if code is not None:
        program = folder / "security"
        program.write_text(f"#!/bin/sh\nexit {code}\n")
        program.chmod(0o755)
    store = ca._keychain(places.authority)
    assert store.holds is holds
    assert "add-trusted-cert" in store.trust


def test_windows_removes_it_by_its_thumbprint(places):
    store = ca._windows(places.authority)
    assert store.trust.endswith(f'Root "{places.authority}"')
    assert len(store.remove.split()[-1]) == 40


@pytest.mark.parametrize(
    ("program", "folder"),
    [("update-ca-trust", "trust-source/anchors"), ("", "/usr/local/share/ca-certificates")],
)
def test_distributions_differ(program, folder, places, monkeypatch):
    monkeypatch.setattr(ca.shutil, "which", lambda name: name if name == program else None)
    store = ca._linux(places.authority)
    assert folder in store.trust
    assert folder in store.remove
