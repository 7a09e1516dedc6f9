"""The table of docs/storms.md, in small: a fleet for some minutes."""

from __future__ import annotations

from benchmarks.storm.__main__ import WAYS, run, spread

from account_pool.core import selection

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


def test_proxies_that_tell_each_other_burn_fewer_refusals_than_those_that_do_not() -> None:
    burnt: list[float] = []
    for told_after_s in (None, 1.0, 0.02):
        tally, refusals = run(spread("fill-first", 4, told_after_s), 1, 200, 600.0)
        burnt.append(refusals / tally.served)
    assert burnt == sorted(burnt, reverse=True)
    assert burnt[-1] < 0.6 * burnt[0]


def test_one_proxy_of_one_is_the_pool() -> None:
    assert run(spread("round-robin", 1, 0.02), **FLEET) == run(
        WAYS["this pool, round-robin"], **FLEET
    )


def test_four_proxies_burn_as_few_refusals_as_one_as_they_return_to_accounts_together(
    monkeypatch,
) -> None:
    # Where few requests are on an account at once, hardly any is refused either way.
    monkeypatch.setattr(selection, "MOST_AT_ONCE", 1_000)

    def burnt(count: int, *, permits: bool = True) -> float:
        way = spread("fill-first", count, 0.02, permits=permits)
        runs = [run(way, seed, 100, 300.0) for seed in range(1, 7)]
        return sum(refusals for _, refusals in runs) / sum(tally.served for tally, _ in runs)

    assert burnt(4) <= 1.1 * burnt(1) < burnt(4, permits=False)
