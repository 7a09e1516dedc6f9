"""One response for all workers: what each of them says, put together.

The worker that is asked asks the others the same, and merges what they respond. What it
changes, they change too, before it responds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from prometheus_client.core import Metric
from prometheus_client.samples import Sample

from account_pool.admin.http import ApiError
from account_pool.admin.views import Json
from account_pool.core.decision_history import ECHOES
from account_pool.core.decisions import By
from account_pool.core.sessions import session_of

if TYPE_CHECKING:
    from account_pool.admin.actions import Actions
    from account_pool.admin.routes import AdminContext

#: Kinds of metrics whose values add up, and gauges that do, or whose greatest counts. Of all
#: others each worker knows the same.
_SUMMED_KINDS = ("counter", "histogram")
_SUMMED = (
    "account_pool_in_flight",
    "account_pool_waiting",
    "process_virtual_memory_bytes",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_max_fds",
)
_GREATEST = (
    "account_pool_in_flight_oldest_seconds",
    "account_pool_state_in_memory",
    # Of several the one that was started last: a restart is seen, whoever answers.
    "process_start_time_seconds",
)
#: Merges what this worker responds and what others do, asked with a limit or without one.
Merge = Callable[[Json, list[Json], Any], Json]


# -- GET


def _health(mine: Json, others: list[Json], _asked: Any) -> Json:
    workers = sorted([mine, *others], key=lambda one: int(one["worker"]["number"]))
    busy = {account for one in workers for account in one["busy_accounts"]}
    tasks = [
        {**task, "name": f"worker {one['worker']['number']}: {task['name']}"}
        for one in workers
        for task in one["failed_tasks"]
    ]
    merged = {
        **mine,
        "busy": len(busy),
        "ready": any(one["ready"] for one in workers),
        "stopping": all(one["stopping"] for one in workers),
        "failed_tasks": tasks,
        "state_problem": _state_problem(workers),
        "notify": _targets([one["notify"] for one in workers]),
        "workers": [one["worker"] for one in workers],
    }
    return {key: value for key, value in merged.items() if key not in ("worker", "busy_accounts")}


def _state_problem(workers: Iterable[Json]) -> str | None:
    return next((p for one in workers if (p := one["state_problem"])), None)


def _targets(of_each: list[list[Json]]) -> list[Json]:
    """Merge where notifications go: the worker that has sent one knows whether it arrived."""
    return [
        {**same[0], "problem": next((p for one in same if (p := one["problem"])), None)}
        for same in zip(*of_each, strict=False)
    ]


def _accounts(mine: Json, others: list[Json], _asked: Any) -> Json:
    there = [{account["key"]: account for account in one["accounts"]} for one in others]
    accounts = [
        _account(account, [one[account["key"]] for one in there if account["key"] in one])
        for account in mine["accounts"]
    ]
    merged = {**mine, "accounts": accounts, "summary": _summary(mine["summary"], accounts)}
    if "state_problem" in mine:
        merged["state_problem"] = _state_problem([mine, *others])
    if "providers" in mine:
        merged["providers"] = {
            name: _summary(summary, [a for a in accounts if a["provider"] == name])
            for name, summary in mine["providers"].items()
        }
    return merged


def _account(mine: Json, others: list[Json]) -> Json:
    of_all = [mine, *others]
    sums = {
        name: sum(one[name] for one in of_all) for name in ("in_flight", "departures", "broken")
    }
    merged = {
        **mine,
        **sums,
        "oldest_s": max((s for one in of_all if (s := one["oldest_s"]) is not None), default=None),
    }
    # The worker that has asked last knows what came of it.
    asked = [look_up for one in of_all if (look_up := one["look_up"]) is not None]
    merged["look_up"] = min(asked, key=_age, default=None)
    limit = mine["max_concurrent"]
    if limit is not None and mine["state"] in ("available", "full"):
        # Each knows whether its own share is used up.
        is_full = sums["in_flight"] >= limit
        merged["state"] = "full" if is_full else "available"
        merged["reason"] = f"max_concurrent: {limit}" if is_full else ""
    return merged


def _age(look_up: Json) -> tuple[bool, float]:
    age_s = look_up["age_s"]
    return age_s is None, age_s or 0.0


def _summary(mine: Json, accounts: Iterable[Json]) -> Json:
    return {**mine, "in_flight": sum(account["in_flight"] for account in accounts)}


def _decisions(mine: Json, others: list[Json], asked: Any) -> Json:
    if not mine["alone"]:
        return mine  # all of them write into one log, and read it
    # Each says its own. What it has taken over, another says as well.
    rows = {row["id"]: row for one in (*others, mine) for row in one["decisions"]}
    origins = {row["id"]: row for row in rows.values() if row["by"] not in ECHOES} or rows
    latest = sorted(origins.values(), key=lambda row: str(row["at"]), reverse=True)
    return {**mine, "decisions": latest[: asked.limit]}


def _sessions(mine: Json, others: list[Json], asked: Any) -> Json:
    found: dict[str, Json] = {}
    for row in [row for one in (mine, *others) for row in one["sessions"]]:
        known = found.setdefault(row["key"], row)
        if known is not row:
            newer = min(known, row, key=lambda one: float(one["idle_s"]))
            found[row["key"]] = {**newer, "turns": known["turns"] + row["turns"]}
    rows = sorted(found.values(), key=lambda row: float(row["idle_s"]))
    return {"sessions": rows[: asked.limit], "total": max(one["total"] for one in (mine, *others))}


#: By the name of the endpoint. Others respond with what all workers know.
MERGED: Mapping[str, Merge] = {
    "health": _health,
    "accounts": _accounts,
    "accounts_of_provider": _accounts,
    "decisions": _decisions,
    "sessions": _sessions,
}


# -- POST


async def _remove(actions: Actions, asked: Any) -> None:
    await actions.read_again()
    actions.forget(actions.get(asked.provider, asked.label).key)


def _pin_session(actions: Actions, asked: Any) -> None:
    account = actions.get(asked.provider, asked.label).key
    # The other worker has checked the key; this one may not have heard of that conversation.
    if session := asked.session or session_of(asked.key, account.provider):
        actions.pin_session(asked.provider, asked.label, session=session)


#: What a worker does once another has done it, by the name of the endpoint.
FOLLOWED: Mapping[str, Callable[[Actions, Any], object]] = {
    "add": lambda actions, _: actions.read_again(),
    "remove": _remove,
    "next": lambda actions, asked: actions.next(asked.provider),
    "clear_cooldown": lambda actions, asked: actions.clear_cooldown(
        asked.provider, asked.label, By.PROXY
    ),
    "enable": lambda actions, asked: actions.enable(asked.provider, asked.label, By.PROXY),
    "disable": lambda actions, asked: actions.disable(asked.provider, asked.label, By.PROXY),
    "close_session": lambda actions, asked: actions.close_session(asked.key),
    "pin_session": _pin_session,
}


async def follow(name: str, context: AdminContext, asked: Any) -> Json:
    """Do what another worker has done at the endpoint *name*."""
    with suppress(ApiError):  # it is so already
        done = FOLLOWED[name](context.actions, asked)
        if isawaitable(done):
            await done
    return {}


# -- metrics


def values(families: Iterable[Metric]) -> Json:
    """Return what *families* say, to be merged by another worker.

    "sums" add up, over workers that have ended too; "now" are values of this moment.
    """
    found: Json = {"sums": {}, "now": {}}
    for family in families:
        which = "sums" if family.type in _SUMMED_KINDS else "now"
        if which == "sums" or family.name in _SUMMED + _GREATEST:
            for sample in family.samples:
                found[which][_key(family, sample)] = sample.value
    return found


def merge_metrics(families: Iterable[Metric], others: Iterable[Json]) -> list[Metric]:
    """Return *families* with what *others* (`values`) say added."""
    others, merged = list(others), []
    for family in families:
        greatest = family.name in _GREATEST
        which = "sums" if family.type in _SUMMED_KINDS else "now"
        more: dict[str, float] = {}
        for one in others:
            for key, value in one[which].items():
                if key.startswith(f'["{family.name}",'):
                    known = more.get(key, 0.0)
                    more[key] = max(known, value) if greatest else known + value
        samples = []
        for sample in family.samples:
            value = more.pop(_key(family, sample), 0.0)
            total = max(sample.value, value) if greatest else sample.value + value
            samples.append(sample._replace(value=total))
        for key, value in more.items():
            _, name, labels = json.loads(key)
            samples.append(Sample(name, labels, value))
        family.samples = samples
        merged.append(family)
    return merged


def _key(family: Metric, sample: Sample) -> str:
    return json.dumps([family.name, sample.name, sample.labels])
