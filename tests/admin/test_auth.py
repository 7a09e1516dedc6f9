"""Who may ask what: each row is one way to ask, and what comes of it."""

from __future__ import annotations

import os
import stat

import pytest

from account_pool.admin import auth
from account_pool.admin.auth import (
    FAILURE_WINDOW_S,
    MAX_FAILURES,
    MAX_PEERS,
    NoToken,
    Rules,
    TokenGuard,
    admin_token,
    check_body,
    check_place,
    is_this_machine,
    needs_token,
)
from account_pool.admin.http import MAX_BODY_BYTES, ApiError
from account_pool.admin.models import LinkCode, NewAccount, Tokens
from account_pool.core.credential import Secret
from tests.admin.helpers import HOST, PORT, TOKEN, admin_request

REMOTE = Rules(remote=True)
LAN = {"peer": "192.168.1.9", "address": ("192.168.1.5", PORT)}


def verdict(check, *args) -> str:
    """Return the code of the refusal, "" if there is none."""
    try:
        check(*args)
    except ApiError as refused:
        return refused.code
    return ""


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (HOST, ""),
        (f"localhost:{PORT}", ""),
        (f"LocalHost:{PORT}", ""),
        (f"[::1]:{PORT}", ""),
        ("pool.mitm.it", ""),
        ("pool.mitm.it:80", ""),
        # DNS rebinding: the page's own name leads to us now
        (f"evil.example:{PORT}", "wrong_host"),
        ("evil.example", "wrong_host"),
        (f"127.0.0.1.evil.example:{PORT}", "wrong_host"),
        (f"localhost.evil.example:{PORT}", "wrong_host"),
        (f"127.0.0.1:{PORT}@evil.example", "wrong_host"),
        (f"evil.example#127.0.0.1:{PORT}", "wrong_host"),
        ("pool.mitm.it.evil.example", "wrong_host"),
        ("evil.pool.mitm.it", "wrong_host"),
        # other ports are other origins
        ("127.0.0.1", "wrong_host"),
        ("127.0.0.1:8081", "wrong_host"),
        (f"pool.mitm.it:{PORT}", "wrong_host"),
        # spellings of our address that nobody needs
        (f"127.1:{PORT}", "wrong_host"),
        (f"0.0.0.0:{PORT}", "wrong_host"),
        (f"2130706433:{PORT}", "wrong_host"),
        (f"localhost.:{PORT}", "wrong_host"),
        # two names in one line
        (f"{HOST}, evil.example", "wrong_host"),
        (f"{HOST} evil.example", "wrong_host"),
        ("", "wrong_host"),
    ],
)
def test_the_name_we_are_called_by(host, expected):
    assert verdict(check_place, admin_request(headers={"host": host}), Rules()) == expected


def test_two_host_lines():
    asked = admin_request()
    asked.headers = (*asked.headers, (b"Host", HOST.encode()))
    assert verdict(check_place, asked, Rules()) == "wrong_host"


@pytest.mark.parametrize(
    ("authority", "host", "expected"),
    [
        (HOST, HOST, ""),
        (HOST, "", ""),
        ("pool.mitm.it", "pool.mitm.it", ""),
        ("evil.example", HOST, "wrong_host"),
        (HOST, "evil.example", "wrong_host"),
    ],
)
def test_the_address_and_the_host_header_agree(authority, host, expected):
    asked = admin_request(headers={"host": host}, authority=authority)
    assert verdict(check_place, asked, Rules()) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, ""),
        ({"sec-fetch-site": "same-origin"}, ""),
        ({"sec-fetch-site": "none"}, ""),
        ({"origin": f"http://{HOST}", "sec-fetch-site": "same-origin"}, ""),
        # a page that is shown through us, or any other
        ({"sec-fetch-site": "cross-site"}, "cross_site"),
        # another port of this machine is the same site to a browser
        ({"sec-fetch-site": "same-site"}, "cross_site"),
        ({"sec-fetch-site": "something"}, "cross_site"),
        ({"origin": "http://evil.example"}, "wrong_origin"),
        ({"origin": "http://127.0.0.1:3000"}, "wrong_origin"),
        ({"origin": f"http://localhost:{PORT}"}, "wrong_origin"),
        ({"origin": f"https://{HOST}"}, "wrong_origin"),
        ({"origin": "null"}, "wrong_origin"),
        # <script src>, <img src>, <form action> of another page
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, "cross_site"),
        (
            {
                "sec-fetch-site": "cross-site",
                "sec-fetch-mode": "navigate",
                "sec-fetch-dest": "document",
            },
            "cross_site",
        ),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
def test_other_pages_are_refused(headers, expected, method):
    asked = admin_request("/account-pool", method=method, headers=headers)
    assert verdict(check_place, asked, Rules()) == expected


