"""A state database that is taken away while it is in use: the newest logins are in the next."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.store.test_sqlite import PACKAGE, Time

from account_pool.core.account import AccountKey
from account_pool.core.claims import Claim, Taken
from account_pool.core.credential import Secret
from account_pool.core.snapshot import AccountSnapshot
from account_pool.store.database import Database
from account_pool.store.machine import Moment
from account_pool.store.sqlite import MAX_ASIDES, SETTLE_S, SqliteStore, SqliteTokens
from account_pool.store.store import DamagedError, MovedError, Tokens

pytestmark = pytest.mark.skipif(os.name != "posix", reason="an open file stays where it is")

FIRST, SECOND = (
    Tokens(access=Secret(f"at-{n}"), refresh=Secret(f"rt-{n}"), expires_at=2000.0 + n)
    for n in (1, 2)
)
WRITTEN = Secret("rt-0")


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state" / "pool.sqlite"


@pytest.fixture
def opened(path: Path, time: Time) -> Iterator[Callable[[], SqliteTokens]]:
    made: list[SqliteTokens] = []

    def make() -> SqliteTokens:
        made.append(SqliteTokens(path, clock=lambda: Moment("one", time.now, time.now)))
        return made[-1]

    yield make
    for store in made:
        store.close()


def refresh(store: SqliteTokens, time: Time, old: Secret, tokens: Tokens) -> None:
    claim = store.claim("family", "me", token=old, is_over=True)
    assert isinstance(claim, Claim) and store.sending("family", claim.fence, old)
    assert store.save("family", tokens, replaces=old, fence=claim.fence)
    store.release("family", claim.fence)


def backup_of(path: Path) -> Path:
    copy = path.with_name("backup")
    with closing(sqlite3.connect(path)) as there, closing(sqlite3.connect(copy)) as here:
        there.backup(here)
    return copy


WAYS: dict[str, Callable[[Path, Path], object]] = {
    "deleted": lambda path, _: path.unlink(),
    "moved": lambda path, _: path.rename(path.with_name("elsewhere")),
    "its directory is gone": lambda path, _: shutil.rmtree(path.parent),
    "replaced by a backup": lambda path, backup: backup.replace(path),
    "overwritten by a backup": lambda path, backup: path.write_bytes(backup.read_bytes()),
    "emptied": lambda path, _: os.truncate(path, 0),
    "without its log": lambda path, _: Path(f"{path}-wal").unlink(),
    "without its index": lambda path, _: Path(f"{path}-shm").unlink(),
    "all of it deleted": lambda path, _: [file.unlink() for file in path.parent.iterdir()],
}


@pytest.mark.parametrize("way", WAYS)
def test_the_newest_tokens_are_there_after_the_next_restart(
    way: str, path: Path, time: Time, opened: Callable[[], SqliteTokens]
) -> None:
    store = opened()
    refresh(store, time, WRITTEN, FIRST)
    backup = backup_of(path)
    refresh(store, time, FIRST.refresh, SECOND)
    WAYS[way](path, backup)
    store.keep()
    assert store.load("family") == SECOND
    store.close()
    again = opened()
    assert again.load("family") == SECOND
    with again._database.reading() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def edit(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute(statement)
        other.commit()


#: What is there is no database any more, or holds what none of us has written.
DAMAGES: dict[str, Callable[[Path], object]] = {
    "another file": lambda path: (
        path.with_name("x").write_text("no database\n" * 1000) and path.with_name("x").replace(path)
    ),
    "its log": lambda path: Path(f"{path}-wal").write_bytes(b"\xff" * 20_000),
    "text": lambda path: edit(path, "UPDATE tokens SET companions = CAST(x'fffe' AS TEXT)"),
    "JSON": lambda path: edit(path, "UPDATE tokens SET companions = '['"),
    "no JSON object": lambda path: edit(path, "UPDATE tokens SET companions = '[]'"),
    "times": lambda path: edit(path, "UPDATE tokens SET expires_at = 'soon'"),
    "numbers": lambda path: edit(path, "UPDATE tokens SET fence = 'y'"),
    "tokens": lambda path: edit(path, "UPDATE tokens SET refresh_token = x'ff'"),
    "claims": lambda path: edit(path, "UPDATE claims SET until = 'x'"),
    "a table": lambda path: edit(path, "DROP TABLE claims"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_damaged_in_use_is_put_aside(
    damage: str, path: Path, time: Time, opened: Callable[[], SqliteTokens]
) -> None:
    """What its proxies know goes on in a new one, and no token that is spent is sent."""
    store, other = opened(), opened()
    refresh(store, time, WRITTEN, FIRST)
    assert other.load("family") == FIRST
    DAMAGES[damage](path)
    time.now += 1
    for one in (store, other):
        one.keep()
        assert one.load("family") == FIRST
    asked = {"token": FIRST.refresh, "is_over": True}
    for one in (store, other):
        while isinstance(claim := one.claim("family", "me", **asked), Taken):
            assert claim.left_s <= SETTLE_S  # others have time to write what they know
            time.now += SETTLE_S + 1
        one.release("family", claim.fence)
    refresh(other, time, FIRST.refresh, SECOND)
    assert store.load("family") == opened().load("family") == SECOND
    assert len(list(path.parent.glob("*.damaged"))) <= 1


def test_logins_that_nobody_uses_now_are_kept(
    path: Path, time: Time, opened: Callable[[], SqliteTokens]
) -> None:
    before = opened()
    refresh(before, time, WRITTEN, FIRST)
    store = opened()
    store.save("another", SECOND)
    edit(path, "UPDATE tokens SET companions = '[' WHERE family = 'another'")
    edit(path, "CREATE TABLE x (y)")
    assert store.load("another") == SECOND
    assert opened().load("family") == FIRST
    assert path.with_name("pool.sqlite.damaged").exists()


def test_a_disk_that_damages_each_new_file_is_not_filled_with_them(
    path: Path, time: Time, opened: Callable[[], SqliteTokens]
) -> None:
    store = opened()
    refresh(store, time, WRITTEN, FIRST)
    for _ in range(MAX_ASIDES):
        edit(path, "UPDATE tokens SET companions = '['")
        assert store.load("family") == FIRST
    edit(path, "UPDATE tokens SET companions = '['")
    with pytest.raises(DamagedError):
        store.load("family")
    asides = {file.name.partition("-wal")[0] for file in path.parent.glob("*.damaged*")}
    assert len({name.partition("-shm")[0] for name in asides}) == MAX_ASIDES


def test_both_halves_go_on_where_one_of_them_finds_damage(path: Path) -> None:
    store = SqliteStore(path)
    tokens, state = store.tokens(), store.state()
    tokens.save("family", FIRST)
    state.close()
    assert store.put_aside() == f"{path}.damaged"
    store.state().close()
    assert tokens.load("family") == FIRST
    tokens.close()
    again = SqliteTokens(path)
    assert again.load("family") == FIRST
    again.close()


FULL = """
import resource
from pathlib import Path
from account_pool.core.credential import Secret
from account_pool.store.store import TableChanges
from account_pool.store.sqlite import SqliteStore
from account_pool.store.store import Tokens

