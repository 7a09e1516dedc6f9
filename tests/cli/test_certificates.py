"""The certificates a tool is given: the system's, the user's own, and mitmproxy's."""

from __future__ import annotations

import json
import shlex
import sqlite3
import ssl
import sys
from contextlib import closing
from pathlib import Path

import pytest

from account_pool.cli import certificates
from account_pool.cli.certificates import (
    joined,
    make_authority,
    system_authorities,
    upstream_trust,
    write_trust,
)
from account_pool.cli.main import run
from account_pool.cli.processes import Places
from tests.upstream.certificates import make_certificate


@pytest.fixture
def files(tmp_path):
    # A certificate that is there already, so that none has to be made.
    files = Places(tmp_path, 8080)
    (tmp_path / "demo").mkdir()
    authority = make_certificate(tmp_path / "demo").authority
    files.authority.write_bytes(authority.read_bytes())
    return files


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("other")).authority


def trusted(path) -> set[bytes]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(path)
    return set(context.get_ca_certs(binary_form=True))


def test_the_bundle_adds_to_the_systems_authorities(files):
    trust = write_trust(files, {})
    ours = trusted(files.authority)
    assert len(ours) == 1
    assert trusted(trust.bundle) > ours
    assert len(trusted(trust.bundle)) > 10
    # Node adds it to its own.
    assert trust.extra == files.authority


def test_what_the_user_had_named_is_kept(files, other):
    trust = write_trust(files, {"NODE_EXTRA_CA_CERTS": str(other)})
    assert trusted(other) < trusted(trust.extra)
    assert trusted(other) < trusted(trust.bundle)
    assert trusted(trust.extra) == trusted(other) | trusted(files.authority)


def test_a_shell_that_is_prepared_already_changes_nothing(files, other):
    first = write_trust(files, {"REQUESTS_CA_BUNDLE": str(other)})
    before = trusted(first.bundle)
    environ = {"SSL_CERT_FILE": str(first.bundle), "NODE_EXTRA_CA_CERTS": str(first.extra)}
    again = write_trust(files, environ)
    assert again == first
    assert trusted(first.bundle) == before
    assert trusted(other) < before


def test_a_file_that_is_gone_adds_nothing(files):
    trust = write_trust(files, {"NODE_EXTRA_CA_CERTS": str(files.confdir / "gone.pem")})
    assert trusted(trust.extra) == trusted(files.authority)


def test_certificates_come_once_and_private_keys_not_at_all(other):
    text = other.read_text()
    key = "-----BEGIN PRIVATE KEY-----\nsk-fake\n-----END PRIVATE KEY-----\n"
    whole = joined([text, key + text.replace("\n", "\r\n"), "-----BEGIN CERTIFICATE-----\ncut off"])
    assert whole.count("BEGIN CERTIFICATE") == 1
    assert "sk-fake" not in whole
    assert "cut off" not in whole


def test_certifi_serves_where_the_system_hides_its_authorities(monkeypatch):
    monkeypatch.setattr(certificates, "_FEW", 10_000)
    assert joined(system_authorities()).count("BEGIN CERTIFICATE") > 50


def test_the_systems_store_counts_whatever_the_environment_names(tmp_path, monkeypatch, other):
    """As under conda, which names a list of its own."""
    store, named = tmp_path / "store.pem", tmp_path / "named.pem"
    authority = make_certificate(tmp_path).authority
    store.write_text(authority.read_text())
    named.write_text(other.read_text())
    monkeypatch.setenv("SSL_CERT_FILE", str(named))
    monkeypatch.setattr(certificates, "_STORES", (str(store),))
    paths = ssl.get_default_verify_paths()._replace(openssl_cafile=str(tmp_path / "gone"))
    monkeypatch.setattr(certificates.ssl, "get_default_verify_paths", lambda: paths)
    whole = tmp_path / "whole.pem"
    whole.write_text(joined(system_authorities()))
    assert trusted(whole) > trusted(authority) | trusted(other)


def test_mitmproxys_certificate_is_made_where_there_is_none(tmp_path):
    files = Places(tmp_path / "new", 8080)
    make_authority(files)
    assert len(trusted(files.authority)) == 1
    made = files.authority.read_bytes()
    make_authority(files)
    assert files.authority.read_bytes() == made


# -- what the proxy itself trusts


def upstream(files, environ, arguments=()):
    option = upstream_trust(files, environ, arguments)
    assert option == ["--set", f"ssl_verify_upstream_trusted_ca={files.upstream}"]
    return trusted(files.upstream)


def test_the_proxy_trusts_what_tools_trust(files, other):
    before = upstream(files, {})
    assert len(before) > 10
    for name in ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        assert upstream(files, {name: str(other)}) == before | trusted(other)
    # In a shell that is prepared already; what signs for clients is not trusted upstream.
    trust = write_trust(files, {"SSL_CERT_FILE": str(other)})
    environ = {"SSL_CERT_FILE": str(trust.bundle), "NODE_EXTRA_CA_CERTS": str(trust.extra)}
    assert upstream(files, environ) == before | trusted(other)


