"""A store as a whole: its halves, and what becomes of a damaged file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.patience import PATIENCE_S

from account_pool.core.account import AccountKey
from account_pool.core.credential import Secret
from account_pool.core.snapshot import AccountSnapshot
from account_pool.store.sqlite import MemoryStore, SqliteStore
from account_pool.store.store import DamagedError, Store, StoreError, Tokens

WORK = AccountSnapshot(key=AccountKey("openai", "work"), served=3)
TOKENS = Tokens(access=None, refresh=Secret("rt-fake"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pool.sqlite"


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_its_halves_are_there_when_it_is_opened_again(kind: str, path: Path) -> None:
    store: Store = MemoryStore() if kind == "memory" else SqliteStore(path)
    for _ in range(2):
        state, tokens = store.state(), store.tokens()
        state.exchange([WORK], [WORK.key], wall_now=1.0)
        tokens.save("family", TOKENS)
        state.close()
        tokens.close()
    assert store.durable is (kind == "sqlite")
    assert store.tokens().load("family") == TOKENS
    assert store.state().exchange([], wall_now=1.0).wall_at == 1.0


def test_a_damaged_file_is_put_aside_once_by_whoever_is_first(path: Path) -> None:
    path.write_text("no database\n" * 1000)
    stores = [SqliteStore(path), SqliteStore(path)]
    for store in stores:
        with pytest.raises(DamagedError, match="is not a database; keep it"):
            store.state()
    assert stores[0].put_aside() == f"{path}.damaged"
    stores[0].state().close()
    assert stores[1].put_aside() is None, "that is the new one"
    stores[1].state().close()
    assert [p.name for p in sorted(path.parent.glob("*.damaged*"))] == ["pool.sqlite.damaged"]


def test_a_file_that_keeps_logins_stays_where_others_write_them(path: Path) -> None:
    SqliteStore(path).tokens().save("family", TOKENS)
    store = SqliteStore(path)
    store.state()
    with pytest.raises(DamagedError, match="holds logins; stop every proxy"):
        store.put_aside()
    assert path.exists()


def test_a_directory_that_cannot_be_written_is_said(path: Path, monkeypatch) -> None:
    store = SqliteStore(path)
    store.state().close()

    def forbidden(_self: Path, _target: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", forbidden)
    with pytest.raises(StoreError, match=r"cannot be renamed \(permission denied\); move it"):
        store.put_aside()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_a_disk_that_is_full_is_said_and_spoils_nothing(path: Path) -> None:
    """A limit on the size of files stops every write, as a full disk does."""
    script = f"""
import resource
from pathlib import Path
from account_pool.core.account import AccountKey
from account_pool.store.store import StoreError, TableChanges
from account_pool.store.sqlite import SqliteStore

state = SqliteStore(Path({str(path)!r})).state()
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
for number in range(10_000):
    row = (f"conversation-{{number:0100}}", "openai/work", 1.0)
    try:
        state.exchange((), wall_now=1.0, lines={{"sessions": TableChanges([row])}})
    except StoreError as error:
        print(number, error)
        break
"""
    addon = Path(__file__).parents[2] / "addon"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=addon,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    written, _, said = done.stdout.partition(" ")
    assert "cannot be" in said, done.stderr
    state = SqliteStore(path).state()
    assert len(state.read_table("sessions")) == int(written) > 0
    state.close()
