"""Tokens in a file: durable, private, shared by processes, and errors that say what to do."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from account_pool.core.credential import Secret
from account_pool.store import database, schema
from account_pool.store.errors import StoreError
from account_pool.store.memory import MemoryTokens
from account_pool.store.sqlite import SqliteTokens
from account_pool.store.tokens import Tokens, TokenStore

SOME = Tokens(
    access=Secret("at-1"),
    refresh=Secret("rt-1"),
    expires_at=1800000000.25,
    refreshed_at=1799990000.5,
    companions={"account_id": "a"},
)
PACKAGE = str(Path(schema.__file__).parents[2])
posix = pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "pool.sqlite"


@pytest.fixture
def opened(path: Path) -> Iterator[SqliteTokens]:
    store = SqliteTokens(path)
    yield store
    store.close()


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, path: Path) -> Iterator[TokenStore]:
    made: TokenStore = MemoryTokens() if request.param == "memory" else SqliteTokens(path)
    yield made
    made.close()


class TestBothStores:
    def test_the_newest_tokens_are_kept(self, store: TokenStore) -> None:
        assert store.load("family") is None
        plain = Tokens(access=None, refresh=Secret("rt-0"))
        for tokens in (plain, SOME):
            store.save("family", tokens)
            assert store.load("family") == tokens
        assert store.load("other") is None

    def test_tokens_that_were_got_for_older_ones_do_not_replace_newer(
        self, store: TokenStore
    ) -> None:
        first, second, third = (Tokens(access=None, refresh=Secret(f"rt-{n}")) for n in range(3))
        assert store.save("family", first, replaces=Secret("rt-written"))
        assert store.save("family", second, replaces=first.refresh)
        assert not store.save("family", third, replaces=first.refresh)
        assert store.load("family") == second
        assert store.save("family", third)

    def test_one_claim_at_a_time(self, store: TokenStore) -> None:
        assert store.claim("family", "a", clock=lambda: 100, lasts_s=25)
        assert not store.claim("family", "b", clock=lambda: 124.9, lasts_s=25)
        assert store.claim("other", "b", clock=lambda: 100, lasts_s=25)
        store.release("family", "b")
        assert not store.claim("family", "b", clock=lambda: 101, lasts_s=25)
        store.release("family", "a")
        assert store.claim("family", "b", clock=lambda: 101, lasts_s=25)

    def test_a_claim_ends_by_itself_and_can_be_made_longer(self, store: TokenStore) -> None:
        assert store.claim("family", "a", clock=lambda: 100, lasts_s=25)
        assert store.claim("family", "a", clock=lambda: 110, lasts_s=25)
        assert not store.claim("family", "b", clock=lambda: 130, lasts_s=25)
        assert store.claim("family", "b", clock=lambda: 135, lasts_s=25)

    def test_a_clock_that_was_set_back_makes_no_claim_last(self, store: TokenStore) -> None:
        assert store.claim("family", "a", clock=lambda: 10_000, lasts_s=25)
        assert store.claim("family", "b", clock=lambda: 100, lasts_s=25)


def test_another_process_sees_what_was_saved_and_a_kill_takes_nothing_away(path: Path) -> None:
    script = f"""
        import os, signal
        from pathlib import Path
        from account_pool.core.credential import Secret
        from account_pool.store.sqlite import SqliteTokens
        from account_pool.store.tokens import Tokens
        store = SqliteTokens(Path({str(path)!r}))
        store.claim("family", "gone", clock=lambda: 0, lasts_s=25)
        store.save("family", Tokens(access=Secret("at-1"), refresh=Secret("rt-1")))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": PACKAGE},
        check=False,
    )
    assert done.returncode != 0
    store = SqliteTokens(path)
    found = store.load("family")
    store.close()
    assert found is not None and found.refresh == Secret("rt-1")


def test_many_processes_may_open_a_new_file_at_once(path: Path) -> None:
    script = f"""
        from pathlib import Path
        from account_pool.core.credential import Secret
        from account_pool.store.sqlite import SqliteTokens
        from account_pool.store.tokens import Tokens
        store = SqliteTokens(Path({str(path)!r}))
        for n in range(5):
            store.save("family", Tokens(access=None, refresh=Secret("rt")))
    """
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            env={**os.environ, "PYTHONPATH": PACKAGE},
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    assert [process.communicate()[1] for process in started] == [""] * 6


