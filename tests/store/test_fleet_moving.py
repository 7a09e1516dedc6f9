"""A move from a file to an engine loses no login, and spends no token twice."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.patience import PATIENCE_S
from tests.store.places import OTHER_KEY, ROT, SOME, FleetPlace, claim
from tests.store.servers import Server, new_pool

from account_pool.core.claims import Claim, Taken
from account_pool.core.credential import Secret
from account_pool.store.fleet.fleet_store import FleetStore, MovingTokens
from account_pool.store.machine import Process
from account_pool.store.pool_state import parse
from account_pool.store.sqlite import SqliteStore, SqliteTokens
from account_pool.store.store import StoreError, Tokens, TokenStore

NEXT = Tokens(access=Secret("at-2"), refresh=Secret("rt-2"))
ENGINE = "engine:6379 (pool team)"


def refresh(store: TokenStore, old: Secret, tokens: Tokens, family: str = "family") -> int:
    asked = store.claim(family, "me", token=old, is_over=True)
    assert isinstance(asked, Claim) and store.sending(family, asked.fence, old)
    assert store.save(family, tokens, replaces=old, fence=asked.fence)
    store.release(family, asked.fence)
    return asked.fence


@dataclass
class Move:
    """A file with a login that was refreshed, and an engine that knows none."""

    fleet: FleetPlace
    path: Path
    told: list[str] = field(default_factory=list)
    fence: int = 0

    def __post_init__(self) -> None:
        with self.file() as tokens:
            self.fence = refresh(tokens, ROT, SOME)

    def open(self, path: Path | None = None, engine: str = ENGINE) -> MovingTokens:
        return MovingTokens(self.fleet.open(), path or self.path, engine, self.told.append)

    def file(self) -> contextlib.closing[SqliteTokens]:
        return contextlib.closing(SqliteTokens(self.path))

    def in_engine(self, family: str = "family") -> Tokens | None:
        return self.fleet.open().load(family)


@pytest.fixture
def move(fleet: FleetPlace, tmp_path: Path) -> Move:
    return Move(fleet, tmp_path / "account-pool.sqlite")


def why(store: TokenStore, family: str = "family") -> str:
    with pytest.raises(StoreError) as caught:
        claim(store, family, "me")
    return str(caught.value)


class TestWhatIsTakenOver:
    def test_the_newest_tokens_at_the_start_in_one_line(self, move: Move) -> None:
        with move.file() as tokens:
            refresh(tokens, Secret("rt-9"), NEXT, "second")
        store = move.open()
        store.keep()
        assert (move.in_engine(), move.in_engine("second")) == (SOME, NEXT)
        assert move.told == [
            f"2 logins were taken over from {move.path} into the state engine "
            f"{ENGINE}; the file keeps its copies, which are not refreshed any more"
        ]
        move.open().keep()
        assert len(move.told) == 1
        kept = b"".join(move.fleet.client.get(name) or b"" for name in move.fleet.keys("*"))
        assert b"rt-1" not in kept

    def test_a_login_that_is_asked_for_first(self, move: Move) -> None:
        assert move.open().load("family") == SOME == move.in_engine()
        assert len(move.told) == 1 and "1 login was taken over" in move.told[0]

    def test_afterwards_it_does_not_wait_for_others_that_are_moved(self, move: Move) -> None:
        store = move.open()
        assert store.load("family") == SOME

        def is_asked_for() -> None:
            loaded.append(store.load("family"))

        loaded: list[Tokens | None] = []
        with store._lock:  # another one takes its time
            thread = threading.Thread(target=is_asked_for, daemon=True)
            thread.start()
            thread.join(PATIENCE_S)
            assert loaded == [SOME]

    def test_the_next_refresh_has_a_larger_fence(self, move: Move) -> None:
        store = move.open()
        store.load("family")
        assert refresh(store, SOME.refresh, NEXT) > move.fence
        assert move.in_engine() == NEXT

    def test_a_token_that_was_sent_and_not_answered_is_not_sent_again(self, move: Move) -> None:
        with move.file() as tokens:
            asked = tokens.claim("family", "me", token=SOME.refresh, is_over=True)
            assert isinstance(asked, Claim) and tokens.sending("family", asked.fence, SOME.refresh)
            tokens.release("family", asked.fence, unknown=True)
        store = move.open()
        store.keep()
        asked = store.claim("family", "me", token=SOME.refresh, is_over=False)
        assert asked == Taken(0.0, True)

    def test_never_in_place_of_what_the_engine_has(self, move: Move) -> None:
        refresh(move.fleet.open(), ROT, NEXT)
        store = move.open()
        store.keep()
        assert store.load("family") == NEXT == move.in_engine()
        assert move.told == []
        # The file would send a token that may be spent.
        with move.file() as tokens:
            assert "are in the state engine" in why(tokens)

    def test_a_login_that_was_written_down_anew_is_none_of_the_file(self, move: Move) -> None:
        store = move.open()
        assert store.load("another") is None
        assert isinstance(claim(store, "another", "me"), Claim)

    def test_without_a_file_there_is_nothing_to_do_and_none_is_made(
        self, move: Move, tmp_path: Path
    ) -> None:
        store = move.open(tmp_path / "none.sqlite")
        store.keep()
        assert store.load("family") is None
        assert isinstance(claim(store, "family", "me"), Claim)
        assert not (tmp_path / "none.sqlite").exists()


class TestOthers:
    def test_a_claim_in_the_engine_is_respected(self, move: Move) -> None:
        other = move.fleet.open()
        theirs = claim(other, "family", "they")
        assert isinstance(theirs, Claim)
        store = move.open()
        store.keep()
        assert move.in_engine() is None and move.told == []
        # The access token serves meanwhile, and nobody else refreshes.
        assert store.load("family") == SOME
        assert why(store) == "its login is being refreshed by another proxy"
        other.release("family", theirs.fence)
        assert store.load("family") == SOME == move.in_engine()
        ours = claim(store, "family", "me")
        assert isinstance(ours, Claim) and ours.fence > theirs.fence

    def test_what_they_got_meanwhile_stays(self, move: Move) -> None:
        other = move.fleet.open()
        theirs = claim(other, "family", "they")
        assert isinstance(theirs, Claim)
        store = move.open()
        store.keep()
        assert other.save("family", NEXT, replaces=ROT, fence=theirs.fence)
        other.release("family", theirs.fence)
        assert store.load("family") == NEXT == move.in_engine()

    def test_of_two_proxies_with_the_file_one_moves_it(self, move: Move) -> None:
        first, second = move.open(), move.open()
        first.keep()
        refresh(first, SOME.refresh, NEXT)
        second.keep()
        assert second.load("family") == NEXT
        assert len(move.told) == 1

    def test_a_proxy_that_runs_with_the_file_is_left_alone(
        self, move: Move, caplog: pytest.LogCaptureFixture
    ) -> None:
        running = SqliteStore(move.path).state()
        now = running.now()
        running.beat({}, wall_now=time.time() if now is None else now)
        store = move.open()
        for _ in range(2):
            store.keep()
            assert store.load("family") == SOME
            assert why(store) == (
                f"another proxy runs with the state database {move.path}, so its logins are not "
                "taken over, nor refreshed here; stop that proxy"
            )
        assert move.in_engine() is None and move.told == []
        assert caplog.text.count("another proxy runs with") == 1
        with move.file() as tokens:
            assert isinstance(claim(tokens, "family", "me"), Claim)
            tokens.release("family", move.fence + 1)
        running.close()
        assert isinstance(claim(store, "family", "me"), Claim)
        assert move.in_engine() == SOME and len(move.told) == 1

    def test_a_claim_in_the_file_is_respected(self, move: Move) -> None:
        with move.file() as tokens:
            asked = claim(tokens, "family", Process.this().owner("1"))
            assert isinstance(asked, Claim)
            store = move.open()
            assert store.load("family") == SOME and "another proxy runs with" in why(store)
            assert tokens.save("family", NEXT, replaces=SOME.refresh, fence=asked.fence)
            tokens.release("family", asked.fence)
        assert store.load("family") == NEXT == move.in_engine()


class TestWhatIsInTheWay:
    def test_an_engine_that_is_away(self, move: Move, tmp_path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            store = move.open()

            def fail(*_args: object, **_how: object) -> None:
                raise StoreError("the engine is away")

            patch.setattr(move.fleet.engines[-1], "call", fail)
            with pytest.raises(StoreError, match="away"):
                store.keep()
            assert store.load("family") == SOME
            assert why(store) == "the engine is away"
            # Nothing is noted: the file can be used again.
            with move.file() as tokens:
                asked = claim(tokens, "family", "me")
                assert isinstance(asked, Claim)
                tokens.release("family", asked.fence)
        assert isinstance(claim(store, "family", "me"), Claim)
        assert move.in_engine() == SOME and len(move.told) == 1

    @pytest.mark.parametrize("is_damaged", [True, False])
    def test_a_file_that_cannot_be_used_is_told_and_stays(
        self, move: Move, tmp_path: Path, is_damaged: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "damaged.sqlite"
        path.write_bytes(b"no database, but long enough to be looked at" * 9)
        if not is_damaged:
            path.unlink()
            path.mkdir()
        refresh(move.fleet.open(), ROT, SOME, "known")
        store = move.open(path)
        store.keep()
        assert f"the state database {path} " in caplog.text
        # It may have newer tokens than those that are written down.
        assert store.load("family") is None
        assert f"the state database {path} " in why(store)
        assert store.load("known") == SOME
        assert isinstance(claim(store, "known", "me"), Claim)
        assert caplog.text.count("the state database") == 1
        path.rename(tmp_path / "aside")
        assert isinstance(claim(store, "family", "me"), Claim)

    def test_one_damaged_row_is_told_and_the_others_are_moved(
        self, move: Move, caplog: pytest.LogCaptureFixture
    ) -> None:
        with move.file() as tokens:
            refresh(tokens, Secret("rt-9"), NEXT, "second")
            with tokens._database.writing() as connection:
                connection.execute("UPDATE tokens SET companions = '[' WHERE family = 'family'")
        store = move.open()
        store.keep()
        assert move.in_engine("second") == NEXT and "is damaged" in caplog.text
        assert store.load("family") is None and "is damaged" in why(store)

    def test_another_sealing_key(self, move: Move) -> None:
        move.open(move.path.with_name("none")).load("family")
        other = MovingTokens(move.fleet.open(key=OTHER_KEY), move.path, ENGINE, move.told.append)
        assert other.load("family") == SOME and "sealing key" in why(other)
        move.open().keep()
        assert move.in_engine() == SOME

    def test_without_a_sealing_key_the_file_is_not_touched(
        self, server: Server, move: Move
    ) -> None:
        address = parse(server.url(new_pool()))
        with pytest.raises(StoreError, match="sealing_key"):
            FleetStore(address, move.path.parent, before=move.path).tokens()
        with move.file() as tokens:
            assert isinstance(claim(tokens, "family", "me"), Claim)


class TestGoingBack:
    def test_the_file_says_so_and_sends_no_spent_token(
        self, move: Move, caplog: pytest.LogCaptureFixture
    ) -> None:
        move.open().keep()
        text = (
            f"the newest tokens of logins in {move.path} are in the state engine {ENGINE}, so they "
            "are not refreshed here; set pool_state to its URL again, or log in again"
        )
        caplog.set_level(logging.WARNING)
        with move.file() as tokens:
            for _ in range(2):
                # An access token serves as long as it lasts.
                assert tokens.load("family") == SOME
                assert why(tokens) == text
            assert caplog.messages == [f"account-pool: {text}"]
            assert isinstance(claim(tokens, "written down anew", "me"), Claim)

    def test_nor_does_a_file_that_has_replaced_it(self, move: Move) -> None:
        move.open().keep()
        with move.file() as tokens:
            tokens.load("family")
            move.path.write_bytes(b"no database")
            for name in ("-wal", "-shm"):
                move.path.with_name(f"{move.path.name}{name}").unlink(missing_ok=True)
            assert "are in the state engine" in why(tokens)
            move.path.unlink()
            assert tokens.load("family") == SOME
            assert "are in the state engine" in why(tokens)
        with move.file() as tokens:
            assert "are in the state engine" in why(tokens)

    def test_nor_does_a_third_place(self, move: Move) -> None:
        move.open().keep()
        move.fleet.client.flushdb()
        third = move.open(engine="third:6379 (pool team)")
        assert third.load("family") == SOME
        assert f"are in the state engine {ENGINE}" in why(third)

    def test_and_forth_is_as_before(self, move: Move) -> None:
        store = move.open()
        store.keep()
        refresh(store, SOME.refresh, NEXT)
        with move.file() as tokens:
            tokens.load("family")
        again = move.open()
        again.keep()
        assert again.load("family") == NEXT and len(move.told) == 1
