"""Logins as the vendors' tools leave them on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from account_pool.core.credential import Secret
from account_pool.credentials.files import FileSource
from account_pool.credentials.new_logins import VendorLogin, read_vendor_login
from account_pool.credentials.sources import CredentialError, Reading
from account_pool.credentials.vendor_logins import LOGINS, WITH_FILE, find_login_file, recognise

#: Layouts: their sources are those of `vendor_logins.py`.
CODEX = {
    "auth_mode": "chatgpt",
    "OPENAI_API_KEY": None,
    "tokens": {
        "id_token": "id",
        "access_token": "at-secret",
        "refresh_token": "rt-secret",
        "account_id": "00000000-0000-4000-8000-000000000000",
    },
    "last_refresh": "2026-08-01T00:00:00Z",
}
CLAUDE = {
    "claudeAiOauth": {
        "accessToken": "sk-ant-oat01-secret",
        "refreshToken": "sk-ant-ort01-secret",
        "expiresAt": 1800000000123,
        "scopes": ["user:inference"],
        "subscriptionType": "max",
    },
    "mcpOAuth": {},
}
GEMINI = {
    "access_token": "ya29.secret",
    "refresh_token": "1//secret",
    "scope": "a b",
    "token_type": "Bearer",
    "id_token": "id",
    "expiry_date": 1800000000123,
}
APPS = {"github.com:Iv1.0": {"user": "me", "oauth_token": "ghu_secret", "githubAppId": "Iv1.0"}}
HOSTS = """
github.com:
    git_protocol: https
    users:
        me:
            oauth_token: gho_secret
    user: me
