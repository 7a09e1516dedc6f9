"""What Prometheus reads, made anew for each scrape from what is counted anyway.

Labels are what the owner wrote (providers, accounts) and closed sets; of the models, which
clients name, only the first MAX_MODELS count by themselves. A scrape reads, and changes
nothing: the request path does not know of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from account_pool import __version__
from account_pool.admin.actions import PoolService
from account_pool.admin.views import Clocks, Sums, headroom_view, verdict_of
from account_pool.core.fleet import ProxyState, ProxyView
from account_pool.core.instruments import DecisionCounter, Histogram, Timings
from account_pool.core.usage import OTHER, Tally

if TYPE_CHECKING:
    from account_pool.core.state import AccountState

#: The text format that every Prometheus reads.
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Models that have series of their own, over all accounts: each has one for every account.
MAX_MODELS = 50
#: Proxies that have series of their own.
MAX_PROXIES = 64
#: What an account can be, as `/account-pool` says it.
STATES = ("available", "full", "cooling", "disabled", "off", "no_credential")
_KINDS = ("input", "cached", "output", "reasoning")

Labels = tuple[str, ...]
#: Values by labels.
Values = Iterable[tuple[Labels, float]]
_Family = type[CounterMetricFamily] | type[GaugeMetricFamily]


#: Histograms of `Timings`, by their names there: the name of the metric, and its help.
_TIMINGS = {
    "head": ("account_pool_upstream_head_seconds",
        "From a request sent upstream to the head of its answer."),
    "first_byte": ("account_pool_upstream_first_byte_seconds",
        "From a request sent upstream to the first byte of its answer's body."),
    "overhead": ("account_pool_overhead_seconds",
        "What the pool adds to a request before it is sent, without waits and connecting."),
    "held": ("account_pool_held_seconds", "How long the head of a good answer is held back."),
    "wait": ("account_pool_wait_seconds", "How long requests wait for an account."),
}  # fmt: skip


def written(families: list[Metric]) -> bytes:
    """Return *families* in Prometheus' text format. Takes long with thousands of accounts."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Read(families))
    return generate_latest(registry)


