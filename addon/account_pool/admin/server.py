"""From a request to the proxy itself to its response.

The ASGI application is imported with the first request, in a thread: the proxy starts
without it, and no other request waits for the import.
"""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from account_pool.admin.auth import (
    Rules,
    TokenGuard,
    check_body,
    check_place,
    check_reveal,
    needs_token,
)
from account_pool.admin.http import (
    STREAM,
    AdminRequest,
    AdminResponse,
    ApiError,
    error_response,
)
from account_pool.supervision import tasks

if TYPE_CHECKING:
    from starlette.applications import Starlette

logger = logging.getLogger(__name__)

#: In every response: nothing is stored, sniffed, framed, or read by other pages.
HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


class AdminServer(Struct, eq=False):
    """Answers requests to the proxy itself.

    Attributes:
        rules: returns what is allowed now.
        make_app: imports and makes the application, with `admit`; called in a thread, once
            unless it fails.
    """

    guard: TokenGuard
    rules: Callable[[], Rules]
    now: Callable[[], float]
    make_app: Callable[[Callable[[AdminRequest], None]], Starlette]
    _app: asyncio.Task[Starlette | None] | None = None

    async def answer(self, request: AdminRequest) -> AdminResponse:
        """Return the response to *request*. Raises nothing: an error becomes a 500."""
        try:
            check_place(request, self.rules())
            response = await _ask(await self._pages(), request)
            if response.chunks is not None:
                response = replace(response, chunks=self._while_admitted(request, response.chunks))
            return _completed(response)
        except ApiError as refused:
            return _completed(error_response(refused))
        except Exception as e:
            # Where, not what: its text may quote what was sent.
            at = traceback.extract_tb(e.__traceback__)[-1]
            where = f"{at.filename}:{at.lineno} {at.name}"
            logger.error(f"account-pool: {type(e).__name__} in an admin page at {where}")
            internal = ApiError(500, "internal", "internal error; see the log of the proxy")
            return _completed(error_response(internal))

    async def answer_worker(self, what: str) -> Any:
        """Return what another worker asks for (`admin/workers.py`), as JSON values."""
        asked = json.loads(what)
        request = AdminRequest(
            method=asked["method"],
            target=asked["target"],
            headers=((b"content-type", b"application/json"),),
            peer="",
            address=("", 0),
            body=bytearray(asked["body"].encode()),
            of_worker=True,
        )
        return json.loads((await _ask(await self._pages(), request)).body)

    def admit(self, request: AdminRequest) -> None:
        """Raise ApiError unless the client may send *request*."""
        rules = self.rules()
        if needs_token(request, rules):
            self.guard.check(request, self.now())
        check_reveal(request, rules)
        check_body(request)

    async def _while_admitted(
        self, request: AdminRequest, chunks: AsyncGenerator[bytes]
    ) -> AsyncGenerator[bytes]:
        """Pass *chunks* on for as long as *request* would be accepted: rules change."""
        try:
            async for chunk in chunks:
                try:
                    check_place(request, self.rules())
                    self.admit(request)
                except ApiError:
                    return
                yield chunk
        finally:
            await chunks.aclose()

    async def _pages(self) -> Starlette:
        if self._app is None:
            self._app = tasks.once(
                "making the admin pages", lambda: asyncio.to_thread(self.make_app, self.admit)
            )
        app = await asyncio.shield(self._app)
        if app is None:
            self._app = None  # the next request tries again
            raise RuntimeError("the admin pages could not be made")
        return app


async def _ask(app: Starlette, request: AdminRequest) -> AdminResponse:
    """Call *app* as an ASGI server does (ASGI 3.0, HTTP)."""
    status, headers, body, chunks = 500, [], bytearray(), None

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(request.body), "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status, headers, chunks
        if message["type"] == "http.response.start":
            status, headers = message["status"], list(message.get("headers", ()))
        elif message["type"] == STREAM:
            chunks = message["chunks"]
        else:
            body.extend(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "https" if request.tls else "http",
        "path": request.path,
        "query_string": request.query.encode("utf-8", "replace"),
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers],
        "client": (request.peer, 0),
        "server": request.address,
        "admin_request": request,
        "extensions": {STREAM: {}},
    }
    await app(scope, receive, send)
    return AdminResponse(status, tuple(headers), bytes(body), chunks)


def _completed(response: AdminResponse) -> AdminResponse:
    """Return *response* with the headers of every response, except those that it sets itself."""
    names = {name for name, _ in response.headers}
    missing = (pair for pair in HEADERS if pair[0] not in names)
    return replace(response, headers=(*response.headers, *missing))
