"""The description of the admin API (OpenAPI 3.1), made from the table of endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from account_pool import __version__
from account_pool.admin.events import MEDIA_TYPE as EVENTS
from account_pool.admin.metrics import MEDIA_TYPE
from account_pool.admin.routes import ENDPOINTS, Endpoint
from account_pool.admin.schemas import SCHEMAS

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
