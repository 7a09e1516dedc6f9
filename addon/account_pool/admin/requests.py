"""What GET /requests, /requests/series and /usage answer about requests that have ended.

Usage has two sources: sums by day, which are kept for 400 days, and the rows, from which
everything else is summed up: by tool and hour, and between any two instants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from math import ceil
from typing import Any, Protocol

from account_pool.admin.actions import PoolService
from account_pool.admin.models import TOKENS, RequestsQuery, SeriesQuery, UsageQuery
from account_pool.admin.views import Json, Sums, day_of, iso, usage_view, with_costs
from account_pool.core.request_rows import RequestRow
from account_pool.store.store import (
    RequestAnswers,
    RequestBucket,
    RequestPage,
    RequestQuery,
    StateStore,
    StoreError,
)

#: Asks the state database; None: it cannot be used. Raises StoreError.
AskStore = Callable[[Callable[[StateStore], Any]], Awaitable[Any]]

DAY_S, MONTH_S = 86_400, 365.25 / 12 * 86_400
#: Buckets of a series at most; its steps are longer where there would be more.
MAX_BUCKETS = 2_000


class Known(Protocol):
    """What this proxy itself knows of requests, without the state database."""

    def counts(self, name: str) -> Sums: ...
    async def ask(self, question: Callable[[RequestAnswers], Any]) -> Any:
        """Return its answer. Raises StoreError."""


class Context(Protocol):
    """What is asked: see `routes.AdminContext`."""

    @property
    def service(self) -> PoolService: ...
    @property
    def ask_store(self) -> AskStore: ...
    @property
    def known(self) -> Callable[[], Known | None]: ...
    @property
    def counted(self) -> Callable[[str], Awaitable[Sums]]: ...


async def page(context: Context, asked: RequestsQuery) -> Json:
    """Return the rows that are asked for."""
    query = asked.which(
        status=asked.status, since=asked.since, before=asked.before, limit=asked.limit
    )
    found, problem = await _ask(context, lambda requests: requests.read(query))
    if problem and asked.since is not None:
        # What it knows may get other numbers in the database: it would come again.
        found = RequestPage([], asked.since)
    elif found is not None and asked.since is not None and found.last < asked.since:
        # Rows that have begun anew have smaller numbers.
        anew = query._replace(since=0)
        found, problem = await _ask(context, lambda requests: requests.read(anew))
    rows = [] if found is None else found.rows
    last = rows[-1][0] if len(rows) == asked.limit and asked.since is None else None
    # What was left out above *since* comes the next time.
    full = asked.since is not None and len(rows) == asked.limit
    return {
        "requests": [row_view(number, row) for number, row in rows],
        "next": 0 if found is None else rows[0][0] if full else found.last,
        "older": last,
        "kept_days": context.service.ended.kept_days,
        "problem": problem,
    }


def row_view(number: int, row: RequestRow) -> Json:
    """Return one row as JSON."""
    value = row._asdict()
    shown = {
        name: value[name]
        for name in RequestRow._fields
        if name not in ("wall_at", "counted", "covered") and not name.endswith("_tokens")
    }
    return {
        "number": number,
        "at": iso(row.wall_at),
        **shown,
        "tokens": {name: value[f"{name}_tokens"] for name in TOKENS},
        "saved": bool(row.covered),
    }


async def series(context: Context, asked: SeriesQuery) -> Json:
    """Return what requests were like in each step of time, steps without any included."""
    now = context.service.wall_now()
    step = asked.step
    # Steps lie at the same instants, whenever it is asked.
    to_at = asked.to if asked.to is not None else (now // step + 1) * step
    from_at = asked.from_ if asked.from_ is not None else to_at - max(DAY_S, step)
    length_s = max(to_at - from_at, 0)
    step = max(step, ceil(length_s / MAX_BUCKETS))
    count = ceil(length_s / step)
    query = asked.which(status=asked.status)._replace(from_at=from_at, to_at=to_at)
    found, problem = await _ask(context, lambda requests: requests.series(query, step))
    by_step = {bucket.step: bucket for bucket in found or ()}
    buckets = [by_step.get(n) or RequestBucket(n, {}, None, None) for n in range(count)]
    return {
        "from": iso(from_at),
        "to": iso(to_at),
        "step_s": step,
        "buckets": [_bucket_view(bucket, from_at + bucket.step * step) for bucket in buckets],
        "problem": problem,
    }


_COUNTS = ("requests", "ok", "refused", "aborted", "failovers", "waited")


def _bucket_view(bucket: RequestBucket, at: float) -> Json:
    amounts = bucket.amounts
    return {
        "at": iso(at),
        **{name: int(amounts.get(name, 0)) for name in _COUNTS},
        "wait_s": round(amounts.get("wait_s", 0.0), 3),
        "tokens": {name: int(amounts.get(f"{name}_tokens", 0)) for name in TOKENS},
        "cost_usd": round(amounts.get("cost_usd", 0.0), 9),
        "saved_usd": round(amounts.get("saved_usd", 0.0), 9),
        "unpriced_requests": int(amounts.get("unpriced_requests", 0)),
        "duration_s": _middle(bucket.duration_s),
        "first_byte_s": _middle(bucket.first_byte_s),
    }


def _middle(value: tuple[float, float] | None) -> Json | None:
    return None if value is None else {"p50": value[0], "p95": value[1]}


# -- usage

#: What was counted, by day or hour, account, model and tool; "" where it is not known.
Counted = Mapping[tuple[str, ...], Mapping[str, float]]


async def usage(context: Context, asked: UsageQuery) -> Json:
    """Return what was served, as asked."""
    now = context.service.wall_now()
    from_at = asked.from_
    if from_at is None:
        from_at = (now // DAY_S - asked.days + 1) * DAY_S
    query = asked.which()._replace(from_at=from_at)
    counted, problem = await _counted(context, query, asked.group)
    sums, no_resets = await _sums(context, "resets")
    resets = _of_days(sums, query._replace(model=None, tool=None))
    by_day: dict[tuple[str, ...], Counter[str]] = {}
    for (at, account, model, _tool), amounts in counted.items():
        by_day.setdefault((at[:10], account, model), Counter()).update(amounts)
    group = asked.group
    return {
        **usage_view(by_day, resets),
        "group": group,
        "groups": [] if group is None else grouped(counted, group),
        "unpriced": _unpriced(by_day),
        "subscriptions": _subscriptions(context, by_day, query, now),
        "problem": problem or no_resets,
    }


def _unpriced(by_day: Sums) -> list[Json]:
    """Return the models of which no price is known, the most used first."""
    sums: dict[tuple[str, str], Counter[str]] = {}
    for (_day, account, model), amounts in by_day.items():
        key = account.partition("/")[0], model
        sums.setdefault(key, Counter()).update(amounts)
    rows = [
        {"provider": provider, "model": model, "requests": shown["unpriced_requests"]}
        for (provider, model), amounts in sums.items()
        if (shown := with_costs(amounts))["unpriced_requests"]
    ]
    return sorted(rows, key=lambda row: int(row["requests"]), reverse=True)


def _subscriptions(context: Context, by_day: Sums, query: RequestQuery, now: float) -> list[Json]:
    """Return what subscriptions have saved, and what they cost for that time."""
    prices = context.service.prices()
    saved: dict[str, float] = {}
    for (_day, account, _model), amounts in by_day.items():
        if prices.is_covered(account):
            saved[account] = saved.get(account, 0.0) + amounts.get("saved_usd", 0.0)
    months = (min(query.to_at or now, now) - (query.from_at or now)) / MONTH_S
    rows = []
    for account, saved_usd in sorted(saved.items()):
        monthly_usd = prices.monthly_usd(account)
        flat_usd = None if monthly_usd is None else round(monthly_usd * max(months, 0.0), 2)
        rows.append(
            {
                "account": account,
                "saved_usd": round(saved_usd, 9),
                "monthly_usd": monthly_usd,
                "flat_usd": flat_usd,
            }
        )
    return rows


async def _counted(
    context: Context, query: RequestQuery, group: str | None
) -> tuple[Counted, str | None]:
    whole_days = all(at is None or at % DAY_S == 0 for at in (query.from_at, query.to_at))
    if whole_days and query.tool is None and group not in ("hour", "tool"):
        sums, problem = await _sums(context, "usage")
        by_day = _of_days(sums, query)
        return {(*key, ""): amounts for key, amounts in by_day.items()}, problem
    by_hour = group == "hour"
    found, problem = await _ask(context, lambda requests: requests.sums(query, by_hour=by_hour))
    return {sums.key: sums.amounts for sums in found or ()}, problem


async def _sums(context: Context, name: str) -> tuple[Sums, str | None]:
    """Return the sums of a counter, and why only those that this proxy knows are among them."""
    try:
        return await context.counted(name), None
    except StoreError as error:
        known = context.known()
        return known.counts(name) if known else {}, str(error)


def _of_days(sums: Sums, query: RequestQuery) -> Sums:
    """Return those of *sums*, by day, account and model, that *query* asks for."""
    first, after = (None if at is None else day_of(at) for at in (query.from_at, query.to_at))
    return {
        key: amounts
        for key, amounts in sums.items()
        if (first is None or key[0] >= first)
        and (after is None or key[0] < after)
        and query.account in (None, key[1], key[1].partition("/")[0])
        and query.model in (None, key[2])
    }


_PLACES = {"day": 0, "hour": 0, "account": 1, "provider": 1, "model": 2, "tool": 3}


def grouped(counted: Counted, group: str) -> list[Json]:
    """Return the sums of *counted* by *group*: times newest first, all else by most tokens."""
    sums: dict[str, Counter[str]] = {}
    for key, amounts in counted.items():
        name = key[_PLACES[group]]
        if group == "provider":
            name = name.partition("/")[0]
        sums.setdefault(name, Counter()).update(amounts)

    def weight(name: str) -> tuple[float, float]:
        amounts = sums[name]
        return amounts["input_tokens"] + amounts["output_tokens"], amounts["requests"]

    is_time = _PLACES[group] == 0
    order = sorted(sums, key=None if is_time else weight, reverse=True)
    return [{group: name, **with_costs(sums[name])} for name in order]


# -- the store


async def _ask(
    context: Context, question: Callable[[RequestAnswers], Any]
) -> tuple[Any, str | None]:
    """Return the answer, None for none, and why it is only of what this proxy knows itself."""
    problem = None
    try:
        found = await context.ask_store(lambda store: question(store.requests))
    except StoreError as error:
        found, problem = None, str(error)
    if found is not None:
        return found, None
    if (known := context.known()) is not None:
        with suppress(StoreError):
            found = await known.ask(question)
    return found, problem or _problem(context)


def _problem(context: Context) -> str:
    """Return why the store cannot be asked."""
    if problem := context.service.state_problem():
        return problem
    has_store = context.service.fleet.kind is not None
    return "the state is being opened" if has_store else "the pool has no account yet"
