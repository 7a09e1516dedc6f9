"""What a failover costs the pool: the same, however many models are on cooldown."""

from __future__ import annotations

from msgspec.structs import replace

from account_pool.core.headroom import Window
from account_pool.core.health import MAX_COOLDOWNS
from account_pool.core.lease import Lease
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.pool import Pool
from account_pool.core.state import MAX_RAMPS, RAMP_S, Ramp, Ramps
from tests.core.helpers import FACTS, OK, instructions, pool_of

LIMITED = Outcome(
    cls=OutcomeClass.RATE_LIMIT,
    scope=Scope.MODEL,
    replayable=True,
    signal="429",
    cooldown_s=600.0,
)


def observe(pool: Pool, lease: Lease, now: float) -> None:
    """Both windows of a model, one of which is over when the next response comes."""
    model = lease.facts.model
    windows = [
        Window("requests", 0.0, now, model, now + 60.0),
        Window("tokens", 0.5, now, model, now + 0.005),
    ]
    pool.observe_headroom(lease.key, windows, now=now, lease=lease)


def fail_over(pool: Pool, model: str, now: float) -> None:
    facts = replace(FACTS, model=model)
    refused = pool.acquire(facts, now=now)
    observe(pool, refused, now)
    pool.release(refused, LIMITED, now=now)
    served = pool.acquire(facts, now=now, avoid=(refused.key,))
    observe(pool, served, now)
    pool.answered(served, now=now)
    pool.release(served, OK, now=now)


def cost_of_next(models: int) -> int:
    """Return what the failover after those of so many *models* costs."""
    pool = pool_of("one", "two")
    for number in range(models):
        fail_over(pool, f"model-{number}", number * 0.01)
    return instructions(lambda: fail_over(pool, "next", models * 0.01))


def test_a_failover_costs_the_same_with_few_models_on_cooldown_and_with_many() -> None:
    assert cost_of_next(MAX_COOLDOWNS - 8) <= cost_of_next(8) * 1.1


def test_one_more_model_than_are_remembered_costs_no_look_at_all_of_them() -> None:
    assert cost_of_next(MAX_COOLDOWNS + 8) <= cost_of_next(8) * 1.2


def test_so_many_models_at_once_that_all_still_ramp_up_cost_no_look_at_all_of_them() -> None:
    assert cost_of_next(4 * MAX_RAMPS) <= cost_of_next(MAX_COOLDOWNS + 8) * 1.1


def test_ramps_behind_those_that_are_held_back_are_forgotten() -> None:
    ramps = Ramps()
    ramps.hold("held")
    ramps.hold("held too")
    for number in range(MAX_RAMPS):
        ramps.put_last(f"model-{number}", Ramp.after_switch(0.0))
    for _ in range(3):
        ramps.drop_over(RAMP_S)
    assert [*ramps] == ["held", "held too"]
