"""The ASGI application: its routes, made from `ENDPOINTS`, and the dashboard as one page."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib import resources
from typing import Any, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from account_pool.admin import events, metrics, workers
from account_pool.admin.auth import SAFE_METHODS
from account_pool.admin.events import Broadcaster
from account_pool.admin.http import STREAM, AdminRequest, ApiError
from account_pool.admin.models import DecisionsQuery, read_body, read_query
from account_pool.admin.openapi import document
from account_pool.admin.routes import ENDPOINTS, AdminContext, Endpoint
from account_pool.store.store import StoreError

Handler = Callable[[Request], Awaitable[Response]]
Admit = Callable[[AdminRequest], None]

#: How long a scrape waits for what requests cost, seconds: Prometheus gives up after 10, and a
#: disk that hangs is when the other figures are wanted.
COSTS_S = 3.0


def make_app(context: AdminContext, admit: Admit) -> Starlette:
    """Return the application; *admit*, called before a request is handled, raises ApiError."""
    handlers: tuple[tuple[str, str, Handler], ...] = (
        ("GET", "/", _dashboard),
        ("GET", "/openapi.json", _openapi),
        ("GET", "/metrics", _metrics_handler(context)),
        ("GET", "/events", _events_handler(context)),
        *((e.method, e.path, _handler_of(e, context)) for e in ENDPOINTS),
    )
    # Routes with a parameter come after literal ones, and a literal one matches any method:
    # /account-pool/add is not a provider, for a GET either.
    handlers = tuple(sorted(handlers, key=lambda one: "{" in one[1]))
    routes = [Route(path, _Route(method, handler, admit)) for method, path, handler in handlers]
    app = Starlette(
        routes=routes,
        exception_handlers={
            ApiError: _refused,
            HTTPException: _not_found,
            StoreError: _without_state,
        },
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
        return JSONResponse(await _said(endpoint, context, sent, asked), endpoint.status)

    return handle


async def _said(endpoint: Endpoint, context: AdminContext, sent: AdminRequest, asked: Any) -> Any:
    """Return what all workers say, or have the others do what this one has done."""
    given = (asked, sent) if endpoint.sender else (asked,)
    mine, link = await endpoint.handler(context, *given), context.link
    if link is None or sent.of_worker:
        return mine
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
    return dashboard()


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
        # Of all proxies together already.
        with suppress(StoreError, TimeoutError):
            async with asyncio.timeout(COSTS_S):
                families += metrics.costs(await context.counted("usage"))
        text = await asyncio.to_thread(metrics.written, families)
        return Response(text, media_type=metrics.MEDIA_TYPE)

    return handle


class _EventStream(Response):
    """Hands its chunks over to the server, instead of a body."""

    media_type = events.MEDIA_TYPE

    def __init__(self, chunks: AsyncGenerator[bytes]) -> None:
        super().__init__()
        self._chunks = chunks
        # It has no end that is known.
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        if scope["method"] != "HEAD":
            await send({"type": STREAM, "chunks": self._chunks})


def _events_handler(context: AdminContext) -> Handler:
    named = {endpoint.name: endpoint for endpoint in ENDPOINTS}

    async def said(name: str, target: str, asked: Any) -> Any:
        sent = AdminRequest(method="GET", target=target, headers=(), peer="", address=("", 0))
        return await _said(named[name], context, sent, asked)

    async def read() -> tuple[Any, Any, Any, Any]:
        latest = read_query(DecisionsQuery, [("limit", str(events.MAX_DECISIONS))])
        decisions = await said("decisions", f"/decisions?limit={latest.limit}", latest)
        pool, health, proxies = (
            await said("accounts", "/account-pool", None),
            await said("health", "/health", None),
            await said("proxies", "/proxies", None),
        )
        return pool, health, proxies, decisions["decisions"]

    broadcaster = Broadcaster(read)
    context.service.pool.decisions.subscribe(lambda _decision: broadcaster.stir())
    context.service.at_stop.append(broadcaster.stop)

    async def handle(_request: Request) -> Response:
        return _EventStream(broadcaster.listen())

    return handle


async def _refused(_request: Request, error: Exception) -> Response:
    refused = cast(ApiError, error)
    return JSONResponse(refused.as_dict(), refused.status, headers=dict(refused.headers))


async def _without_state(request: Request, error: Exception) -> Response:
    return await _refused(request, ApiError(503, "no_state", str(error)))


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


# -- the dashboard: markup, style and scripts put together. The page loads nothing from anywhere
# and runs nothing but what is in it: its policy names the hashes of its own style and script (CSP
# level 3, section 2.3.1).

#: In the order they are run; they share one scope.
SCRIPTS = (
    *("dom", "api", "live", "standing", "fleet", "accounts"),
    *("drawer", "activity", "charts", "add", "main"),
)


@cache
def dashboard() -> Response:
    """Return the page and the policies that hold for it; it is put together once."""
    style = _read("style.css")
    script = "\n".join(_read(f"{name}.js") for name in SCRIPTS)
    html = _read("page.html").replace("{{style}}", style).replace("{{script}}", script)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    headers = {"content-security-policy": policy, "cross-origin-opener-policy": "same-origin"}
    return Response(html, headers=headers, media_type="text/html")


def _read(name: str) -> str:
    return (resources.files(__package__) / "dashboard" / name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