@pytest.mark.parametrize("how", ["arguments", "config"])
@pytest.mark.parametrize("option", ["trusted_ca", "trusted_confdir"])
def test_what_the_user_told_mitmproxy_wins(files, other, how, option):
    arguments = ()
    if how == "arguments":
        arguments = ("--set", f"ssl_verify_upstream_{option}={other}")
    else:
        (files.confdir / "config.yaml").write_text(f"ssl_verify_upstream_{option}: {other}\n")
    assert upstream_trust(files, {}, arguments) == []
    assert not files.upstream.exists()


def test_a_confdir_of_ones_own(files, tmp_path):
    confdir = tmp_path / "of my own"
    (_, value) = upstream_trust(files, {}, ["--set", f"confdir={confdir}"])
    assert value == f"ssl_verify_upstream_trusted_ca={confdir / files.upstream.name}"


def test_a_folder_that_cannot_be_written_stops_nothing(files):
    file = files.confdir / "a file"
    file.touch()
    assert upstream_trust(Places(file / "below", 8080), {}, []) == []


@pytest.mark.parametrize(
    "store",
    [
        "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Fedora, RHEL
        "/etc/ssl/ca-bundle.pem",  # SUSE
        "/etc/ssl/cert.pem",  # Alpine, macOS, BSD
    ],
)
def test_the_store_of_each_system_is_found(store, monkeypatch):
    monkeypatch.setattr(certificates.Path, "is_file", lambda path: path == Path(store))
    assert certificates.system_store() == Path(store)


# -- `account-pool ca`: where the certificate is, which stores have it, how that is changed


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
    found = {store.name: store for store in certificates.stores(places.authority, {})}
    assert found["Chromium"].holds is True
    assert found["Firefox (a b.default)"].holds is False
    assert found["Firefox (broken)"].holds is None
    assert "Chromium" in certificates.trusting(places.authority, {})
    words = shlex.split(found["Firefox (a b.default)"].trust)
    assert words[2] == f"sql:{at_home}/.mozilla/firefox/a b.default"


def test_java_has_one_of_its_own(at_home, places, tmp_path):
    environ = {"JAVA_HOME": str(tmp_path / "java")}
    cacerts = tmp_path / "java/lib/security/cacerts"
    assert "Java of JAVA_HOME" not in [
        s.name for s in certificates.stores(places.authority, environ)
    ]
    cacerts.parent.mkdir(parents=True)
    cacerts.write_bytes(b"before, and behind")
    assert "Java of JAVA_HOME" not in certificates.trusting(places.authority, environ)
    ours = ssl.PEM_cert_to_DER_cert(places.authority.read_text())
    cacerts.write_bytes(b"before" + ours + b"behind")
    assert "Java of JAVA_HOME" in certificates.trusting(places.authority, environ)


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
    store = certificates._keychain(places.authority)
    assert store.holds is holds
    assert "add-trusted-cert" in store.trust


def test_windows_removes_it_by_its_thumbprint(places):
    store = certificates._windows(places.authority)
    assert store.trust.endswith(f'Root "{places.authority}"')
    assert len(store.remove.split()[-1]) == 40


@pytest.mark.parametrize(
    ("program", "folder"),
    [("update-ca-trust", "trust-source/anchors"), ("", "/usr/local/share/ca-certificates")],
)
def test_distributions_differ(program, folder, places, monkeypatch):
    monkeypatch.setattr(
        certificates.shutil, "which", lambda name: name if name == program else None
    )
    store = certificates._linux(places.authority)
    assert folder in store.trust
    assert folder in store.remove


BEGIN, END = (f"-----{word} CERTIFICATE-----\n" for word in ("BEGIN", "END"))


@pytest.mark.parametrize(
    "text",
    ["", f"{BEGIN}MIIB", "\x80\x81", f"{BEGIN}?\n{END}"],
    ids=["empty", "cut", "binary", "no base64"],
)
@pytest.mark.parametrize(
    "command",
    [["ca"], ["env", "--shell", "bash"], ["run", "--", "true"], ["doctor"]],
    ids=["ca", "env", "run", "doctor"],
)
def test_a_damaged_certificate_is_one_line_with_a_remedy(places, stub, capsys, text, command):
    places.authority.write_text(text, encoding="latin-1")
    at = command.index("--") if "--" in command else len(command)
    assert run([*command[:at], "-p", str(places.port), *command[at:]]) == 1
    said = "".join(capsys.readouterr())
    assert "~/.mitmproxy/mitmproxy-ca-cert.pem holds no certificate" in said
    assert "remove ~/.mitmproxy/mitmproxy-ca* and start the proxy again" in said
