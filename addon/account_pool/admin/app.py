"""The pages: which address is answered by what, made from `ENDPOINTS`."""

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

from account_pool.admin import metrics
from account_pool.admin.bodies import read_body, read_query
from account_pool.admin.desk import Desk
from account_pool.admin.endpoints import ENDPOINTS, Endpoint
from account_pool.admin.openapi import document
from account_pool.admin.page import dashboard
from account_pool.admin.refused import Refused
from account_pool.admin.security import READING
from account_pool.admin.visit import Visit

Page = Callable[[Request], Awaitable[Response]]


def make_app(desk: Desk, admit: Callable[[Visit], None]) -> Starlette:
    """Return the pages.

    Args:
        admit: called before anything is answered; raises Refused.
    """
    pages: tuple[tuple[str, str, Page], ...] = (
        ("GET", "/", _dashboard),
        ("GET", "/openapi.json", _openapi),
        ("GET", "/metrics", _metrics_of(desk)),
        *((e.method, e.path, _page_of(e, desk)) for e in ENDPOINTS),
    )
    # What stands for a name comes after the names themselves, and those take any method:
    # /account-pool/add is no provider for a GET.
    pages = tuple(sorted(pages, key=lambda page: "{" in page[1]))
    routes = [Route(path, _Address(method, page, admit)) for method, path, page in pages]
    app = Starlette(
        routes=routes,
        exception_handlers={Refused: _refused, HTTPException: _not_found},
    )
    app.router.redirect_slashes = False
    return app


class _Address:
    """One address: takes one method, and lets in whom it may."""

    def __init__(self, method: str, page: Page, admit: Callable[[Visit], None]) -> None:
        self._methods = sorted(READING) if method in READING else [method]
        self._page = page
        self._admit = admit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.method not in self._methods:
            raise HTTPException(405, headers={"allow": ", ".join(self._methods)})
        self._admit(scope["visit"])
        answer = await self._page(request)
        await answer(scope, receive, send)


def _page_of(endpoint: Endpoint, desk: Desk) -> Page:
    async def answer(request: Request) -> Response:
        asked = await _asked(endpoint, request)
        return JSONResponse(await endpoint.answer(desk, asked), endpoint.status)

    return answer


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


def _metrics_of(desk: Desk) -> Page:
    async def answer(_request: Request) -> Response:
        # Read at one moment; written while requests go on.
        families = list(metrics.read(desk.service, desk.decided))
        text = await asyncio.to_thread(metrics.written, families)
        return Response(text, media_type=metrics.MEDIA_TYPE)

    return answer


async def _refused(_request: Request, error: Exception) -> Response:
    refused = cast(Refused, error)
    return JSONResponse(refused.as_dict(), refused.status, headers=dict(refused.headers))


async def _not_found(request: Request, error: Exception) -> Response:
    """Say in our own words that there is no such address, or no such method for it."""
    found = cast(HTTPException, error)
    if found.status_code == 405:
        refused = Refused(405, "wrong_method", "this endpoint does not accept that method")
    else:
        refused = Refused(404, "not_found", "there is no such endpoint; see /openapi.json")
    answer = await _refused(request, refused)
    answer.headers.update(found.headers or {})
    return answer