@pytest.mark.parametrize(
    ("target", "method", "dest", "expected"),
    [
        ("/", "GET", "document", ""),
        ("/", "POST", "document", "cross_site"),
        ("/", "GET", "iframe", "cross_site"),
        ("/account-pool", "GET", "document", "cross_site"),
        ("/?x", "GET", "document", "cross_site"),
    ],
)
def test_a_link_may_lead_to_the_dashboard(target, method, dest, expected):
    headers = {
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "navigate",
        "sec-fetch-dest": dest,
    }
    asked = admin_request(target, method=method, headers=headers)
    assert verdict(check_place, asked, Rules()) == expected


@pytest.mark.parametrize(
    ("rules", "place", "host", "expected"),
    [
        (Rules(), LAN, f"192.168.1.5:{PORT}", "not_local"),
        (Rules(), {"peer": "::1", "address": ("::1", PORT)}, f"[::1]:{PORT}", ""),
        (Rules(), {"peer": "::ffff:127.0.0.1"}, HOST, ""),
        (Rules(), {"peer": "somewhere"}, HOST, "not_local"),
        (REMOTE, LAN, f"192.168.1.5:{PORT}", ""),
        (REMOTE, LAN, f"evil.example:{PORT}", "wrong_host"),
    ],
)
def test_where_one_may_ask_from(rules, place, host, expected):
    assert verdict(check_place, admin_request(headers={"host": host}, **place), rules) == expected


@pytest.mark.parametrize(
    ("target", "method", "rules", "place", "expected"),
    [
        ("/account-pool", "GET", Rules(), {}, False),
        ("/account-pool", "HEAD", Rules(), {}, False),
        ("/account-pool", "POST", Rules(), {}, True),
        ("/account-pool", "DELETE", Rules(), {}, True),
        ("/metrics", "GET", Rules(), {}, False),
        ("/health", "POST", Rules(), {}, True),
        ("/account-pool", "GET", REMOTE, LAN, True),
        ("/metrics", "GET", REMOTE, LAN, True),
        ("/health", "GET", REMOTE, LAN, False),
        ("/", "GET", REMOTE, LAN, False),
        # proxyauth: no side door for those who have no password
        ("/account-pool", "GET", Rules(remote=True, guarded=True), {}, True),
        ("/health?x=1", "GET", Rules(remote=True, guarded=True), {}, False),
        ("/%68ealth", "GET", Rules(remote=True, guarded=True), {}, True),
        ("/health/../account-pool", "GET", Rules(remote=True, guarded=True), {}, True),
    ],
)
def test_what_needs_the_token(target, method, rules, place, expected):
    assert needs_token(admin_request(target, method=method, **place), rules) is expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"content-type": "application/json"}, ""),
        ({"content-type": "Application/JSON; charset=utf-8"}, ""),
        # what a form of any page can send
        ({"content-type": "text/plain"}, "not_json"),
        ({"content-type": "application/x-www-form-urlencoded"}, "not_json"),
        ({"content-type": "multipart/form-data; boundary=x"}, "not_json"),
        ({"content-type": "text/plain; application/json"}, "not_json"),
        ({"content-type": "application/json, text/plain"}, "not_json"),
        ({"content-type": ""}, "not_json"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, "encoded"),
    ],
)
def test_a_change_is_json(headers, expected):
    assert verdict(check_body, admin_request(body={}, headers=headers)) == expected


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_long_body_is_not_kept(method):
    asked = admin_request(body=b"x", method=method)
    for _ in range(3):
        asked.take(b"y" * MAX_BODY_BYTES)
        assert len(asked.body) <= MAX_BODY_BYTES
    assert verdict(check_body, asked) == "too_long"


def test_a_body_may_be_as_long_as_we_say():
    asked = admin_request(body=b"")
    asked.take(b"y" * MAX_BODY_BYTES)
    assert verdict(check_body, asked) == ""
    assert len(asked.body) == MAX_BODY_BYTES


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (f"Bearer {TOKEN}", ""),
        (f"bearer  {TOKEN} ", ""),
        ("", "no_token"),
        ("Bearer", "wrong_token"),
        ("Bearer ", "wrong_token"),
        (f"Basic {TOKEN}", "wrong_token"),
        (TOKEN, "wrong_token"),
        (f"Bearer {TOKEN[:-1]}", "wrong_token"),
        (f"Bearer {TOKEN}x", "wrong_token"),
        (f"Bearer {TOKEN.upper()}", "wrong_token"),
        ("Bearer \xe9\xff", "wrong_token"),
    ],
)
def test_the_token(given, expected):
    asked = admin_request(headers={"authorization": given})
    assert verdict(TokenGuard(Secret(TOKEN)).check, asked, 0.0) == expected