"""


def file(folder: Path, content: Any) -> Path:
    path = folder / "login"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("vendor", "content", "expected"),
    [
        (
            "codex",
            CODEX,
            VendorLogin(
                provider="codex",
                access=Secret("at-secret"),
                refresh=Secret("rt-secret"),
                companions={"account_id": "00000000-0000-4000-8000-000000000000"},
            ),
        ),
        (
            "codex",
            {"OPENAI_API_KEY": "sk-secret", "tokens": None},
            VendorLogin(provider="openai", access=Secret("sk-secret")),
        ),
        (
            "claude",
            CLAUDE,
            VendorLogin(
                provider="claude-code",
                access=Secret("sk-ant-oat01-secret"),
                refresh=Secret("sk-ant-ort01-secret"),
                expires_at=1800000000.123,
            ),
        ),
        (
            "gemini",
            GEMINI,
            VendorLogin(
                provider="gemini-cli",
                access=Secret("ya29.secret"),
                refresh=Secret("1//secret"),
                expires_at=1800000000.123,
            ),
        ),
        ("copilot", APPS, VendorLogin(provider="copilot", access=Secret("ghu_secret"))),
        (
            "copilot",
            {"last_logged_in_user": {"login": "me"}, "copilot_tokens": {"me": "gho_secret"}},
            VendorLogin(provider="copilot", access=Secret("gho_secret")),
        ),
        ("gh", HOSTS, VendorLogin(provider="copilot", access=Secret("gho_secret"))),
    ],
)
def test_what_is_read(tmp_path: Path, vendor: str, content: Any, expected: VendorLogin) -> None:
    path = file(tmp_path, content)
    before = path.stat()
    login = read_vendor_login(vendor, path)
    assert login == expected
    assert "secret" not in repr(login).replace("[secret]", "")
    after = path.stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)


@pytest.mark.parametrize(
    ("vendor", "content", "remedy"),
    [
        ("claude", {"mcpOAuth": {}}, "Keychain"),
        ("codex", {}, 'cli_auth_credentials_store = "file"'),
        ("codex", {"tokens": {}, "OPENAI_API_KEY": None}, "log in with codex first"),
        ("gemini", {"access_token": "x"}, "without the keychain"),
        ("copilot", {"github.com:x": {"user": "me"}}, "account-pool login copilot"),
        ("gh", "github.com:\n    user: me\n", "gh auth token"),
        ("gh", ":\n  - x: [", "neither JSON nor YAML"),
        ("gemini", {**GEMINI, "access_token": "a b"}, "has a space"),
    ],
)
def test_no_login_there(tmp_path: Path, vendor: str, content: Any, remedy: str) -> None:
    with pytest.raises(CredentialError, match=remedy) as caught:
        read_vendor_login(vendor, file(tmp_path, content))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("vendor", WITH_FILE)
def test_no_file_there(tmp_path: Path, vendor: str) -> None:
    with pytest.raises(CredentialError, match=f"does not exist; log in with {vendor} first"):
        read_vendor_login(vendor, tmp_path / "x")


@pytest.mark.parametrize("ends", ["soon", True, [], {}, 10**400, -1])
def test_an_end_that_cannot_be_read_says_nothing(tmp_path: Path, ends: Any) -> None:
    login = {"claudeAiOauth": {**CLAUDE["claudeAiOauth"], "expiresAt": ends}}
    assert read_vendor_login("claude", file(tmp_path, login)).expires_at is None


def test_a_path_that_the_system_does_not_take_is_told() -> None:
    path = find_login_file("codex", {"CODEX_HOME": "/" + "x" * 5000})
    with pytest.raises(CredentialError, match="cannot be read"):
        read_vendor_login("codex", path)


@pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")
def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, CODEX)
    path.chmod(0o644)
    with pytest.raises(CredentialError, match="run: chmod 600"):
        read_vendor_login("codex", path)


def test_where_the_files_are(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert find_login_file("codex", home) == tmp_path / ".codex/auth.json"
    moved = {**home, "CODEX_HOME": str(tmp_path / "moved")}
    assert find_login_file("codex", moved) == tmp_path / "moved/auth.json"
    apps = tmp_path / ".config/github-copilot/apps.json"
    assert find_login_file("copilot", home) == apps
    other = tmp_path / ".copilot/config.json"
    other.parent.mkdir()
    other.touch()
    assert find_login_file("copilot", home) == other
    assert all(LOGINS[tool].read is not LOGINS["az"].read for tool in WITH_FILE)


class TestFileSource:
    """The same files as the token of an account."""

    @pytest.mark.parametrize(
        ("content", "pointer", "expected"),
        [
            (
                CODEX,
                None,
                Reading(
                    secret=Secret("at-secret"),
                    companions={"account_id": CODEX["tokens"]["account_id"]},
                ),
            ),
            (
                CODEX,
                "/tokens/access_token",
                Reading(
                    secret=Secret("at-secret"),
                    companions={"account_id": CODEX["tokens"]["account_id"]},
                ),
            ),
            (CODEX, "/tokens/refresh_token", Reading(secret=Secret("rt-secret"))),
            (
                CLAUDE,
                "/claudeAiOauth/accessToken",
                Reading(secret=Secret("sk-ant-oat01-secret"), expires_at=1800000000.123),
            ),
            (
                GEMINI,
                None,
                Reading(secret=Secret("ya29.secret"), expires_at=1800000000.123),
            ),
            (APPS, None, Reading(secret=Secret("ghu_secret"))),
            # Of no tool we know: the end of the token by a usual name beside it.
            (
                {"a": [{"token": "sk-secret", "expires_at": "2027-01-15T08:00:00Z"}]},
                "/a/0/token",
                Reading(secret=Secret("sk-secret"), expires_at=1800000000.0),
            ),
            (
                {"token": "sk-secret", "expires_at": "soon"},
                "/token",
                Reading(secret=Secret("sk-secret")),
            ),
            ("sk-secret\n", None, Reading(secret=Secret("sk-secret"))),
        ],
    )
    def test_what_the_file_says(
        self, tmp_path: Path, content: Any, pointer: str | None, expected: Reading
    ) -> None:
        source = FileSource(file(tmp_path, content), pointer)
        assert source.read_now() == expected

    def test_its_stamp_changes_when_it_is_written(self, tmp_path: Path) -> None:
        source = FileSource(tmp_path / "login")
        assert source.stamp() is None
        file(tmp_path, "sk-1")
        first = source.stamp()
        assert first is not None and first == source.stamp()
        file(tmp_path, "sk-22")
        assert source.stamp() != first


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["tokens", "access_token", "claudeAiOauth", "expiry_date"]) | st.text(),
            inner,
        )
    ),
)


@given(json_values)
def test_any_document_is_looked_at_without_harm(document: Any) -> None:
    shape = recognise(document)
    assert shape is None or shape.provider
