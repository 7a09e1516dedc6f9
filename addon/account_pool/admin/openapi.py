"""The description of the admin API (OpenAPI 3.1), made from the table of endpoints.

What may be sent is described by its models; what is answered stands here, in JSON Schema 2020-12.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from account_pool import __version__
from account_pool.admin.events import MEDIA_TYPE as EVENTS
from account_pool.admin.metrics import MEDIA_TYPE, STATES
from account_pool.admin.models import GROUPS, STATUSES, TOKENS
from account_pool.admin.routes import ENDPOINTS, Endpoint
from account_pool.core.fleet import ProxyState
from account_pool.core.outcome import OutcomeClass

# -- what is answered

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
_STATE_PROBLEM = _or_null(
    _of("string", "why the state is kept in memory only: of a fleet, this proxy is alone")
)
_AMOUNTS: Mapping[str, Schema] = {
    "requests": _COUNT,
    "input_tokens": _about(_COUNT, "cached ones included"),
    "cached_tokens": _COUNT,
    "output_tokens": _about(_COUNT, "reasoning included"),
    "reasoning_tokens": _COUNT,
    "cache_write_tokens": _about(_COUNT, "part of the input, where the provider tells"),
}
_NUMBER = _of("number")
_COSTS: Mapping[str, Schema] = {
    "cost_usd": _about(_or_null(_NUMBER), "null: no price is known, as for the other two"),
    "saved_usd": _about(_or_null(_NUMBER), "what subscriptions served, at list prices"),
    "premium_requests": _about(_or_null(_NUMBER), "of Copilot's allowance"),
    "unpriced_requests": _about(_COUNT, "of which no price is known"),
}
_MIDDLE = _or_null(_object(p50=_SECONDS, p95=_SECONDS))
_PARTIAL = _or_null(
    _of(
        "string",
        "why the state database cannot be asked: only what this proxy knows itself is there",
    )
)
_CAUSE: Mapping[str, Schema] = {
    "class": {"enum": [cls.value for cls in OutcomeClass]},
    "signal": _of("string", "the evidence in a few words"),
    "evidence": _about(_by_name(_TEXT), "the header values that show it"),
}

#: What is answered, by name, in the order of the endpoints.
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
        tightest=_about(_or_null(_ref("Headroom")),
            "the window with the least left; null: none is known"),
        look_up=_about(_or_null(_ref("LookUp")),
            "what came of asking its provider what is left; null: it was not asked"),
        usage=_about(_object(**_AMOUNTS), "today, UTC")),
    "Pool": _object(
        accounts_file=_ACCOUNTS_FILE, accounts=_list(_ref("Account")), summary=_ref("Summary"),
        providers=_by_name(_ref("Summary")),
        warnings=_about(_list(_TEXT),
            "what looks wrong with accounts.yaml, a credential or the clock, and stops nothing"),
        state_problem=_STATE_PROBLEM),
    "OneProvider": _object(
        provider=_TEXT, accounts=_list(_ref("Account")), summary=_ref("Summary")),
    "LookUp": _object(
        age_s=_or_null(_about(_SECONDS, "since the last answer; null: there was none")),
        problem=_or_null(_of("string", "why there was none the last time")),
        reset_credits=_or_null(_about(_COUNT, "resets that its owner may still use (Codex)"))),
    "Refreshed": _object(
        accounts=_list(_object(
            key=_KEY, headroom=_list(_ref("Headroom")), tightest=_or_null(_ref("Headroom")),
            look_up=_or_null(_ref("LookUp"))))),
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
    "Link": _object(
        url=_of("string", "opens the dashboard, logged in"), expires_in_s=_SECONDS),
    "Token": _object(token=_of("string", "the admin token")),
    "Decision": _object(
        number=_about(_COUNT, "grows; the same at all proxies"),
        id=_of("string", "the same however often it is returned"),
        proxy=_of("string", "the name of the proxy that decided it"),
        kind=_TEXT, at=_INSTANT, by=_TEXT, provider=_TEXT,
        account=_or_null(_KEY), to=_or_null(_KEY), model=_or_null(_TEXT), scope=_or_null(_TEXT),
        signal=_or_null(_TEXT), unknown=_or_null(_BOOL), evidence=_by_name(_TEXT),
        reset_named=_or_null(_BOOL), reason=_or_null(_TEXT), effect=_or_null(_TEXT),
        covers=_or_null(_TEXT), until=_or_null(_INSTANT), told_s=_or_null(_SECONDS),
        session=_or_null(_of("string", "a hash")), ends=_or_null(_COUNT),
        ended_at=_or_null(_INSTANT), released_by=_or_null(_TEXT), waited_s=_or_null(_SECONDS),
        times=_COUNT, text=_of("string", "one line for people"), **{"class": _or_null(_TEXT)}),
    "Decisions": _object(
        decisions=_list(_ref("Decision")),
        next=_about(_COUNT, "pass it as ?since= in the next request"),
        alone=_of("boolean",
            "the state database cannot be used: what others have decided since is missing")),
    "HeadroomDay": _object(
        every_s=_SECONDS,
        samples=_about(
            _list(_object(
                at=_INSTANT,
                left=_by_name(_of("number",
                    "by provider: the share its best account had left; 0: none could serve")))),
            "oldest first")),
    "Providers": _object(
        providers=_list(_object(
            name=_TEXT, hosts=_list(_TEXT),
            env=_about(_list(_TEXT), "variables that usually hold a credential"),
            companions=_about(_list(_TEXT), "keys of accounts.yaml beside the token"),
            login=_of("boolean", "POST /account-pool/add takes a login of it")))),
    "Session": _object(
        key=_TEXT, account=_KEY, used_at=_INSTANT, idle_s=_SECONDS,
        pinned=_of("boolean", "this account alone serves it"),
        session=_or_null(_of("string", "a hash, as in requests and decisions")),
        turns=_about(_COUNT, "requests in flight")),
    "Sessions": _object(
        sessions=_list(_ref("Session")), total=_about(_COUNT, "how many are known")),
    "Pinned": _object(key=_about(_TEXT, "as GET /sessions reports it"), account=_KEY),
    "Closed": _object(closed=_TEXT),
    "Usage": _object(
        days=_list(_object(day=_DAY, account=_KEY, model=_TEXT, **_AMOUNTS, **_COSTS)),
        group=_or_null(_about({"enum": list(GROUPS)}, "as asked")),
        groups=_about(
            _list(_of("object", "", required=[*_AMOUNTS, *_COSTS],
                properties={**_AMOUNTS, **_COSTS},
                additionalProperties=_TEXT)),
            "with `group`: the sums by it, under its name; days and hours newest first, all else "
            "by tokens"),
        unpriced=_about(
            _list(_object(provider=_TEXT, model=_TEXT, requests=_COUNT)),
            "models of which no price is known: `cost_usd` is without them"),
        subscriptions=_list(_object(
            account=_KEY, saved_usd=_about(_NUMBER, "at list prices"),
            monthly_usd=_or_null(_about(_NUMBER, "as written in accounts.yaml; null: it is not")),
            flat_usd=_or_null(_about(_NUMBER, "of that for the time that was asked for")))),
        problem=_PARTIAL,
        windows=_list(_object(
            day=_DAY, account=_KEY, window=_TEXT, resets=_COUNT,
            left=_of("number",
                "share that was left when the window was reset, 0 to 1: the mean of the day")))),
    "Request": _object(
        number=_about(_COUNT, "ascending in the order in which requests ended"),
        at=_about(_INSTANT, "when it was complete"), provider=_TEXT,
        account=_or_null(_about(_KEY, "who served it, or refused it last; null: none was asked")),
        model=_or_null(_TEXT), endpoint=_of("string", "its path without ids"),
        tool=_of("string", "by User-Agent, or the name given to proxyauth"),
        session=_or_null(_of("string", "a hash, as of decisions")),
        status={"enum": list(STATUSES)},
        http_status=_or_null(_of("integer",
            "of the response; 101: the handshake of a WebSocket, whose turns have null")),
        attempts=_COUNT, failovers=_COUNT, wait_s=_SECONDS,
        first_byte_s=_or_null(_about(_SECONDS, "null: there was no good answer")),
        duration_s=_SECONDS,
        tokens=_object(**{name: _or_null(_COUNT) for name in TOKENS}),
        cost_usd=_or_null(_of("number", "null: no price is known")),
        price=_or_null(_of("string",
            "where it is from: accounts.yaml, or the list; empty: none is known; null: not yet")),
        saved=_about(_BOOL, "a subscription has paid: `cost_usd` was saved"),
        premium_requests=_or_null(_of("number", "of Copilot's allowance"))),
    "Requests": _object(
        requests=_about(_list(_ref("Request")), "newest first"),
        next=_about(_COUNT, "pass it as ?since= in the next request"),
        older=_or_null(_of("integer", "pass it as ?before= for the next page; null: no more")),
        kept_days=_about(_COUNT, "pool_requests_kept"),
        problem=_PARTIAL),
    "Series": _object(
        **{"from": _INSTANT}, to=_INSTANT, step_s=_COUNT,
        buckets=_list(_object(
            at=_INSTANT, requests=_COUNT, ok=_COUNT, refused=_COUNT, aborted=_COUNT,
            failovers=_COUNT, waited=_about(_COUNT, "requests that were held"), wait_s=_SECONDS,
            tokens=_object(**dict.fromkeys(TOKENS, _COUNT)), cost_usd=_of("number"),
            saved_usd=_of("number"),
            unpriced_requests=_about(_COUNT, "answers of which no price is known (yet)"),
            duration_s=_about(_MIDDLE, "of good answers, null: there was none"),
            first_byte_s=_MIDDLE)),
        problem=_PARTIAL),
    "Proxy": _object(
        key=_of("string", "tells it from all others"),
        name=_of("string", "its host and port"),
        this=_about(_BOOL, "it is the one that answers"),
        state=_about({"enum": [state.value for state in ProxyState]},
            "gone: its heartbeat has stopped; unknown: the state database cannot be asked"),
        version=_of("string", "of the account pool; unknown where it does not say it"),
        mitmproxy=_of("string", "of mitmproxy"),
        started_at=_or_null(_INSTANT), started_s=_or_null(_about(_SECONDS, "since then")),
        seen_at=_or_null(_about(_INSTANT, "of its last heartbeat")),
        seen_s=_or_null(_about(_SECONDS, "since then")),
        in_flight=_about(_COUNT, "requests in flight, as it reported them last"),
        workers=_about(_COUNT, "processes that serve for it"),
        problem=_or_null(_of("string", "what keeps it from working as it should")),
        same_accounts=_or_null(_of("boolean", "it has the accounts that this proxy has"))),
    "Proxies": _object(
        proxies=_about(_list(_ref("Proxy")), "this one first; gone ones last, for ten minutes"),
        summary=_object(
            **{state.value: _COUNT for state in ProxyState}, in_flight=_COUNT),
        versions=_about(_list(_TEXT), "of those that run, each once"),
        store=_object(
            kind=_or_null(_of("string", "what keeps the state: file, memory, ...; null: nothing")),
            server=_or_null(_of("string", "its host and port; null: it is on this machine")),
            problem=_or_null(_of("string", "why the state is kept in memory only")),
            is_known=_of("boolean", "what the others do is known"))),
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
        state_problem=_STATE_PROBLEM,
        notify=_about(
            _list(_object(
                target=_of("string", "its scheme and host, or its program"),
                problem=_or_null(_of("string", "why the last notification did not arrive")))),
            "where notifications go"),
        accounts_file=_ACCOUNTS_FILE,
        workers=_about(
            _list(_object(number=_COUNT, pid=_COUNT, uptime_s=_SECONDS, busy=_COUNT)),
            "the processes that serve, where there are several; `pid` is that of their launcher")),
}  # fmt: skip

# -- the description

#: What may be answered instead, and when.
_REFUSALS: Mapping[int, str] = {
    400: "The body is not JSON.",
    401: "The admin token is missing or wrong.",
    403: "The request comes from another machine or another page.",
    404: "There is no such account, provider or session.",
    405: "This endpoint does not accept that method.",
    409: "It conflicts with the current state.",
    413: "The body is too long.",
    415: "The body is not application/json.",
    421: "The Host header names another host.",
    422: "The body or the query has a mistake.",
    429: "Too many wrong tokens; wait as Retry-After says.",
    500: "Internal error; the log of the proxy says where.",
    503: "The state database cannot be read.",
}
#: Of every address; those that read need the token when asked from another machine.
_ALWAYS = (401, 403, 405, 421, 429, 500)
_WITH_BODY = (400, 413, 415, 422)

_INFO = """The accounts of the pool, to read and to change.