def test_two_tokens_are_none():
    asked = admin_request(token=TOKEN)
    asked.headers = (*asked.headers, (b"Authorization", b"Bearer other"))
    assert verdict(TokenGuard(Secret(TOKEN)).check, asked, 0.0) == "wrong_token"


def test_who_guesses_is_not_heard_for_a_while():
    guard = TokenGuard(Secret(TOKEN))
    wrong, right = admin_request(token="guess"), admin_request(token=TOKEN)
    for n in range(MAX_FAILURES):
        assert verdict(guard.check, wrong, float(n)) == "wrong_token"
    with pytest.raises(ApiError) as refused:
        guard.check(right, 10.0)
    assert refused.value.code == "too_many_failures"
    assert refused.value.headers["retry-after"] == "51"
    # Others are heard, and so is everybody a minute after the first guess.
    assert verdict(guard.check, admin_request(token=TOKEN, peer="127.0.0.2"), 10.0) == ""
    assert verdict(guard.check, right, FAILURE_WINDOW_S) == ""


def test_a_missing_token_is_no_guess():
    guard = TokenGuard(Secret(TOKEN))
    for _ in range(3 * MAX_FAILURES):
        assert verdict(guard.check, admin_request(), 0.0) == "no_token"
    assert verdict(guard.check, admin_request(token=TOKEN), 0.0) == ""


def test_guesses_of_many_addresses_take_no_room():
    guard = TokenGuard(Secret(TOKEN))
    for n in range(MAX_PEERS + 50):
        verdict(guard.check, admin_request(token="guess", peer=f"2001:db8::{n:x}"), 0.0)
    assert len(guard.failures) == MAX_PEERS


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True),
        ("fe80::1%lo", False), ("10.0.0.1", False), ("::ffff:10.0.0.1", False), ("", False),
        ("localhost", False),
    ],
)  # fmt: skip
def test_this_machine(address, expected):
    assert is_this_machine(address) is expected


def test_a_visit_shows_no_secret():
    asked = admin_request("/account-pool/add", {"token": "sk-fake-new-000"})
    assert TOKEN not in repr(asked)
    assert "sk-fake" not in repr(asked)


@pytest.mark.parametrize(
    "shape",
    [
        LinkCode(code="sk-fake"),
        NewAccount(provider="openai", label="a", token="sk-fake"),
        Tokens(refresh_token="sk-fake"),
        NewAccount.model_validate(
            {"provider": "codex", "label": "a", "token": {"oauth": {"refresh_token": "sk-fake"}}}
        ),
    ],
)
def test_what_was_sent_is_in_no_representation(shape):
    assert "sk-fake" in shape.model_dump_json()
    assert "sk-fake" not in f"{shape!r} {shape}"


# -- the admin token is made once, and its owner's alone


def test_it_is_made_once(tmp_path):
    path = tmp_path / "conf" / "token"
    made = admin_token(path)
    assert len(made.reveal()) >= 43
    assert admin_token(path).reveal() == made.reveal()
    assert [file.name for file in path.parent.iterdir()] == ["token"]
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="modes are a matter of posix")
def test_it_is_taken_from_others(tmp_path):
    path = tmp_path / "token"
    made = admin_token(path)
    path.chmod(0o644)
    assert admin_token(path).reveal() == made.reveal()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_of_two_that_make_it_one_wins(tmp_path, monkeypatch):
    path = tmp_path / "token"
    real = auth.os.link

    def late(source, target):
        path.write_text("the-other-proxy-was-quicker-than-this-one\n")
        return real(source, target)

    monkeypatch.setattr(auth.os, "link", late)
    assert admin_token(path).reveal() == "the-other-proxy-was-quicker-than-this-one"


def test_without_links(tmp_path, monkeypatch):
    def refuse(_source, _target):
        raise PermissionError(1, "not here")

    monkeypatch.setattr(auth.os, "link", refuse)
    path = tmp_path / "token"
    assert admin_token(path).reveal() == path.read_text().strip()


@pytest.mark.parametrize("text", [b"", b"short\n", b"\xff" * 50, b"two words\x07" + b"x" * 40])
def test_what_is_no_token(tmp_path, text):
    path = tmp_path / "token"
    path.write_bytes(text)
    with pytest.raises(NoToken, match="token") as error:
        admin_token(path)
    assert str(path) in str(error.value)


def test_nowhere_to_keep_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NoToken, match="cannot be read or created"):
        admin_token(tmp_path / "file" / "token")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_what_is_not_a_file_has_no_token_and_stays_as_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, kind in (("pipe", "a pipe"), ("folder", "a directory")):
        (tmp_path / name).chmod(0o755)
        with pytest.raises(NoToken, match=rf"cannot be read or created \(it is {kind}, not a file"):
            admin_token(tmp_path / name)
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o755