path = Path({path!r})
store = SqliteStore(path)
tokens, state = store.tokens(), store.state()
def refresh(n):
    old, new = Secret(f"rt-{{n}}"), Tokens(access=None, refresh=Secret(f"rt-{{n + 1}}"))
    claim = tokens.claim("family", "me", token=old, is_over=True)
    assert tokens.sending("family", claim.fence, old)
    assert tokens.save("family", new, replaces=old, fence=claim.fence)
    tokens.release("family", claim.fence)
refresh(0)
limit = max(path.stat().st_size, Path(f"{{path}}-wal").stat().st_size)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for n in range(1, 1000):
    refresh(n)
    changes = TableChanges([(f"s-{{n % 10}}", "a/b", 1.0)])
    state.exchange((), wall_now=1.0, lines={{"sessions": changes}})
print(tokens.load("family").refresh.reveal(), limit)
"""


def test_logins_are_kept_on_a_full_disk(path: Path) -> None:
    """A limit on the size of files stops what needs more room, as a full disk does."""
    script = textwrap.dedent(FULL.format(path=str(path)))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": PACKAGE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("rt-1000 "), done.stderr


def test_the_file_has_room_for_more_logins(opened: Callable[[], SqliteTokens]) -> None:
    store = opened()
    with store._database.reading() as connection:
        [pages] = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
    for n in range(200):
        store.save(f"family-{n}", FIRST)
    assert store.load("family-199") == FIRST


@pytest.mark.parametrize("way", WAYS)
def test_what_is_got_meanwhile_is_stored(
    way: str, path: Path, time: Time, opened: Callable[[], SqliteTokens]
) -> None:
    """The file is taken away while a refresh is on its way, and nobody else may begin one."""
    store, other = opened(), opened()
    refresh(store, time, WRITTEN, FIRST)
    assert other.load("family") == FIRST
    backup = backup_of(path)
    claim = store.claim("family", "me", token=FIRST.refresh, is_over=True)
    assert isinstance(claim, Claim) and store.sending("family", claim.fence, FIRST.refresh)
    # The other has seen it.
    asked = {"token": FIRST.refresh, "is_over": True}
    assert isinstance(other.claim("family", "other", **asked), Taken)
    WAYS[way](path, backup)
    time.now += SETTLE_S + 1
    for _ in range(2):
        assert isinstance(other.claim("family", "other", **asked), Taken)
        time.now += SETTLE_S + 1
    assert store.save("family", SECOND, replaces=FIRST.refresh, fence=claim.fence)
    assert other.load("family") == opened().load("family") == SECOND


def test_who_knows_less_waits_until_the_others_have_written(
    path: Path, time: Time, opened: Callable[[], SqliteTokens]
) -> None:
    knows, idle = opened(), opened()
    refresh(knows, time, WRITTEN, FIRST)
    assert idle.load("family") == FIRST
    refresh(knows, time, FIRST.refresh, SECOND)
    path.unlink()
    assert isinstance(idle.claim("family", "b", token=FIRST.refresh, is_over=True), Taken)
    knows.keep()
    assert idle.load("family") == SECOND
    time.now += SETTLE_S
    refresh(idle, time, SECOND.refresh, Tokens(access=None, refresh=Secret("rt-3")))
    found = knows.load("family")
    assert found is not None and found.refresh == Secret("rt-3")


def test_a_number_is_never_given_twice(
    path: Path, time: Time, opened: Callable[[], SqliteTokens]
) -> None:
    store = opened()
    for n in range(3):
        refresh(store, time, Secret(f"rt-{n}"), Tokens(access=None, refresh=Secret(f"rt-{n + 1}")))
    path.unlink()
    store.keep()
    time.now += SETTLE_S
    claim = store.claim("family", "me", token=Secret("rt-3"), is_over=True)
    assert isinstance(claim, Claim) and claim.fence == 4


def test_who_has_only_read_gives_no_number_twice(
    path: Path, time: Time, opened: Callable[[], SqliteTokens]
) -> None:
    """Who made the claims has ended, and its row of the last one is lost with the file."""
    ended, reads = opened(), opened()
    for n in range(3):
        refresh(ended, time, Secret(f"rt-{n}"), Tokens(access=None, refresh=Secret(f"rt-{n + 1}")))
    assert reads.load("family") == Tokens(access=None, refresh=Secret("rt-3"))
    path.unlink()
    reads.keep()
    time.now += SETTLE_S
    # Stores the tokens, or fails.
    refresh(reads, time, Secret("rt-3"), Tokens(access=None, refresh=Secret("rt-4")))
    assert opened().load("family") == Tokens(access=None, refresh=Secret("rt-4"))


def test_letting_go_of_the_old_file_spoils_nothing_of_the_new(path: Path) -> None:
    """To close the last connection to a file deletes the log that has its name."""
    script = f"""
        from pathlib import Path
        from account_pool.core.credential import Secret
        from account_pool.store.sqlite import SqliteStore
        from account_pool.store.store import Tokens
        path = Path({str(path)!r})
        store = SqliteStore(path)
        tokens, state = store.tokens(), store.state()
        tokens.save("family", Tokens(access=None, refresh=Secret("rt-1")))
        path.unlink()
        tokens.keep()
        log = Path(str(path) + "-wal").stat().st_ino
        state.close()
        assert Path(str(path) + "-wal").stat().st_ino == log
        tokens.keep()
        assert Path(str(path) + "-wal").stat().st_ino == log
        del state
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": PACKAGE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    store = SqliteTokens(path)
    assert store.load("family") == Tokens(access=None, refresh=Secret("rt-1"))
    store.close()