@posix
class TestOnlyItsOwnerMayRead:
    def test_all_its_files_and_its_directory(self, path: Path, opened: SqliteTokens) -> None:
        old = os.umask(0)
        try:
            opened.save("family", SOME)
        finally:
            os.umask(old)
        assert path.parent.stat().st_mode & 0o777 == 0o700
        files = list(path.parent.iterdir())
        assert len(files) == 3
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}

    def test_a_file_that_was_open_to_others_is_closed(self, path: Path) -> None:
        SqliteTokens(path).close()
        path.chmod(0o644)
        SqliteTokens(path).close()
        assert path.stat().st_mode & 0o777 == 0o600


class TestWhatIsWrong:
    """Each message names the file and what to do; what SQLite says is not repeated."""

    def test_it_is_no_database(self, path: Path) -> None:
        path.parent.mkdir()
        path.write_text("secret\n" * 1000)
        with pytest.raises(StoreError) as caught:
            SqliteTokens(path)
        assert str(caught.value) == (
            f"the state database {path} is not a database; keep it, it may hold the newest "
            f"logins: mv {path} {path}.damaged; accounts refused after that need a "
            "new login"
        )
        assert path.read_text().startswith("secret")

    def test_it_is_damaged(self, path: Path) -> None:
        store = SqliteTokens(path)
        for n in range(200):
            store.save(f"family-{n}", SOME)
        store.close()
        content = bytearray(path.read_bytes())
        content[4096:] = b"\x55" * (len(content) - 4096)
        path.write_bytes(content)
        with pytest.raises(StoreError, match="is damaged; keep it"):
            damaged = SqliteTokens(path)
            try:
                damaged.load("family-1")
            finally:
                damaged.close()

    def test_it_is_locked(self, path: Path, opened: SqliteTokens) -> None:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        opened._database._connection.execute("PRAGMA busy_timeout = 1")
        with pytest.raises(StoreError, match="is locked by another program; close the program"):
            opened.save("family", SOME)
        other.close()
        opened.save("family", SOME)
        assert opened.load("family") == SOME

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write all")
    def test_it_may_not_be_written(self, path: Path) -> None:
        SqliteTokens(path).close()
        path.parent.chmod(0o500)
        with pytest.raises(StoreError, match="writable"):
            SqliteTokens(path)
        path.parent.chmod(0o700)

    def test_it_may_only_be_read(self, opened: SqliteTokens) -> None:
        opened._database._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(StoreError, match="cannot be written; make it and its directory"):
            opened.claim("family", "a", clock=lambda: 0, lasts_s=25)

    def test_its_directory_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match=r"cannot be made private \(.*\); set pool_state"):
            SqliteTokens(tmp_path / "file" / "pool.sqlite")

    def test_it_is_of_a_newer_version(self, path: Path) -> None:
        SqliteTokens(path).close()
        with sqlite3.connect(path) as connection:
            connection.execute("INSERT INTO schema VALUES (99)")
        connection.close()
        with pytest.raises(StoreError, match="newer version of the account pool; upgrade"):
            SqliteTokens(path)


def test_a_file_of_an_older_version_gets_the_new_tables_and_keeps_the_rest(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteTokens(path)
    store.save("family", SOME)
    store.close()
    more = (*schema.MIGRATIONS, ("CREATE TABLE more (account TEXT PRIMARY KEY)",))
    monkeypatch.setattr(database, "MIGRATIONS", more)
    for _ in range(2):
        store = SqliteTokens(path)
        assert store.load("family") == SOME
        with store._database.reading() as connection:
            assert connection.execute("SELECT count(*) FROM more").fetchone() == (0,)
        store.close()


def test_a_step_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SqliteTokens(path).close()
    more = (*schema.MIGRATIONS, ("CREATE TABLE half (x)", "CREATE TABLE tokens (x)"))
    monkeypatch.setattr(database, "MIGRATIONS", more)
    with pytest.raises(StoreError, match="cannot be used"):
        SqliteTokens(path)
    with sqlite3.connect(path) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    connection.close()
    assert "half" not in names
