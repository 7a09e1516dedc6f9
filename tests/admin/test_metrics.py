"""What Prometheus reads."""

from __future__ import annotations

import math
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from account_pool.admin import metrics
from account_pool.core.account import AccountKey
from account_pool.core.decisions import By, Decision, Kind
from account_pool.core.headroom import Window
from account_pool.core.instruments import DecisionCounter
from account_pool.core.outcome import Outcome, OutcomeClass, Scope
from account_pool.core.usage import Usage
from tests.proxy.helpers import FakeClock, account, service_of

ONE = AccountKey("openai", "one")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def service(clock):
    return service_of("one", account("off", enabled=False), clock=clock)


def read(service, counter=None) -> dict[tuple[str, ...], float]:
    """Scrape; return values by name and label values, in the order of the labels' names."""
    text = metrics.written(list(metrics.read(service, counter or DecisionCounter()))).decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_metric_has_a_type_and_a_help(service):
    text = metrics.written(list(metrics.read(service, DecisionCounter()))).decode()
    for family in text_string_to_metric_families(text):
        assert family.name.startswith(("account_pool_", "process_"))
        assert family.documentation.endswith(".") or family.name.startswith("process_")
        assert family.type in ("counter", "gauge", "histogram")


def test_accounts(service, clock):
    limit = Outcome(cls=OutcomeClass.RATE_LIMIT, scope=Scope.ACCOUNT, cooldown_s=60, signal="429")
    service.pool.health.mark_cooldown(ONE, limit, now=clock.now())
    found = read(service)
    assert found["account_pool_account_state", "openai/one", "cooling"] == 1
    assert found["account_pool_account_state", "openai/one", "available"] == 0
    assert found["account_pool_account_state", "openai/off", "off"] == 1
    assert found["account_pool_cooling", "openai/one"] == 1
    assert found["account_pool_cooldown_remaining_seconds", "openai/one"] == 60
    assert found["account_pool_cooldown_remaining_seconds", "openai/off"] == 0
    assert found["account_pool_in_flight", "openai/one"] == 0
    clock.advance(61)
    assert read(service)["account_pool_cooling", "openai/one"] == 0


def test_what_was_counted(service):
    service.measured.requests["openai", "served"] += 3
    service.measured.attempts["openai/one", "rate_limit"] += 2
    service.measured.failovers["openai"] += 1
    usage = Usage(input_tokens=100, cached_tokens=40, output_tokens=7, reasoning_tokens=5)
    service.usages.count(ONE, "gpt-5", usage, 0.0)
    found = read(service)
    assert found["account_pool_requests_total", "openai", "served"] == 3
    assert found["account_pool_attempts_total", "openai/one", "rate_limit"] == 2
    assert found["account_pool_failovers_total", "openai"] == 1
    assert found["account_pool_served_total", "openai/one", "gpt-5"] == 1
    tokens = {k[2]: v for k, v in found.items() if k[0] == "account_pool_tokens_total"}
    assert tokens == {"input": 100, "cached": 40, "output": 7, "reasoning": 5}


def test_histograms_are_cumulative(service):
    for value in (0.00005, 0.0002, 0.3, 99.0):
        service.measured.timings["openai"].overhead.observe(value)
    found = {k[1]: v for k, v in read(service).items() if k[0].endswith("overhead_seconds_bucket")}
    buckets = list(found.values())
    assert buckets == sorted(buckets)
    assert (found["0.0001"], found["0.00025"], found["0.5"], found["+Inf"]) == (1, 2, 3, 4)
    names = {k[0]: v for k, v in read(service).items() if k[0].endswith(("_count", "_sum"))}
    assert names["account_pool_overhead_seconds_count"] == 4
    assert math.isclose(names["account_pool_overhead_seconds_sum"], 99.30025)


