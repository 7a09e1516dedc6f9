"""The admin token is made once, and its owner's alone."""

from __future__ import annotations

import os
import stat

import pytest

from account_pool.admin import auth
from account_pool.admin.auth import NoToken, admin_token


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
