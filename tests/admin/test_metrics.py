"""What Prometheus reads."""

from __future__ import annotations

import math
import sys

import pytest
from mitmproxy import version
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from account_pool import __version__
from account_pool.admin import metrics
from account_pool.core.account import AccountKey
from account_pool.core.decisions import By, Decision, Kind
from account_pool.core.fleet import AboutProxy, ProxyRow, ProxyState
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


def test_how_late_news_are(service):
    assert read(service)["account_pool_state_lag_seconds_count",] == 0
    for lag_s in (0.004, 0.7):
        service.measured.lag.observe(lag_s)
    found = read(service)
    assert found["account_pool_state_lag_seconds_bucket", "0.005"] == 1
    assert found["account_pool_state_lag_seconds_bucket", "1.0"] == 2
    assert found["account_pool_state_lag_seconds_sum",] == 0.704


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


def test_the_proxies_and_their_versions(service, clock):
    def row(name, **more):
        said = AboutProxy(name=name, instance=name, version="9.9", mitmproxy="12.3.1")
        return ProxyRow(proxy=name, about=said, **{"seen_s": 2.0, "is_running": True, **more})

    rows = [row("b:8080"), row("c:8080", is_running=False, seen_s=70.0), row("d:1", seen_s=None)]
    service.fleet.port = 8080
    service.fleet.heard(rows, clock.now())
    clock.advance(1)
    found, me = read(service), service.fleet.name
    assert {state: found["account_pool_proxies", state] for state in ProxyState} == {
        "running": 3, "stopping": 0, "gone": 1, "unknown": 0,
    }  # fmt: skip
    assert found["account_pool_proxy_info", "12.3.1", "b:8080", "9.9"] == 1
    assert found["account_pool_proxy_info", version.VERSION, me, __version__] == 1
    assert len([name for name in found if name[0] == "account_pool_proxy_info"]) == 3
    age = "account_pool_proxy_heartbeat_age_seconds"
    ages = {name[1]: found[name] for name in found if name[0] == age}
    assert ages == {me: 0.0, "b:8080": 3.0, "c:8080": 71.0}


def test_proxies_of_one_name_have_one_series(service, clock, monkeypatch):
    said = AboutProxy(name="box:8080", version="1.0", mitmproxy="12.3.1")
    rows = [ProxyRow(proxy=str(n), about=said, seen_s=float(n), is_running=True) for n in range(2)]
    service.fleet.heard(rows, clock.now())
    views = [replace(view, name="box:8080") for view in service.fleet.views()]
    monkeypatch.setattr(service.fleet, "views", lambda: views)
    text = metrics.written(list(metrics.read(service, DecisionCounter()))).decode()
    lines = [line for line in text.splitlines() if line.startswith("account_pool_proxy_")]
    series = [line.rpartition(" ")[0] for line in lines]
    assert len(series) == len(set(series)) == 3


def test_proxies_are_bounded_and_each_has_one_series(service, clock):
    # Containers may have one host name.
    said = [AboutProxy(name="box:8080", instance=str(n)) for n in range(100)]
    rows = [
        ProxyRow(proxy=str(n), about=one, seen_s=1.0, is_running=True) for n, one in enumerate(said)
    ]
    service.fleet.heard(rows, clock.now())
    text = metrics.written(list(metrics.read(service, DecisionCounter()))).decode()
    lines = [line for line in text.splitlines() if line.startswith("account_pool_proxy_info{")]
    assert len(lines) == len(set(lines)) == metrics.MAX_PROXIES
    assert read(service)["account_pool_proxies", "running"] == 101
