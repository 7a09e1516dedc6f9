"""Tokens in a real engine: sealed, never lost, and never refreshed twice."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.patience import PATIENCE_S
from tests.store.places import KEY, OTHER_KEY, ROT, SOME, FleetPlace, claim
from tests.store.servers import StartServer

from account_pool.core.claims import Claim, Taken
from account_pool.core.credential import Secret
from account_pool.store.fleet.fleet_store import FleetStore
from account_pool.store.fleet.tokens import (
    DECISION_S,
    SETTLE_S,
    Entry,
    FleetTokens,
    Unsaved,
    settle_s,
)
from account_pool.store.pool_state import parse
from account_pool.store.store import DamagedError, FullError, KeptError, StoreError, Tokens

NEXT = Tokens(access=Secret("at-2"), refresh=Secret("rt-2"), expires_at=1800003600.0)


def refresh(store: FleetTokens, old: Secret, tokens: Tokens) -> int:
    """Do what a proxy does that refreshes a login; return the number of its claim."""
    asked = store.claim("family", "me", token=old, is_over=True)
    assert isinstance(asked, Claim) and store.sending("family", asked.fence, old)
    assert store.save("family", tokens, replaces=old, fence=asked.fence)
    store.release("family", asked.fence)
    return asked.fence


def secret_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*")) if folder.exists() else []


def until(is_true: Callable[[], bool]) -> None:
    over_at = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < over_at
        time.sleep(0.02)


class TestWhatIsSealed:
    def test_the_engine_and_the_disk_hold_no_token(self, fleet: FleetPlace) -> None:
        store = fleet.open()
        refresh(store, ROT, SOME)
        kept = b"".join(fleet.client.get(name) or b"" for name in fleet.keys("*family*"))
        assert kept and not any(secret in kept for secret in (b"at-1", b"rt-1", b"account_id"))
        assert secret_files(fleet.folder) == []

    def test_another_key_is_refused_by_name_and_writes_nothing(self, fleet: FleetPlace) -> None:
        refresh(fleet.open(), ROT, SOME)
        before = fleet.row("tokens:family")
        other = fleet.open(key=OTHER_KEY)
        for ask in (
            lambda: other.load("family"),
            lambda: other.load("new"),
            lambda: claim(other, "new", "me"),
            lambda: other.save("family", NEXT),
        ):
            with pytest.raises(StoreError) as caught:
                ask()
            assert str(caught.value).startswith(
                "the logins of this pool are sealed with the key 3e73f932, and this proxy was "
                "given 48212284; give it the sealing key that the other proxies have"
            )
        assert fleet.row("tokens:family") == before
        assert fleet.open().load("family") == SOME

    def test_a_key_is_changed_while_proxies_run(self, fleet: FleetPlace) -> None:
        old = fleet.open()
        refresh(old, ROT, SOME)
        both = Secret(f"{OTHER_KEY.reveal()}, {KEY.reveal()}")
        new = fleet.open(key=both)
        assert new.load("family") == SOME
        # No refresh is needed for that.
        assert fleet.open(key=OTHER_KEY).load("family") == SOME
        refresh(new, SOME.refresh, NEXT)
        with pytest.raises(StoreError, match="sealed with the key"):
            old.load("family")
        assert fleet.open(key=OTHER_KEY).load("family") == NEXT

    def test_tokens_of_one_login_are_none_of_another(self, fleet: FleetPlace) -> None:
        store = fleet.open()
        refresh(store, ROT, SOME)
        fleet.client.copy(fleet.key("tokens:family"), fleet.key("tokens:other"))
        with pytest.raises(DamagedError, match=r"tokens:other is damaged; delete it"):
            fleet.open().load("other")

    def test_an_older_row_that_is_put_back_is_noticed_by_who_knows_better(
        self, fleet: FleetPlace
    ) -> None:
        store = fleet.open()
        refresh(store, ROT, SOME)
        older = fleet.client.get(fleet.key("tokens:family"))
        refresh(store, SOME.refresh, NEXT)
        fleet.client.set(fleet.key("tokens:family"), older)
        assert store.load("family") == fleet.open().load("family") == NEXT

    @pytest.mark.parametrize("what", ["tokens", "claim"])
    @pytest.mark.parametrize(
        "wrong",
        [
            b"\xff",
            b"[",
            b"[]",
            b'{"fence": "x"}',
            b"{" * 9999,
            b'{"fence": 9, "owner": "", "until": NaN, "sent": ""}',
            b'{"fence": 9, "owner": "", "until": 1e999, "sent": ""}',
        ],
    )
    def test_a_damaged_row_is_named_or_made_anew(
        self, fleet: FleetPlace, what: str, wrong: bytes
    ) -> None:
        store = fleet.open()
        refresh(store, ROT, SOME)
        fleet.client.set(fleet.key(f"{what}:family"), wrong)
        with pytest.raises(DamagedError, match=f"{what}:family is damaged; delete it"):
            fleet.open().load("family")
        assert store.load("family") == fleet.open().load("family") == SOME

    def test_a_newer_version_is_told(self, fleet: FleetPlace) -> None:
        row = {"fence": 1, "sealed": "2:of:another form", "more": True}
        fleet.client.set(fleet.key("tokens:family"), json.dumps(row))
        with pytest.raises(StoreError, match="newer version of the account pool; upgrade"):
            fleet.open().load("family")


class TestAnEngineThatForgets:
    def test_all_is_put_back_by_who_knows_it(self, fleet: FleetPlace) -> None:
        store = fleet.open()
        fence = refresh(store, ROT, SOME)
        fleet.client.flushdb()
        store.keep()
        assert fleet.open().load("family") == SOME
        assert fleet.row("claim:family")["fence"] == fence

    def test_one_login_that_cannot_be_read_holds_no_other_up(self, fleet: FleetPlace) -> None:
        """Its newest tokens are on this disk, sealed with a key that is not here."""
        store = fleet.open()
        families = [f"family{n}" for n in range(9)]
        for family in families:
            store.save(family, SOME)
        sealed = fleet.open(key=OTHER_KEY)._rows.seal("family4", NEXT, 9)
        Unsaved(fleet.folder, fleet.pool).put("family4", 9, sealed, mark="a")
        fleet.client.flushdb()
        with pytest.raises(KeptError, match=r"sealed is sealed with the key 48212284"):
            store.keep()
        other = fleet.open(folder=fleet.folder / "elsewhere")
        found = [other.load(family) for family in families]
        assert found == [SOME] * 4 + [None] + [SOME] * 4

    def test_an_engine_that_begins_anew_all_the_time_is_not_asked_for_ever(
        self, fleet: FleetPlace
    ) -> None:
        """Several servers answer on one address, as it seems."""
        store = fleet.open()
        rows, runs = store._rows, count()
        read = rows.read_era
        rows.read_era = lambda: read()._replace(run=f"{next(runs):x}")
        with pytest.raises(KeptError, match="is busy"):
            store.keep()

    def test_many_threads_notice_it_at_once(self, fleet: FleetPlace) -> None:
        store = fleet.open()
        families = [f"family{n}" for n in range(40)]
        for family in families:
            store.save(family, SOME)
        with ThreadPoolExecutor(8) as threads:
            for _ in range(3):
                fleet.client.flushdb()
                assert list(threads.map(store.load, families)) == [SOME] * len(families)

    def test_they_are_put_back_with_the_rest_of_the_pool(
        self, fleet: FleetPlace, tmp_path: Path
    ) -> None:
        (tmp_path / "key").write_text(KEY.reveal())
        url = f"{fleet.server.url(fleet.pool)}&sealing_key=file:{tmp_path / 'key'}"
        pool = FleetStore(parse(url), tmp_path)
        tokens = pool.tokens()
        tokens.save("family", SOME)
        fleet.client.flushdb()
        pool.state()
        assert fleet.open().load("family") == SOME
        pool.engine.close()

    def test_who_knows_less_sends_nothing_before_all_could_write(self, fleet: FleetPlace) -> None:
        newest, older = fleet.open(), fleet.open()
        refresh(older, ROT, SOME)
        refresh(newest, SOME.refresh, NEXT)
        fleet.client.flushdb()
        asked = older.claim("family", "older", token=SOME.refresh, is_over=True)
        assert isinstance(asked, Taken) and 0 < asked.left_s <= SETTLE_S
        newest.keep()
        assert older.load("family") == NEXT
        fleet.passes(SETTLE_S)
        asked = older.claim("family", "older", token=NEXT.refresh, is_over=True)
        assert isinstance(asked, Claim)

    def test_whoever_refreshes_waits_for_the_slowest_of_all(self, fleet: FleetPlace) -> None:
        quick, slow = fleet.open(), fleet.open(url="redis://localhost/?timeout=60")
        assert isinstance(claim(quick, "one", "quick"), Claim)
        slow.keep()
        asked = claim(quick, "family", "quick")
        assert isinstance(asked, Taken) and asked.left_s > SETTLE_S
        fleet.passes(asked.left_s)
        assert isinstance(claim(quick, "family", "quick"), Claim)
        fleet.client.flushdb()
        asked = claim(quick, "other", "quick")
        assert isinstance(asked, Taken) and asked.left_s > SETTLE_S, "it knows of the slow one"

    def test_an_era_of_an_earlier_version_is_one(self, fleet: FleetPlace) -> None:
        row = fleet.row("era")
        assert row.pop("settle_s") == SETTLE_S
        fleet.client.set(fleet.key("era"), json.dumps(row))
        assert isinstance(claim(fleet.open(), "family", "me"), Claim)
        assert fleet.row("era") == {**row, "settle_s": SETTLE_S}

    def test_an_engine_that_took_over_without_the_last_writes(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        server = start_server("redis", "appendonly yes", "appendfsync always")
        fleet = FleetPlace(server, tmp_path / "unsaved")
        newest, older = fleet.open(), fleet.open()
        refresh(older, ROT, SOME)
        shutil.copytree(server.folder, tmp_path / "replica")
        refresh(newest, SOME.refresh, NEXT)
        server.kill()
        shutil.rmtree(server.folder)
        shutil.copytree(tmp_path / "replica", server.folder)
        server.start()
        # The first to ask knows no more than the engine does.
        assert isinstance(claim(fleet.open(), "family", "third"), Taken)
        newest.keep()
        assert fleet.open().load("family") == NEXT
        fleet.close()

    def test_a_replica_is_waited_for_where_there_is_one(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        server = start_server("valkey")
        fleet = FleetPlace(server, tmp_path)
        refresh(fleet.open(), ROT, SOME)
        assert "cmdstat_wait" not in server.ask("INFO", "commandstats")
        replica = start_server("valkey", f"replicaof 127.0.0.1 {server.port}")
        until(lambda: "state=online" in str(server.ask("INFO", "replication")))
        refresh(fleet.open(), SOME.refresh, NEXT)
        assert "cmdstat_wait" in server.ask("INFO", "commandstats")
        until(lambda: replica.ask("GET", fleet.key("tokens:family")) is not None)
        fleet.close()

    def test_a_claim_goes_on(self, fleet: FleetPlace) -> None:
        store = fleet.open()
        asked = claim(store, "family", "me")
        assert isinstance(asked, Claim)
        fleet.client.flushdb()
        assert store.sending("family", asked.fence, ROT)
        fleet.passes(SETTLE_S)
        assert isinstance(claim(fleet.open(), "family", "other"), Taken)
        assert store.save("family", SOME, replaces=ROT, fence=asked.fence)

    def test_functions_that_are_gone_are_loaded_again(self, fleet: FleetPlace) -> None:
        store = fleet.open()
        asked = claim(store, "family", "me")
        assert isinstance(asked, Claim)
        fleet.client.function_flush()
        assert store.sending("family", asked.fence, ROT)
        fleet.client.function_flush()
        assert store.save("family", SOME, replaces=ROT, fence=asked.fence)

    @pytest.mark.parametrize("kind", ["redis", "valkey"])
    def test_an_engine_that_begins_again_grants_nothing_at_first(
        self, kind: str, start_server: StartServer, tmp_path: Path
    ) -> None:
        """It may have lost its last writes, or be one that took over."""
        server = start_server(kind, "appendonly yes", "appendfsync always")
        fleet = FleetPlace(server, tmp_path)
        store = fleet.open()
        refresh(store, ROT, SOME)
        assert isinstance(claim(store, "other", "me"), Claim)
        server.kill()
        server.start()
        fresh = fleet.open()
        assert fresh.load("family") == SOME
        assert isinstance(claim(fresh, "third", "me"), Taken)
        fleet.passes(SETTLE_S)
        assert isinstance(claim(fresh, "third", "me"), Claim)
        fleet.close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://localhost/", 12.0),
        ("redis://localhost/?timeout=0.05", 12.0),
        ("redis://localhost/?timeout=2.25", 24.0),
        ("redis+cluster://localhost:1,localhost:2,localhost:3/", 15.0),
        ("redis+sentinel://localhost:1,localhost:2,localhost:3/?master=m", 16.5),
        ("redis://localhost/?password=file:x&sealing_key=command:slow", 12.0),
        ("redis://localhost/?password=command:slow", 42.0),
        (
            "redis+sentinel://localhost/?master=m&password=command:slow"
            "&sentinel_password=command:slow",
            13.5 + 60.0,
        ),
    ],
)
def test_how_long_a_proxy_takes_to_notice_is_by_its_url(url: str, expected: float) -> None:
    assert settle_s(parse(url)) == pytest.approx(expected)


class TestAnEngineThatIsAway:
    @pytest.fixture
    def away(self, start_server: StartServer, tmp_path: Path):
        server = start_server("valkey", "appendonly yes", "appendfsync always")
        place = FleetPlace(server, tmp_path / "unsaved")
        yield place
        place.close()

    def test_nothing_is_claimed_and_an_answer_is_kept(self, away: FleetPlace) -> None:
        store = away.open()
        asked = claim(store, "family", "me")
        assert isinstance(asked, Claim) and store.sending("family", asked.fence, ROT)
        away.server.kill()
        with pytest.raises(KeptError, match=r"refused.*new tokens are kept in"):
            store.save("family", SOME, replaces=ROT, fence=asked.fence)
        for _ in range(2):
            with pytest.raises(StoreError):
                store.save("family", SOME, replaces=ROT, fence=asked.fence)
            with pytest.raises(StoreError):
                claim(store, "family", "me")
        (file,) = secret_files(away.folder)
        if os.name == "posix":
            assert file.stat().st_mode & 0o777 == 0o600
            assert away.folder.stat().st_mode & 0o777 == 0o700
        assert b"rt-1" not in file.read_bytes()
        away.server.start()
        # Of all proxies that find it, one that was started meanwhile.
        assert away.open().load("family") == SOME
        assert secret_files(away.folder) == []
        assert away.row("claim:family")["sent"] == ""
        elsewhere = away.open(folder=away.folder / "elsewhere")
        assert elsewhere.load("family") == SOME

    def test_it_is_saved_although_nobody_asks_for_its_login(self, away: FleetPlace) -> None:
        store = away.open()
        asked = claim(store, "family", "me")
        assert isinstance(asked, Claim)
        away.server.kill()
        with pytest.raises(KeptError):
            store.save("family", SOME, replaces=ROT, fence=asked.fence)
        with pytest.raises(KeptError):
            store.keep()
        away.server.start()
        away.open().keep()
        assert secret_files(away.folder) == []
        assert away.open().load("family") == SOME

    def test_what_was_overtaken_is_dropped(self, away: FleetPlace) -> None:
        store, other = away.open(), away.open(folder=away.folder / "elsewhere")
        first = claim(store, "family", "me")
        assert isinstance(first, Claim)
        away.server.kill()
        with pytest.raises(KeptError):
            store.save("family", SOME, replaces=ROT, fence=first.fence)
        away.server.start()
        away.passes(SETTLE_S + 1000)
        other.keep()
        away.passes(SETTLE_S)
        refresh(other, ROT, NEXT)
        assert not away.open().save("family", SOME, replaces=ROT, fence=first.fence)
        assert away.open().load("family") == NEXT
        assert [f for f in secret_files(away.folder) if f.is_file()] == []

    def test_an_engine_that_hangs_is_not_waited_for(self, away: FleetPlace) -> None:
        asked = claim(away.open(), "family", "me")
        assert isinstance(asked, Claim)
        store = away.open(timeout_s=0.25)
        away.server.pause()
        try:
            with pytest.raises(KeptError, match="does not answer in time"):
                store.save("family", SOME, replaces=ROT, fence=asked.fence)
            assert len(secret_files(away.folder)) == 1
        finally:
            away.server.go_on()

    def test_without_a_disk_that_is_told_once_and_the_engine_has_it(
        self, fleet: FleetPlace, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").touch()
        store = fleet.open(folder=tmp_path / "file" / "below")
        refresh(store, ROT, SOME)
        refresh(store, SOME.refresh, NEXT)
        assert fleet.open().load("family") == NEXT
        (record,) = caplog.records
        assert "cannot be written (not a directory)" in record.getMessage()

    def test_a_file_that_nobody_wrote_is_left_alone(
        self, fleet: FleetPlace, caplog: pytest.LogCaptureFixture
    ) -> None:
        store = fleet.open()
        asked = claim(store, "family", "me")
        assert isinstance(asked, Claim)
        path = store._write_down("family", SOME, 7)
        assert path is not None
        whole = json.loads(path.read_text())
        path.write_text(json.dumps({**whole, "sealed": whole["sealed"][:-8] + "AAAAAAA="}))
        again = fleet.open()
        assert again.load("family") is None and again.load("family") is None
        assert path.exists() and len(caplog.records) == 1
        path.write_text("[" * 9999)
        assert again.load("family") is None and path.exists()


class TestMemoryThatIsFull:
    @pytest.mark.parametrize("kind", ["redis", "valkey"])
    def test_logins_are_written_all_the_same(
        self, kind: str, start_server: StartServer, tmp_path: Path
    ) -> None:
        server = start_server(kind, "maxmemory-policy noeviction")
        fleet = FleetPlace(server, tmp_path)
        store = fleet.open()
        store.keep()
        server.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(FullError):
            fleet.engines[-1].call("open", "1")
        refresh(store, ROT, SOME)
        assert fleet.open().load("family") == SOME
        fleet.close()


class TestOneAtATime:
    def test_clocks_of_proxies_that_are_a_minute_apart(self, fleet: FleetPlace) -> None:
        early, late = fleet.open(wall_ahead_s=-60.0), fleet.open(wall_ahead_s=60.0)
        early.save("family", SOME)
        assert SOME.expires_at is not None
        found = late.load("family")
        assert found is not None
        assert found.expires_at == pytest.approx(SOME.expires_at + 120, abs=1)
        assert late.load("family") == found
        first = claim(early, "family", "early")
        assert isinstance(first, Claim)
        assert isinstance(claim(late, "family", "late"), Taken)

    def test_who_was_stopped_past_its_claim_is_fenced(self, fleet: FleetPlace) -> None:
        stale, other = fleet.open(), fleet.open()
        first = claim(stale, "family", "stale")
        assert isinstance(first, Claim)
        fleet.passes(1000)
        refresh(other, ROT, SOME)
        assert not stale.sending("family", first.fence, ROT)
        assert not stale.save("family", NEXT, replaces=ROT, fence=first.fence)
        assert fleet.open().load("family") == SOME

    def test_a_decision_does_not_count_for_long(self, fleet: FleetPlace) -> None:
        """One who was stopped between reading and writing decides again."""
        store = fleet.open()
        asked = claim(store, "family", "me")
        assert isinstance(asked, Claim)
        found = store._look("family")
        old = replace(found, now=found.now - DECISION_S - 1)
        assert not store._swap("family", old, (SOME, 1), None)
        assert store._swap("family", found, (SOME, 1), None)

    def test_a_reply_that_was_lost(self, fleet: FleetPlace) -> None:
        store = fleet.open()
        asked = claim(store, "family", "me")
        assert isinstance(asked, Claim)
        for _ in range(2):
            assert store.save("family", SOME, replaces=ROT, fence=asked.fence)
        again = claim(store, "family", "me")
        assert isinstance(again, Claim) and again.fence > asked.fence

    def test_what_others_do_between_reading_and_writing_is_seen(self, fleet: FleetPlace) -> None:
        store, other = fleet.open(), fleet.open()
        swap, raced = store._swap, []

        def late(*args, **how):
            if not raced:
                raced.append(claim(other, "family", "other"))
            return swap(*args, **how)

        store._swap = late
        assert isinstance(claim(store, "family", "me"), Taken)
        assert isinstance(raced[0], Claim)

    def test_an_engine_that_answers_nonsense(self, fleet: FleetPlace) -> None:
        store = fleet.open()
        for nonsense in (None, [], [b"x", b"", 1, b"", b"", b""], [b"1", b"", 1], 7):
            store._rows._engine.call = lambda *_, nonsense=nonsense, **__: nonsense
            with pytest.raises(StoreError, match="an answer that none of our functions gives"):
                store.load("family")


# -- answers that the engine does not have yet, on the local disk, whoever was killed


@pytest.fixture
def unsaved(tmp_path: Path) -> Unsaved:
    return Unsaved(tmp_path, "pool")


def left(path: Path) -> Path:
    """Return *path* as a proxy leaves it that is killed before it has its name."""
    return path.rename(path.with_name(f"{path.stem}-{'0' * 32}.partial"))


def make_old(path: Path) -> None:
    os.utime(path, (0.0, 0.0))


@pytest.mark.parametrize("family", ["family", None])
def test_what_a_killed_proxy_has_written_whole_is_an_answer(unsaved: Unsaved, family) -> None:
    path = unsaved.put("family", 3, "sealed", mark="mark")
    partial = left(path)
    assert list(unsaved.entries(family)) == [], "it may be written now"
    make_old(partial)
    assert list(unsaved.entries(family)) == [Entry(path, "family", 3, "sealed")]
    assert list(unsaved.directory.iterdir()) == [path]


def test_what_it_has_not_is_removed(unsaved: Unsaved) -> None:
    partial = left(unsaved.put("family", 3, "sealed", mark="mark"))
    partial.write_text('{"family": "fam')
    make_old(partial)
    assert list(unsaved.entries("family")) == []
    assert list(unsaved.directory.iterdir()) == []


def test_what_is_not_of_this_pool_is_left(unsaved: Unsaved) -> None:
    others = left(Unsaved(unsaved.directory, "other").put("family", 3, "sealed", mark="mark"))
    make_old(others)
    assert list(unsaved.entries()) == []
    assert list(unsaved.directory.iterdir()) == [others]