class _Read:
    """A collector of what is read already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def read(service: PoolService, decision_counter: DecisionCounter) -> tuple[Metric, ...]:
    """Return every metric as it is now."""
    measured, totals = service.measured, service.usages.totals
    states, now, lag = list(service.pool.accounts), service.now(), service.measured.lag
    return (
        GaugeMetricFamily("account_pool_up", "1 while the proxy answers.", value=1),
        _gauge("account_pool_build_info", "The running version.", ("version",),
            [((__version__,), 1)]),
        _counter("account_pool_requests",
            "Finished requests of the pool, by what their client got.", ("provider", "result"),
            measured.requests.items()),
        _counter("account_pool_attempts", "Requests sent upstream, by what became of them.",
            ("account", "outcome"), measured.attempts.items()),
        _counter("account_pool_failovers", "Requests that went on to another account.",
            ("provider",), [((provider,), n) for provider, n in measured.failovers.items()]),
        _counter("account_pool_decisions",
            "Cooldowns, releases, moves, waits and refusals, by kind.", ("provider", "kind"),
            decision_counter.counts.items()),
        *_timings(measured.timings),
        *_served(totals),
        *_accounts(states, now),
        _headroom(states, Clocks(now, service.wall_now()), totals),
        *_resets(service.resets.totals),
        GaugeMetricFamily("account_pool_sessions", "Conversations that are known.",
            value=len(service.sessions)),
        GaugeMetricFamily("account_pool_waiting", "Requests held for an account.",
            value=service.held()[0]),
        GaugeMetricFamily("account_pool_state_in_memory",
            "1 while what is learnt is kept in memory only.",
            value=float(service.state_problem() is not None)),
        *_proxies(service.fleet.views()),
        HistogramMetricFamily("account_pool_state_lag_seconds",
            "How long ago other proxies have written what is read here.",
            buckets=_buckets(lag), sum_value=lag.sum),
        # Of this process, as every program names them; only Linux reports them.
        *ProcessCollector(registry=None).collect(),
    )  # fmt: skip


def _proxies(views: Sequence[ProxyView]) -> tuple[Metric, ...]:
    """Who shares the state; names of hosts come and go, so there is a bound."""
    counts = Counter(view.state for view in views)
    # Those that are gone come last.
    named = views[:MAX_PROXIES]
    alive = (ProxyState.RUNNING, ProxyState.STOPPING)
    return (
        _gauge("account_pool_proxies",
            "Proxies that share the state, this one too, by what they do.", ("state",),
            [((state.value,), counts[state]) for state in ProxyState]),
        # Of each once, whatever they are called: else Prometheus takes nothing of it all.
        _gauge("account_pool_proxy_info", "1 for each of them that runs, with its versions.",
            ("proxy", "version", "mitmproxy"),
            {(v.name, v.version, v.mitmproxy): 1.0 for v in named if v.state in alive}.items()),
        _gauge("account_pool_proxy_heartbeat_age_seconds",
            "Time since the last heartbeat of each; those that have gone for ten minutes.",
            ("proxy",),
            {(v.name,): v.seen_s for v in reversed(named) if v.seen_s is not None}.items()),
    )  # fmt: skip


def _timings(timings: Mapping[str, Timings]) -> Iterator[Metric]:
    for name, (metric, about) in _TIMINGS.items():
        family = HistogramMetricFamily(metric, about, labels=("provider",))
        for provider, measured in list(timings.items()):
            histogram: Histogram = getattr(measured, name)
            family.add_metric((provider,), _buckets(histogram), histogram.sum)
        yield family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*map(str, histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))


def _served(totals: Mapping[tuple[str, str], Tally]) -> tuple[Metric, ...]:
    """Requests and tokens; the models first seen by name, so that no counter ever falls."""
    named = set(list(dict.fromkeys(model for _, model in totals))[:MAX_MODELS])
    served: Counter[Labels] = Counter()
    tokens: Counter[Labels] = Counter()
    for (account, model), tally in totals.items():
        labels = (account, model if model in named else OTHER)
        served[labels] += tally.requests
        for kind in _KINDS:
            tokens[(*labels, kind)] += getattr(tally, f"{kind}_tokens")
    return (
        _counter("account_pool_served", "Requests that were answered.", ("account", "model"),
            served.items()),
        _counter("account_pool_tokens",
            "Tokens as the providers count them; cached ones are part of the input, "
            "reasoning is part of the output.", ("account", "model", "kind"), tokens.items()),
    )  # fmt: skip


#: What requests cost, by the amount that is counted: the name of the metric, and its help.
_COSTS = {
    "cost_usd": ("account_pool_cost_usd", "What requests cost, in US dollars."),
    "saved_usd": (
        "account_pool_saved_usd",
        "What requests would have cost that a subscription has paid for, in US dollars.",
    ),
    "premium_requests": ("account_pool_premium_requests", "Premium requests of Copilot."),
}


def costs(sums: Sums) -> list[Metric]:
    """Return what the usage in *sums* cost, by account and model, over restarts.

    The models that came first by name, as above.
    """
    named = set(list(dict.fromkeys(model for _day, _account, model in sorted(sums)))[:MAX_MODELS])
    found: dict[str, Counter[Labels]] = {name: Counter() for name in _COSTS}
    for (_day, account, model), amounts in sums.items():
        for name, of_name in found.items():
            if amount := amounts.get(name):
                of_name[account, model if model in named else OTHER] += amount  # type: ignore[assignment]
    return [
        _counter(metric, about, ("account", "model"), found[name].items())
        for name, (metric, about) in _COSTS.items()
    ]


def _remaining(state: AccountState, now: float) -> float:
    return max((c.until - now for c in state.holds() if c.active(now)), default=0.0)


#: Of each account, at a monotonic instant: the kind of metric, its name, its help, its value.
_OF_ACCOUNT: tuple[tuple[_Family, str, str, Callable[[AccountState, float], float]], ...] = (
    (GaugeMetricFamily, "account_pool_in_flight", "Requests in flight.",
        lambda state, _: state.in_flight),
    (GaugeMetricFamily, "account_pool_in_flight_oldest_seconds",
        "Age of the oldest request in flight; 0 when there is none.",
        lambda state, now: now - min(state.running.values(), default=now)),
    (CounterMetricFamily, "account_pool_departures",
        "Clients that left before the first byte of an answer.",
        lambda state, _: state.departures),
    (CounterMetricFamily, "account_pool_broken",
        "Requests whose connection broke before the first byte of an answer.",
        lambda state, _: state.broken),
    (GaugeMetricFamily, "account_pool_cooling",
        "1 while an account, or a model of it, is on cooldown.",
        lambda state, now: float(_remaining(state, now) > 0)),
    (GaugeMetricFamily, "account_pool_cooldown_remaining_seconds",
        "Time until the last cooldown of an account ends; 0 when none is active.",
        _remaining),
)  # fmt: skip


def _accounts(states: Sequence[AccountState], now: float) -> Iterator[Metric]:
    for kind, name, about, value in _OF_ACCOUNT:
        values = [((str(state.key),), value(state, now)) for state in states]
        yield _family(kind, name, about, ("account",), values)
    verdicts = [(str(state.key), verdict_of(state, now)[0]) for state in states]
    yield _gauge(
        "account_pool_account_state",
        "1 for the state an account is in.",
        ("account", "state"),
        [((key, state), float(state == is_in)) for key, is_in in verdicts for state in STATES],
    )


def _resets(totals: Mapping[tuple[str, str], tuple[int, float]]) -> tuple[Metric, ...]:
    """What was not used of the long windows: the mean is the second by the first."""
    labels = ("account", "window")
    return (
        _counter("account_pool_window_resets", "Resets of windows longer than an hour.", labels,
            [(of, count) for of, (count, _left) in totals.items()]),
        _counter("account_pool_window_left_at_reset_ratio",
            "Shares of those windows that were left when they were reset, added up.", labels,
            [(of, left) for of, (_count, left) in totals.items()]),
    )  # fmt: skip


def _headroom(
    states: Iterable[AccountState], clocks: Clocks, totals: Mapping[tuple[str, str], Tally]
) -> Metric:
    """What is left, with models that are served before those that are not, and a bound."""
    windows = [(str(state.key), w) for state in states for w in headroom_view(state, clocks)]
    served = dict.fromkeys(model for _, model in totals)
    models = {window["model"] for _, window in windows if window["model"] is not None}
    named = [model for model in served if model in models] + sorted(models - served.keys())
    labels = {None: "", **dict.fromkeys(models, OTHER)}
    labels |= {model: model for model in named[:MAX_MODELS]}
    values: dict[Labels, float] = {}
    for account, window in windows:
        of = account, window["window"], labels[window["model"]]
        values[of] = min(window["remaining"], values.get(of, 1.0))
    return _gauge(
        "account_pool_headroom_ratio",
        "Remaining share of an allowance, 0 to 1; no model: of the whole account.",
        ("account", "window", "model"),
        values.items(),
    )


def _family(kind: _Family, name: str, about: str, labels: Labels, values: Values) -> Metric:
    family = kind(name, about, labels=labels)
    for of, value in values:
        family.add_metric(of, value)
    return family


_gauge = partial(_family, GaugeMetricFamily)
_counter = partial(_family, CounterMetricFamily)
