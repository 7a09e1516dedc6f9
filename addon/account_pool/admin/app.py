"""The ASGI application: its routes, made from `ENDPOINTS`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from account_pool.admin import metrics, workers
from account_pool.admin.auth import SAFE_METHODS
from account_pool.admin.http import AdminRequest, ApiError
from account_pool.admin.models import read_body, read_query
from account_pool.admin.openapi import document
from account_pool.admin.page import dashboard
from account_pool.admin.routes import ENDPOINTS, AdminContext, Endpoint
from account_pool.workers.worker import Link

Handler = Callable[[Request], Awaitable[Response]]
Admit = Callable[[AdminRequest], None]


def make_app(context: AdminContext, admit: Admit) -> Starlette:
    """Return the application.

    Args:
        admit: called before a request is handled; raises ApiError.
    """
    handlers: tuple[tuple[str, str, Handler], ...] = (
        ("GET", "/", _dashboard),
        ("GET", "/openapi.json", _openapi),
        ("GET", "/metrics", _metrics_handler(context)),
        *((e.method, e.path, _handler_of(e, context)) for e in ENDPOINTS),
    )
    # Routes with a parameter come after literal ones, and a literal one matches any method:
    # /account-pool/add is not a provider, for a GET either.
    handlers = tuple(sorted(handlers, key=lambda one: "{" in one[1]))
    routes = [Route(path, _Route(method, handler, admit)) for method, path, handler in handlers]
    app = Starlette(
        routes=routes,
        exception_handlers={ApiError: _refused, HTTPException: _not_found},
    )
    app.router.redirect_slashes = False
    return app


class _Route:
    """One route: takes one method, and only requests that *admit* accepts."""

    def __init__(
        self, method: str, handler: Handler, admit: Callable[[AdminRequest], None]
    ) -> None:
        self._methods = sorted(SAFE_METHODS) if method in SAFE_METHODS else [method]
        self._handler = handler
        self._admit = admit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.method not in self._methods:
            raise HTTPException(405, headers={"allow": ", ".join(self._methods)})
        if not scope["admin_request"].of_worker:
            self._admit(scope["admin_request"])
        response = await self._handler(request)
        await response(scope, receive, send)


def _handler_of(endpoint: Endpoint, context: AdminContext) -> Handler:
    async def handle(request: Request) -> Response:
        asked = await _asked(endpoint, request)
        sent: AdminRequest = request.scope["admin_request"]
        if sent.of_worker and endpoint.name in workers.FOLLOWED:
            return JSONResponse(await workers.follow(endpoint.name, context, asked))
        given = (asked, sent) if endpoint.sender else (asked,)
        said = await endpoint.handler(context, *given)
        if context.link is not None and not sent.of_worker:
            said = await _of_all(endpoint, context.link, sent, said, asked)
        return JSONResponse(said, endpoint.status)

    return handle


async def _of_all(endpoint: Endpoint, link: Link, sent: AdminRequest, mine: Any, asked: Any) -> Any:
    """Return what all workers say, or have the others do what this one has done."""
    if endpoint.name in workers.FOLLOWED:
        await link.ask(sent.for_workers())
    elif endpoint.name in workers.MERGED:
        said = await link.ask(sent.for_workers())
        others = [one for one in said.values() if "error" not in one]
        return workers.MERGED[endpoint.name](mine, others, asked)
    return mine


async def _asked(endpoint: Endpoint, request: Request) -> Any:
    if endpoint.body is not None:
        return read_body(endpoint.body, await request.body())
    if endpoint.query is not None:
        return read_query(endpoint.query, request.query_params.multi_items())
    return request.path_params.get("provider")


async def _dashboard(_request: Request) -> Response:
    page = dashboard()
    return Response(page.body, headers=dict(page.headers))


async def _openapi(_request: Request) -> Response:
    return JSONResponse(document())


def _metrics_handler(context: AdminContext) -> Handler:
    async def handle(request: Request) -> Response:
        # Read in one go; formatted in a thread, while requests go on.
        families = list(metrics.read(context.service, context.decision_counter))
        sent: AdminRequest = request.scope["admin_request"]
        if sent.of_worker:
            return JSONResponse(workers.values(families))
        if context.link is not None:
            mine = workers.values(families)
            said = await context.link.ask(sent.for_workers(), mine=mine)
            families = workers.merge_metrics(families, said.values())
        text = await asyncio.to_thread(metrics.written, families)
        return Response(text, media_type=metrics.MEDIA_TYPE)

    return handle


async def _refused(_request: Request, error: Exception) -> Response:
    refused = cast(ApiError, error)
    return JSONResponse(refused.as_dict(), refused.status, headers=dict(refused.headers))


async def _not_found(request: Request, error: Exception) -> Response:
    """Return an error response of ours for an unknown path, or a wrong method for it."""
    found = cast(HTTPException, error)
    if found.status_code == 405:
        refused = ApiError(405, "wrong_method", "this endpoint does not accept that method")
    else:
        refused = ApiError(404, "not_found", "there is no such endpoint; see /openapi.json")
    response = await _refused(request, refused)
    response.headers.update(found.headers or {})
    return response
