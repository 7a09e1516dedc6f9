"""The certificates a tool is given: the system's, the user's own, and mitmproxy's."""

from __future__ import annotations

import ssl

import pytest

from account_pool.cli import bundle
from account_pool.cli.bundle import (
    joined,
    make_authority,
    system_authorities,
    upstream_trust,
    write_trust,
)
from account_pool.cli.places import Places
from account_pool.demo.certificates import make_certificate


@pytest.fixture
def places(tmp_path):
    # A certificate that is there already, so that none has to be made.
    places = Places(tmp_path, 8080)
    (tmp_path / "demo").mkdir()
    authority = make_certificate(tmp_path / "demo").authority
    places.authority.write_bytes(authority.read_bytes())
    return places


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("other")).authority


def trusted(path) -> set[bytes]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(path)
    return set(context.get_ca_certs(binary_form=True))


def test_the_bundle_adds_to_the_systems_authorities(places):
    trust = write_trust(places, {})
    ours = trusted(places.authority)
    assert len(ours) == 1
    assert trusted(trust.bundle) > ours
    assert len(trusted(trust.bundle)) > 10
    # Node adds it to its own.
    assert trust.extra == places.authority


def test_what_the_user_had_named_is_kept(places, other):
    trust = write_trust(places, {"NODE_EXTRA_CA_CERTS": str(other)})
    assert trusted(other) < trusted(trust.extra)
    assert trusted(other) < trusted(trust.bundle)
    assert trusted(trust.extra) == trusted(other) | trusted(places.authority)


def test_a_shell_that_is_prepared_already_changes_nothing(places, other):
    first = write_trust(places, {"REQUESTS_CA_BUNDLE": str(other)})
    before = trusted(first.bundle)
    environ = {"SSL_CERT_FILE": str(first.bundle), "NODE_EXTRA_CA_CERTS": str(first.extra)}
    again = write_trust(places, environ)
    assert again == first
    assert trusted(first.bundle) == before
    assert trusted(other) < before


def test_a_file_that_is_gone_adds_nothing(places):
    trust = write_trust(places, {"NODE_EXTRA_CA_CERTS": str(places.confdir / "gone.pem")})
    assert trusted(trust.extra) == trusted(places.authority)


def test_certificates_come_once_and_private_keys_not_at_all(other):
    text = other.read_text()
    key = "-----BEGIN PRIVATE KEY-----\nsk-fake\n-----END PRIVATE KEY-----\n"
    whole = joined([text, key + text.replace("\n", "\r\n"), "-----BEGIN CERTIFICATE-----\ncut off"])
    assert whole.count("BEGIN CERTIFICATE") == 1
    assert "sk-fake" not in whole
    assert "cut off" not in whole


def test_certifi_serves_where_the_system_hides_its_authorities(monkeypatch):
    monkeypatch.setattr(bundle, "_FEW", 10_000)
    assert joined(system_authorities()).count("BEGIN CERTIFICATE") > 50


def test_the_systems_store_counts_whatever_the_environment_names(tmp_path, monkeypatch, other):
    """As under conda, which names a list of its own."""
    store, named = tmp_path / "store.pem", tmp_path / "named.pem"
    authority = make_certificate(tmp_path).authority
    store.write_text(authority.read_text())
    named.write_text(other.read_text())
    monkeypatch.setenv("SSL_CERT_FILE", str(named))
    monkeypatch.setattr(bundle, "_STORES", (str(store),))
    paths = ssl.get_default_verify_paths()._replace(openssl_cafile=str(tmp_path / "gone"))
    monkeypatch.setattr(bundle.ssl, "get_default_verify_paths", lambda: paths)
    whole = tmp_path / "whole.pem"
    whole.write_text(joined(system_authorities()))
    assert trusted(whole) > trusted(authority) | trusted(other)


def test_mitmproxys_certificate_is_made_where_there_is_none(tmp_path):
    places = Places(tmp_path / "new", 8080)
    make_authority(places)
    assert len(trusted(places.authority)) == 1
    made = places.authority.read_bytes()
    make_authority(places)
    assert places.authority.read_bytes() == made


# -- what the proxy itself trusts


def upstream(places, environ, arguments=()):
    option = upstream_trust(places, environ, arguments)
    assert option == ["--set", f"ssl_verify_upstream_trusted_ca={places.upstream}"]
    return trusted(places.upstream)


def test_the_proxy_trusts_what_tools_trust(places, other):
    before = upstream(places, {})
    assert len(before) > 10
    for name in ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        assert upstream(places, {name: str(other)}) == before | trusted(other)
    # In a shell that is prepared already; what signs for clients is not trusted upstream.
    trust = write_trust(places, {"SSL_CERT_FILE": str(other)})
    environ = {"SSL_CERT_FILE": str(trust.bundle), "NODE_EXTRA_CA_CERTS": str(trust.extra)}
    assert upstream(places, environ) == before | trusted(other)


@pytest.mark.parametrize("how", ["arguments", "config"])
@pytest.mark.parametrize("option", ["trusted_ca", "trusted_confdir"])
def test_what_the_user_told_mitmproxy_wins(places, other, how, option):
    arguments = ()
    if how == "arguments":
        arguments = ("--set", f"ssl_verify_upstream_{option}={other}")
    else:
        (places.confdir / "config.yaml").write_text(f"ssl_verify_upstream_{option}: {other}\n")
    assert upstream_trust(places, {}, arguments) == []
    assert not places.upstream.exists()


def test_a_confdir_of_ones_own(places, tmp_path):
    confdir = tmp_path / "of my own"
    (_, value) = upstream_trust(places, {}, ["--set", f"confdir={confdir}"])
    assert value == f"ssl_verify_upstream_trusted_ca={confdir / places.upstream.name}"


def test_a_folder_that_cannot_be_written_stops_nothing(places):
    file = places.confdir / "a file"
    file.touch()
    assert upstream_trust(Places(file / "below", 8080), {}, []) == []
