"""The schemas of what is answered (JSON Schema 2020-12), for the description of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from account_pool.admin.metrics import STATES
from account_pool.core.outcome import OutcomeClass

Schema = Mapping[str, Any]

_TEXT: Schema = {"type": "string"}
_BOOL: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_SECONDS: Schema = {"type": "number", "minimum": 0}
_INSTANT: Schema = {"type": "string", "format": "date-time", "description": "UTC"}
_KEY: Schema = {"type": "string", "description": "provider/label"}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


_ACCOUNTS_FILE: Schema = _or_null(
    {"type": "string", "description": "path of the file the accounts are of; null: none"}
)


def _object(**members: Schema) -> Schema:
    """Return the schema of an object that has these members, always, and no others."""
    return {
        "type": "object",
        "properties": members,
        "required": list(members),
        "additionalProperties": False,
    }


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_AMOUNTS: Mapping[str, Schema] = {
    "requests": _COUNT,
    "input_tokens": {**_COUNT, "description": "cached ones included"},
    "cached_tokens": _COUNT,
    "output_tokens": {**_COUNT, "description": "reasoning included"},
    "reasoning_tokens": _COUNT,
}
_CAUSE: Mapping[str, Schema] = {
    "class": {"enum": [cls.value for cls in OutcomeClass]},
    "signal": {"type": "string", "description": "the evidence in a few words"},
    "evidence": {
        "type": "object",
        "additionalProperties": _TEXT,
        "description": "the header values that show it",
    },
}

#: By name, in the order of the endpoints.
SCHEMAS: Mapping[str, Schema] = {
    "Error": _object(
        error=_object(
            code={"type": "string", "description": "for programs"},
            message={"type": "string", "description": "for people"},
        )
    ),
    "Summary": _object(
        total=_COUNT,
        available=_COUNT,
        cooling_down=_COUNT,
        disabled=_COUNT,
        in_flight=_COUNT,
    ),
    "Cooldown": _object(
        model=_or_null({"type": "string", "description": "a model or a glob; null: all"}),
        **_CAUSE,
        since_at=_or_null(_INSTANT),
        until_at=_or_null(_INSTANT),
        remaining_s=_SECONDS,
        streak=_COUNT,
    ),
    "AskedLast": _object(
        model=_or_null({"type": "string", "description": "a model; null: all"}),
        **_CAUSE,
        since_at=_or_null(_INSTANT),
        until_at=_or_null(_INSTANT),
        remaining_s=_SECONDS,
    ),
    "Headroom": _object(
        window={"type": "string", "description": "5h, 7d, tokens ..."},
        model=_or_null(_TEXT),
        remaining={"type": "number", "minimum": 0, "maximum": 1},
        resets_at=_or_null(_INSTANT),
        resets_s=_or_null(_SECONDS),
    ),
    "Account": _object(
        key=_KEY,
        provider=_TEXT,
        label=_TEXT,
        state={"enum": list(STATES)},
        reason={"type": "string", "description": "empty while available"},
        in_flight=_COUNT,
        oldest_s=_or_null(_SECONDS),
        departures={**_COUNT, "description": "clients that left before the first byte"},
        broken={**_COUNT, "description": "connections that broke before the first byte"},
        served=_COUNT,
        sessions=_COUNT,
        priority={"type": "integer"},
        weight={"type": "integer", "minimum": 1},
        models=_list(_TEXT),
        reserve={"type": "object", "additionalProperties": {"type": "number"}},
        max_concurrent=_or_null({"type": "integer", "minimum": 1}),
        min_interval_s=_SECONDS,
        placeholder={"type": "string", "description": "what flows show instead of the credential"},
        cooldowns=_list(_ref("Cooldown")),
        asked_last={
            **_list(_ref("AskedLast")),
            "description": "refusals that may be its own fault: others are asked before it",
        },
        disabled=_or_null(_object(**_CAUSE, since_at=_or_null(_INSTANT))),
        problem=_or_null({"type": "string", "description": "what is wrong with its credential"}),
        headroom=_list(_ref("Headroom")),
        usage={**_object(**_AMOUNTS), "description": "today, UTC"},
    ),
    "Pool": _object(
        accounts_file=_ACCOUNTS_FILE,
        accounts=_list(_ref("Account")),
        summary=_ref("Summary"),
        providers={"type": "object", "additionalProperties": _ref("Summary")},
        warnings={
            **_list(_TEXT),
            "description": "what looks wrong with accounts.yaml, a credential or the clock, and "
            "stops nothing",
        },
    ),
    "OneProvider": _object(
        provider=_TEXT, accounts=_list(_ref("Account")), summary=_ref("Summary")
    ),
    "OneAccount": _object(account=_ref("Account")),
    "Added": _object(
        account=_ref("Account"),
        written_to={"type": "string", "description": "the name of accounts.yaml, or `store`"},
    ),
    "Removed": _object(
        removed=_KEY,
        written_to=_or_null(
            {
                "type": "string",
                "description": "where it was removed; null: nowhere, so it comes back when "
                "the proxy restarts or reloads its accounts",
            }
        ),
    ),
    "Next": _object(next=_or_null(_KEY)),
    "Cleared": _object(cleared=_list(_ref("Cooldown")), account=_ref("Account")),
    "Revealed": _object(key=_KEY, credentials={"type": "object", "additionalProperties": _TEXT}),
    "Decision": {
        **_object(
            number=_COUNT,
            kind=_TEXT,
            at=_INSTANT,
            by=_TEXT,
            provider=_TEXT,
            account=_or_null(_KEY),
            to=_or_null(_KEY),
            model=_or_null(_TEXT),
            scope=_or_null(_TEXT),
            signal=_or_null(_TEXT),
            unknown=_or_null(_BOOL),
            evidence={"type": "object", "additionalProperties": _TEXT},
            reset_named=_or_null(_BOOL),
            reason=_or_null(_TEXT),
            effect=_or_null(_TEXT),
            covers=_or_null(_TEXT),
            until=_or_null(_INSTANT),
            told_s=_or_null(_SECONDS),
            session=_or_null({"type": "string", "description": "a hash"}),
            ends=_or_null(_COUNT),
            ended_at=_or_null(_INSTANT),
            released_by=_or_null(_TEXT),
            waited_s=_or_null(_SECONDS),
            times=_COUNT,
            text={"type": "string", "description": "one line for people"},
            **{"class": _or_null(_TEXT)},
        ),
    },
    "Decisions": _object(
        decisions=_list(_ref("Decision")),
        next={**_COUNT, "description": "pass it as ?since= in the next request"},
    ),
    "Session": _object(
        key=_TEXT,
        account=_KEY,
        used_at=_INSTANT,
        idle_s=_SECONDS,
        turns={**_COUNT, "description": "requests in flight"},
    ),
    "Sessions": _object(
        sessions=_list(_ref("Session")), total={**_COUNT, "description": "how many are known"}
    ),
    "Closed": _object(closed=_TEXT),
    "Usage": _object(
        days=_list(
            _object(day={"type": "string", "format": "date"}, account=_KEY, model=_TEXT, **_AMOUNTS)
        ),
        windows=_list(
            _object(
                day={"type": "string", "format": "date"},
                account=_KEY,
                window=_TEXT,
                resets=_COUNT,
                left={
                    "type": "number",
                    "description": "share that was left when the window was reset, 0 to 1: the "
                    "mean of the day",
                },
            )
        ),
    ),
    "Health": _object(
        status={"const": "ok"},
        version=_TEXT,
        uptime_s=_SECONDS,
        size={**_COUNT, "description": "accounts"},
        busy={**_COUNT, "description": "accounts with a request in flight"},
        pid=_COUNT,
        instance={"type": "string", "description": "of this run of the proxy"},
        ready=_BOOL,
        stopping={**_BOOL, "description": "it was asked to end, and finishes what is in flight"},
        failed_tasks={
            "type": "array",
            "description": "background tasks that have failed since the start",
            "items": _object(
                name=_TEXT,
                failures=_COUNT,
                error={"type": "string", "description": "the type of the last error"},
                running={"type": "boolean", "description": "it was begun again"},
            ),
        },
        state_problem=_or_null(
            {"type": "string", "description": "why the state is kept in memory only"}
        ),
        accounts_file=_ACCOUNTS_FILE,
    ),
}
