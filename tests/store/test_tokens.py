"""What every store promises of the tokens of logins: SQLite, in memory, Redis and Valkey."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.store.places import ROT, SOME, FleetPlace, Place, SqlitePlace, claim
from tests.store.servers import KINDS, Server

from account_pool.core.claims import CLAIM_S, SENT_S, Claim, Taken
from account_pool.core.credential import Secret
from account_pool.store.database import IN_MEMORY
from account_pool.store.store import Tokens, TokenStore


@pytest.fixture(params=["memory", "sqlite", *KINDS])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, shared_servers: Callable[[str], Server]
) -> Iterator[Place]:
    if request.param in KINDS:
        server = shared_servers(request.param)
        with contextlib.closing(FleetPlace(server, tmp_path / "unsaved")) as fleet:
            yield fleet
    else:
        yield SqlitePlace(IN_MEMORY if request.param == "memory" else tmp_path / "pool.sqlite")


@pytest.fixture
def store(place: Place) -> Iterator[TokenStore]:
    with contextlib.closing(place.open()) as store:
        yield store


class TestAllStores:
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

    def test_one_claim_at_a_time(self, store: TokenStore, place: Place) -> None:
        first = claim(store, "family", "a")
        assert isinstance(first, Claim)
        place.passes(CLAIM_S - 5)
        assert isinstance(claim(store, "family", "b"), Taken)
        assert isinstance(claim(store, "other", "b"), Claim)
        store.release("family", first.fence + 1)
        assert isinstance(claim(store, "family", "b"), Taken)
        store.release("family", first.fence)
        assert isinstance(claim(store, "family", "b"), Claim)

    def test_a_claim_ends_by_itself_and_is_longer_once_its_token_was_sent(
        self, store: TokenStore, place: Place
    ) -> None:
        first = claim(store, "family", "a")
        assert isinstance(first, Claim)
        assert store.sending("family", first.fence, ROT)
        place.passes(SENT_S - 5)
        assert claim(store, "family", "b") == Taken(pytest.approx(5, abs=5), True)
        place.passes(5)
        second = claim(store, "family", "b")
        assert isinstance(second, Claim) and second.fence > first.fence
        assert not store.sending("family", first.fence, ROT)

    def test_a_token_that_was_sent_waits_for_the_end_of_its_access_token(
        self, store: TokenStore
    ) -> None:
        first = claim(store, "family", "a")
        assert isinstance(first, Claim) and store.sending("family", first.fence, ROT)
        store.release("family", first.fence, unknown=True)
        assert claim(store, "family", "b", is_over=False) == Taken(0.0, True)
        assert isinstance(store.claim("family", "b", token=Secret("next"), is_over=False), Claim)

    def test_an_answer_ends_that(self, store: TokenStore) -> None:
        first = claim(store, "family", "a")
        assert isinstance(first, Claim) and store.sending("family", first.fence, ROT)
        assert store.save("family", SOME, replaces=ROT, fence=first.fence)
        store.release("family", first.fence)
        assert isinstance(claim(store, "family", "b", is_over=False), Claim)

    def test_who_was_overtaken_does_not_write_over_what_is_newer(self, store: TokenStore) -> None:
        """A server that does not rotate names the same refresh token each time."""
        older, newer = (
            Tokens(access=Secret(f"at-{n}"), refresh=ROT, expires_at=float(n)) for n in range(2)
        )
        assert store.save("family", newer, replaces=ROT, fence=2)
        assert not store.save("family", older, replaces=ROT, fence=1)
        assert store.load("family") == newer

    def test_an_answer_that_is_saved_again_is_saved(self, store: TokenStore) -> None:
        """Whoever was not told that it was repeats it."""
        for _ in range(2):
            assert store.save("family", SOME, replaces=Secret("rt-before"), fence=1)
        assert store.load("family") == SOME