def test_models_that_clients_make_up_are_bounded(service):
    """The first keep their series; no counter ever falls."""
    before = {}
    for number in range(3 * metrics.MAX_MODELS):
        service.usages.count(ONE, f'made "up" {number}\n', None, 0.0)
        if number % 40 == 0 or number == 3 * metrics.MAX_MODELS - 1:
            found = {k: v for k, v in read(service).items() if k[0] == "account_pool_served_total"}
            assert all(found[key] >= value for key, value in before.items())
            before = found
    assert len(before) == metrics.MAX_MODELS + 1
    assert before["account_pool_served_total", "openai/one", "other"] == 2 * metrics.MAX_MODELS
    assert sum(before.values()) == 3 * metrics.MAX_MODELS


def test_headroom_names_models_up_to_a_bound(service, clock):
    state = service.pool.accounts.get(ONE)

    def window(share, name="tokens", model=None):
        return Window(name, share, clock.now(), model=model, reset_at=clock.now() + 60)

    models = [f"model-{number:03}" for number in range(metrics.MAX_MODELS + 2)]
    windows = [window(0.5 + n / 1000, model=model) for n, model in enumerate(models)]
    state.headroom = state.headroom.updated([window(0.25, "5h"), *windows], clock.now())
    service.usages.count(ONE, models[-1], Usage(1, 1, 1, 1), 0.0)
    left = {k[2:]: v for k, v in read(service).items() if k[0] == "account_pool_headroom_ratio"}
    assert len(left) == 1 + metrics.MAX_MODELS + 1
    assert left["", "5h"] == 0.25
    assert left[models[0], "tokens"] == 0.5
    # One that is served comes first; of the others together the least counts.
    assert left[models[-1], "tokens"] == 0.551
    assert left["other", "tokens"] == 0.549


def test_what_waits_and_a_state_in_memory(service):
    found = read(service)
    assert (found["account_pool_waiting",], found["account_pool_state_in_memory",]) == (0, 0)
    service.state_problem = lambda: "the disk is full"
    service._held[object()] = 0.0
    found = read(service)
    assert (found["account_pool_waiting",], found["account_pool_state_in_memory",]) == (1, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports it")
def test_figures_of_the_process(service):
    found = read(service)
    assert found["process_resident_memory_bytes",] > 1e6
    assert found["process_open_fds",] > 0


def test_decisions_count_once():
    counter = DecisionCounter()
    for number, kind in ((1, Kind.COOLDOWN), (2, Kind.MOVE), (1, Kind.COOLDOWN), (3, Kind.MOVE)):
        counter.note(Decision(kind=kind, at=0.0, by=By.ANSWER, provider="openai", number=number))
    found = read(service_of("one"), counter)
    assert found["account_pool_decisions_total", "cooldown", "openai"] == 1
    assert found["account_pool_decisions_total", "move", "openai"] == 2


def test_a_scrape_changes_nothing(service):
    first, second = read(service), read(service)
    for found in (first, second):
        for name in [name for name in found if name[0].startswith("process_")]:
            del found[name]
    assert second == first
    assert not service.measured.timings


def test_what_requests_cost_is_summed_over_days_and_bounded():
    sums = {
        ("2026-11-28", "openai/one", "gpt-5"): {"requests": 2, "cost_usd": 1.5},
        ("2026-11-29", "openai/one", "gpt-5"): {"cost_usd": 0.25, "premium_requests": 3},
        ("2026-11-29", "codex/plus", "gpt-5"): {"saved_usd": 4.0},
        ("2026-11-29", "openai/one", "-"): {"requests": 1},
    }
    more = {("2026-11-30", "openai/one", f"model-{n:03}"): {"cost_usd": 1.0} for n in range(60)}

    def found(sums):
        text = metrics.written(metrics.costs(sums)).decode()
        return {
            (sample.name, sample.labels["account"], sample.labels["model"]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    before = found(sums)
    assert before == {
        ("account_pool_cost_usd_total", "openai/one", "gpt-5"): 1.75,
        ("account_pool_saved_usd_total", "codex/plus", "gpt-5"): 4.0,
        ("account_pool_premium_requests_total", "openai/one", "gpt-5"): 3,
    }
    after = found(sums | more)
    assert after.items() >= before.items()
    assert len(after) == len(before) + metrics.MAX_MODELS - 2 + 1
