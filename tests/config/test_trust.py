"""Confirmations of a `./accounts.yaml`: by path and content, and for its owner only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from account_pool.config.accounts_file import Confirmed, confirm, confirmed, kept


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "config" / "account-pool" / "confirmed.json"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "accounts.yaml"
    path.write_text("accounts: []\n")
    return path


def test_a_file_is_confirmed_as_it_is(file, store):
    assert confirmed(file, store) is Confirmed.NO
    confirm(file, store)
    assert confirmed(file, store) is Confirmed.YES
    file.write_text("accounts: [{provider: openai, label: x, token: {command: evil}}]\n")
    assert confirmed(file, store) is Confirmed.CHANGED
    file.unlink()
    assert confirmed(file, store) is Confirmed.CHANGED


def test_the_same_content_elsewhere_is_another_file(file, store, tmp_path):
    confirm(file, store)
    other = tmp_path / "other.yaml"
    other.write_text(file.read_text())
    assert confirmed(other, store) is Confirmed.NO
    confirm(other, store)
    assert confirmed(file, store) is Confirmed.YES


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_it_is_kept_for_its_owner_only(file, store):
    confirm(file, store)
    assert store.stat().st_mode & 0o777 == 0o600
    assert store.parent.stat().st_mode & 0o777 == 0o700
    assert store.parent.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 1}', "\x00", "[" * 100_000])
def test_a_store_that_says_nothing_confirms_nothing(file, store, text):
    store.parent.mkdir(parents=True)
    store.write_text(text)
    assert confirmed(file, store) is Confirmed.NO
    confirm(file, store)
    assert confirmed(file, store) is Confirmed.YES


def test_a_change_of_our_own_needs_no_confirmation(file, store):
    confirm(file, store)
    with kept(file, store):
        file.write_text("accounts: [] # ours\n")
    assert confirmed(file, store) is Confirmed.YES


def test_a_change_of_our_own_confirms_nobody_elses(file, store):
    with kept(file, store):
        file.write_text("accounts: [] # ours\n")
    assert confirmed(file, store) is Confirmed.NO
    confirm(file, store)
    file.write_text("accounts: [] # theirs\n")
    with kept(file, store):
        file.write_text("accounts: [] # theirs and ours\n")
    assert confirmed(file, store) is Confirmed.CHANGED


def test_a_change_that_fails_confirms_nothing(file, store):
    confirm(file, store)
    with pytest.raises(RuntimeError), kept(file, store):
        file.write_text("half")
        raise RuntimeError
    assert confirmed(file, store) is Confirmed.CHANGED