def in_another_process(path: Path, then: str) -> None:
    """Run *then* where `store` is what is at *path*, and `tokens` are FIRST."""
    script = f"""
        from pathlib import Path
        from account_pool.core.credential import Secret
        from account_pool.store.sqlite import SqliteTokens
        from account_pool.store.store import Tokens
        tokens = Tokens(access=Secret("at-1"), refresh=Secret("rt-1"), expires_at=2001.0)
        store = SqliteTokens(Path({str(path)!r}))
        {then}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": PACKAGE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("goes", [SqliteTokens.keep, SqliteTokens.close], ids=["stays", "ends"])
def test_its_log_is_not_taken_for_a_part_of_what_replaced_it(
    goes: Callable[[SqliteTokens], None], path: Path
) -> None:
    other = path.with_name("other")
    in_another_process(other, "[store.save(str(n), tokens) for n in range(500)]; store.close()")
    store = SqliteTokens(path)
    store.save("family", FIRST)
    other.replace(path)
    goes(store)
    here = "assert store.load('499') == tokens; store.close()"
    in_another_process(path, here)
    if goes is SqliteTokens.keep:
        store.close()


def test_what_another_wrote_beside_a_part_that_was_left_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the part cannot be copied: by name the log is that of the other."""
    database = Database(path)
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()
    in_another_process(path, "store.save('family', tokens); store.close()")
    monkeypatch.setattr(shutil, "copyfile", full)
    database.leave()
    in_another_process(path, "assert store.load('family') == tokens; store.close()")


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_was_left_is_not_used_again_whatever_comes_in_its_place(path: Path) -> None:
    """The number of a file is free for another when nobody has it open any more."""
    database = Database(path)
    names = [Path(f"{path}{suffix}") for suffix in ("", "-wal", "-shm")]
    for name in names:
        os.link(name, f"{name}.link")
    database.leave()
    for name in names:
        Path(f"{name}.link").replace(name)
    with pytest.raises(MovedError):
        database.check_place()


