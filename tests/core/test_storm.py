"""The table of docs/storms.md, in small: a fleet for some minutes."""

from __future__ import annotations

from benchmarks.storm.__main__ import WAYS, run

FLEET = {"seed": 3, "agents": 100, "seconds": 300.0}


def test_the_pool_burns_fewer_refusals_and_moves_less_than_naive_ways() -> None:
    (pooled, refused), *naive = (
        run(WAYS[name], **FLEET)
        for name in (
            "this pool, round-robin",
            "round-robin, no memory",
            "next account on every 429",
        )
    )
    for tally, refusals in naive:
        assert refused / pooled.served < 0.2 * refusals / tally.served
        assert pooled.moves / pooled.conversations < 0.5 * tally.moves / tally.conversations
    assert pooled.told == 0


def test_the_same_seed_gives_the_same_table() -> None:
    once, again = (run(WAYS["this pool, fill-first"], **FLEET) for _ in range(2))
    assert once == again
