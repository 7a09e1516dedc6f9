"""What mitmproxy says of a connection, as it is told."""

from __future__ import annotations

import pytest
from mitmproxy.options import Options

from account_pool.proxy import redaction

NOTHING = redaction.secrets_of([])
REFUSED = "Upstream proxy 192.0.2.1:3128 refused HTTP CONNECT request: "


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("", ""),
        ("[Errno -2] Name or service not known", "[Errno -2] Name or service not known"),
        (
            "[Errno 111] Connect call failed ('192.0.2.1', 443)",
            "[Errno 111] Connect call failed (192.0.2.1 port 443)",
        ),
        (
            "Multiple exceptions: [Errno 111] Connect call failed ('::1', 443, 0, 0), "
            "[Errno 111] Connect call failed ('127.0.0.1', 443)",
            "Multiple exceptions: [Errno 111] Connect call failed (::1 port 443), "
            "[Errno 111] Connect call failed (127.0.0.1 port 443)",
        ),
        (
            "OpenSSL Error([('SSL routines', '', 'tlsv1 alert internal error')])",
            "TLS: tlsv1 alert internal error",
        ),
        (
            "OpenSSL Error([('x', 'y', 'one'), ('SSL routines', '', 'two')])",
            "TLS: two",
        ),
        ("The remote server does not speak TLS.", "The remote server does not speak TLS"),
        (
            "Error connecting to 192.0.2.1:3128: Invalid header line: b'Bearer x'",
            "Error connecting to 192.0.2.1:3128: Invalid header line: [not shown]",
        ),
        (f"{REFUSED}407 a\x1b[31m\r\nb", f"{REFUSED}407 a?[31m??b"),
        ("\udc80", "?"),
    ],
)
def test_told(message, told):
    assert redaction.reason_of(message, NOTHING) == told


def test_no_more_than_a_line_of_it():
    assert len(redaction.reason_of(REFUSED + "x" * 100_000, NOTHING)) <= 200


def options_with(auth: str | None) -> Options:
    options = Options()
    options.add_option("upstream_auth", object, auth, "")
    return options


@pytest.mark.parametrize("said", ["me:p@ss/1", "p@ss/1", "bWU6cEBzcy8x", "p%40ss%2F1"])
def test_the_password_of_a_proxy_is_not_told(said):
    secrets = redaction.secrets_and_passwords(options_with("me:p@ss/1"), ["sk-one-1111"])
    assert redaction.reason_of(f"{REFUSED}407 No {said} sk-one-1111", secrets) == (
        f"{REFUSED}407 No {'*' * len(said)} {'*' * 11}"
    )


@pytest.mark.parametrize("options", [Options(), options_with(None), options_with("")])
def test_without_a_password(options):
    assert redaction.secrets_and_passwords(options) == frozenset()


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("Certificate verify failed: unable to get local issuer certificate", "trusted_ca"),
        ("Certificate verify failed: self-signed certificate in certificate chain", "trusted_ca"),
        ("Certificate verify failed: self signed certificate", "trusted_ca"),
        ("Certificate verify failed: unable to verify the first certificate", "trusted_ca"),
        ("Certificate verify failed: certificate has expired", None),
        ("Certificate verify failed: hostname mismatch", None),
        (f"{REFUSED}407 ", "upstream_auth"),
        (f"{REFUSED}403 Forbidden", None),
        ("cannot agree on a TLS version to use", "tls_version_server_min"),
        ("connection closed", None),
    ],
)
def test_what_helps_is_named(message, remedy):
    text = redaction.unconnected("api.example.com", message, NOTHING)
    assert text.startswith(
        f"no connection to api.example.com: {redaction.reason_of(message, NOTHING)}"
    )
    assert (";" in text) is (remedy is not None)
    assert remedy is None or remedy in text