def test_nobody_else_can_read_the_copy_of_a_part(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link.sqlite"
    link.symlink_to(path)
    database = Database(link)
    before = path.stat().st_ino
    copy = shutil.copyfile

    def look_and_copy(there: Path, here: Path) -> None:
        assert here.stat().st_mode & 0o777 == 0o600
        copy(there, here)

    monkeypatch.setattr(shutil, "copyfile", look_and_copy)
    old = os.umask(0)
    database.leave()
    os.umask(old)
    assert link.is_symlink()
    assert path.stat().st_ino != before
    assert path.stat().st_mode & 0o777 == 0o600


def test_both_halves_go_on_in_the_file_a_link_leads_to(tmp_path: Path, path: Path) -> None:
    link = tmp_path / "link.sqlite"
    link.symlink_to(path)
    store = SqliteStore(link)
    tokens, state = store.tokens(), store.state()
    tokens.save("family", FIRST)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not Path(f"{link}-wal").exists()
    other = path.with_name("other.sqlite")
    link.unlink()
    link.symlink_to(other)
    with pytest.raises(MovedError, match="was moved, deleted or replaced"):
        state.changed(wall_now=1.0)
    state.close()
    state = store.state()
    state.exchange([AccountSnapshot(key=AccountKey("openai", "work"))], wall_now=1.0)
    assert tokens.load("family") == FIRST
    tokens.close()
    state.close()
    again = SqliteTokens(other)
    assert again.load("family") == FIRST
    again.close()
