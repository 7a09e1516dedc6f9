"""Credentials in what a provider sends back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http
from mitmproxy.options import Options

from account_pool.core.credential import Secret, mask, secrets_of
from account_pool.proxy import redaction

SECRETS = secrets_of(["sk-one-1111", "sk-one-1111-longer", ""])


def test_without_a_secret_a_body_stays_as_it_is():
    assert redaction.Redactor(frozenset())(b"as it is") == [b"as it is"]


def test_headers():
    response = http.Response.make(307, b"", {"location": "https://x/?key=sk-one-1111", "a": "b"})
    redaction.headers(response, SECRETS)
    assert response.headers["location"] == "https://x/?key=***********"
    assert response.headers["a"] == "b"


def test_what_stands_around_a_body():
    response = http.Response.make(429, b"")
    response.reason = "sk-one-1111 is limited"
    response.trailers = http.Headers(note="used by sk-one-1111")
    redaction.headers(response, SECRETS)
    assert response.reason == "*********** is limited"
    assert response.trailers["note"] == "used by ***********"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("server closed connection", "server closed connection"),
        ("Response body exceeds mitmproxy's limit.", "Response body exceeds mitmproxy's limit."),
        ("the web's own b", "the web's own b"),
        ("stream reset by client (CANCEL)", "stream reset by client (CANCEL)"),
        ("1.2.3.4:5: Bad HTTP request line: b'POST /?key=x'", "1.2.3.4:5: Bad HTTP request line: "),
        ('Invalid header line: b"it\'s"', "Invalid header line: "),
        ("illegal chunk header: bytearray(b'Bearer x')", "illegal chunk header: bytearray("),
        ("invalid content-length header: 'Bearer x'", "invalid content-length header: "),
        ('multiple content-length headers: ["x\'y"]', "multiple content-length headers: ["),
        ("Unknown pseudo headers: {b':x': b'y'}", "Unknown pseudo headers: {"),
        ("Illegal character ' ' in header name: b'a b'", "Illegal character "),
    ],
)
def test_what_a_parser_could_not_read_is_not_quoted(text, shown):
    assert redaction.without_quotes(text) == (shown if shown == text else shown + "[not shown]")


@given(
    parts=st.lists(st.sampled_from([b"sk-one-1111", b"text ", b"sk-one", b"-1111", b"\n"])),
    sizes=st.lists(st.integers(1, 9), min_size=1),
)
def test_any_chunking_masks_the_same(parts, sizes):
    whole = b"".join(parts)
    scrubber = redaction.Redactor(frozenset({b"sk-one-1111"}))
    out, at, turn = b"", 0, 0
    while at < len(whole):
        size = sizes[turn % len(sizes)]
        pieces = scrubber(whole[at : at + size])
        assert b"" not in pieces
        out += b"".join(pieces)
        at, turn = at + size, turn + 1
    out += b"".join(scrubber(b""))
    assert out == mask(whole, frozenset({b"sk-one-1111"}))
    assert len(out) == len(whole)
    assert b"sk-one-1111" not in out


keys = st.text("abAB-", min_size=1, max_size=6)


@given(
    secrets=st.lists(keys, min_size=1, max_size=3),
    chunks=st.lists(st.text("abAB-", max_size=8).map(str.encode)),
    data=st.data(),
)
def test_no_secret_gets_through_whatever_the_chunks(secrets, chunks, data):
    """Secrets that overlap themselves and each other, cut anywhere."""
    echo = data.draw(st.sampled_from(secrets)).encode()
    cut = data.draw(st.integers(0, len(echo)))
    given_ = [chunk for chunk in [*chunks, echo[:cut], echo[cut:], *chunks] if chunk]
    known = secrets_of(secrets)
    scrubber = redaction.Redactor(known)
    out = b"".join(piece for chunk in [*given_, b""] for piece in scrubber(chunk))
    assert len(out) == sum(map(len, given_))
    assert not [secret for secret in known if secret in out]


# -- what mitmproxy says of a connection, as it is told


NOTHING = secrets_of([])
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
    secrets = redaction.secrets_and_passwords(options_with("me:p@ss/1"), [Secret("sk-one-1111")])
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
