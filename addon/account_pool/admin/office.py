"""A visit from the door to its answer.

The pages are imported with the first visit, in a thread: a proxy that nobody looks at
starts without them, and no request waits for it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from account_pool.admin.refused import Refused
from account_pool.admin.security import (
    Door,
    Rules,
    check_body,
    check_place,
    check_reveal,
    needs_token,
)
from account_pool.admin.visit import Reply, Visit
from account_pool.supervision import tasks

if TYPE_CHECKING:
    from starlette.applications import Starlette

logger = logging.getLogger(__name__)

#: Of every answer: nothing is kept, sniffed, framed, or read by other pages.
HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


@dataclass(slots=True, eq=False)
class Office:
    """Answers visits.

    Attributes:
        door: knows the admin token.
        rules: returns what is allowed now.
        now: the monotonic clock, seconds.
        make_app: imports and makes the pages, with *admit*; called once, in a thread.
    """

    door: Door
    rules: Callable[[], Rules]
    now: Callable[[], float]
    make_app: Callable[[Callable[[Visit], None]], Starlette]
    _app: asyncio.Task[Starlette | None] | None = None

    async def answer(self, visit: Visit) -> Reply:
        """Return the answer to *visit*. Raises nothing: what fails is told as a 500."""
        try:
            check_place(visit, self.rules())
            return await _ask(await self._pages(), visit)
        except Refused as refused:
            return _reply(refused)
        except Exception as e:
            # Where, not what: its text may quote what was sent.
            at = traceback.extract_tb(e.__traceback__)[-1]
            where = f"{at.filename}:{at.lineno} {at.name}"
            logger.error(f"account-pool: {type(e).__name__} in an admin page at {where}")
            return _reply(Refused(500, "internal", "internal error; see the log of the proxy"))

    def admit(self, visit: Visit) -> None:
        """Raise Refused unless the visitor may have what is at the address it asks for."""
        rules = self.rules()
        if needs_token(visit, rules):
            self.door.check(visit, self.now())
        check_reveal(visit, rules)
        check_body(visit)

    async def _pages(self) -> Starlette:
        if self._app is None:
            self._app = tasks.once(
                "making the admin pages", lambda: asyncio.to_thread(self.make_app, self.admit)
            )
        app = await asyncio.shield(self._app)
        if app is None:
            self._app = None  # the next visitor has it tried again
            raise RuntimeError("the admin pages could not be made")
        return app


async def _ask(app: Starlette, visit: Visit) -> Reply:
    """Call *app* as an ASGI server does (ASGI 3.0, HTTP)."""
    status, headers, body = 500, [], bytearray()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(visit.body), "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], list(message.get("headers", ()))
        else:
            body.extend(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": visit.method,
        "scheme": "https" if visit.tls else "http",
        "path": visit.path,
        "query_string": visit.query.encode("utf-8", "replace"),
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in visit.headers],
        "client": (visit.peer, 0),
        "server": visit.address,
        "visit": visit,
    }
    await app(scope, receive, send)
    return Reply(status, _completed(headers), bytes(body))


def _completed(headers: list[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """Return *headers* with those of every answer; a page's own policy is stricter."""
    names = {name for name, _ in headers}
    return (*headers, *(pair for pair in HEADERS if pair[0] not in names))


def _reply(refused: Refused) -> Reply:
    own = [(name.encode(), value.encode()) for name, value in refused.headers.items()]
    headers = [(b"content-type", b"application/json"), *own]
    return Reply(refused.status, _completed(headers), json.dumps(refused.as_dict()).encode())
