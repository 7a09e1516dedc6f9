"""The bytes a client sends: a chat completion, and the wish that tells what to answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

#: what a client holds before the pool has done anything
CLIENT_CREDENTIAL = "sk-bench-client"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How a good answer shall look; travels in the header `x-bench`.

    Attributes:
        name: of the stream, unique in a measurement; its text is made from it.
        chunks: events of the stream; 0 for a small JSON answer.
        interval_ms: between two events.
        delay_ms: before an answer of any kind begins.
        size: bytes of a JSON answer; 0 for a small one.
        held: the event from which on each waits until somebody asks for it; 0 for none.
    """

    name: str = ""
    chunks: int = 0
    interval_ms: int = 0
    delay_ms: int = 0
    size: int = 0
    held: int = 0

    def __str__(self) -> str:
        return ";".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))

    @classmethod
    def parse(cls, text: str) -> Wish:
        """Read what `str()` wrote."""
        values = dict(pair.split("=", 1) for pair in text.split(";"))
        name = values.pop("name")
        return cls(name=name, **{key: int(value) for key, value in values.items()})


def chat(port: int, wish: Wish | None = None, *, model: str = "gpt-5", text: str = "Hi") -> bytes:
    """Return a request for a chat completion at `localhost:port`.

    Conversations that shall not be taken for one another need a *text* of their own.
    """
    wish = wish or Wish()
    body = json.dumps(
        {
            "model": model,
            "stream": wish.chunks > 0,
            "messages": [
                {"role": "system", "content": "You answer in one sentence."},
                {"role": "user", "content": text},
            ],
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost:{port}\r\n"
        f"accept: {'text/event-stream' if wish.chunks else 'application/json'}\r\n"
        "accept-encoding: identity\r\nconnection: keep-alive\r\nuser-agent: benchmark/1\r\n"
        f"authorization: Bearer {CLIENT_CREDENTIAL}\r\nx-bench: {wish}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
