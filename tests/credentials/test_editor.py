"""Whose editor headers an exchange carries."""

from __future__ import annotations

from account_pool.credentials.editor import OWN_NAME, EditorHeaders

CLIENT = {
    "editor-version": "ed/1.0",
    "editor-plugin-version": "plug/2.0",
    "user-agent": "Plug/2.0",
    "copilot-integration-id": "ed-chat",
    "x-github-api-version": "2025-04-01",
    "authorization": "Bearer secret",
    "x-request-id": "1",
}


def test_without_a_client_it_is_our_own_name() -> None:
    assert EditorHeaders().headers() == {"user-agent": OWN_NAME, "editor-version": OWN_NAME}


def test_the_option_names_the_editor_only() -> None:
    assert EditorHeaders("ed/9").headers() == {"user-agent": OWN_NAME, "editor-version": "ed/9"}


def test_the_client_last_seen_comes_first_and_only_its_editor_headers() -> None:
    editor = EditorHeaders("ed/9")
    editor.client_seen(CLIENT)
    expected = {name: CLIENT[name] for name in list(CLIENT)[:5]}
    assert editor.headers() == expected
    editor.client_seen({"editor-version": "other/1"})
    assert editor.headers() == {"user-agent": OWN_NAME, "editor-version": "other/1"}


def test_what_is_no_editor_changes_nothing() -> None:
    editor = EditorHeaders()
    editor.client_seen(CLIENT)
    before = editor.headers()
    editor.client_seen({"user-agent": "curl/8"})
    editor.client_seen({"editor-version": "x" * 500})
    editor.client_seen({"editor-version": "a\r\nb: c"})
    assert editor.headers() == before
