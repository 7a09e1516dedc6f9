"""A token endpoint that means it: each refresh token is worth one refresh.

`TokenServer` is the endpoint without a network; `serve` puts it on loopback.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

from account_pool.credentials.http import HttpResponse

FIRST = "rt-0"


@dataclass
class TokenServer:
    """Gives out at-N and rt-N; remembers what it was asked with.

    Attributes:
        life_s: of an access token; None: not said.
        rotates: whether a refresh token is worth one refresh only.
        refusals: (status, JSON or text) to answer with first, in order.
    """

    life_s: float | None = 3600
    rotates: bool = True
    refusals: list[tuple[int, Any]] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    newest: str = FIRST
    count: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, fields: dict[str, str]) -> HttpResponse:
        """Return the response to a refresh. Raises ConnectionError: there is none."""
        with self.lock:
            self.asked.append(fields)
            if self.refusals:
                status, body = self.refusals.pop(0)
                return said(status, body)
            if fields.get("refresh_token") != self.newest:
                self.reused.append(fields.get("refresh_token", ""))
                return said(400, {"error": {"code": "refresh_token_reused", "message": "used"}})
            self.count += 1
            body = {"access_token": f"at-{self.count}"}
            if self.rotates:
                self.newest = body["refresh_token"] = f"rt-{self.count}"
            return said(200, body | ({} if self.life_s is None else {"expires_in": self.life_s}))

    def post(
        self, _url: str, headers: dict[str, str], content: bytes, sending: Callable[[], None]
    ) -> HttpResponse:
        sending()
        return self.answer(fields_of(headers["content-type"], content))


def said(status: int, body: Any, **headers: str) -> HttpResponse:
    text = body if isinstance(body, str) else json.dumps(body)
    return HttpResponse(status=status, headers=headers, body=text.encode())


def fields_of(content_type: str, content: bytes) -> dict[str, str]:
    if content_type == "application/json":
        return dict(json.loads(content))
    assert content_type == "application/x-www-form-urlencoded"
    return dict(parse_qsl(content.decode(), strict_parsing=True))


@contextmanager
def serve(server: TokenServer) -> Iterator[str]:
    """Serve *server* on loopback, from threads; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            # Also where whoever asked is gone.
            with suppress(ConnectionError):
                answer = server.answer(fields_of(self.headers["content-type"], content))
                self.send_response(answer.status)
                self.send_header("content-length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            """Tests look at `asked`."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}/oauth/token"
        finally:
            http.shutdown()
            thread.join()
