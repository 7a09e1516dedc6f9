"""Tokens in a file: durable, private, shared by processes, and errors that say what to do."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from account_pool.core.claims import Claim, Taken
from account_pool.core.credential import Secret
from account_pool.store import database, schema
from account_pool.store.machine import Moment, Process, is_gone, moment, started
from account_pool.store.sqlite import SqliteTokens
from account_pool.store.store import StoreError, Tokens, TokenStore

SOME = Tokens(
    access=Secret("at-1"),
    refresh=Secret("rt-1"),
    expires_at=1800000000.25,
    refreshed_at=1799990000.5,
    companions={"account_id": "a"},
)
PACKAGE = str(Path(schema.__file__).parents[2])
posix = pytest.mark.skipif(os.name != "posix", reason="modes are of POSIX")


ROT = Secret("rt-0")


class Time:
    now = 1_000_000.0


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "pool.sqlite"


@pytest.fixture
def opened(path: Path) -> Iterator[SqliteTokens]:
    store = SqliteTokens(path)
    yield store
    store.close()


def claim(store: TokenStore, family: str, owner: str, *, is_over: bool = True) -> Claim | Taken:
    return store.claim(family, owner, token=ROT, is_over=is_over)


class TestProcessesThatAreGone:
    def test_the_claim_of_a_dead_one_is_free_at_once(self, path: Path) -> None:
        script = f"""
            import os, signal
            from pathlib import Path
            from account_pool.core.credential import Secret
            from account_pool.store.machine import Process
            from account_pool.store.sqlite import SqliteTokens
            store = SqliteTokens(Path({str(path)!r}))
            owner = Process.this().owner("one")
            store.claim("family", owner, token=Secret("rt"), is_over=True)
            print("claimed", flush=True)
            signal.pause()
        """
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            env={**os.environ, "PYTHONPATH": PACKAGE},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == "claimed\n"
            store = SqliteTokens(path)
            try:
                assert isinstance(claim(store, "family", "b"), Taken)
                process.kill()
                # Its parent has not asked yet how it ended: it is a zombie.
                process.stdout.read()
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
                assert isinstance(claim(store, "family", "b"), Claim)
            finally:
                store.close()

    @pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="known on Linux only")
    @pytest.mark.parametrize(
        ("changes", "gone"),
        [
            ({}, False),
            ({"started": "1"}, True),
            ({"started": ""}, False),
            ({"run": "another"}, False),
            ({"space": "another"}, False),
            ({"host": "another"}, False),
            ({"more": "of a newer version"}, False),
            ({"pid": 2**99}, False),
        ],
    )
    def test_it_is_gone_only_where_that_is_known(self, changes: dict[str, Any], gone: bool) -> None:
        told = {**json.loads(Process.this().owner("x")), **changes}
        assert is_gone(json.dumps(told)) is gone

    def test_a_system_may_say_less_of_a_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Path, "read_text", lambda *_args, **_how: "1 (proxy) S 0")
        assert started(1) is None

    @pytest.mark.parametrize(
        "owner", ["host:12:uuid", "{}", "[]", "null", '{"of": 1}', "[" * 99999]
    )
    def test_nothing_is_known_of_what_another_version_wrote(self, owner: str) -> None:
        assert not is_gone(owner)


class TestTheClock:
    """It goes on, whatever becomes of the wall clock."""

    LATER = Tokens(access=Secret("at"), refresh=ROT, expires_at=10_600.0)

    def left(self, path: Path, now: Moment) -> float:
        store = SqliteTokens(path, clock=lambda: now)
        found = store.load("family")
        store.close()
        assert found is not None and found.expires_at is not None
        return found.expires_at - now.wall

    @pytest.mark.parametrize(
        ("now", "left"),
        [
            (Moment("one", 100.0, 10_000.0), 600.0),
            (Moment("one", 160.0, 10_060.0), 540.0),
            (Moment("one", 160.0, 10_060.0 - 7200), 540.0),
            (Moment("one", 160.0, 10_060.0 + 7200), 540.0),
            (Moment("two", 5.0, 10_060.0), 540.0),
            (Moment("two", 5.0, 10_000.0 - 7200), 600.0),
            (Moment("", 10_060.0, 10_060.0), 540.0),
        ],
        ids=[
            "at once",
            "later",
            "wall clock set back",
            "wall clock set ahead",
            "another run",
            "another run, set back",
            "a machine that does not tell",
        ],
    )
    def test_what_is_left_of_a_token(self, path: Path, now: Moment, left: float) -> None:
        store = SqliteTokens(path, clock=lambda: Moment("one", 100.0, 10_000.0))
        store.save("family", self.LATER)
        store.close()
        assert self.left(path, now) == left

    def test_a_run_that_goes_on_beside_another_has_its_own(self, path: Path) -> None:
        store = SqliteTokens(path, clock=lambda: Moment("one", 100.0, 10_000.0))
        store.save("family", self.LATER)
        assert self.left(path, Moment("two", 5.0, 10_060.0)) == 540.0
        store.save("family", self.LATER)
        store.close()
        assert self.left(path, Moment("two", 10.0, 10_065.0)) == 535.0
        assert self.left(path, Moment("one", 165.0, 10_065.0)) == 535.0

    def test_the_real_one_is_that_of_all_processes(self) -> None:
        one, other = moment(), moment()
        assert one.run == other.run and one.up <= other.up


def test_another_process_sees_what_was_saved_and_a_kill_takes_nothing_away(path: Path) -> None:
    script = f"""
        import os, signal
        from pathlib import Path
        from account_pool.core.credential import Secret
        from account_pool.store.sqlite import SqliteTokens
        from account_pool.store.store import Tokens
        store = SqliteTokens(Path({str(path)!r}))
        store.claim("family", "gone", token=Secret("rt-0"), is_over=True)
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
        from account_pool.store.store import Tokens
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
            claim(opened, "family", "a")

    def test_its_directory_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StoreError, match=r"cannot be made private \(.*\); set pool_state"):
            SqliteTokens(tmp_path / "file" / "pool.sqlite")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
    def test_it_is_not_a_file_and_stays_as_it_is(self, tmp_path: Path) -> None:
        """A folder that its owner alone may write, and not enter, would be lost to all."""
        folder, pipe, loop = tmp_path / "folder", tmp_path / "pipe", tmp_path / "loop"
        folder.mkdir()
        os.mkfifo(pipe)
        loop.symlink_to(loop)
        for path in (folder, pipe):
            path.chmod(0o755)
            with pytest.raises(StoreError, match=r"cannot be used \(it is a .*, not a file\)"):
                SqliteTokens(path)
            assert path.stat().st_mode & 0o777 == 0o755
        with pytest.raises(StoreError, match="cannot be made private"):
            SqliteTokens(loop)
        with pytest.raises(StoreError, match=r"cannot be used \(.* no name can have\); set "):
            SqliteTokens(tmp_path / "a\0b")

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


def test_little_of_the_file_is_kept_in_memory(path: Path) -> None:
    """SQLite's own 2 MB would fill with rows about requests, which are not read again."""
    opened = database.Database(path)
    assert opened._connection.execute("PRAGMA cache_size").fetchone() == (-512,)
    opened.close()


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