Served at the proxy's own port, or at http://pool.mitm.it/ through the proxy. Reading from
this machine needs no token; everything else needs `Authorization: Bearer <admin token>`,
which `account-pool status` shows. Secrets are accepted and never returned."""


@cache
def document() -> dict[str, Any]:
    """Return the description. Do not change it."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    for path, name, summary, media_type in (
        ("/metrics", "metrics", "Metrics for Prometheus.", MEDIA_TYPE.partition(";")[0]),
        ("/events", "events", "What the dashboard shows, as server-sent events.", EVENTS),
        ("/openapi.json", "openapi", "This description.", "application/json"),
        ("/", "dashboard", "The dashboard.", "text/html"),
    ):
        good = {"description": "Success.", "content": {media_type: {}}}
        paths[path] = {"get": _read(name, summary, {"200": good, **_refusals(_ALWAYS)})}
    bodies = {e.body.__name__: _plain(e.body) for e in ENDPOINTS if e.body is not None}
    return {
        "openapi": "3.1.0",
        "info": {"title": "account-pool", "version": __version__, "description": _INFO},
        "paths": paths,
        "components": {
            "schemas": {**SCHEMAS, **bodies},
            "securitySchemes": {"adminToken": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    statuses = (*_ALWAYS, *endpoint.refusals)
    if endpoint.body is not None:
        statuses = (*statuses, *_WITH_BODY)
    elif endpoint.query is not None:
        statuses = (*statuses, 422)
    good = {
        "description": "Success.",
        "content": _json(f"#/components/schemas/{endpoint.returns}"),
    }
    operation = _read(
        endpoint.name, endpoint.summary, {str(endpoint.status): good, **_refusals(statuses)}
    )
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": _json(f"#/components/schemas/{endpoint.body.__name__}"),
        }
    if endpoint.body is not None and not endpoint.open:
        operation["security"] = [{"adminToken": []}]
    if parameters := _parameters(endpoint):
        operation["parameters"] = parameters
    return operation


def _read(name: str, summary: str, responses: Mapping[str, Any]) -> dict[str, Any]:
    return {"operationId": name, "summary": summary, "responses": dict(responses)}


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = []
    if "{provider}" in endpoint.path:
        # What stands there for itself is no provider.
        taken = [e.path.rpartition("/")[2] for e in ENDPOINTS if e.path.count("/") > 1 and e.body]
        schema = {"type": "string", "minLength": 1, "not": {"enum": taken}}
        parameters.append({"name": "provider", "in": "path", "required": True, "schema": schema})
    if endpoint.query is not None:
        members = _plain(endpoint.query)["properties"]
        parameters += [
            {"name": name, "in": "query", "required": False, "schema": _unnull(schema)}
            for name, schema in members.items()
        ]
    return parameters


def _unnull(schema: dict[str, Any]) -> dict[str, Any]:
    """Return *schema* without null, which a query cannot say."""
    kept = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    for choice in schema.get("anyOf", ()):
        if choice.get("type") != "null":
            kept = {**choice, **kept}
    return kept


def _plain(shape: type[BaseModel]) -> dict[str, Any]:
    # What a shape refers to stays below it.
    return shape.model_json_schema(
        ref_template=f"#/components/schemas/{shape.__name__}/$defs/{{model}}"
    )


def _json(ref: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": ref}}}


def _refusals(statuses: tuple[int, ...]) -> dict[str, Any]:
    return {
        str(status): {
            "description": _REFUSALS[status],
            "content": _json("#/components/schemas/Error"),
        }
        for status in sorted(set(statuses))
    }
