"""The schemas of what is answered (JSON Schema 2020-12), for the description of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from account_pool.admin.metrics import STATES
from account_pool.core.outcome import OutcomeClass

Schema = Mapping[str, Any]


def _of(kind: str, about: str = "", **more: Any) -> Schema:
    """Return the schema of a *kind*; *about* is its description."""
    return {"type": kind, **more, **({"description": about} if about else {})}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(**members: Schema) -> Schema:
    """Return the schema of an object that has these members, always, and no others."""
    return {
        "type": "object",
        "properties": members,
        "required": list(members),
        "additionalProperties": False,
    }


def _list(of: Schema) -> Schema:
    return _of("array", items=of)


def _by_name(of: Schema) -> Schema:
    return _of("object", additionalProperties=of)


def _about(schema: Schema, about: str) -> Schema:
    return {**schema, "description": about}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_TEXT, _BOOL = _of("string"), _of("boolean")
_COUNT, _SECONDS = _of("integer", minimum=0), _of("number", minimum=0)
_INSTANT = _of("string", "UTC", format="date-time")
_DAY = _of("string", format="date")
_KEY = _of("string", "provider/label")
_ACCOUNTS_FILE = _or_null(_of("string", "path of the file the accounts are of; null: none"))
_AMOUNTS: Mapping[str, Schema] = {
    "requests": _COUNT,
    "input_tokens": _about(_COUNT, "cached ones included"),
    "cached_tokens": _COUNT,
    "output_tokens": _about(_COUNT, "reasoning included"),
    "reasoning_tokens": _COUNT,
}
_CAUSE: Mapping[str, Schema] = {
    "class": {"enum": [cls.value for cls in OutcomeClass]},
    "signal": _of("string", "the evidence in a few words"),
    "evidence": _about(_by_name(_TEXT), "the header values that show it"),
}

#: By name, in the order of the endpoints.
SCHEMAS: Mapping[str, Schema] = {
    "Error": _object(
        error=_object(code=_of("string", "for programs"), message=_of("string", "for people"))),
    "Summary": _object(
        total=_COUNT, available=_COUNT, cooling_down=_COUNT, disabled=_COUNT, in_flight=_COUNT),
    "Cooldown": _object(
        model=_or_null(_of("string", "a model or a glob; null: all")), **_CAUSE,
        since_at=_or_null(_INSTANT), until_at=_or_null(_INSTANT), remaining_s=_SECONDS,
        streak=_COUNT),
    "AskedLast": _object(
        model=_or_null(_of("string", "a model; null: all")), **_CAUSE,
        since_at=_or_null(_INSTANT), until_at=_or_null(_INSTANT), remaining_s=_SECONDS),
    "Headroom": _object(
        window=_of("string", "5h, 7d, tokens ..."), model=_or_null(_TEXT),
        remaining=_of("number", minimum=0, maximum=1),
        resets_at=_or_null(_INSTANT), resets_s=_or_null(_SECONDS)),
    "Account": _object(
        key=_KEY, provider=_TEXT, label=_TEXT,
        state={"enum": list(STATES)}, reason=_of("string", "empty while available"),
        in_flight=_COUNT, oldest_s=_or_null(_SECONDS),
        departures=_about(_COUNT, "clients that left before the first byte"),
        broken=_about(_COUNT, "connections that broke before the first byte"),
        served=_COUNT, sessions=_COUNT,
        priority=_of("integer"), weight=_of("integer", minimum=1),
        models=_list(_TEXT), reserve=_by_name(_of("number")),
        max_concurrent=_or_null(_of("integer", minimum=1)), min_interval_s=_SECONDS,
        placeholder=_of("string", "what flows show instead of the credential"),
        cooldowns=_list(_ref("Cooldown")),
        asked_last=_about(_list(_ref("AskedLast")),
            "refusals that may be its own fault: others are asked before it"),
        disabled=_or_null(_object(**_CAUSE, since_at=_or_null(_INSTANT))),
        problem=_or_null(_of("string", "what is wrong with its credential")),
        headroom=_list(_ref("Headroom")),
        usage=_about(_object(**_AMOUNTS), "today, UTC")),
    "Pool": _object(
        accounts_file=_ACCOUNTS_FILE, accounts=_list(_ref("Account")), summary=_ref("Summary"),
        providers=_by_name(_ref("Summary")),
        warnings=_about(_list(_TEXT),
            "what looks wrong with accounts.yaml, a credential or the clock, and stops nothing")),
    "OneProvider": _object(
        provider=_TEXT, accounts=_list(_ref("Account")), summary=_ref("Summary")),
    "OneAccount": _object(account=_ref("Account")),
    "Added": _object(
        account=_ref("Account"),
        written_to=_of("string", "the name of accounts.yaml, or `store`")),
    "Removed": _object(
        removed=_KEY,
        written_to=_or_null(_of("string",
            "where it was removed; null: nowhere, so it comes back when the proxy restarts or "
            "reloads its accounts"))),
    "Next": _object(next=_or_null(_KEY)),
    "Cleared": _object(cleared=_list(_ref("Cooldown")), account=_ref("Account")),
    "Revealed": _object(key=_KEY, credentials=_by_name(_TEXT)),
    "Decision": _object(
        number=_COUNT, kind=_TEXT, at=_INSTANT, by=_TEXT, provider=_TEXT,
        account=_or_null(_KEY), to=_or_null(_KEY), model=_or_null(_TEXT), scope=_or_null(_TEXT),
        signal=_or_null(_TEXT), unknown=_or_null(_BOOL), evidence=_by_name(_TEXT),
        reset_named=_or_null(_BOOL), reason=_or_null(_TEXT), effect=_or_null(_TEXT),
        covers=_or_null(_TEXT), until=_or_null(_INSTANT), told_s=_or_null(_SECONDS),
        session=_or_null(_of("string", "a hash")), ends=_or_null(_COUNT),
        ended_at=_or_null(_INSTANT), released_by=_or_null(_TEXT), waited_s=_or_null(_SECONDS),
        times=_COUNT, text=_of("string", "one line for people"), **{"class": _or_null(_TEXT)}),
    "Decisions": _object(
        decisions=_list(_ref("Decision")),
        next=_about(_COUNT, "pass it as ?since= in the next request")),
    "Session": _object(
        key=_TEXT, account=_KEY, used_at=_INSTANT, idle_s=_SECONDS,
        turns=_about(_COUNT, "requests in flight")),
    "Sessions": _object(
        sessions=_list(_ref("Session")), total=_about(_COUNT, "how many are known")),
    "Closed": _object(closed=_TEXT),
    "Usage": _object(
        days=_list(_object(day=_DAY, account=_KEY, model=_TEXT, **_AMOUNTS)),
        windows=_list(_object(
            day=_DAY, account=_KEY, window=_TEXT, resets=_COUNT,
            left=_of("number",
                "share that was left when the window was reset, 0 to 1: the mean of the day")))),
    "Health": _object(
        status={"const": "ok"}, version=_TEXT, uptime_s=_SECONDS,
        size=_about(_COUNT, "accounts"), busy=_about(_COUNT, "accounts with a request in flight"),
        pid=_COUNT, instance=_of("string", "of this run of the proxy"), ready=_BOOL,
        stopping=_about(_BOOL, "it was asked to end, and finishes what is in flight"),
        failed_tasks=_about(
            _list(_object(
                name=_TEXT, failures=_COUNT, error=_of("string", "the type of the last error"),
                running=_of("boolean", "it was begun again"))),
            "background tasks that have failed since the start"),
        state_problem=_or_null(_of("string", "why the state is kept in memory only")),
        accounts_file=_ACCOUNTS_FILE),
}  # fmt: skip
